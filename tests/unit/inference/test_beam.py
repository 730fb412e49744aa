"""Beam search equals a search without a cache, over every kind of cache; its own rules in small.

That it is the search of `transformers`: tests/numerics/test_generation_transformers.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generation import PROMPTS, SOURCES, make, sources_of

from triune.errors import UserError
from triune.inference import beam_search, generate, stream

NEW, BEAMS = 9, 3
PATTERNS: dict[str, dict[str, Any]] = {
    "everything": {},
    "ring": {"attention.pattern": "window(2, 0)"},
    "ring with first tokens": {"attention.pattern": "window(2, 0) | prefix(1) & causal()"},
    "a ring and everything": {"attention.pattern": ["window(3, 0)", "causal()"], "key_value_heads": 2},
}


@torch.no_grad()
def searched(model: Any, prompt: list[int], source: list[int] | None, eos: int) -> list[tuple[list[int], float]]:
    """The same search in plain words: each row is read from its start for every token; texts end at eos or at NEW tokens."""
    rows, complete = [([], 0.0)], []
    for length in range(1, NEW + 1):
        candidates = []
        for ids, score in rows:
            given = {} if source is None else {"source": torch.tensor([source])}
            logits = model.head.logits(model(torch.tensor([prompt + ids]), **given))[0, -1].log_softmax(-1)
            candidates += [([*ids, token], score + value) for token, value in enumerate(logits.tolist())]
        candidates.sort(key=lambda found: -found[1])
        for rank, (ids, score) in enumerate(candidates[: 2 * BEAMS]):
            if rank < BEAMS and (ids[-1] == eos or length == NEW):
                complete.append((ids, score / length))
        complete = sorted(complete, key=lambda found: -found[1])[:BEAMS]
        rows = [found for found in candidates[: 2 * BEAMS] if found[0][-1] != eos][:BEAMS]
        if len(complete) == BEAMS and rows[0][1] / length <= complete[-1][1]:
            break
    return complete


@pytest.mark.parametrize("overrides", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_a_search_over_caches_is_one_without(family: str, overrides: dict[str, Any]) -> None:
    model = make(family, **overrides).eval()
    free = beam_search(model, PROMPTS[:1], beams=BEAMS, max_new_tokens=NEW, **sources_of(family, SOURCES[:1]))
    eos = free[0][0].ids[NEW // 2]
    found = beam_search(
        model, PROMPTS, eos=eos, beams=BEAMS, n_best=BEAMS, max_new_tokens=NEW, **sources_of(family, SOURCES)
    )
    for row, (prompt, source) in enumerate(zip(PROMPTS, SOURCES, strict=True)):
        expected = searched(model, prompt, source if family == "encoder_decoder" else None, eos)
        assert [beam.ids for beam in found[row]] == [ids for ids, _ in expected]
        # fp32 sums of 9 log-probabilities of some nats
        assert [beam.score for beam in found[row]] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert len({len(beam.ids) for row in found for beam in row}) > 1


def test_keys_of_the_memory_are_computed_once_and_never_moved() -> None:
    model = make("encoder_decoder")
    calls: list[int] = []
    for block in model.decoder.blocks:
        block.cross_attention.key_value.register_forward_hook(lambda *_: calls.append(1))
    beam_search(model, PROMPTS, sources=SOURCES, beams=3, max_new_tokens=6)
    assert len(calls) == len(model.decoder.blocks)


def test_a_stop_ends_a_beam() -> None:
    model = make("decoder")
    free = beam_search(model, PROMPTS[:1], beams=2, max_new_tokens=8)[0][0].ids
    found = beam_search(
        model, PROMPTS[:1], beams=2, n_best=2, max_new_tokens=8, ending=lambda row: row == free[:3], length_penalty=-9.0
    )  # the penalty makes the shortest the best
    assert found[0][0].ids == free[:3]
    assert len(found[0][1].ids) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"beams": 2, "n_best": 3}, "n_best is 3, but a search over 2 beams"),
        ({"n_best": 2}, "one text: set beams"),
        ({"beams": 0}, "beams is 0, but it must be at least 1"),
        ({"early_stopping": "sometimes"}, "early_stopping is 'sometimes'"),
        ({"min_new_tokens": 9}, "min_new_tokens is 9, but it must be from 0 to max_new_tokens"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0, but it must be above 0"),
        ({"stop": ("",)}, "at least one character"),
        ({"beam": 2}, "beam is no setting of generation; did you mean 'beams'"),
        ({"temperature": 1.0, "n_best": 2}, "generate gives one text a prompt"),
    ],
)
def test_mistakes_say_what_to_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(make("decoder"), [[1, 2]], **{"max_new_tokens": 4, **options})


def test_a_search_does_not_stream() -> None:
    with pytest.raises(UserError, match="stream with beams=1"):
        stream(make("decoder"), PROMPTS, beams=2)

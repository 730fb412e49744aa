"""Generation over the key/value cache equals plain decoding; sampling keeps the right set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.inference import fill, generate, generation
from triune.inference.filling import filled
from triune.inference.logits import choose, keep_top_k, keep_top_p
from triune.models.factory import build

torch.set_num_threads(1)

TINY: dict[str, Any] = {"vocabulary": 50, "context": 40, "width": 32, "layers": 2, "heads": 4}
POSITIONS = ["rotary", "learned", "sinusoidal", "alibi", "t5", "none"]
PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]
SOURCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]


def make(family: str, position: str = "rotary", **overrides: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    # a vocabulary of its own: a shared one would repeat the last token for ever
    model = build(TINY, family=family, position={"kind": position}, tie_embeddings=False, **overrides)
    with torch.no_grad():  # far from the small weights of the start, so that texts differ and no two scores are near
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return model


def sources_of(family: str, rows: list[list[int]]) -> dict[str, Any]:
    return {"sources": rows} if family == "encoder_decoder" else {}


def slowly(model: torch.nn.Module, prompt: list[int], source: list[int] | None, count: int) -> list[int]:
    """Argmax over the whole row again for every token, without cache or padding."""
    model.eval()
    row = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            given = {} if source is None else {"source": torch.tensor([source])}
            row.append(int(model.head.logits(model(torch.tensor([row]), **given))[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_greedy_over_the_cache_is_plain_decoding_in_any_batch(family: str, position: str) -> None:
    model = make(family, position)
    together = generate(model, PROMPTS, max_new_tokens=12, **sources_of(family, SOURCES))
    encoded = SOURCES if family == "encoder_decoder" else [None] * 3
    assert together == [slowly(model, *pair, 12) for pair in zip(PROMPTS, encoded, strict=True)]
    alone = [
        generate(model, [prompt], max_new_tokens=12, **sources_of(family, [source]))[0]
        for prompt, source in zip(PROMPTS, SOURCES, strict=True)
    ]
    assert together == alone
    assert len({tuple(row) for row in together}) == 3


@pytest.mark.parametrize(
    "overrides", [{"attention.pattern": "window(2, 0)"}, {"key_value_heads": 2}], ids=["window", "grouped"]
)
def test_patterns_and_grouped_heads(overrides: dict[str, Any]) -> None:
    model = make("decoder", **overrides)
    assert generate(model, PROMPTS, max_new_tokens=12) == [slowly(model, prompt, None, 12) for prompt in PROMPTS]


def test_rows_stop_at_eos_and_the_batch_at_the_last() -> None:
    model = make("decoder")
    free = generate(model, PROMPTS, max_new_tokens=12)
    eos = free[0][4]
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    stopped = generate(model, PROMPTS, max_new_tokens=12, eos=eos)
    expected = [row[: row.index(eos) + 1] if eos in row else row for row in free]
    assert stopped == expected
    calls.clear()
    assert generate(model, PROMPTS[:1], max_new_tokens=12, eos=eos) == expected[:1]
    assert len(calls) == len(expected[0])  # the token that ends is not read again


def test_a_row_that_ended_stays_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([[1, 1], [9, 1], [1, 1], [1, 9], [1, 1]])
    monkeypatch.setattr(generation, "choose", lambda scores, **_: torch.tensor(next(script)))
    assert generate(make("decoder"), PROMPTS[:2], max_new_tokens=5, eos=9) == [[1, 9], [1, 1, 1, 9]]
    assert next(script) == [1, 1]  # not drawn: all rows had ended


def test_the_pad_token_does_not_matter() -> None:
    model = make("encoder_decoder")
    texts = [generate(model, PROMPTS, sources=SOURCES, max_new_tokens=8, pad=pad) for pad in (0, 49)]
    assert texts[0] == texts[1]


def test_seeds_reproduce() -> None:
    model = make("decoder")

    def text(seed: int | None, **options: Any) -> list[list[int]]:
        return generate(model, PROMPTS, max_new_tokens=12, temperature=2.0, seed=seed, **options)

    assert text(1) == text(1)
    assert text(1) != text(2)
    torch.manual_seed(5)
    first = text(None)
    assert text(None) != first
    torch.manual_seed(5)
    assert text(None) == first
    # one candidate leaves nothing to draw
    greedy = generate(model, PROMPTS, max_new_tokens=12)
    assert text(3, top_k=1) == text(4, top_p=1e-6) == greedy


SCORES = st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(SCORES, st.integers(1, 14))
def test_top_k_keeps_the_k_best(scores: list[float], count: int) -> None:
    kept = keep_top_k(torch.tensor([scores], dtype=torch.float64), count)[0]
    best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:count]
    assert kept.isfinite().nonzero().flatten().tolist() == sorted(best)
    assert kept[best].tolist() == [scores[index] for index in best]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(SCORES, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_hold_the_share(scores: list[float], share: float) -> None:
    tensor = torch.tensor([scores], dtype=torch.float64)
    kept = keep_top_p(tensor, share)[0].isfinite()
    probability = tensor[0].softmax(-1)
    assert probability[kept].sum() >= share - 1e-12
    assert probability[kept].sum() - probability[kept].min() < share + 1e-12  # one fewer would not do
    if not kept.all():
        assert probability[kept].min() >= probability[~kept].max()


def test_drawn_tokens_follow_the_probabilities() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, 4)
    drawn = choose(scores, temperature=0.5, top_k=3, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / 20_000
    expected = torch.tensor([4.0, 2.0, 0.0, -torch.inf]).softmax(-1)
    # three standard deviations of a share are at most 3 * 0.5 / sqrt(20,000) = 0.011
    torch.testing.assert_close(share, expected, rtol=0, atol=0.011)
    assert share[3] == 0


def test_all_are_kept_by_default() -> None:
    scores = torch.randn(2, 9)
    assert keep_top_k(scores, 0) is scores
    assert keep_top_p(scores, 1.0) is scores


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model = make("decoder", dropout=0.5).train()
    assert generate(model, PROMPTS, max_new_tokens=8) == generate(model, PROMPTS, max_new_tokens=8)
    assert model.training
    with pytest.raises(UserError):
        generate(model, [[]], max_new_tokens=8)
    assert model.training


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("encoder", {}, "use fill"),
        ("decoder", {"sources": [[1]]}, "a decoder takes none"),
        ("encoder_decoder", {}, "needs the ids that its encoder reads"),
        ("encoder_decoder", {"sources": [[1], [2]]}, "2 were given for 1 prompts"),
        ("decoder", {"prompts": []}, "there are none"),
        ("decoder", {"prompts": [[1], []]}, "number 1 is empty"),
        ("decoder", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("decoder", {"temperature": -1.0}, "temperature is -1"),
        ("decoder", {"top_k": -1}, "top_k is -1"),
        ("decoder", {"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_mistakes_say_what_to_do(family: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(make(family), **{"prompts": [[1, 2]], "max_new_tokens": 4, **options})


def test_a_learned_position_table_ends() -> None:
    model = make("decoder", "learned")
    assert len(generate(model, [[1, 2]], max_new_tokens=39)[0]) == 39
    with pytest.raises(UserError, match=r"has room for 39"):
        generate(model, [[1, 2]], max_new_tokens=40)
    assert len(generate(make("decoder"), [[1, 2]], max_new_tokens=45)[0]) == 45


# ---- masks ------------------------------------------------------------------------------------------------------------

MASK = 49


def test_masks_are_filled_as_if_alone() -> None:
    model = make("encoder")
    rows = [[1, MASK, 3, MASK, 5], [MASK, 7], [8, 9]]
    blanks = fill(model, rows, mask=MASK, pad=MASK, candidates=3)
    assert [[blank.position for blank in row] for row in blanks] == [[1, 3], [0], []]
    for row, found in zip(rows[:2], blanks[:2], strict=True):
        model.eval()
        with torch.no_grad():
            probability = model.head.logits(model(torch.tensor([row])))[0].softmax(-1)
        for blank in found:
            best = probability[blank.position].topk(3)
            assert blank.ids == best.indices.tolist()
            # fp32, 32 wide: rounding of a sum in another order, some 1e-6
            assert blank.probabilities == pytest.approx(best.values.tolist(), rel=1e-4)
    assert filled(rows, blanks) == [
        [1, blanks[0][0].ids[0], 3, blanks[0][1].ids[0], 5],
        [blanks[1][0].ids[0], 7],
        [8, 9],
    ]
    with pytest.raises(UserError, match="use generate"):
        fill(make("decoder"), rows, mask=MASK)
    with pytest.raises(UserError, match="candidates is 0"):
        fill(model, rows, mask=MASK, candidates=0)


def test_a_model_with_a_head_of_classes_writes_nothing():
    model = build({"vocabulary": 40, "width": 32, "layers": 1, "heads": 4}, family="decoder", head={"kind": "classes"})
    with pytest.raises(UserError, match="its head scores classes"):
        generate(model, [[1, 2]], max_new_tokens=2)

"""Copies of weights in another order give the same scores and texts, and leave the model as it was.

fp32 sums of at most 128 products of values near 1 in another order: 1e-4.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generation import PROMPTS, SOURCES, make, sources_of

from triune.inference import beam_search, generate
from triune.inference import packed as module
from triune.inference.packed import packed


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_TOKENS", 1)
    monkeypatch.setattr(module, "LEAST_BYTES", 1)


def patched(model: Any) -> int:
    return sum("forward" in one.__dict__ for one in model.modules())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{}, {"head.bias": True, "bias": False}], ids=["biased", "unbiased"])
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_scores_and_texts_are_the_same(
    family: str, options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(family, **options)
    given = {"max_new_tokens": 10, **sources_of(family, SOURCES[:rows])}
    monkeypatch.setattr(module, "MOST_ROWS", 0)
    plain = generate(model, PROMPTS[:rows], **given), beam_search(model, PROMPTS[:rows], beams=2, **given)
    monkeypatch.setattr(module, "MOST_ROWS", 64)
    assert generate(model, PROMPTS[:rows], **given) == plain[0]
    found = beam_search(model, PROMPTS[:rows], beams=2, **given)
    for ours, theirs in zip(found, plain[1], strict=True):
        assert ours[0].ids == theirs[0].ids
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-4)
    assert patched(model) == 0
    assert "logits" not in model.head.__dict__


@pytest.mark.parametrize("rows", [1, 2, 5])
@torch.no_grad()
def test_each_layer_multiplies_by_its_own_weights(rows: int) -> None:
    model = make("decoder")
    layers = {name: one for name, one in model.named_modules() if type(one) is module.Linear}
    inputs = {name: torch.randn(rows, 1, one.in_features) for name, one in layers.items()}
    plain = {name: one(inputs[name]) for name, one in layers.items()}
    hidden = torch.randn(rows, 32)
    scores = model.head.logits(hidden)
    with packed(model, rows=rows, tokens=1):
        assert patched(model) == len(layers)
        for name, one in layers.items():
            torch.testing.assert_close(one(inputs[name]), plain[name], rtol=1e-4, atol=1e-4)
            longer = torch.randn(2, 3, one.in_features)
            assert torch.equal(one(longer), module.Linear.forward(one, longer))  # the prompt's way
        torch.testing.assert_close(model.head.logits(hidden), scores, rtol=1e-4, atol=1e-4)
        with packed(model, rows=rows, tokens=1):
            assert patched(model) == len(layers)
        assert patched(model) == len(layers)  # the inner one leaves what is not its own
    assert patched(model) == 0


def test_an_error_inside_leaves_no_copies() -> None:
    model = make("decoder")
    opened = packed(model, rows=1, tokens=1)
    opened.__enter__()
    assert patched(model)
    assert not opened.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert patched(model) == 0


def test_other_dtypes_and_little_memory_pack_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with packed(wide := make("decoder").double(), rows=1, tokens=1):
        assert patched(wide) == 0
    monkeypatch.setattr(module, "_free_memory", lambda: 1000)
    with packed(model := make("decoder"), rows=1, tokens=1):
        assert patched(model) == 0

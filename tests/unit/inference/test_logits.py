"""What becomes of scores equals the processors of `transformers`, over generated cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from triune.inference.config import GenerationConfig
from triune.inference.logits import Shaping, keep_min_p, keep_top_k, keep_top_p, penalise

V = 11
#: distinct ones: of equals theirs keeps all among the k best, ours one
SCORES = st.lists(st.lists(st.integers(-80, 80), min_size=V, max_size=V, unique=True), min_size=1, max_size=3).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64) / 10
)
IDS = torch.zeros(1, 1, dtype=torch.int64)
quick = settings(deadline=None, max_examples=60, derandomize=True)


@quick
@given(SCORES, st.integers(1, V + 2))
def test_top_k_is_theirs(scores: torch.Tensor, count: int) -> None:
    assert torch.equal(keep_top_k(scores, count), TopKLogitsWarper(count)(IDS, scores))


@quick
@given(SCORES, st.floats(0.01, 0.99))
def test_top_p_is_theirs(scores: torch.Tensor, share: float) -> None:
    assert torch.equal(keep_top_p(scores, share), TopPLogitsWarper(share)(IDS, scores))


@quick
@given(SCORES, st.floats(0.0, 1.0))
def test_min_p_is_theirs(scores: torch.Tensor, share: float) -> None:
    assert torch.equal(keep_min_p(scores, share), MinPLogitsWarper(share)(IDS, scores))


@quick
@given(SCORES, st.floats(0.5, 3.0), st.data())
def test_the_penalty_is_theirs(scores: torch.Tensor, penalty: float, data: Any) -> None:
    rows = [data.draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=2)) for _ in scores]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(rows), scores)
    shaping = Shaping(GenerationConfig(repetition_penalty=penalty), rows, (), scores.device)
    assert torch.equal(shaping(scores), theirs)
    token = torch.arange(len(scores))
    shaping(scores)
    shaping.wrote(token)
    longer = torch.cat([torch.tensor(rows), token[:, None]], dim=1)
    assert torch.equal(shaping(scores), RepetitionPenaltyLogitsProcessor(penalty)(longer, scores))


@quick
@given(SCORES, st.integers(1, V), st.floats(0.1, 0.99), st.floats(0.0, 0.5))
def test_one_after_the_other_is_theirs(scores: torch.Tensor, count: int, top: float, least: float) -> None:
    ours = keep_min_p(keep_top_p(keep_top_k(scores / 0.7, count), top), least)
    theirs = scores
    for warper in (
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(count),
        TopPLogitsWarper(top),
        MinPLogitsWarper(least),
    ):
        theirs = warper(IDS, theirs)
    assert torch.equal(ours, theirs)


def test_no_end_before_the_least_length_as_theirs() -> None:
    scores, ends = torch.randn(2, V), [3, 5]
    shaping = Shaping(GenerationConfig(min_new_tokens=2), [[1], [1]], ends, scores.device)
    for written in range(4):
        ids = torch.ones(2, 1 + written, dtype=torch.int64)
        theirs = MinNewTokensLengthLogitsProcessor(1, 2, ends, device="cpu")(ids, scores)
        assert torch.equal(shaping(scores), theirs)
        shaping.wrote(torch.ones(2, dtype=torch.int64))


def test_a_penalty_of_one_changes_nothing() -> None:
    scores = torch.randn(2, V)
    assert torch.equal(penalise(scores, torch.ones_like(scores, dtype=torch.bool), 1.0), scores)
    with pytest.raises(AttributeError):
        Shaping(GenerationConfig(), [[1], [1]], (), scores.device).seen.any()  # type: ignore[union-attr]  # no memory is kept

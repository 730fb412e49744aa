"""What becomes of a step's scores before a token is chosen. Legend: B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from triune.inference.config import GenerationConfig


def choose(
    scores: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[B, V] logits -> [B] ids: the best at temperature 0, else drawn from what top-k, then top-p, then min-p leave."""
    if temperature == 0:
        return scores.argmax(dim=-1)
    scores = keep_min_p(keep_top_p(keep_top_k(scores / temperature, top_k), top_p), min_p)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """[B, V] logits with all but the `count` best at minus infinity (of equals, one); 0 keeps all."""
    if count == 0 or count >= scores.shape[-1]:
        return scores
    best = scores.topk(count, dim=-1)
    return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values)


def keep_top_p(scores: Tensor, share: float) -> Tensor:
    """[B, V] logits with all but the fewest best that hold at least `share` of the probability at minus infinity."""
    if share >= 1:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # held by those that are better
    return torch.empty_like(scores).scatter(-1, order, ordered.masked_fill(before >= share, -torch.inf))


def keep_min_p(scores: Tensor, share: float) -> Tensor:
    """[B, V] logits with those less than `share` times as likely as the best at minus infinity (Nguyen et al. 2024)."""
    if share == 0:
        return scores
    probability = scores.softmax(dim=-1)
    return scores.masked_fill(probability < share * probability.amax(dim=-1, keepdim=True), -torch.inf)


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """[B, V] logits, or log-probabilities, with those of `seen` [B, V] tokens made less likely (Keskar et al. 2019, 4.1).

    A penalty above 1 divides positive and multiplies negative ones; below 1 it makes them likelier.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


class Shaping:
    """What a config does to the scores of each step, with the memory of the tokens that the rows hold.

    Args:
        config: its repetition_penalty and min_new_tokens count here.
        rows: ids that each row begins with.
        ends: ids that end a row.
        device: of the scores.
    """

    def __init__(
        self, config: GenerationConfig, rows: Sequence[Sequence[int]], ends: Collection[int], device: torch.device
    ) -> None:
        self.penalty = config.repetition_penalty
        self.least = config.min_new_tokens
        self.ends = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
        self.rows = rows
        self.seen: Tensor | None = None  # [B, V] bool
        self.written = 0

    def __call__(self, scores: Tensor) -> Tensor:
        """[B, V] -> [B, V]."""
        if self.penalty != 1.0:
            if self.seen is None:
                self.seen = _marks(self.rows, scores)
            scores = penalise(scores, self.seen, self.penalty)
        if self.written < self.least and self.ends.numel():
            scores = scores.index_fill(1, self.ends, -torch.inf)
        return scores

    def wrote(self, tokens: Tensor) -> None:
        """Note the next token [B] of each row."""
        self.written += 1
        if self.seen is not None:
            self.seen.scatter_(1, tokens.unsqueeze(1), True)

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] in this order."""
        if self.seen is not None:
            self.seen = self.seen.index_select(0, rows)


def _marks(rows: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
    """[B, V] bool: which tokens each row holds."""
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for row, ids in enumerate(rows):
        seen[row, torch.tensor(list(ids), dtype=torch.int64, device=seen.device)] = True
    return seen

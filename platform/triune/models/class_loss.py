"""Losses of a few scores: several labels, numbers, spans, matches. Sums over examples, as `loss.LossOutput` has them.

Legend: B batch, T length, N examples, L labels, M model width, C candidates of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.models.loss import LossOutput


def multi_label(scores: Tensor, values: Tensor, weights: Tensor) -> LossOutput:
    """Mean binary cross-entropy of an example's labels, each yes or no; right is an example whose labels all are.

    Args:
        scores: [N, L].
        values: [N, L] 0 or 1.
        weights: [N].
    """
    scores, weights = _wide(scores, weights)
    each = F.binary_cross_entropy_with_logits(scores, values.to(scores.dtype), reduction="none").mean(1)  # [N]
    right = ((scores > 0) == (values > 0.5)).all(1)
    return _summed(each, right, weights)


def regression(scores: Tensor, values: Tensor, weights: Tensor) -> LossOutput:
    """Mean squared error of an example's numbers; nothing is ever right.

    Args:
        scores: [N, L].
        values: [N, L].
        weights: [N].
    """
    scores, weights = _wide(scores, weights)
    each = (scores - values.to(scores.dtype)).square().mean(1)  # [N]
    return _summed(each, torch.zeros_like(each), weights)


def span(scores: Tensor, targets: Tensor, weights: Tensor, padding: Tensor) -> LossOutput:
    """Mean of the cross-entropies of a row's start and end over its tokens (Devlin et al. 2019, 4.2).

    Args:
        scores: [B, T, 2] of being the start, and the end.
        targets: [B, T] 1 at the start, 2 at the end, 3 where they are one token; any number where the weight is 0.
        weights: [B, T] halves at start and end (1 where they are one token), times the row's own weight.
        padding: [B, T] True where there is no token.
    """
    scores, weights = _wide(scores, weights)
    scores = scores.masked_fill(padding.unsqueeze(-1), -torch.inf)
    places = (torch.stack([targets & 1, targets >> 1], -1) > 0) & (weights > 0).unsqueeze(-1)  # [B, T, 2]
    nll = scores.logsumexp(1, keepdim=True) - scores  # [B, T, 2]
    each = torch.where(places, nll, 0.0).sum(1).mean(1)  # [B]
    found = scores.argmax(1) == places.int().argmax(1)  # [B, 2]
    return _summed(each, found.all(1), weights.sum(1))


def match(vectors: Tensor, numbers: Tensor, weights: Tensor, *, scale: float, across: bool) -> LossOutput:
    """Cross-entropy of the first candidate among all, by scaled cosine similarity to the row's own text.

    Args:
        vectors: [B, 1 + C, M] of the text and its candidates, of which the first is the match.
        numbers: [B, C] number above 0 of each candidate, 0 where a row has fewer; candidates of one number are the same text, and
            those that are the same as the match don't compete with it.
        weights: [B] of each row.
        scale: what cosine similarities are multiplied by.
        across: let the candidates of all rows compete (in-batch negatives; Henderson et al. 2017), else the row's own only.
    """
    vectors, weights = _wide(vectors, weights)
    vectors = F.normalize(vectors, dim=-1)
    text, candidates = vectors[:, 0], vectors[:, 1:]  # [B, M], [B, C, M]
    rows, count = numbers.shape
    own = numbers[:, :1]  # [B, 1]
    if across:
        scores = scale * text @ candidates.flatten(0, 1).t()  # [B, B C]
        numbers, right = numbers.view(1, -1), torch.arange(rows, device=vectors.device) * count
    else:
        scores = scale * torch.einsum("bm,bcm->bc", text, candidates)  # [B, C]
        right = torch.zeros(rows, dtype=torch.int64, device=vectors.device)
    where = right.unsqueeze(1)
    there = (numbers > 0) & (numbers != own)  # [B, candidates that compete]
    scores = scores.masked_fill(~there, -torch.inf).scatter(1, where, scores.gather(1, where))
    each = scores.logsumexp(1) - scores.gather(1, where).squeeze(1)  # [B]
    others = scores.detach().scatter(1, where, -torch.inf).amax(1)
    return _summed(each, scores.detach().gather(1, where).squeeze(1) > others, weights)


def _wide(scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Both in fp32 at least."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.to(dtype), weights.to(dtype)


def _summed(each: Tensor, right: Tensor, weights: Tensor) -> LossOutput:
    total = torch.where(weights > 0, each * weights, 0.0).sum()  # a row without an example may well be infinite
    return LossOutput(total, total.detach(), (right.to(weights.dtype) * weights).sum(), weights.sum())

"""The steps of a plan as tensors: scores, weights and their gradients, in plain PyTorch.

Probabilities are recomputed in the backward pass (Dao et al. 2022), so that memory is linear in the length.
Legend: B batch, T query length, S key length, H heads, K key/value heads, G = H / K, D head width, R queries and C keys of a step,
N key/value heads computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triune.attention.backends.tiles import CPU_SCORES, OTHER_SCORES
from triune.attention.plan import Plan


class Settings(NamedTuple):
    """What a pass needs beside tensors and plan."""

    scale: float
    dropout: float
    seed: int
    zero: int  # column of distance 0 in the bias by distance


class _Piece(NamedTuple):
    """One step for some heads of a row, as tensors."""

    heads: slice  # N of the B x K key/value heads
    queries: slice | Tensor  # R
    spans: tuple[tuple[int, int], ...]
    masks: list[tuple[int, int, Tensor]]  # columns, and [R, columns] True where refused
    step: int
    seed: int


def _pieces(plan: Plan, query: Tensor, key_heads: int, settings: Settings) -> Iterator[_Piece]:
    """The steps in their order, cut into as many heads as fit a core's cache. Query is [B K, G, T, D]."""
    device = query.device
    most = CPU_SCORES if device.type == "cpu" else OTHER_SCORES
    masks: dict[int, Tensor] = {}
    for index, step in enumerate(plan.steps):
        rows = step.queries
        near = rows[-1] - rows[0] + 1 == len(rows)
        place = slice(int(rows[0]), int(rows[-1]) + 1) if near else torch.from_numpy(rows).to(device)
        refused = [
            (first, last, masks.setdefault(id(mask), torch.from_numpy(mask).to(device)))
            for (first, last), mask in zip(step.partial, plan.refused[index], strict=True)
        ]
        begin, end = (0, query.shape[0]) if plan.alike else (step.row * key_heads, (step.row + 1) * key_heads)
        count = max(most // (query.shape[1] * step.pairs), 1)
        for start in range(begin, end, count):
            heads = slice(start, min(start + count, end))
            yield _Piece(heads, place, step.spans, refused, index, settings.seed + index * query.shape[0] + start)


def _rows(tensor: Tensor, piece: _Piece) -> Tensor:
    """[B K, G, T, D] -> [N, G R, D]."""
    mine = tensor[piece.heads]
    taken = mine[:, :, piece.queries] if isinstance(piece.queries, slice) else mine.index_select(2, piece.queries)
    return taken.flatten(1, 2)


def _keys(tensor: Tensor, piece: _Piece) -> Tensor:
    """[B K, S, D] -> [N, C, D]."""
    parts = [tensor[piece.heads, start:stop] for start, stop in piece.spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _put(target: Tensor, rows: Tensor, piece: _Piece) -> None:
    """[N, G R, D] into their place in [B K, G, T, D]; every query is in one step."""
    target[piece.heads][:, :, piece.queries] = rows.unflatten(1, (target.shape[1], -1))


def _add(target: Tensor, piece: _Piece, left: Tensor, right: Tensor, scale: float) -> None:
    """target[keys of the piece] += scale x left^T right: [N, G R, C] and [N, G R, D] into [B K, S, D]."""
    column = 0
    for start, stop in piece.spans:
        part = left[:, :, column : column + stop - start]
        target[piece.heads, start:stop].baddbmm_(part.mT, right, alpha=scale)
        column += stop - start


class _Bias:
    """The bias of each step, from one number a head and distance; equal neighbours share the tile, and its gradient."""

    def __init__(self, relative: Tensor, plan: Plan, zero: int, key_heads: int) -> None:
        self.relative, self.plan, self.zero, self.key_heads = relative, plan, zero, key_heads
        self.gradient = torch.zeros_like(relative)
        self.current: np.ndarray | None = None
        self.tile = self.slope = relative  # [K, G, R, C] of the current distances
        self.index = relative

    def _turn(self, step: int) -> None:
        distance = self.plan.distances[step]
        if distance is self.current:
            return
        self.flush()
        self.current = distance
        # pairs that are refused may lie at distances that no allowed pair has
        columns = np.clip(distance + self.zero, 0, self.relative.shape[1] - 1)
        self.index = torch.from_numpy(columns).to(self.relative.device)
        tile = self.relative.index_select(1, self.index.flatten())
        self.tile = tile.view(self.key_heads, -1, *distance.shape)
        self.slope = torch.zeros_like(self.tile)

    def of(self, piece: _Piece) -> Tensor:
        """[N, G R, C]."""
        self._turn(piece.step)
        return self.tile[self._heads(piece)].flatten(1, 2)

    def collect(self, piece: _Piece, slope: Tensor) -> None:
        """Take up the gradient of the scores [N, G R, C]."""
        self._turn(piece.step)
        self.slope.index_add_(0, self._heads(piece), slope.unflatten(1, (self.slope.shape[1], -1)))

    def flush(self) -> None:
        """Add what was collected for the current distances to the gradient [H, N]."""
        if self.current is not None:
            self.gradient.index_add_(1, self.index.flatten(), self.slope.flatten(2).flatten(0, 1))
            self.current = None

    def _heads(self, piece: _Piece) -> Tensor:
        return torch.arange(piece.heads.start, piece.heads.stop, device=self.relative.device) % self.key_heads


def _weights(query: Tensor, key: Tensor, piece: _Piece, bias: _Bias | None, scale: float) -> Tensor:
    """Attention weights [N, G R, C] before dropout."""
    scores = torch.baddbmm(query.new_zeros(()), query, key.mT, beta=0, alpha=scale)
    if bias is not None:
        scores += bias.of(piece)
    for first, last, refused in piece.masks:
        groups = scores.unflatten(1, (-1, refused.shape[0]))
        groups[..., first:last].masked_fill_(refused, -torch.inf)
    return torch.softmax(scores, -1)


def _kept(weights: Tensor, piece: _Piece, dropout: float) -> Tensor:
    """What dropout leaves of each weight: 0 or 1 / (1 - dropout), the same in both passes."""
    generator = torch.Generator(weights.device).manual_seed(piece.seed % 2**62)
    return torch.empty_like(weights).bernoulli_(1.0 - dropout, generator=generator).div_(1.0 - dropout)


def _grouped(query: Tensor, key: Tensor) -> Tensor:
    """[B, H, T, D] -> [B K, G, T, D]."""
    return query.unflatten(1, (key.shape[1], -1)).flatten(0, 1)


def forward(
    query: Tensor, key: Tensor, value: Tensor, relative: Tensor | None, plan: Plan, settings: Settings
) -> Tensor:
    """[B, H, T, D]; queries in no step give 0."""
    rows, keys, values = _grouped(query, key), key.flatten(0, 1), value.flatten(0, 1)
    output = torch.zeros_like(rows)
    bias = None if relative is None else _Bias(relative, plan, settings.zero, key.shape[1])
    for piece in _pieces(plan, rows, key.shape[1], settings):
        weights = _weights(_rows(rows, piece), _keys(keys, piece), piece, bias, settings.scale)
        if settings.dropout:
            weights *= _kept(weights, piece, settings.dropout)
        _put(output, torch.bmm(weights, _keys(values, piece)), piece)
    return output.view_as(query)


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor | None,
    plan: Plan,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value and the bias by distance."""
    rows, keys, values = _grouped(query, key), key.flatten(0, 1), value.flatten(0, 1)
    slopes = _grouped(gradient, key)
    to_query, to_key, to_value = torch.zeros_like(rows), torch.zeros_like(keys), torch.zeros_like(values)
    bias = None if relative is None else _Bias(relative, plan, settings.zero, key.shape[1])
    for piece in _pieces(plan, rows, key.shape[1], settings):
        mine, theirs, slope = _rows(rows, piece), _keys(keys, piece), _rows(slopes, piece)
        weights = _weights(mine, theirs, piece, bias, settings.scale)
        to_weights = torch.bmm(slope, _keys(values, piece).mT)  # [N, G R, C]
        dropped = weights
        if settings.dropout:
            keep = _kept(weights, piece, settings.dropout)
            dropped = weights * keep
            to_weights *= keep
        _add(to_value, piece, dropped, slope, 1.0)
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        if bias is not None:
            bias.collect(piece, to_scores)
        _put(to_query, torch.baddbmm(query.new_zeros(()), to_scores, theirs, beta=0, alpha=settings.scale), piece)
        _add(to_key, piece, to_scores, mine, settings.scale)
    if bias is not None:
        bias.flush()
    to_relative = None if bias is None else bias.gradient
    return to_query.view_as(query), to_key.view_as(key), to_value.view_as(value), to_relative

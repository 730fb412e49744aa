"""Reformer's attention by locality-sensitive hashing (Kitaev et al. 2020, section 2). Equations: docs/routed-attention.md.

Legend: N documents, L tokens of a row, T queries, H heads, D head width, R rounds, C chunk, Z chunks of a row (Z C >= L).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.backends.tiles import merge, tile_attention
from triune.attention.routed.call import Rows
from triune.attention.routed.dense import counted_attention
from triune.attention.routed.gather import take
from triune.attention.routed.patterns import Lsh


def reference(rows: Rows, pattern: Lsh) -> Tensor:
    """From the definition, pair by pair: how often query and key meet, then one softmax over them. [N, H, T, D]."""
    meetings = _causal_meetings if pattern.causal else _chunk_meetings
    return counted_attention(rows, rows.query, normalised(rows.key), rows.value, meetings(rows, pattern))


def attend(rows: Rows, pattern: Lsh) -> Tensor:
    """[N, H, L, D], by tiles of the sorted tokens."""
    order = _sort(rows, pattern)
    chunk = order.chunk
    sort = {"index": order.sorted, "back": order.place}
    query, value = _flat(rows.query), _flat(rows.value)
    queries = take(query, **sort).view(-1, chunk, query.shape[-1])
    keys = order.with_previous(take(_flat(normalised(rows.key)), **sort))
    values = order.with_previous(take(value, **sort))
    mask = _mask(order, pattern)
    output, lse = tile_attention(queries, keys, values, mask=mask, scale=rows.scale, dropout=rows.dropout)
    # back to the order of the tokens: round by round the same permutation
    output = take(output.flatten(0, 1), order.place.flatten(), order.sorted_once[None])
    lse = take(lse.reshape(-1, 1), order.place.flatten(), order.sorted_once[None])
    output, lse = output.view(pattern.rounds, -1, output.shape[-1]), lse.view(pattern.rounds, -1)
    documents, heads, length, width = rows.query.shape
    return merge(output, lse, 0).view(documents, length, heads, width).transpose(1, 2)


def normalised(vectors: Tensor) -> Tensor:
    """Keys of the shared vectors: of length sqrt(D), so that the usual scale 1 / sqrt(D) gives q . k / |k| (section 2)."""
    return vectors * (vectors.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@torch.no_grad()
def hashes(vectors: Tensor, pattern: Lsh) -> Tensor:
    """[N, H, L, D] -> buckets [N, H, R, L] int64: the nearest of random directions and their opposites (Andoni et al. 2015)."""
    heads, width = vectors.shape[1], vectors.shape[3]
    turns = rotations(pattern.seed, heads, width, pattern.rounds, pattern.buckets // 2, vectors.device).to(
        vectors.dtype
    )
    found = []
    for turn in turns.unbind(2):  # [H, D, buckets / 2], a round at a time for the sake of memory
        turned = vectors @ turn
        (high, argmax), (low, argmin) = turned.max(-1), turned.min(-1)
        found.append(torch.where(high >= -low, argmax, argmin + pattern.buckets // 2))
    return torch.stack(found, dim=2)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def rotations(seed: int, heads: int, width: int, rounds: int, directions: int, device: torch.device) -> Tensor:
    """[H, D, R, directions] fp32: the same numbers for the same seed and sizes on any device and after any resume."""
    return _drawn(seed, (heads, width, rounds, directions), device)


@lru_cache(maxsize=256)
def _drawn(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(device)


class _Order(NamedTuple):
    """Where each token goes when each round sorts by (bucket, position)."""

    chunk: int
    buckets: Tensor  # [R, N, H, Z C] bucket of each sorted token; that after the last for what follows a document's end; -1: filler
    tokens: Tensor  # [R, N, H, Z C] its position
    sorted: Tensor  # [R N H Z C] its row in `_flat`; -1: filler
    sorted_once: Tensor  # the same, where the rows of round r follow those of round r - 1
    place: Tensor  # [R, N L H] where each row of `_flat` went
    previous: Tensor  # [R, N, H, Z] the chunk before each
    lengths: Tensor  # [N]

    def with_previous(self, rows: Tensor) -> Tensor:
        """Sorted rows [R N H Z C, W] -> [R N H Z, 2 C, W]: each chunk behind the one before it."""
        chunks = rows.view(-1, self.chunk * rows.shape[-1])
        before = chunks.index_select(0, self.previous.flatten())
        return torch.cat([before, chunks], dim=1).view(len(chunks), 2 * self.chunk, -1)


def _flat(tensor: Tensor) -> Tensor:
    """[N, H, L, D] -> [N L H, D], which copies nothing where the heads were split off last."""
    return tensor.transpose(1, 2).flatten(0, 2)


@torch.no_grad()
def _sort(rows: Rows, pattern: Lsh) -> _Order:
    documents, heads, length, _ = rows.key.shape
    device = rows.key.device
    chunk = min(pattern.chunk, length)
    chunks = -(-length // chunk)
    filler = chunks * chunk - length
    position = torch.arange(length, device=device)
    buckets = hashes(rows.key, pattern).permute(2, 0, 1, 3)  # [R, N, H, L]
    ended = position >= rows.lengths[:, None, None]  # [N, 1, L]
    buckets = buckets.masked_fill(ended, pattern.buckets)
    sorted_buckets, order = buckets.sort(dim=-1, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, position.expand_as(order))
    # row of `_flat`, and where its line of sorted tokens starts
    line = torch.arange(documents * heads, device=device).view(documents, heads, 1)
    row = (line // heads * length + order) * heads + line % heads
    lines = torch.arange(pattern.rounds * documents * heads, device=device).view(-1, documents, heads, 1)
    place = (place + lines * (chunks * chunk)).transpose(2, 3).flatten(1)
    row = F.pad(row, (0, filler), value=-1)
    once = row + torch.arange(pattern.rounds, device=device).view(-1, 1, 1, 1) * (documents * length * heads)
    return _Order(
        chunk=chunk,
        buckets=F.pad(sorted_buckets, (0, filler), value=-1),
        tokens=F.pad(order, (0, filler), value=-1),
        sorted=row.flatten(),
        sorted_once=once.masked_fill(row < 0, -1).flatten(),
        place=place,
        previous=_previous(rows.lengths, chunk, chunks, lines, pattern),
        lengths=rows.lengths,
    )


def _previous(lengths: Tensor, chunk: int, chunks: int, lines: Tensor, pattern: Lsh) -> Tensor:
    """[R, N, H, Z] the chunk before each; before the first, both ways, the last one of the round before (as trax has it)."""
    before = lines * chunks + torch.arange(-1, chunks - 1, device=lines.device)
    if pattern.causal:  # its pairs never reach across: any chunk will do there
        return before.clamp_min(0)
    last = (lengths[:, None, None] - 1) // chunk  # [N, 1, 1]
    wrapped = lines.roll(1, 0) * chunks + last
    return torch.cat([wrapped, before[..., 1:]], dim=-1)


def _mask(order: _Order, pattern: Lsh) -> Tensor:
    """[R N H Z, C, 2 C] pairs that meet in a chunk."""
    chunk = order.chunk
    shape = (*order.buckets.shape[:3], -1, chunk)
    tokens = order.tokens.view(shape)
    both = torch.cat([tokens.flatten(0, 3)[order.previous.flatten()].view(shape), tokens], dim=-1)  # [R, N, H, Z, 2 C]
    if not pattern.causal:
        lengths = order.lengths[:, None, None, None, None]
        other = (tokens.unsqueeze(-1) != both.unsqueeze(-2)) | (lengths == 1)
        real = (both >= 0) & (both < lengths[..., 0])
        ended = tokens >= lengths[..., 0]  # their results are dropped, but must be numbers
        return (other & real.unsqueeze(-2) | ended.unsqueeze(-1)).flatten(0, 3)
    index = torch.arange(2 * chunk, device=tokens.device)
    distance = index[:chunk, None] + chunk - index  # [C, 2 C] places from query back to key
    near = (distance >= 1) & (distance <= pattern.chunk)
    buckets = order.buckets.view(shape)
    before = F.pad(buckets[..., :-1, :], (0, 0, 1, 0), value=-2)  # nothing comes before the first chunk
    mask = (buckets.unsqueeze(-1) == torch.cat([before, buckets], dim=-1).unsqueeze(-2)) & near
    return (mask | (distance == 0) & _alone(order).view(shape).unsqueeze(-1)).flatten(0, 3)


def _alone(order: _Order) -> Tensor:
    """[R, N, H, Z C] sorted tokens that come first in their bucket in every round."""
    first = F.pad(order.buckets[..., 1:] != order.buckets[..., :-1], (1, 0), value=True)
    alone = first.flatten()[order.place].all(0)  # [N L H]
    return (alone[order.sorted.clamp_min(0)] & (order.sorted >= 0)).view_as(first)


# ---- the definition, pair by pair --------------------------------------------------------------------------------------


def _positions(rows: Rows) -> Tensor:
    """[N, 1, T, 1]."""
    if rows.positions is not None:
        return rows.positions[:, None, :, None]
    return torch.arange(rows.key.shape[2], device=rows.key.device).view(1, 1, -1, 1)


def _causal_meetings(rows: Rows, pattern: Lsh) -> Tensor:
    """[N, H, T, L] rounds in which the key is among the `chunk` nearest earlier tokens of the query's bucket."""
    of_queries, of_keys = hashes(rows.query, pattern), hashes(rows.key, pattern)
    query, key = _positions(rows), torch.arange(rows.key.shape[2], device=rows.key.device)
    total = torch.zeros((), device=key.device)
    for of_query, of_key in zip(of_queries.unbind(2), of_keys.unbind(2), strict=True):
        earlier = (of_query.unsqueeze(-1) == of_key.unsqueeze(-2)) & (key < query)
        nearer = earlier.flip(-1).cumsum(-1).flip(-1)  # earlier tokens of the bucket from the key on
        total = total + (earlier & (nearer <= pattern.chunk))
    alone = total.sum(-1, keepdim=True) == 0
    return total + (alone & (key == query))


def _chunk_meetings(rows: Rows, pattern: Lsh) -> Tensor:
    """[N, H, L, L] how often the key is in the query's chunk or the one before it, over the rounds."""
    length = rows.key.shape[2]
    position, lengths = torch.arange(length, device=rows.key.device), rows.lengths[:, None, None]
    real = position < lengths  # [N, 1, L]
    chunks = []
    for bucket in hashes(rows.key, pattern).unbind(2):  # [N, H, L]
        rank = torch.where(real, bucket, pattern.buckets) * length + position
        chunks.append((rank.unsqueeze(-2) < rank.unsqueeze(-1)).sum(-1) // pattern.chunk)  # of each token
    last = (lengths - 1) // pattern.chunk
    total = torch.zeros((), device=position.device)
    for index, chunk in enumerate(chunks):
        first, before = chunk == 0, chunks[index - 1]
        same = chunk.unsqueeze(-1) == chunk.unsqueeze(-2)
        previous = chunk.unsqueeze(-1) - 1 == chunk.unsqueeze(-2)
        wrapped = first.unsqueeze(-1) & (before == last).unsqueeze(-2)
        total = total + same.int() + (previous | wrapped).int()
    single = (lengths == 1).unsqueeze(-1)
    return total * (real.unsqueeze(-2) & ((position != position[:, None]) | single))

"""NSA, native sparse attention (Yuan et al. 2025, section 3). Equations: docs/routed-attention.md.

Legend: N documents, T queries, L tokens of a row, H heads, K key/value heads, G = H / K, D head width, C compressed blocks,
Z selectable blocks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.backends.tiles import tile_attention
from triune.attention.routed.blocks import best_blocks, block_attention, query_chunks
from triune.attention.routed.call import Branches, Rows
from triune.attention.routed.dense import counted_attention
from triune.attention.routed.patterns import Nsa


def compress(branches: Branches, pattern: Nsa) -> tuple[Tensor, Tensor]:
    """Keys and values [N, K, C, D] of the blocks of `compress` tokens that start every `stride` tokens (eq. 7)."""
    key, value = branches.compressed
    short = max(pattern.compress - key.shape[2], 0)
    blocks = [
        F.pad(tensor, (0, 0, 0, short)).unfold(2, pattern.compress, pattern.stride).transpose(-1, -2)
        for tensor in (key, value)
    ]  # [N, K, C, compress, D]; a row that is too short has one block, which ends after it
    return branches.compress(blocks[0], blocks[1])


def reference(rows: Rows, pattern: Nsa) -> Tensor:
    """From the definition, pair by pair. [N, H, T, D]."""
    branches = rows.branches
    assert branches is not None
    length = rows.key.shape[2]
    token = torch.arange(length, device=rows.key.device)
    query = (token if rows.positions is None else rows.positions[:, None])[..., None]  # [.., T, 1]
    key, value = compress(branches, pattern)
    ends = torch.arange(key.shape[2], device=token.device) * pattern.stride + pattern.compress - 1
    ended = (ends <= query).expand(rows.query.shape[0], 1, -1, -1)  # [N, 1, T, C]
    near = (token <= query) & (token > query - pattern.window)
    chosen = _selected_pairs(rows, pattern, key, ended, query)
    parts = (
        counted_attention(rows, rows.query, key, value, ended.int()),
        counted_attention(rows, rows.query, rows.key, rows.value, (chosen & (token <= query)).int()),
        counted_attention(rows, rows.query, *branches.window, near.int()),
    )
    return _gated(parts, branches.gates)


@torch.no_grad()
def _selected_pairs(rows: Rows, pattern: Nsa, key: Tensor, ended: Tensor, query: Tensor) -> Tensor:
    """[N, H, T, L] whether the token is in a block that the query's group selects (eq. 8 to 12), the future included."""
    group = rows.query.shape[1] // rows.key.shape[1]
    scores = torch.einsum("nhtd,nhcd->nhtc", rows.query, key.repeat_interleave(group, 1)) * rows.scale
    weights = torch.where(ended, (scores - scores.masked_fill(~ended, -torch.inf).amax(-1, keepdim=True)).exp(), 0.0)
    weights = torch.where(ended.any(-1, keepdim=True), weights / weights.sum(-1, keepdim=True), 0.0)
    weights = weights.unflatten(1, (-1, group)).sum(2)  # eq. 10: [N, K, T, C]
    block = torch.arange(-(-rows.key.shape[2] // pattern.select), device=query.device)
    cell = torch.arange(len(block) * pattern.select // pattern.stride, device=query.device)
    first = torch.arange(key.shape[2], device=query.device)[:, None]
    covers = (cell >= first) & (cell < first + pattern.compress // pattern.stride)  # [C, strides of tokens]
    shared = covers.unflatten(1, (len(block), -1)).sum(2)  # [C, Z] strides that both hold
    importance = torch.einsum("nktc,cz->nktz", weights, shared.to(weights.dtype))
    own = query // pattern.select
    always = (block == 0) | (block == own) | (block == own - 1)
    importance = importance.masked_fill(always, torch.inf).masked_fill(block > own, -torch.inf)
    rank = (importance.unsqueeze(-2) > importance.unsqueeze(-1)).sum(
        -1
    )  # ties are only among what is always or never seen
    chosen = (rank < pattern.top) & (block <= own)
    token = torch.arange(rows.key.shape[2], device=query.device)
    return chosen[..., token // pattern.select].repeat_interleave(group, 1)


def attend(rows: Rows, pattern: Nsa, sliding: Tensor) -> Tensor:
    """[N, H, L, D]; the compressed branch by rows of queries, the selected one by tiles.

    Args:
        rows: the documents.
        pattern: sizes of blocks.
        sliding: [N, H, L, D] what the sliding branch gives.
    """
    branches = rows.branches
    assert branches is not None
    documents, heads, length, width = rows.query.shape
    query = rows.query.reshape(-1, heads // rows.key.shape[1], length, width)  # [N K, G, L, D]
    key, value = (tensor.flatten(0, 1) for tensor in compress(branches, pattern))  # [N K, C, D]
    compressed = _compressed(query, key, value, rows, pattern)
    chosen = _route(query, key, rows.scale, pattern)
    selected = block_attention(
        query,
        rows.key.flatten(0, 1),
        rows.value.flatten(0, 1),
        chosen.expand(-1, query.shape[1], -1, -1),
        pattern.select,
        scale=rows.scale,
        dropout=rows.dropout,
    )
    shape = (documents, heads, length, width)
    return _gated((compressed.reshape(shape), selected.reshape(shape), sliding), branches.gates)


def sliding_rows(rows: Rows) -> Rows:
    """The rows with the keys and values of the sliding branch."""
    assert rows.branches is not None
    key, value = rows.branches.window
    return replace(rows, key=key, value=value, branches=None)


def _gated(parts: tuple[Tensor, Tensor, Tensor], gates: Tensor) -> Tensor:
    """Eq. 5: the sum of the branches, each times its gate [N, H, T, 3]."""
    return sum(part * gate.unsqueeze(-1) for part, gate in zip(parts, gates.unbind(-1), strict=True))  # type: ignore[return-value]


def _ended(positions: int, pattern: Nsa) -> int:
    """Compressed blocks that end within the first `positions` tokens."""
    return max((positions - pattern.compress) // pattern.stride + 1, 0)


def _compressed(query: Tensor, key: Tensor, value: Tensor, rows: Rows, pattern: Nsa) -> Tensor:
    """[N K, G, L, D] attention to the compressed blocks that have ended, some queries at a time."""
    number, group, length, width = query.shape
    parts = []
    for part in query_chunks(length, number * group * key.shape[1], query.device):
        seen = max(
            _ended(part.stop, pattern), 1
        )  # one at least, if only masked: the compression gets a gradient, of zero
        flat = query[:, :, part].reshape(number, -1, width)
        mask = _ended_mask(part, seen, pattern, query.device).repeat(group, 1)[None]
        output, _ = tile_attention(
            flat, key[:, :seen], value[:, :seen], mask=mask, scale=rows.scale, dropout=rows.dropout
        )
        parts.append(output.reshape(number, group, part.stop - part.start, width))
    return torch.cat(parts, dim=2)


def _ended_mask(part: slice, blocks: int, pattern: Nsa, device: torch.device) -> Tensor:
    """[queries, blocks] True where the block has ended at the query."""
    ends = torch.arange(blocks, device=device) * pattern.stride + pattern.compress - 1
    return ends <= torch.arange(part.start, part.stop, device=device)[:, None]


@torch.no_grad()
def _route(query: Tensor, key: Tensor, scale: float, pattern: Nsa) -> Tensor:
    """[N K, 1, L, A] past blocks that the group of each key/value head selects: eq. 8 to 12; no gradient."""
    number, group, length, _ = query.shape
    whole = length // pattern.select

    def importance(part: slice) -> Tensor:
        scores = torch.einsum("ngtd,ncd->ngtc", query[:, :, part], key) * scale
        scores = scores.masked_fill(~_ended_mask(part, key.shape[1], pattern, key.device), -torch.inf)
        highest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weights = (scores - highest).exp()
        weights = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)).sum(1, keepdim=True)  # eq. 8 and 10
        sums = _block_sums(weights, whole, pattern)
        block = torch.arange(whole, device=key.device)
        own = torch.arange(part.start, part.stop, device=key.device)[:, None] // pattern.select
        return sums.masked_fill((block == 0) | (block == own - 1), torch.inf)

    return best_blocks(length, pattern.top - 1, pattern.select, importance, number * group * key.shape[1], query.device)


def _block_sums(weights: Tensor, blocks: int, pattern: Nsa) -> Tensor:
    """Eq. 9, [.., C] -> [.., Z]: each compressed block's weight goes to each stride of tokens in it, and so to their block."""
    inside = pattern.select // pattern.stride
    cells = F.pad(weights, (0, max(blocks * inside - weights.shape[-1], 0)))
    total = cells
    for shift in range(1, pattern.compress // pattern.stride):
        total = total + F.pad(cells, (shift, 0))[..., : cells.shape[-1]]
    return total[..., : blocks * inside].unflatten(-1, (blocks, inside)).sum(-1)

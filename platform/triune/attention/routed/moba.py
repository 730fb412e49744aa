"""MoBA, mixture of block attention (Lu et al. 2025, section 2.2). Equations: docs/routed-attention.md.

Legend: N documents, T queries, L tokens of a row, H heads, K key/value heads, G = H / K, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triune.attention.routed.blocks import best_blocks, block_attention
from triune.attention.routed.call import Rows
from triune.attention.routed.dense import counted_attention
from triune.attention.routed.patterns import Moba


def reference(rows: Rows, pattern: Moba) -> Tensor:
    """From the definition, pair by pair. [N, H, T, D]."""
    length, group = rows.key.shape[2], rows.query.shape[1] // rows.key.shape[1]
    token = torch.arange(length, device=rows.key.device)
    query = token[:, None] if rows.positions is None else rows.positions[:, None, :, None]  # [.., T, 1]
    own = query // pattern.block
    seen = (token // pattern.block == own) & (token <= query)
    means = torch.stack(
        [keys.mean(2) for keys in rows.key.detach().split(pattern.block, dim=2)], dim=2
    )  # [N, K, blocks, D]
    scores = torch.einsum("nhtd,nhbd->nhtb", rows.query.detach(), means.repeat_interleave(group, 1))
    scores = scores.masked_fill(torch.arange(means.shape[2], device=token.device) >= own, -torch.inf)
    for _ in range(min(pattern.top - 1, means.shape[2])):
        score, best = scores.max(-1, keepdim=True)  # [N, H, T, 1]
        seen = seen | ((token // pattern.block == best) & (score > -torch.inf))
        scores = scores.scatter(-1, best, -torch.inf)
    return counted_attention(rows, rows.query, rows.key, rows.value, seen.int())


def attend(rows: Rows, pattern: Moba) -> Tensor:
    """[N, H, L, D], by tiles of the queries that chose a block."""
    documents, heads, length, width = rows.query.shape
    query = rows.query.reshape(-1, heads // rows.key.shape[1], length, width)  # [N K, G, L, D]
    key, value = rows.key.reshape(-1, length, width), rows.value.reshape(-1, length, width)
    chosen = _route(query, key, pattern)
    output = block_attention(query, key, value, chosen, pattern.block, scale=rows.scale, dropout=rows.dropout)
    return output.reshape(documents, heads, length, width)


@torch.no_grad()
def _route(query: Tensor, key: Tensor, pattern: Moba) -> Tensor:
    """[N K, G, L, A] the past blocks whose mean key is nearest to each query; no gradient, as in the paper."""
    number, group, length, width = query.shape
    whole = length // pattern.block
    means = key[:, : whole * pattern.block].reshape(number, whole, pattern.block, width).mean(2).unsqueeze(1)
    return best_blocks(
        length,
        pattern.top - 1,
        pattern.block,
        lambda part: query[:, :, part] @ means.mT,
        number * group * whole,
        query.device,
    )

"""The tile kernel: attention of a batch of small tiles, forward and backward, in plain PyTorch.

Legend: N tiles, R queries of a tile, C keys of a tile, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: scores in memory at once; two megabytes as fp32, which a core's cache holds
CPU_SCORES = 2**19
#: a GPU wants all tiles at once, within a bound of memory (1 GiB as fp32)
OTHER_SCORES = 2**28


def tile_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """softmax(scale x Q K^T, over the allowed pairs) V of each tile, and the logarithm of the softmax's denominator.

    Probabilities are recomputed in the backward pass (Dao et al. 2022), so that memory is linear in tiles. Parts of one
    query's attention over disjoint keys combine by their log-sum-exps: see `merge`.

    Args:
        query: [N, R, D].
        key: [N, C, D].
        value: [N, C, D].
        mask: [N or 1, R, C] bool, True where the query may see the key; None is everywhere.
        scale: multiplies the scores.
        dropout: probability of dropping a weight now.

    Returns:
        output [N, R, D] and log-sum-exp [N, R], both differentiable. A query that sees nothing gets 0 and -inf and
        passes no gradient.
    """
    seed = int(torch.randint(2**62, (1,))) if dropout else 0
    output, lse = _TileAttention.apply(query, key, value, mask, scale, dropout, seed)
    return output, lse


def merge(output: Tensor, lse: Tensor, dim: int) -> Tensor:
    """One attention over the union of key sets, from its parts: a key that is in two of them counts twice.

    Args:
        output: [..., parts, ..., D].
        lse: [..., parts, ...] log-sum-exps; -inf in a part that sees nothing.
        dim: the dimension of the parts.

    Returns the output without that dimension; 0 where no part sees anything.
    """
    nothing = (lse == -torch.inf).all(dim, keepdim=True)  # whose outputs are 0 already: any finite number will do
    share = lse.masked_fill(nothing, 0.0).softmax(dim)
    return (output * share.unsqueeze(-1)).sum(dim)


def _chunk(query: Tensor, key: Tensor) -> int:
    """Tiles at once."""
    most = CPU_SCORES if query.device.type == "cpu" else OTHER_SCORES
    return max(most // max(query.shape[1] * key.shape[1], 1), 1)


def _part(mask: Tensor | None, tiles: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[0] == 1 else mask[tiles]


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """exp(scores - lse) [n, R, C] and lse [n, R]."""
    scores = torch.baddbmm(query.new_zeros(()), query, key.mT, beta=0, alpha=scale)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf)
    # The softmax's own kernel: `exp` takes ten times as long at -inf on a CPU. The largest weight is 1 / sum exp(score - top).
    weights, top = torch.softmax(scores, -1), scores.amax(-1)
    dead = top == -torch.inf
    weights = weights.masked_fill_(dead.unsqueeze(-1), 0.0)
    return weights, (top - weights.amax(-1).log()).masked_fill_(dead, -torch.inf)


def _kept(probability: Tensor, dropout: float, seed: int, start: int) -> Tensor:
    """What dropout leaves of each weight: 0 or 1 / (1 - dropout); the same numbers for the same seed and place."""
    generator = torch.Generator(probability.device).manual_seed((seed + start) % 2**62)
    keep = torch.empty_like(probability).bernoulli_(1.0 - dropout, generator=generator)
    return keep.div_(1.0 - dropout)


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[:2])
        step = _chunk(query, key)
        for start in range(0, query.shape[0], step):
            tiles = slice(start, start + step)
            weights, lse[tiles] = _probabilities(query[tiles], key[tiles], _part(mask, tiles), scale)
            if dropout:
                weights *= _kept(weights, dropout, seed, start)
            output[tiles] = torch.bmm(weights, value[tiles])
        ctx.save_for_backward(query, key, value, mask)
        ctx.settings = scale, dropout, seed
        return output, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scale, dropout, seed = ctx.settings
        to_output, to_lse = gradients
        to_query, to_key, to_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        step = _chunk(query, key)
        for start in range(0, query.shape[0], step):
            tiles = slice(start, start + step)
            weights, _ = _probabilities(query[tiles], key[tiles], _part(mask, tiles), scale)
            slope = torch.bmm(to_output[tiles], value[tiles].mT)  # [n, R, C]
            dropped = weights
            if dropout:
                keep = _kept(weights, dropout, seed, start)
                dropped = weights * keep
                slope *= keep
            to_value[tiles] = torch.bmm(dropped.mT, to_output[tiles])
            slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype)
            slope.addcmul_(weights, to_lse[tiles].unsqueeze(-1))  # d lse / d scores are the weights themselves
            to_query[tiles] = torch.baddbmm(query.new_zeros(()), slope, key[tiles], beta=0, alpha=scale)
            to_key[tiles] = torch.baddbmm(query.new_zeros(()), slope.mT, query[tiles], beta=0, alpha=scale)
        return to_query, to_key, to_value, None, None, None, None

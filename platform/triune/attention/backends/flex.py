"""torch's FlexAttention: tiles of 128 x 128 that keep no pair are never read. GPU only.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width, R rows of queries at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from triune.attention.bias import AlibiBias, ScoreBias, T5Bias
from triune.attention.call import AttentionCall
from triune.attention.hardware import has_triton
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.attention.tile_counts import tile_counts

TILE = 128  # the kernels' own: their blocks must divide it, and both 64 and 128 do
WIDTHS = (16, 256)  # below, Triton has no matrix product; above, blocks of 128 do not fit a multiprocessor
PAIRS = 2**25  # pairs looked at at once while a mask is made eagerly: some ten bytes each

Mod = Callable[..., Tensor]


def why_not(call: AttentionCall) -> list[str]:
    """Reasons why this backend can't serve the call; empty where it can."""
    query, reasons = call.query, []
    if query.device.type != "cuda":
        where = "a CPU" if query.device.type == "cpu" else f"the device {query.device.type!r}"
        reasons.append(f"torch's FlexAttention has no backward on {where}; it needs a CUDA device")
    elif not has_triton():
        reasons.append("FlexAttention is compiled by Triton, which is not installed")
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        reasons.append(f"its inputs are {query.dtype}, and the kernel wants float32, bfloat16 or float16")
    elif not query.dtype == call.key.dtype == call.value.dtype and not torch.is_autocast_enabled(query.device.type):
        reasons.append(
            f"query, key and value differ in dtype ({query.dtype}, {call.key.dtype}, {call.value.dtype}) outside autocast"
        )
    if call.dropout > 0.0:
        reasons.append(f"dropout is {call.dropout}, and FlexAttention has none")
    if not WIDTHS[0] <= query.shape[-1] <= WIDTHS[1]:
        reasons.append(f"the head width is {query.shape[-1]}, and the kernel takes {WIDTHS[0]} to {WIDTHS[1]}")
    if min(query.shape[2], call.key.shape[2]) < TILE:
        reasons.append(
            f"{query.shape[2]} queries and {call.key.shape[2]} keys are less than a tile of {TILE}: nothing to skip, and "
            "each new length is compiled anew"
        )
    return reasons + _why_not_bias(call)


def _why_not_bias(call: AttentionCall) -> list[str]:
    if call.bias is None:
        return []
    if not isinstance(call.bias, Tensor | AlibiBias | T5Bias):
        return [f"it knows no bias of kind {type(call.bias).__name__}"]
    if call.query.shape[2] % TILE or call.key.shape[2] % TILE:
        return [
            f"a bias over {call.query.shape[2]} queries and {call.key.shape[2]} keys: torch's backward pass gave NaN with a "
            f"bias where a length is no multiple of {TILE} (pytorch issue 153799)"
        ]
    return []


def attend(call: AttentionCall) -> Tensor:
    """[B, H, T, D] in the query's dtype, or in autocast's where that is on.

    fp32 inputs are multiplied as `torch.set_float32_matmul_precision` says.
    """
    device = call.query.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else call.query.dtype
    query, key, value = call.query.to(dtype), call.key.to(dtype), call.value.to(dtype)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        mask, score = block_mask(call.pattern, call.query_layout, call.key_layout), score_mod(call)
        return _program(call, dtype)(query, key, value, score, mask, call.scale)


def _run(query: Tensor, key: Tensor, value: Tensor, score: Mod | None, mask: BlockMask, scale: float) -> Tensor:
    # Queries that see nothing get 0 and pass no gradient: the kernels guard their sums unless ROWS_GUARANTEED_SAFE is set.
    # A bias is read ahead into shared memory, 64 KiB a tile in fp32: with torch's own number of stages that is more than an
    # H100 has (seen in 2.11: "No valid triton configs").
    stages: Any = {"fwd_num_stages": 2} if query.shape[-1] <= 64 else {"num_stages": 1}
    return flex_attention(
        query,
        key,
        value,
        score_mod=score,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=None if score is None else stages,
    )


def _program(call: AttentionCall, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The compiled kernel for calls like this one; inside somebody else's torch.compile, what they are to compile."""
    if torch.compiler.is_compiling():
        return _run
    bias = "table" if isinstance(call.bias, T5Bias) else type(call.bias).__name__
    bias_rows = call.bias.shape[0] if isinstance(call.bias, Tensor) else 1
    same = call.query_layout is call.key_layout
    kinds = _kinds(call.query_layout), _kinds(call.key_layout), same
    gradients = torch.is_grad_enabled()
    shapes = call.query.shape, call.key.shape, call.query.device, dtype, call.scale
    return _compiled(_run, call.pattern, shapes, bias, bias_rows, kinds, gradients)


def _kinds(layout: SequenceLayout) -> tuple[bool, ...]:
    """What of a layout changes the program that reads it."""
    return layout.plain, layout.contiguous, layout.prefix is None, layout.landmarks is None


@lru_cache(maxsize=256)
def _compiled(function: Callable[..., Tensor], *_: Any) -> Callable[..., Tensor]:
    """One program of `function` a kind of call, compiled once and for all.

    torch.compile keeps its programs by code object, at most 8 for each (`recompile_limit`), and fails on the next: a model
    with three patterns, in training and validation, would meet that. So each kind of call gets a code object of its own.
    """
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, fullgraph=True, dynamic=False)


# ---------------------------------------------------------------------------------------------------------------- masks


def block_mask(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout, tile: int = TILE) -> BlockMask:
    """Which tiles hold no pair, some, or all, and the rule for pairs in the tiles that hold some.

    Plain rows share one mask for their pattern and lengths, kept from batch to batch; other layouts make theirs once a batch.
    """
    if not (queries.plain and keys.plain):
        return queries.remember(("flex", pattern, tile), keys, lambda: _make(pattern, queries, keys, tile))
    if torch.compiler.is_compiling():
        return _make(pattern, queries, keys, tile)
    return _plain(pattern, queries.shape[1], keys.shape[1], tile, queries.documents.device)


@lru_cache(maxsize=32)
def _plain(pattern: Pattern, queries: int, keys: int, tile: int, device: torch.device) -> BlockMask:
    """Counted on the host, row by row: no matrix of pairs, however long the rows."""
    counts = torch.from_numpy(tile_counts(pattern, queries, keys, tile, offset=0))[
        None, None
    ]  # [1, 1, T / tile, S / tile]
    layouts = (SequenceLayout.plain_rows(1, length) for length in (queries, keys))
    return _ordered(counts.to(device), pair_rule(pattern, *layouts), (queries, keys), tile)


def _make(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout, tile: int) -> BlockMask:
    """Looks at every pair: on a GPU in one compiled reduction that keeps none of them, elsewhere some rows of tiles at a time."""
    rule, device = pair_rule(pattern, queries, keys), queries.documents.device
    plain = queries.plain and keys.plain
    (batch, length), width = (1 if plain else queries.shape[0], queries.shape[1]), keys.shape[1]
    sizes = (batch, length, width, tile)
    if torch.compiler.is_compiling():
        counts = _tile_pairs(rule, *sizes, 0, length, device)
    elif device.type == "cuda" and has_triton():
        kinds = _kinds(queries), _kinds(keys), queries is keys
        counts = _compiled(_tile_pairs, pattern, sizes, kinds, device)(rule, *sizes, 0, length, device)
    else:
        step = max(PAIRS // (batch * width * tile), 1) * tile
        starts = range(0, length, step)
        counts = torch.cat([_tile_pairs(rule, *sizes, at, min(at + step, length), device) for at in starts], 1)
    return _ordered(counts[:, None], rule, (length, width), tile)


def _tile_pairs(
    rule: Mod, batch: int, length: int, width: int, tile: int, start: int, stop: int, device: torch.device
) -> Tensor:
    """Pairs in each tile, int32 [B, ceil(R / tile), ceil(S / tile)], of the R queries from `start` to `stop`."""
    row = torch.arange(batch, dtype=torch.int32, device=device)[:, None, None]
    query = torch.arange(start, stop, dtype=torch.int32, device=device)[:, None]
    column = torch.arange(width, dtype=torch.int32, device=device)
    pairs = rule(row, None, query, column).expand(batch, -1, -1)  # [B, R, S]
    padded = F.pad(pairs, (0, -width % tile, 0, (start - stop) % tile))
    tiled = padded.unflatten(2, (-1, tile)).unflatten(1, (-1, tile))  # [B, R / tile, tile, S / tile, tile]
    return tiled.sum((2, 4), dtype=torch.int32)


def _ordered(counts: Tensor, rule: Mod, lengths: tuple[int, int], tile: int) -> BlockMask:
    """A BlockMask from the pairs [B or 1, 1, T / tile, S / tile] in each tile."""
    whole = counts == tile * tile

    def listed(kind: Tensor) -> tuple[Tensor, Tensor]:
        """How many key tiles each row of tiles has of this kind, and their indices before all others'."""
        order = kind.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kind.sum(-1, dtype=torch.int32), order.to(torch.int32)

    return BlockMask.from_kv_blocks(
        *listed((counts > 0) & ~whole), *listed(whole), BLOCK_SIZE=tile, mask_mod=rule, seq_lengths=lengths
    )


def pair_rule(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout) -> Mod:
    """`layout._allowed` for single pairs: a FlexAttention mask_mod (row, head, query index, key index) -> bool."""
    if queries.plain and keys.plain:
        return lambda b, h, q, k: pattern.allows(q, k)
    document_q, position_q, mark_q = queries.documents, queries.positions, queries.landmarks  # [B, T] each
    document_k, position_k, mark_k = keys.documents, keys.positions, keys.landmarks  # [B, S] each
    prefix, causal = keys.prefix, pattern.is_causal

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query, key = position_q[b, q], position_k[b, k]
        seen = pattern.allows(query, key)
        if prefix is not None:
            seen = seen | prefix[b, k]
        for mark, token in ((mark_q, q), (mark_k, k)):
            if mark is not None:
                seen = seen | (mark[b, token] & (key <= query) if causal else mark[b, token])
        document = document_k[b, k]
        return seen & (document_q[b, q] == document) & (document >= 0)

    return rule


# --------------------------------------------------------------------------------------------------------------- biases


def score_mod(call: AttentionCall) -> Mod | None:
    """The bias as a FlexAttention score_mod (score, row, head, query index, key index) -> score."""
    if call.bias is None:
        return None
    if isinstance(call.bias, Tensor):
        return _by_pair(call.bias)
    return _by_distance(call.bias, call.query_layout, call.key_layout)


def _by_pair(scores: Tensor) -> Mod:
    """Scores [B or 1, H, T, S]."""
    if scores.shape[0] > 1:
        return lambda score, b, h, q, k: score + scores[b, h, q, k]
    shared = scores[0]
    return lambda score, b, h, q, k: score + shared[h, q, k]


def _by_distance(bias: ScoreBias, queries: SequenceLayout, keys: SequenceLayout) -> Mod:
    """Both biases depend on the distance alone, which in self-attention over contiguous rows is that of the indices."""
    indexed = queries is keys and queries.contiguous
    position_q, position_k = queries.positions, keys.positions

    def distance(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k - q if indexed else position_k[b, k] - position_q[b, q]

    device = position_q.device
    if isinstance(bias, AlibiBias):
        one = ("flex slopes", bias)
        slopes = queries.remember(one, keys, lambda: bias.by_distance(torch.ones(1, device=device))[:, 0])  # [H]
        return lambda score, b, h, q, k: score + slopes[h] * distance(b, q, k).abs()

    # A number a distance, not a bucket: the backward pass adds atomically, and a bucket's one address would be fought over.
    assert isinstance(bias, T5Bias)
    far = max(queries.shape[1], keys.shape[1], bias.max_distance)  # all distances beyond share the last bucket
    table = bias.by_distance(torch.arange(-far, far + 1, device=device)).float()  # [H, 2 far + 1]
    return lambda score, b, h, q, k: score + table[h, distance(b, q, k).clamp(-far, far) + far]

"""torch's scaled_dot_product_attention, by its quickest road that is exact for the call.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.call import AttentionCall, bias_scores
from triune.attention.hardware import cpu_multiplies_bfloat16
from triune.attention.layout import Allowed, SequenceLayout
from triune.attention.patterns import Pattern, causal

_CAUSAL = causal()


class Road(NamedTuple):
    """How a call is put to the kernel."""

    mask: Tensor | None = (
        None  # bool [B or 1, 1, T or 1, S], or with a bias its scores [B or 1, H, T, S], -inf where refused
    )
    causal: bool = False  # the kernel's own triangle, which skips the pairs that it drops
    dead: Tensor | None = None  # bool [B or 1, 1, T, 1]: queries whose output is zero


def why_not(call: AttentionCall) -> list[str]:
    """Reasons why this backend can't serve the call; empty where it can."""
    reasons = []
    query = call.query
    if not query.is_floating_point():
        reasons.append(f"its inputs are {query.dtype}, and the kernel wants floating-point numbers")
    if not query.dtype == call.key.dtype == call.value.dtype and not torch.is_autocast_enabled(query.device.type):
        reasons.append(
            f"query, key and value differ in dtype ({query.dtype}, {call.key.dtype}, {call.value.dtype}) outside autocast"
        )
    return reasons


def attend(call: AttentionCall) -> Tensor:
    """[B, H, T, D] in the query's dtype, or in autocast's where that is on."""
    dtype, inner = _dtypes(call.query)
    way = road(call, inner)
    output = _kernel(call.query, call.key, call.value, way, inner, scale=call.scale, dropout=call.dropout)
    if way.dead is not None:
        output = output.masked_fill(way.dead, 0.0)
    return output.to(dtype)


def attend_all(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """The same where each query sees every key: [B, H, T, D] over [B, K, S, D]; a scale of None is 1 / sqrt(D)."""
    dtype, inner = _dtypes(query)
    return _kernel(query, key, value, Road(), inner, scale=scale, dropout=0.0).to(dtype)


def _dtypes(query: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(of the output, of the kernel)."""
    device = query.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast and query.dtype != torch.float64 else query.dtype
    return dtype, _kernel_dtype(dtype, device)


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    way: Road,
    dtype: torch.dtype,
    *,
    scale: float | None,
    dropout: float,
) -> Tensor:
    device, mask = query.device.type, way.mask
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    heads = query.shape[1] // key.shape[1]
    if heads > 1 and mask is not None and device == "cuda":  # CUDA's masked kernels know no grouped heads
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=way.causal,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )


def road(call: AttentionCall, dtype: torch.dtype) -> Road:
    """The quickest exact way, from what the host knows of the layouts; a bias is rounded to `dtype`."""
    queries, keys, pattern = call.query_layout, call.key_layout, call.pattern
    single = queries.right_padded and keys.right_padded
    allowed: Allowed | None
    if single and pattern.is_full and keys.plain:
        allowed = None
    elif single and pattern.is_full:
        allowed = queries.remember("real keys", keys, lambda: _real_keys(queries, keys))
    elif is_triangle(call):
        return Road(causal=True, dead=_padding(queries))
    elif single and pattern.is_causal and _same_rows(queries, keys):
        allowed = queries.remember(("as plain", pattern), keys, lambda: _as_plain(pattern, queries))
    else:
        allowed = queries.allowed(pattern, keys)
    if call.bias is None:
        mask = None if allowed is None else allowed.mask
    elif not isinstance(call.bias, Tensor) and call.bias.constant:
        mask = queries.remember(("bias", pattern, call.bias, dtype), keys, lambda: _biased(call, allowed, dtype))
    else:
        mask = _biased(call, allowed, dtype)
    return Road(mask=mask, dead=_padding(queries) if allowed is None else allowed.dead)


def is_triangle(call: AttentionCall) -> bool:
    """Whether the kernel's own triangle, which skips the pairs that it drops, serves the call.

    Padding stands to the right of every real token, where no real query looks: such rows are as good as plain.
    """
    queries, keys = call.query_layout, call.key_layout
    single = queries.right_padded and keys.right_padded and _same_rows(queries, keys)
    return single and call.pattern == _CAUSAL and call.bias is None


def is_masked(call: AttentionCall) -> bool:
    """Whether the kernel reads a mask, or scores, of all pairs."""
    queries, keys = call.query_layout, call.key_layout
    everything = call.bias is None and call.pattern.is_full and queries.right_padded and keys.plain
    return not (everything or is_triangle(call))


def _same_rows(queries: SequenceLayout, keys: SequenceLayout) -> bool:
    return queries is keys or (queries.plain and keys.plain and queries.shape == keys.shape)


def _padding(layout: SequenceLayout) -> Tensor | None:
    """[B, 1, T, 1] True at padding; None where the host knows that there is none."""
    if layout.plain:
        return None
    return layout.remember("padding", layout, lambda: layout.padding[:, None, :, None])


def _real_keys(queries: SequenceLayout, keys: SequenceLayout) -> Allowed:
    """Every query of one document a row sees every real key: mask [B, 1, 1, S]."""
    mask = ~keys.padding[:, None, None, :]
    empty = ~mask.any(-1, keepdim=True)  # [B, 1, 1, 1] rows without a key
    return Allowed(mask | empty, empty | queries.padding[:, None, :, None])


def _as_plain(pattern: Pattern, layout: SequenceLayout) -> Allowed:
    """The pattern alone, mask [1, 1, T, T]; queries that are padding are dead."""
    plain = SequenceLayout.plain_rows(1, layout.shape[1], layout.documents.device)
    mask, dead = plain.allowed(pattern, plain)
    padding = _padding(layout)
    return Allowed(mask, dead if padding is None else dead | padding)


def _biased(call: AttentionCall, allowed: Allowed | None, dtype: torch.dtype) -> Tensor:
    """The bias's scores [B or 1, H, T, S], -inf where the pair is refused."""
    assert call.bias is not None
    scores = bias_scores(call.bias, call.query_layout, call.key_layout).to(dtype)
    return scores if allowed is None else scores.masked_fill(~allowed.mask, float("-inf"))


def _kernel_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """bf16 on a CPU without AMX tiles runs in fp32: half the time there, casts included, and exacter (docs/attention.md)."""
    return torch.float32 if dtype == torch.bfloat16 and device == "cpu" and not cpu_multiplies_bfloat16() else dtype

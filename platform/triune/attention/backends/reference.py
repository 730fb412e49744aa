"""The oracle: attention written out, in fp32 (fp64 where the inputs are). Obvious before quick.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.call import AttentionCall, bias_scores


def why_not(call: AttentionCall) -> list[str]:
    """Reasons why this backend can't serve the call: none, ever."""
    return []


def attend(call: AttentionCall) -> Tensor:
    """[B, H, T, D] in the query's dtype."""
    with torch.autocast(call.query.device.type, enabled=False):
        probability = F.dropout(weights(call), call.dropout)
        value = _per_query_head(call.value, call).to(probability.dtype)
        return torch.einsum("bhts,bhsd->bhtd", probability, value).to(call.query.dtype)


def weights(call: AttentionCall) -> Tensor:
    """The attention weights [B, H, T, S] before dropout: each row sums to 1, or is 0 where nothing may be attended to."""
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    query, key = call.query.to(dtype), _per_query_head(call.key, call).to(dtype)
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * call.scale
    if call.bias is not None:
        scores = scores + bias_scores(call.bias, call.query_layout, call.key_layout).to(dtype)
    mask, dead = call.query_layout.allowed(call.pattern, call.key_layout)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(dead, 0.0)


def _per_query_head(tensor: Tensor, call: AttentionCall) -> Tensor:
    """[B, K, S, D] -> [B, H, S, D]."""
    return tensor.repeat_interleave(call.query.shape[1] // tensor.shape[1], dim=1)

"""Attention over pairs that are counted: what every routed pattern's reference ends in. Obvious before quick.

Legend: N documents, T queries, L keys, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.routed.call import Rows


def counted_attention(rows: Rows, query: Tensor, key: Tensor, value: Tensor, counts: Tensor) -> Tensor:
    """softmax over a multiset of keys: key s weighs counts[t, s] exp(scale q_t . k_s). [N, H, T, D].

    Args:
        rows: scale and dropout.
        query: [N, H, T, D].
        key: [N, K, L, D]; head h reads head h // (H / K).
        value: [N, K, L, D].
        counts: [.., T, L], broadcast to N and H: how often each pair counts; a query without any gives zero.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.einsum("nhtd,nhsd->nhts", query, key) * rows.scale
    highest = scores.detach().masked_fill(counts == 0, -torch.inf).amax(-1, keepdim=True)
    weights = counts * (scores - highest.clamp_min(torch.finfo(scores.dtype).min)).masked_fill(counts == 0, 0.0).exp()
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("nhts,nhsd->nhtd", F.dropout(weights / total.clamp_min(1e-30), rows.dropout), value)

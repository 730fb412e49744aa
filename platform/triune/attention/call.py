"""One call of attention, checked and complete: what a backend gets.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triune.attention.bias import ScoreBias
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCall:
    """softmax(scale x Q K^T + bias, over the allowed pairs) V. Nothing here is optional for a backend to honour."""

    query: Tensor  # [B, H, T, D]
    key: Tensor  # [B, K, S, D]; head h reads key/value head h // (H / K)
    value: Tensor  # [B, K, S, D]
    pattern: Pattern
    query_layout: SequenceLayout  # [B, T]
    key_layout: SequenceLayout  # [B, S]; the same object as query_layout in self-attention without a cache
    bias: ScoreBias | Tensor | None
    scale: float
    dropout: float  # probability of dropping a weight now: 0 in evaluation


def bias_scores(
    bias: ScoreBias | Tensor, query_layout: SequenceLayout, key_layout: SequenceLayout | None = None
) -> Tensor:
    """The bias [B or 1, H, T, S] of two layouts (one, in self-attention).

    A stack whose layers share a learned bias calls this once a forward pass, outside activation checkpoints, and hands
    the tensor to each layer's `attend`. Both biases depend on the relative position alone, so that in self-attention over
    contiguous rows the row index serves, and the batch shares one matrix: it equals the positions' on every allowed pair.
    """
    if isinstance(bias, Tensor):
        return bias
    if (key_layout is None or key_layout is query_layout) and query_layout.contiguous:
        index = torch.arange(query_layout.shape[1], device=query_layout.positions.device)[None]  # [1, T]
        return bias(index, index)
    keys = query_layout if key_layout is None else key_layout
    return bias(query_layout.positions, keys.positions)

"""What routed attention works on: a call as it comes, and the same as one document a row.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width, N documents, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from triune.attention.bias import ScoreBias
from triune.attention.layout import SequenceLayout
from triune.attention.routed.patterns import Routed


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """What native sparse attention has beside queries, keys and values, which are those of its selected branch."""

    compressed: tuple[Tensor, Tensor]  # keys and values to compress, each [B, K, S, D]
    window: tuple[Tensor, Tensor]  # keys and values of the sliding branch, each [B, K, S, D]
    gates: Tensor  # [B, H, T, 3] what the compressed, the selected and the sliding branch are multiplied by
    #: learned: keys and values of blocks, each [N, K, blocks, compress, D] -> one key and one value a block, each [N, K, blocks, D]
    compress: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedCall:
    """One call of `attend` with a routed pattern, checked and complete; see `AttentionCall`."""

    query: Tensor  # [B, H, T, D]
    key: Tensor  # [B, K, S, D]
    value: Tensor  # [B, K, S, D]
    pattern: Routed
    query_layout: SequenceLayout
    key_layout: SequenceLayout
    bias: ScoreBias | Tensor | None
    scale: float
    dropout: float
    branches: Branches | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """One document a row, at its start; what follows its end is no key of it, and its results are dropped.

    Queries are all tokens (`positions` None) or, in the reference, those at `positions`.
    """

    query: Tensor  # [N, H, T, D]
    key: Tensor  # [N, K, L, D]
    value: Tensor  # [N, K, L, D]
    layout: SequenceLayout  # [N, L], right-padded
    lengths: Tensor  # [N] int64 tokens of each document, at least 1
    positions: Tensor | None  # [N, T] int64
    scale: float
    dropout: float
    branches: Branches | None  # of these rows

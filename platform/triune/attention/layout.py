"""Sequence layout: padding, packed documents and positions of a batch as one object.

Legend: B batch, T query length, S key length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceLayout:
    """Where each token of B rows belongs.

    A query may see a key only where both carry the same document number, neither is padding, and
    either the pattern allows their positions or the key is marked `prefix`.
    """

    documents: Tensor  # [B, T] int32: number of the document in its row; -1 is padding
    positions: Tensor  # [B, T] int32: position in the document, from 0
    prefix: Tensor | None = None  # [B, T] bool
    plain: bool = False  # True: no padding, one document a row, positions 0..T-1, no prefix (known on the host)

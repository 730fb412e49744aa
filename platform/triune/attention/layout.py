"""Sequence layout: padding, packed documents and positions of a batch as one object.

Legend: B batch, T query length, S key length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triune.attention.patterns import Pattern


class Allowed(NamedTuple):
    """Which keys each query may attend to.

    Rows that may attend to nothing are `dead`; in `mask` they are open, because not every kernel survives a softmax over
    nothing. A backend uses the mask and then fills the dead rows of its output with zero.
    """

    mask: Tensor  # [B or 1, 1, T, S] bool
    dead: Tensor  # [B or 1, 1, T, 1] bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceLayout:
    """Where each token of B rows belongs.

    A query may see a key only where both carry the same document number, neither is padding, and either the pattern allows
    their positions, or the key is marked `prefix`, or one of the two is marked `landmarks`. A landmark is a global token
    (Longformer: Beltagy et al. 2020, 3.1): its document sees it and it sees its document, but, where the pattern is causal,
    no query sees a landmark after itself and no landmark sees a later key.

    The three flags are promises known on the host, each implied by the one before it; False promises nothing. They choose
    quicker roads to the same result and are never found out from the tensors: no device is ever waited for.

    Raises ValueError where the tensors' shapes differ.
    """

    documents: Tensor  # [B, T] int32: number of the document in its row; -1 is padding
    positions: Tensor  # [B, T] int32: position in the document, from 0
    prefix: Tensor | None = None  # [B, T] bool: keys that every query of their document sees
    landmarks: Tensor | None = None  # [B, T] bool: tokens that see, and are seen by, all of their document
    plain: bool = False  # no padding, one document numbered 0 a row, positions 0..T-1, no marks
    right_padded: bool = False  # plain, but for padding at the end of the rows
    contiguous: bool = False  # inside a document, neighbouring tokens of the row are neighbours in position
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.documents.ndim != 2 or self.documents.shape != self.positions.shape:
            raise ValueError(
                f"documents {list(self.documents.shape)} and positions {list(self.positions.shape)} must be of one shape [B, T]"
            )
        marks = {"prefix": self.prefix, "landmarks": self.landmarks}
        for name, mark in marks.items():
            if mark is not None and mark.shape != self.documents.shape:
                raise ValueError(f"{name} {list(mark.shape)} must be [B, T] = {list(self.documents.shape)}")
        object.__setattr__(self, "right_padded", self.right_padded or self.plain)
        object.__setattr__(self, "contiguous", self.contiguous or self.right_padded)
        if self.right_padded and any(mark is not None for mark in marks.values()):
            raise ValueError("a layout with prefix marks or landmarks is neither plain nor right_padded")

    @classmethod
    def plain_rows(cls, batch: int, length: int, device: torch.device | str | None = None) -> SequenceLayout:
        """One unpadded document a row."""
        return cls(
            documents=torch.zeros(1, 1, dtype=torch.int32, device=device).expand(batch, length),
            positions=torch.arange(length, dtype=torch.int32, device=device).expand(batch, length),
            plain=True,
        )

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int],
        length: int,
        side: str = "right",
        device: torch.device | str | None = None,
    ) -> SequenceLayout:
        """One document a row, of `lengths` tokens, padded to `length` on `side` ("right" or "left").

        Raises ValueError for another side or a row longer than `length`.
        """
        if side not in ("right", "left"):
            raise ValueError(f"side is {side!r}, but it must be 'right' or 'left'")
        counts = np.asarray(lengths, dtype=np.int32)[:, None]  # [B, 1]
        if counts.size and counts.max() > length:
            raise ValueError(f"a row holds {counts.max()} tokens, more than its length, {length}")
        offset = np.arange(length, dtype=np.int32) - (0 if side == "right" else length - counts)  # [B, length]
        real = (offset >= 0) & (offset < counts)
        return cls.from_arrays(np.where(real, 0, -1), np.where(real, offset, 0), device=device)

    @classmethod
    def packed(
        cls,
        document_lengths: Sequence[Sequence[int]],
        length: int,
        device: torch.device | str | None = None,
    ) -> SequenceLayout:
        """Rows of several documents, one after the other, padded on the right to `length`.

        Raises ValueError where a row's documents are longer than `length`.
        """
        documents = np.full((len(document_lengths), length), -1, dtype=np.int32)
        positions = np.zeros_like(documents)
        for row, counts in enumerate(document_lengths):
            if sum(counts) > length:
                raise ValueError(f"row {row} holds {sum(counts)} tokens, more than its length, {length}")
            start = 0
            for number, count in enumerate(counts):
                documents[row, start : start + count] = number
                positions[row, start : start + count] = np.arange(count)
                start += count
        return cls.from_arrays(documents, positions, device=device)

    @classmethod
    def from_arrays(
        cls,
        documents: np.ndarray,
        positions: np.ndarray,
        prefix: np.ndarray | None = None,
        landmarks: np.ndarray | None = None,
        device: torch.device | str | None = None,
    ) -> SequenceLayout:
        """A layout of host arrays [B, T], with the flags that they prove: what a collate function should call."""
        marks = [None if mark is None or not mark.any() else mark for mark in (prefix, landmarks)]
        real = documents >= 0
        goes_on = (documents[:, 1:] == documents[:, :-1]) & (np.diff(positions) == 1)
        starts = (
            documents[:, 1:] > np.maximum.accumulate(documents, axis=1)[:, :-1]
        )  # a number not met before in its row
        contiguous = bool((goes_on | starts | ~real[:, 1:]).all())
        index = np.arange(documents.shape[1])
        single = all(mark is None for mark in marks) and bool((np.where(real, documents, 0) == 0).all())
        single = single and bool((~real | (positions == index)).all())
        right_padded = single and bool((real[:, :-1] >= real[:, 1:]).all())
        return cls(
            documents=torch.as_tensor(documents, dtype=torch.int32, device=device),
            positions=torch.as_tensor(positions, dtype=torch.int32, device=device),
            **{
                name: None if mark is None else torch.as_tensor(mark, dtype=torch.bool, device=device)
                for name, mark in zip(("prefix", "landmarks"), marks, strict=True)
            },
            plain=right_padded and bool(real.all()),
            right_padded=right_padded,
            contiguous=contiguous,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens a row."""
        return self.documents.shape[0], self.documents.shape[1]

    @property
    def padding(self) -> Tensor:
        """[B, T] bool: True at padding."""
        return self.documents < 0

    @property
    def real_tokens(self) -> Tensor:
        """Tokens that are no padding: a whole number on the layout's device, so that nothing waits for it."""
        return (self.documents >= 0).sum()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceLayout:
        """The same layout on another device, without what it remembers."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SequenceLayout:
        """The same layout in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> SequenceLayout:
        return SequenceLayout(
            documents=move(self.documents),
            positions=move(self.positions),
            prefix=None if self.prefix is None else move(self.prefix),
            landmarks=None if self.landmarks is None else move(self.landmarks),
            plain=self.plain,
            right_padded=self.right_padded,
            contiguous=self.contiguous,
        )

    def remember(self, key: Any, keys: SequenceLayout, make: Callable[[], Any]) -> Any:
        """make(), computed once for this `key` and pair of layouts: every layer of a forward pass shares its masks.

        Only for what depends on no parameter. While torch.compile traces, it is made each time (the compiler merges equal
        work inside one graph, and a memory that grows during the trace would be a guard that fails on every batch).
        """
        if torch.compiler.is_compiling():
            return make()
        place = (key, None if keys is self else keys)  # holds `keys`, so that its identity can't be reused
        if place not in self._memo:
            self._memo[place] = make()
        return self._memo[place]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": {}}  # a copy sent to another process recomputes its masks

    def allowed(self, pattern: Pattern, keys: SequenceLayout) -> Allowed:
        """Which of `keys` each token of this layout may attend to; remembered."""
        return self.remember(pattern, keys, lambda: _allowed(pattern, self, keys))


def _allowed(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout) -> Allowed:
    """The one place where pattern and layouts meet."""
    rows = slice(0, 1) if queries.plain and keys.plain else slice(None)  # plain rows are all alike
    document_q, document_k = queries.documents[rows, :, None], keys.documents[rows, None, :]
    seen = pattern.allows(queries.positions[rows, :, None], keys.positions[rows, None, :])  # [B, T, S]
    if keys.prefix is not None:
        seen = seen | keys.prefix[rows, None, :]
    marked = _landmarked(queries, keys, causal=pattern.is_causal)
    if marked is not None:
        seen = seen | marked
    mask = (seen & (document_q == document_k) & (document_k >= 0))[:, None]  # [B, 1, T, S]
    dead = ~mask.any(-1, keepdim=True)  # [B, 1, T, 1]
    return Allowed(mask | dead, dead)


def _landmarked(queries: SequenceLayout, keys: SequenceLayout, *, causal: bool) -> Tensor | None:
    """[B, T, S] bool: pairs of which one token is a landmark; None where no token is."""
    if queries.landmarks is None and keys.landmarks is None:
        return None
    none = torch.zeros((), dtype=torch.bool, device=keys.documents.device)
    query = none if queries.landmarks is None else queries.landmarks[:, :, None]
    key = none if keys.landmarks is None else keys.landmarks[:, None, :]
    marked = query | key
    return marked & (keys.positions[:, None, :] <= queries.positions[:, :, None]) if causal else marked

"""Where the tokens that a cache holds lie: all of them in a row, or a window's in a ring.

Layers whose patterns keep the same tokens share one store: it knows where each token belongs and where in their buffers
its key and value go. The buffers are the layers' own. Legend: B batch, T new tokens, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern, Retained, full
from triune.attention.routed.patterns import Routed


class View(NamedTuple):
    """How new tokens attend to stored ones: both layouts None are plain rows, `pattern` None is the layer's own."""

    query_layout: SequenceLayout | None
    key_layout: SequenceLayout | None
    pattern: Pattern | None = None


class Step(NamedTuple):
    """New tokens as the host knows them."""

    layout: SequenceLayout  # of the new tokens, [B, T]
    start: int  # tokens a row stored before
    continued: bool  # every row goes on with its last document, without padding
    plain: bool  # every row, with what is stored, is one document without padding
    reach: int  # above every position so far


class Store(Protocol):
    """What layers of one kind keep."""

    layout: SequenceLayout  # of the keys that `write` returns

    def extend(self, step: Step) -> None:
        """Make room for new tokens; the layers write them next."""

    def write(self, stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's buffer [B, K, capacity, D] and new numbers [B, K, T, D] -> the buffer, and what to attend to [B, K, S, D]."""

    def view(self, pattern: Pattern | Routed, *, by_position: bool) -> View:
        """How a layer of `pattern` sees what `write` returned; `by_position` where a bias reads positions from the layouts."""

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] in this order."""


class Everything:
    """Every token is kept, in the order of its coming."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layout: SequenceLayout

    def extend(self, step: Step) -> None:
        """See `Store`."""
        self.step = step
        batch, new = step.layout.shape
        if step.start == 0:
            self.layout = step.layout
        elif step.plain:
            self.layout = SequenceLayout.plain_rows(batch, step.start + new, step.layout.documents.device)
        else:
            self.layout = _joined(self.layout, step.layout)

    def write(self, stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """See `Store`. A full buffer is doubled, so that a token costs O(1)."""
        start, end = self.step.start, self.step.start + new.shape[2]
        if stored is None or stored.shape[2] < end:
            doubled = 0 if stored is None else 2 * stored.shape[2]
            stored = _moved(stored, new.new_empty(_shape(new, max(self.capacity, end, doubled))))
        stored[:, :, start:end] = new
        return stored, stored[:, :, :end]

    def view(self, pattern: Pattern | Routed, *, by_position: bool) -> View:
        """See `Store`. Plain rows need no layouts: the last new token stands at the last key."""
        if self.step.plain and self.step.start:
            return View(None, None)
        return View(self.step.layout, self.layout)

    def reorder(self, rows: Tensor) -> None:
        """See `Store`."""
        self.layout = chosen_rows(self.layout, rows)


class Ring:
    """The tokens that a window leaves in sight: those at positions below `first`, and the `last` newest of each row.

    A token at position p of its document lies in slot p, or where p >= first + last = size in slot first + (p - first) mod last:
    there it takes the place of the token `last` positions before it, which no later query sees. So nothing moves, and a token
    costs the same however many came before. A row goes on where it stopped or begins a document with a higher number:
    it never comes back to a document, whose tokens may be gone.
    """

    def __init__(self, retained: Retained, capacity: int) -> None:
        assert retained.last is not None
        self.first = retained.first
        self.last = max(retained.last, 1)
        self.size = self.first + self.last
        self.capacity = capacity
        self.filled = 0  # slots in use, alike for all rows: some may be empty in some
        self.layout: SequenceLayout
        self.documents: Tensor  # [B, size] int32, -1 in an empty slot; one row for all of them while rows are plain
        self.positions: Tensor  # [B, size] int32

    def extend(self, step: Step) -> None:
        """See `Store`."""
        self.step = step
        self.before = self.filled
        self.filled = min(step.reach, self.size)
        rows = slice(0, 1) if step.plain else slice(None)  # plain rows are all alike
        documents, positions = step.layout.documents[rows], step.layout.positions[rows]
        if step.start == 0:
            self.documents = documents.new_full((documents.shape[0], self.size), -1)
            self.positions = torch.zeros_like(self.documents)
        elif len(self.documents) != len(documents):  # rows were alike up to now
            self.documents = self.documents.expand(documents.shape[0], -1).clone()
            self.positions = self.positions.expand(documents.shape[0], -1).clone()
        self.in_place = step.start > 0 and step.continued and step.layout.shape[1] == 1
        if self.in_place:
            self._put_one(documents, positions)
        else:
            self._put_several(documents, positions)

    def _put_one(self, documents: Tensor, positions: Tensor) -> None:
        """The token overwrites one that it does not see, so that the ring itself is what it attends to."""
        self.slot = self._slots(positions)  # [B or 1, 1]
        self.documents.scatter_(1, self.slot, documents)
        self.positions.scatter_(1, self.slot, positions)
        self.layout = SequenceLayout(
            documents=self.documents[:, : self.filled].expand(self.step.layout.shape[0], -1),
            positions=self.positions[:, : self.filled].expand(self.step.layout.shape[0], -1),
        )

    def _put_several(self, documents: Tensor, positions: Tensor) -> None:
        """The first of the tokens still see what the last overwrite: they attend to what was stored, and to themselves."""
        batch = self.step.layout.shape[0]
        old = SequenceLayout(
            documents=self.documents[:, : self.before].expand(batch, -1),
            positions=self.positions[:, : self.before].expand(batch, -1),
        )
        self.layout = _joined(old, self.step.layout) if self.before else self.step.layout
        slots = self._slots(positions).masked_fill(documents < 0, self.size)  # padding goes to a slot that is cut off
        order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        newest = order.new_full((slots.shape[0], self.size + 1), -1).scatter_reduce(1, slots, order, "amax")
        newest = newest[:, : self.filled]  # the last of the new tokens in each slot, -1 where there is none
        slot = torch.arange(self.filled, device=slots.device)
        kept = torch.where(slot < self.before, slot, 0)
        #: [B or 1, filled] where in stored-then-new each slot's token is; an empty slot holds any token, as no document's
        self.source = torch.where(newest >= 0, self.before + newest, kept)
        empty = (newest < 0) & (slot >= self.before)
        held = torch.cat([self.documents[:, : self.before], documents], dim=1).gather(1, self.source)
        self.documents[:, : self.filled] = held.masked_fill(empty, -1)
        held = torch.cat([self.positions[:, : self.before], positions], dim=1).gather(1, self.source)
        self.positions[:, : self.filled] = held

    def _slots(self, positions: Tensor) -> Tensor:
        """Positions -> slots, int64."""
        behind = self.first + (positions - self.first) % self.last
        return torch.where(positions < self.first, positions, behind).long()

    def write(self, stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """See `Store`. The buffer grows to `size` tokens and no further."""
        if not self.in_place:
            seen = new if stored is None else torch.cat([stored[:, :, : self.before], new], dim=2)
            index = self.source[:, None, :, None].expand(*_shape(new, self.filled))
            stored = self._room(stored, new)
            stored[:, :, : self.filled] = seen.gather(2, index)
            return stored, seen
        stored = self._room(stored, new)
        stored.scatter_(2, self.slot[:, None, :, None].expand_as(new), new.to(stored.dtype))
        return stored, stored[:, :, : self.filled]

    def _room(self, stored: Tensor | None, new: Tensor) -> Tensor:
        if stored is not None and stored.shape[2] >= self.filled:
            return stored
        doubled = 0 if stored is None else 2 * stored.shape[2]
        size = min(max(self.capacity, self.filled, doubled), self.size)
        return _moved(stored, new.new_zeros(_shape(new, size)))  # empty slots meet a weight of 0: they must be finite

    def view(self, pattern: Pattern | Routed, *, by_position: bool) -> View:
        """See `Store`. Where a single token of plain rows sees all that is stored, it needs no mask."""
        step = self.step
        if isinstance(pattern, Pattern) and self.in_place and step.plain and not by_position:
            newest = step.reach - 1
            behind = np.arange(max(newest + 1 - self.last, self.first), newest + 1)
            held = np.concatenate([np.arange(min(self.first, newest + 1)), behind])  # positions, oldest first
            if all(np.all(part.allows(newest, held)) for part in pattern.heads()):
                return View(None, None, full())
        return View(step.layout, self.layout)

    def reorder(self, rows: Tensor) -> None:
        """See `Store`."""
        if not self.step.plain:
            self.documents = self.documents.index_select(0, rows)
            self.positions = self.positions.index_select(0, rows)


def _shape(new: Tensor, size: int) -> tuple[int, int, int, int]:
    return new.shape[0], new.shape[1], size, new.shape[3]


def _moved(stored: Tensor | None, room: Tensor) -> Tensor:
    if stored is not None:
        room[:, :, : stored.shape[2]] = stored
    return room


def _joined(first: SequenceLayout, second: SequenceLayout) -> SequenceLayout:
    return SequenceLayout(
        documents=torch.cat([first.documents, second.documents], dim=1),
        positions=torch.cat([first.positions, second.positions], dim=1),
        prefix=_joined_marks(first.prefix, second.prefix, first, second),
        landmarks=_joined_marks(first.landmarks, second.landmarks, first, second),
    )


def _joined_marks(
    marks: Tensor | None, more: Tensor | None, first: SequenceLayout, second: SequenceLayout
) -> Tensor | None:
    if marks is None and more is None:
        return None
    one = torch.zeros_like(first.documents, dtype=torch.bool) if marks is None else marks
    two = torch.zeros_like(second.documents, dtype=torch.bool) if more is None else more
    return torch.cat([one, two], dim=1)


def chosen_rows(layout: SequenceLayout, rows: Tensor) -> SequenceLayout:
    """The rows `rows` [B'] of a layout, in this order."""
    return replace(
        layout,
        documents=layout.documents.index_select(0, rows),
        positions=layout.positions.index_select(0, rows),
        prefix=None if layout.prefix is None else layout.prefix.index_select(0, rows),
        landmarks=None if layout.landmarks is None else layout.landmarks.index_select(0, rows),
    )

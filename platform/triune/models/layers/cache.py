"""Keys and values of past tokens, with where each of them belongs.

Legend: B batch, T new tokens, S stored tokens, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern, Retained
from triune.attention.routed.patterns import Routed
from triune.models.layers.ring import Everything, Ring, Step, Store, chosen_rows


class LayerCache:
    """Keys and values of one block: `append` for self-attention, `memory` for cross-attention."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.keys: Tensor | None = None  # [B, K, capacity, D]
        self.values: Tensor | None = None  # [B, K, capacity, D]
        self.memory: tuple[Tensor, Tensor] | None = None  # keys and values of the encoder's memory, each [B, K, S, D]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values [B, K, T, D] -> all that the new tokens may attend to, each [B, K, S, D].

        Raises RuntimeError where a gradient is asked for: a cache is for decoding.
        """
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise RuntimeError("a key/value cache keeps no gradients: decode under torch.no_grad()")
        assert self.store is not None  # KeyValueCache.extend comes first
        self.keys, keys = self.store.write(self.keys, key)
        self.values, values = self.store.write(self.values, value)
        return keys, values

    def reorder(self, rows: Tensor, *, memory: bool = True) -> None:
        """Keep the rows [B'] of the batch, in this order; those of the memory only where `memory`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if self.memory is not None and memory:
            key, value = self.memory
            self.memory = key.index_select(0, rows), value.index_select(0, rows)


class KeyValueCache:
    """What a decoder remembers while it generates: keys and values a block, and where the stored tokens belong.

    Rows may be padded on either side; each row continues at its own position after its last real token. A block whose pattern
    leaves a window in sight keeps that window and no more (`Ring`), but where the first tokens carry prefix marks or landmarks, which may be
    seen from anywhere: then all is kept.

    Args:
        patterns: self-attention's, one a block.
        batch: rows.
        capacity: tokens a row to allocate at once; the cache grows beyond it when needed.
    """

    def __init__(self, *, patterns: Sequence[Pattern | Routed], batch: int, capacity: int = 0) -> None:
        self.batch = batch
        self.capacity = capacity
        self.length = 0  # tokens a row so far, padding included
        self.plain = True  # every row is one document without padding
        self.layers = [LayerCache() for _ in patterns]
        self.source_layout: SequenceLayout | None = None  # of the encoder's memory
        self._retained = [pattern.retained() for pattern in patterns]
        self._stores: dict[Retained, Store] = {}
        self._reach = 0  # above every position so far
        self._document: (
            Tensor  # [B, 1] of each row's last real token, -1 where there is none; unused while rows are plain
        )
        self._position: Tensor  # [B, 1] likewise

    @property
    def layout(self) -> SequenceLayout | None:
        """Of all stored tokens [B, S]; None before the first, and where no block keeps them all."""
        return next((store.layout for store in self._stores.values() if isinstance(store, Everything)), None)

    def extend(self, layout: SequenceLayout | None, inputs: Tensor) -> SequenceLayout:
        """Note that `inputs` [B, T] come next and return their layout.

        Without a layout each row goes on with its last document, right after its last real token. Raises ValueError for
        another number of rows and, where a window's cache has let tokens go, for a layout that could ask for them.
        """
        batch, length = inputs.shape
        if batch != self.batch:
            raise ValueError(f"the cache was made for {self.batch} rows and got {batch}")
        continued = layout is None
        new = self._continued(length, inputs.device) if layout is None else layout
        if not self._stores:
            self._choose(new)
        elif not continued and any(isinstance(store, Ring) for store in self._stores.values()):
            self._check_order(new)
        self._note(new, continued=continued)
        step = Step(new, self.length, continued, self.plain, self._reach)
        for store in self._stores.values():
            store.extend(step)
        self.length += length
        return new

    def _continued(self, length: int, device: torch.device) -> SequenceLayout:
        """[B, length] tokens right after each row's last real one."""
        if self.length == 0:
            return SequenceLayout.plain_rows(self.batch, length, device)
        step = torch.arange(length, dtype=torch.int32, device=device)
        if self.plain:
            document, position = step.new_zeros(1, 1), step.new_full((1, 1), self.length)
        else:  # a row that is all padding starts document 0 at position 0
            document = self._document.clamp_min(0)
            position = self._position.masked_fill(self._document < 0, -1) + 1
        return SequenceLayout(
            documents=document.expand(self.batch, length), positions=(position + step).expand(self.batch, length)
        )

    def _choose(self, layout: SequenceLayout) -> None:
        """One store for all layers that keep the same tokens."""
        lasting = _marked(layout) or not (layout.contiguous or _ordered(layout))
        for layer, retained in zip(self.layers, self._retained, strict=True):
            kept = Retained(0, None) if lasting or retained.last is None else retained
            if kept not in self._stores:
                self._stores[kept] = Everything(self.capacity) if kept.last is None else Ring(kept, self.capacity)
            layer.store = self._stores[kept]

    def _check_order(self, layout: SequenceLayout) -> None:
        """Refuse what a ring can't serve any more."""
        if _marked(layout):
            raise ValueError(
                "prefix marks and landmarks must come with the first tokens of a cache that keeps a window only"
            )
        if not _ordered(layout, self.length - 1 if self.plain else _place(self._document, self._position)):
            raise ValueError(
                "a row goes back to a document or position that it has left, of which a window's cache has let tokens go: "
                "number documents in order, and go on with the last one or begin a new one"
            )

    def _note(self, new: SequenceLayout, *, continued: bool) -> None:
        """Keep account of how far the rows have come."""
        rows, length = new.shape
        was_plain, self.plain = self.plain, self.plain and (continued or (self.length == 0 and new.plain))
        if self.plain or continued:
            self._reach += length
        else:
            self._reach = max(self._reach, int(new.positions.max()) + 1)
        if self.plain:
            return
        if was_plain:
            before = (0, self.length - 1) if self.length else (-1, -1)
            self._document, self._position = (new.documents.new_full((rows, 1), value) for value in before)
        real = new.documents >= 0
        column = torch.arange(1, length + 1, device=real.device)
        last = (real * column).argmax(dim=1, keepdim=True)  # [B, 1]
        some = real.any(dim=1, keepdim=True)
        self._document = torch.where(some, new.documents.gather(1, last), self._document)
        self._position = torch.where(some, new.positions.gather(1, last), self._position)

    def reorder(self, rows: Tensor, *, memory: bool = True) -> None:
        """Keep the rows `rows` [B'] of the batch, in this order (beam search; dropping finished rows).

        Args:
            rows: which of the rows so far stands in each new row.
            memory: also what rows know of an encoder's memory; False where each new row attends to what the row in its place did.
        """
        self.batch = rows.numel()
        for layer in self.layers:
            layer.reorder(rows, memory=memory)
        for store in self._stores.values():
            store.reorder(rows)
        if not self.plain:
            self._document, self._position = self._document.index_select(0, rows), self._position.index_select(0, rows)
        if self.source_layout is not None and memory:
            self.source_layout = chosen_rows(self.source_layout, rows)


def _marked(layout: SequenceLayout) -> bool:
    """Whether some tokens may be seen, or see, from anywhere in their document."""
    return layout.prefix is not None or layout.landmarks is not None


def _ordered(layout: SequenceLayout, start: Tensor | int = -1) -> bool:
    """Whether each row's real tokens go up in `_place`, from above `start` [B, 1]."""
    place = _place(layout.documents, layout.positions)
    real = layout.documents >= 0
    before = torch.zeros_like(place[:, :1]) + start
    before = torch.cat([before, place[:, :-1].where(real[:, :-1], -1)], dim=1).cummax(dim=1).values
    return bool((~real | (place > before)).all())


def _place(documents: Tensor, positions: Tensor) -> Tensor:
    """One number that goes up with the document and then with the position, below 0 for padding."""
    return documents.long() * 2**32 + positions

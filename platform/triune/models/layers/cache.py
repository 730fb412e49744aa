"""Keys and values of past tokens, with where each of them belongs.

Legend: B batch, T new tokens, S stored tokens, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triune.attention.layout import SequenceLayout


class LayerCache:
    """Keys and values of one block: `append` for self-attention, `memory` for cross-attention."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: Tensor | None = None  # [B, K, capacity, D]
        self.values: Tensor | None = None  # [B, K, capacity, D]
        self.memory: tuple[Tensor, Tensor] | None = None  # keys and values of the encoder's memory, each [B, K, S, D]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values [B, K, T, D] -> all of them so far, each [B, K, S, D].

        Raises RuntimeError where a gradient is asked for: a cache is for decoding.
        """
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise RuntimeError("a key/value cache keeps no gradients: decode under torch.no_grad()")
        start, self.length = self.length, self.length + key.shape[2]
        self.keys = self._room(self.keys, key)
        self.values = self._room(self.values, value)
        self.keys[:, :, start : self.length] = key
        self.values[:, :, start : self.length] = value
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _room(self, stored: Tensor | None, new: Tensor) -> Tensor:
        """A buffer that holds `self.length` tokens: doubled when full, so that appending costs O(1) a token."""
        if stored is not None and stored.shape[2] >= self.length:
            return stored
        self.capacity = max(self.capacity, self.length if stored is None else max(self.length, 2 * stored.shape[2]))
        room = new.new_empty(new.shape[0], new.shape[1], self.capacity, new.shape[3])
        if stored is not None:
            room[:, :, : stored.shape[2]] = stored
        return room

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] of the batch, in this order."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if self.memory is not None:
            key, value = self.memory
            self.memory = key.index_select(0, rows), value.index_select(0, rows)


class KeyValueCache:
    """What a decoder remembers while it generates: keys and values a block, and the layout of the stored tokens.

    Rows may be padded on either side; each row continues at its own position after its last real token.

    Args:
        layers: blocks of the decoder.
        batch: rows.
        capacity: tokens a row to allocate at once; the cache grows beyond it when needed.
    """

    def __init__(self, *, layers: int, batch: int, capacity: int = 0) -> None:
        self.batch = batch
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.layout: SequenceLayout | None = None  # of the stored tokens, [B, S]
        self.source_layout: SequenceLayout | None = None  # of the encoder's memory

    @property
    def length(self) -> int:
        """Tokens a row stored so far, padding included."""
        return 0 if self.layout is None else self.layout.documents.shape[1]

    @property
    def plain(self) -> bool:
        """True where every stored row is one document without padding."""
        return self.layout is not None and self.layout.plain

    def extend(self, layout: SequenceLayout | None, inputs: Tensor) -> SequenceLayout:
        """Note that `inputs` [B, T] come next and return their layout.

        Without a layout each row goes on with its last document, right after its last real token.
        """
        batch, length = inputs.shape
        if batch != self.batch:
            raise ValueError(f"the cache was made for {self.batch} rows and got {batch}")
        if self.layout is None:
            self.layout = layout or SequenceLayout.plain_rows(batch, length, inputs.device)
            return self.layout
        plain = layout is None and self.layout.plain
        new = self._continued(length) if layout is None else layout
        self.layout = _joined(self.layout, new, plain=plain)
        return new

    def _continued(self, length: int) -> SequenceLayout:
        """[B, length] tokens right after each row's last real one."""
        assert self.layout is not None
        documents, positions = self.layout.documents, self.layout.positions  # [B, S]
        column = torch.arange(1, self.length + 1, device=documents.device)
        last = ((documents >= 0) * column).argmax(dim=1, keepdim=True)  # [B, 1]
        document = documents.gather(1, last)  # -1 in a row that is all padding: it starts document 0 at position 0
        position = positions.gather(1, last).masked_fill(document < 0, -1)
        step = torch.arange(1, length + 1, dtype=positions.dtype, device=positions.device)
        return SequenceLayout(documents=document.clamp_min(0).expand(-1, length), positions=position + step)

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows `rows` [B'] of the batch, in this order (beam search; dropping finished rows)."""
        self.batch = rows.numel()
        for layer in self.layers:
            layer.reorder(rows)
        self.layout = _rows(self.layout, rows)
        self.source_layout = _rows(self.source_layout, rows)


def _joined(first: SequenceLayout, second: SequenceLayout, *, plain: bool) -> SequenceLayout:
    prefix = None
    if first.prefix is not None or second.prefix is not None:
        prefix = torch.cat([_prefix(first), _prefix(second)], dim=1)
    return SequenceLayout(
        documents=torch.cat([first.documents, second.documents], dim=1),
        positions=torch.cat([first.positions, second.positions], dim=1),
        prefix=prefix,
        plain=plain,
    )


def _prefix(layout: SequenceLayout) -> Tensor:
    return torch.zeros_like(layout.documents, dtype=torch.bool) if layout.prefix is None else layout.prefix


def _rows(layout: SequenceLayout | None, rows: Tensor) -> SequenceLayout | None:
    if layout is None:
        return None
    return SequenceLayout(
        documents=layout.documents.index_select(0, rows),
        positions=layout.positions.index_select(0, rows),
        prefix=None if layout.prefix is None else layout.prefix.index_select(0, rows),
        plain=layout.plain,
    )

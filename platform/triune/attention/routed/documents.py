"""Rows of any layout as rows of one document each, and back: routed attention is defined on a document.

So packing can't leak, by construction, and a packed document gives what it gives alone. Documents of like length (within
a factor of 2) are computed together, so that at most half of the rows are padding.
Legend: B batch, T query length, S key length, H heads, D head width, N documents, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.attention.routed.gather import take
from triune.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Some documents, one a row."""

    layout: SequenceLayout  # [N, L], right-padded
    lengths: Tensor  # [N] int64, at least 1
    index: (
        Tensor | None
    )  # [N * L] the token of the batch at each place, -1 for none; None where the rows are the batch's own
    back: Tensor | None  # [1, B * T] the place of each token, -1 for none
    positions: Tensor | None = None  # [N, T] where queries stand, if they are not all tokens

    def gather(self, tensor: Tensor) -> Tensor:
        """[B, H, T, D] -> [N, H, L, D]."""
        if self.index is None or self.back is None:
            return tensor
        batch, heads, length, width = tensor.shape
        tokens = tensor.transpose(1, 2).reshape(batch * length, heads * width)
        rows = take(tokens, self.index, self.back)
        return rows.view(self.layout.shape[0], -1, heads, width).transpose(1, 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """The documents of a batch, and the way back."""

    queries: list[Group]
    keys: list[Group]  # the same objects as `queries`, but where a cache holds earlier keys
    padding: Tensor | None  # [B, 1, T, 1] queries whose result is zero; None where there are none
    place: (
        Tensor | None
    )  # [B * T] where each query's result is among those of all groups, -1 for padding; None: rows stayed
    back: Tensor | None  # [1, ...] the query of each such place, -1 for none

    def scatter(self, outputs: Sequence[Tensor], batch: int) -> Tensor:
        """[N, H, L, D] of each group -> [B, H, T, D], zero at padding."""
        if self.place is None or self.back is None:
            return outputs[0] if self.padding is None else outputs[0].masked_fill(self.padding, 0.0)
        heads, width = outputs[0].shape[1], outputs[0].shape[3]
        rows = [output.transpose(1, 2).reshape(-1, heads * width) for output in outputs]
        tokens = take(torch.cat(rows), self.place, self.back)
        return tokens.view(batch, -1, heads, width).transpose(1, 2)


def documents_of(layout: SequenceLayout) -> Documents:
    """The documents of self-attention over whole rows, remembered with the layout.

    Where rows are not right-padded the layout is read on the host: once a batch, a device is waited for.
    UserError where the positions of a document are not 0, 1, 2, ... in some order.
    """
    return layout.remember("routed documents", layout, lambda: _documents_of(layout))  # type: ignore[no-any-return]


def _documents_of(layout: SequenceLayout) -> Documents:
    if layout.right_padded:
        return _as_they_are(layout)
    pieces = _host_documents(layout)
    by_size: dict[int, list[np.ndarray]] = {}
    for piece in pieces:
        by_size.setdefault(len(piece).bit_length(), []).append(piece)
    rows, length = layout.shape
    groups = [_group(part, rows * length, layout) for part in by_size.values()] or [
        _group([np.empty(0, np.int64)], rows * length, layout)
    ]
    place, back = _joined(groups, rows * length)
    return Documents(queries=groups, keys=groups, padding=None, place=place, back=back)


def _as_they_are(layout: SequenceLayout) -> Documents:
    if layout.plain:
        lengths = torch.full((layout.shape[0],), layout.shape[1], device=layout.documents.device)
        padding = None
    else:
        lengths = (~layout.padding).sum(1).clamp_min(1)
        padding = layout.padding[:, None, :, None]
    group = Group(layout=layout, lengths=lengths, index=None, back=None)
    return Documents(queries=[group], keys=[group], padding=padding, place=None, back=None)


def decoded_documents(queries: SequenceLayout, keys: SequenceLayout) -> Documents:
    """Documents of which a cache holds all keys and the queries are the last tokens. Reads both layouts on the host.

    UserError where a query is not among the last tokens of a document of the keys: a routed pattern chooses among a
    document's own tokens and means nothing in cross-attention.
    """
    return queries.remember("routed documents", keys, lambda: _decoded_documents(queries, keys))  # type: ignore[no-any-return]


def _decoded_documents(queries: SequenceLayout, keys: SequenceLayout) -> Documents:
    asked = _host_documents(queries, whole=False)
    held = {_name(keys, piece): piece for piece in _host_documents(keys)}
    where = queries.positions.cpu().numpy().ravel()
    parts, positions = [], []
    for piece in asked:
        document = held.get(_name(queries, piece), np.empty(0, np.int64))
        last = np.arange(len(document) - len(piece), len(document))
        if last[:1] < 0 or not np.array_equal(where[piece], last):
            raise UserError(
                "attention: a routed pattern needs queries that are the last tokens of a document of the keys, as in "
                "self-attention with or without a cache; cross-attention takes a static pattern such as full()."
            )
        parts.append(document)
        positions.append(last)
    device = queries.documents.device
    if not asked:  # all queries are padding
        asked, parts, positions = [np.empty(0, np.int64)], [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
    key_group = _group(parts, keys.documents.numel(), keys)
    query_group = _group(asked, queries.documents.numel(), queries)
    at = np.zeros((len(asked), query_group.layout.shape[1]), np.int64)
    for row, position in enumerate(positions):
        at[row, : len(position)] = position
    query_group = Group(
        layout=query_group.layout,
        lengths=query_group.lengths,
        index=query_group.index,
        back=query_group.back,
        positions=torch.as_tensor(at, device=device),
    )
    place, back = _joined([query_group], queries.documents.numel())
    return Documents(queries=[query_group], keys=[key_group], padding=None, place=place, back=back)


def _name(layout: SequenceLayout, piece: np.ndarray) -> tuple[int, int]:
    """Row and number of a document, from one of its tokens."""
    row, column = divmod(int(piece[0]), layout.shape[1])
    return row, int(layout.documents[row, column])


def _host_documents(layout: SequenceLayout, *, whole: bool = True) -> list[np.ndarray]:
    """The tokens of each document, as indices into the flattened batch, in the order of their positions."""
    documents, positions = layout.documents.cpu().numpy(), layout.positions.cpu().numpy()
    row = np.broadcast_to(np.arange(documents.shape[0])[:, None], documents.shape)
    order = np.lexsort((positions.ravel(), documents.ravel(), row.ravel()))
    order = order[documents.ravel()[order] >= 0]
    number, line, position = documents.ravel()[order], row.ravel()[order], positions.ravel()[order]
    starts = np.flatnonzero((np.diff(number, prepend=-1) != 0) | (np.diff(line, prepend=-1) != 0))
    pieces = np.split(order, starts[1:]) if order.size else []
    first = np.repeat(starts, np.diff(np.append(starts, order.size)))
    if whole and not np.array_equal(position, np.arange(order.size) - first):
        raise UserError(
            "attention: a routed pattern needs documents whose tokens stand at positions 0, 1, 2, ...; a layout here leaves "
            "some out or repeats them. Number them so, or use a static pattern."
        )
    return pieces


def _group(pieces: list[np.ndarray], tokens: int, like: SequenceLayout) -> Group:
    device = like.documents.device
    lengths = [len(piece) for piece in pieces]
    longest = max([*lengths, 1])
    index = np.full((len(pieces), longest), -1, np.int64)
    for row, piece in enumerate(pieces):
        index[row, : len(piece)] = piece
    back = np.full(tokens, -1, np.int64)
    back[index[index >= 0]] = np.flatnonzero(index.ravel() >= 0)
    return Group(
        layout=SequenceLayout.from_lengths(lengths, longest, device=device),
        lengths=torch.tensor(lengths, device=device).clamp_min(1),
        index=torch.as_tensor(index.ravel(), device=device),
        back=torch.as_tensor(back[None], device=device),
    )


def _joined(groups: list[Group], tokens: int) -> tuple[Tensor, Tensor]:
    """For each token its place among the places of all groups, and for each place its token."""
    indices = [group.index for group in groups if group.index is not None]
    back = torch.cat(indices)
    places = torch.arange(back.numel(), device=back.device)
    place = torch.full((tokens + 1,), -1, device=back.device)
    place = place.scatter(0, torch.where(back < 0, tokens, back), places)[:-1]  # the last takes what is no token
    return place, back[None]

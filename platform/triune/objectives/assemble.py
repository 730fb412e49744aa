"""Rows of several documents from flat arrays: concatenate, frame with special tokens, number, shift.

Legend: D documents of the row, N their tokens in all. `lengths` [D] says how the N tokens divide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from triune.objectives.batch import Example, Segment


def flatten(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """The segments' ids end to end, [N] int64, and their lengths, [D]."""
    lengths = np.array([len(segment.ids) for segment in segments], np.int64)
    return np.concatenate([segment.ids for segment in segments], dtype=np.int64), lengths


def frame(
    values: np.ndarray, lengths: np.ndarray, *, first: float | None = None, last: float | None = None
) -> np.ndarray:
    """[N] values with `first` put before and `last` after each document's; None puts nothing."""
    extra = (first is not None) + (last is not None)
    framed = np.empty(len(values) + extra * len(lengths), values.dtype)
    document = np.repeat(np.arange(len(lengths)), lengths)
    framed[np.arange(len(values)) + extra * document + (first is not None)] = values
    ends = np.cumsum(lengths + extra)
    if first is not None:
        framed[ends - lengths - extra] = first
    if last is not None:
        framed[ends - 1] = last
    return framed


def number(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Document number and position in its document of each token, both [N] int32."""
    starts = np.cumsum(lengths) - lengths
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    positions = np.arange(len(documents), dtype=np.int32) - np.repeat(starts, lengths).astype(np.int32)
    return documents, positions


def next_token(
    targets: np.ndarray,
    lengths: np.ndarray,
    *,
    start: int,
    closed: np.ndarray | None = None,
    source: tuple[np.ndarray, np.ndarray] | None = None,
) -> Example:
    """The example that predicts each target from those before it in its document.

    Args:
        targets: [N], each document's closed by its end token; lengths: [D], all above 0.
        start: what each document's inputs begin with.
        closed: [D] False where the end token is not to be learned, since the document goes on; None closes all.
        source: ids and lengths of what the encoder reads.
    """
    documents, positions = number(lengths)
    inputs = np.concatenate([[start], targets[:-1]], dtype=np.int64)
    inputs[positions == 0] = start
    weights = np.ones(len(targets), np.float32)
    if closed is not None:
        weights[np.cumsum(lengths) - 1] = closed
    row = Example(inputs=inputs, targets=targets, weights=weights, documents=documents, positions=positions)
    if source is None:
        return row
    source_documents, source_positions = number(source[1])
    return replace(row, source=source[0], source_documents=source_documents, source_positions=source_positions)


def continued(ids: np.ndarray, learned: np.ndarray) -> Example:
    """One document that a decoder reads, in which each token of `learned` is predicted from those before it.

    Args:
        ids: [n], n above 1, special tokens included; learned: [n] bool, False for the first, which nothing comes before.
    """
    documents, positions = number(np.array([len(ids) - 1]))
    return Example(
        inputs=ids[:-1].astype(np.int64),
        targets=ids[1:].astype(np.int64),
        weights=learned[1:].astype(np.float32),
        documents=documents,
        positions=positions,
    )

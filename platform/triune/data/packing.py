"""Which pieces of which documents share a row: best-fit packing, planned once for a corpus.

Legend: N documents, S segments (documents or pieces of them), R rows, C capacity of a row in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: [S] lengths and, for pairs, [S] splits -> [S] room that each segment takes in a row; an objective's `cost`
Cost = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each row holds, as arrays: row r is segments offsets[r] to offsets[r + 1] of the segment table.

    Every token of every document is in exactly one segment, but for the pairs counted in `dropped`.
    """

    offsets: np.ndarray  # [R + 1] int64
    document: np.ndarray  # [S] int32 or int64: number of the document in the corpus
    start: np.ndarray  # [S] int32 or int64: first token of the segment in the document
    stop: np.ndarray  # [S] int32 or int64: past its last token
    cost: np.ndarray  # [R] int32: room taken in each row, special tokens included
    kind: Literal["packed", "single"]
    capacity: int  # C
    documents: int  # N
    empty: int  # documents without a token, which are in no row
    cut: int  # documents longer than a row, which are in several
    dropped: int  # pairs longer than a row, which are in none
    dropped_tokens: int

    def __len__(self) -> int:
        return len(self.cost)

    @property
    def tokens(self) -> int:
        """Tokens of the corpus that are in a row, special tokens not counted."""
        return int((self.stop - self.start).sum(dtype=np.int64))

    @property
    def waste(self) -> float:
        """Share of the rows' room that no segment takes, 0 to 1: what padding every row to the capacity costs."""
        return 1.0 - float(self.cost.sum(dtype=np.int64)) / max(1, self.capacity * len(self))

    def __str__(self) -> str:
        rows = f"{len(self):,} rows of {'up to ' if self.kind == 'single' else ''}{self.capacity:,}"
        parts = [f"{self.documents:,} documents, {self.tokens:,} tokens in {rows}"]
        if self.kind == "packed":
            parts.append(f"{self.waste:.2%} of the room empty")
        if self.cut:
            parts.append(f"{self.cut:,} documents longer than a row cut")
        if self.dropped:
            parts.append(f"{self.dropped:,} pairs longer than a row left out ({self.dropped_tokens:,} tokens)")
        if self.empty:
            parts.append(f"{self.empty:,} empty documents left out")
        return "; ".join(parts)


def plan(
    lengths: np.ndarray,
    splits: np.ndarray | None,
    *,
    cost: Cost,
    longest: int,
    capacity: int,
    kind: Literal["packed", "single"] = "packed",
) -> Plan:
    """Plan the rows of a corpus: the same arguments give the same plan.

    Documents longer than `longest` are cut into pieces of `longest` tokens and a rest; a pair is never cut, and is
    left out and counted where its cost is above the capacity.

    Args:
        lengths: [N] tokens of each document; splits: [N] where the target of each pair begins, None without pairs.
        cost: room each segment takes (an objective's `cost`).
        longest: most tokens of a segment (an objective's `longest`); its cost is at most the capacity.
        capacity: room of a row.
        kind: "packed" fills rows, best fit (`best_fit`); "single" gives each segment its row, in order.

    Raises:
        ValueError: the objective's `cost` breaks its contract: below 1, or above the capacity at `longest` tokens.
    """
    lengths = np.asarray(lengths, np.int64)
    if splits is None:
        document, start, stop = _cut(lengths, longest)
        costs = np.asarray(cost(stop - start, None), np.int64)
        dropped = np.zeros(0, np.int64)
    else:
        document = np.flatnonzero(lengths)
        start, stop = np.zeros_like(document), lengths[document]
        costs = np.asarray(cost(stop, np.asarray(splits)[document]), np.int64)
        fits = costs <= capacity
        dropped = stop[~fits]
        document, start, stop, costs = document[fits], start[fits], stop[fits], costs[fits]
    if len(costs) and not 1 <= costs.min() <= costs.max() <= capacity:
        raise ValueError(f"costs of segments must lie in 1..{capacity}, got {costs.min()}..{costs.max()}")

    row = best_fit(costs, capacity) if kind == "packed" else np.arange(len(costs))
    rows = int(row.max()) + 1 if len(row) else 0
    by_row = np.argsort(row, kind="stable")
    index = _index_type(max(len(lengths), int(lengths.max(initial=0))))
    return Plan(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]),
        document=document[by_row].astype(index),
        start=start[by_row].astype(index),
        stop=stop[by_row].astype(index),
        cost=np.bincount(row, costs, rows).astype(np.int32),  # float64 sums are exact below 2^53
        kind=kind,
        capacity=capacity,
        documents=len(lengths),
        empty=int((lengths == 0).sum()),
        cut=0 if splits is not None else int((lengths > longest).sum()),
        dropped=len(dropped),
        dropped_tokens=int(dropped.sum()),
    )


def best_fit(costs: np.ndarray, capacity: int) -> np.ndarray:
    """[S] costs in 1..capacity -> [S] int64 row of each segment, rows numbered from 0: best-fit decreasing.

    Every segment, from the longest, goes to the fullest row that has room for it, else to a new one. Uses at most
    11/9 of the fewest rows possible, plus 6/9 (Johnson 1973; Dósa 2007). Ding et al. 2024 (Fewer Truncations
    Improve Language Modeling) pack language-modelling corpora this way.

    Equal segments are placed together and rows with equal room are kept together, so that one step of the loop
    moves a whole group. A visit empties a group (a row of room r keeps r modulo the size, less than half) and each
    size makes at most three new ones: O(D log C) visits for D distinct sizes, and O(S log C) array work in all.
    """
    decreasing = np.argsort((capacity - costs).astype(np.min_scalar_type(capacity)), kind="stable")
    counts = np.bincount(costs, minlength=capacity + 1)
    with_room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # rows by the room left in them
    any_with = np.zeros(capacity + 1, bool)

    def put(rows: np.ndarray, room: int) -> None:
        if len(rows):
            with_room[room].append(rows)
            any_with[room] = True

    placed = np.empty(len(costs), np.int64)  # row of each segment, longest first
    done = opened = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        todo = int(counts[size])
        while todo:
            room = size + int(any_with[size:].argmax())
            if any_with[room]:
                rows = np.concatenate(with_room[room])
                with_room[room].clear()
                any_with[room] = False
            else:
                room = capacity
                rows = np.arange(opened, opened - (-todo // (capacity // size)))
                opened += len(rows)
            # the fullest row that fits stays the fullest while it fits, so it takes as many as it holds
            each = room // size
            used = min(len(rows), -(-todo // each))
            now = min(todo, used * each)
            placed[done : done + now] = np.repeat(rows[:used], each)[:now]
            put(rows[: used - 1], room - each * size)
            put(rows[used - 1 : used], room - (now - (used - 1) * each) * size)
            put(rows[used:], room)
            done += now
            todo -= now
    result = np.empty(len(costs), np.int64)
    result[decreasing] = placed
    return result


def _cut(lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[N] lengths -> document, start, stop of each piece, all [S] int64, in order; an empty document has none."""
    pieces = -(-lengths // longest)
    document = np.repeat(np.arange(len(lengths)), pieces)
    ordinal = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = ordinal * longest
    return document, start, np.minimum(start + longest, lengths[document])


def _index_type(largest: int) -> type[np.signedinteger]:
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64

"""Which keys each tile of queries must look at: the host's plan for the `blocked` backend. Imports no torch.

A plan is exact: a pair that no step computes is refused, and a pair that a step computes in vain is masked there. It is made
from the borders of each query's runs of keys (`Pattern.edges`), in time and memory of queries x edges.
Legend: B batch, T query length, S key length, R queries of a step, C keys of a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from triune.attention.patterns import Pattern

#: queries of a step, of which the cheapest is taken; keys are taken in groups of `GRANULE`
TILES = (64, 128, 256)
GRANULE = 16
#: gaps of fewer keys than this are computed and masked, which is cheaper than one more span
_GAP = 32
#: a query that sees this many times more keys than its tile's median (a global token) goes into a step of its own
_WIDE = 4
#: what a step costs beside its pairs, in pairs of a head: some 50,000 in all (seen on two threads), at six heads. It chooses tiles only
STEP = 8_000


class Step(NamedTuple):
    """Some queries of a row with the keys that at least one of them sees."""

    row: int  # of the batch
    queries: np.ndarray  # [R] indices, ascending
    spans: tuple[tuple[int, int], ...]  # [start, stop) of the keys, ascending; C in all
    partial: tuple[tuple[int, int], ...]  # [first, last) of the C columns in which not every query sees every key

    @property
    def columns(self) -> np.ndarray:
        """[C] indices of the keys."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.spans])

    @property
    def pairs(self) -> int:
        """R x C."""
        return len(self.queries) * sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps that together compute every allowed pair once, in a fixed order. Queries in no step may attend to nothing.

    Attributes:
        steps: what to compute; where rows are `alike`, of one row for all.
        rows: what decides about single pairs, a row.
        alike: every row of the batch has the same steps.
    """

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    alike: bool = False

    @property
    def pairs(self) -> int:
        """Pairs that are computed, a head."""
        return sum(step.pairs for step in self.steps)

    @property
    def cost(self) -> int:
        """Pairs, and what the steps cost beside them, in pairs of a head."""
        return self.pairs + STEP * len(self.steps)

    @cached_property
    def refused(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """For each step and each of its `partial` columns: [R, last - first], True where the query may not see the key.

        Equal tiles, as most of a regular pattern's are, are one array.
        """
        known: dict[bytes, np.ndarray] = {}

        def masks(step: Step) -> Iterator[np.ndarray]:
            columns = step.columns
            for first, last in step.partial:
                mask = ~self.rows[step.row].allows(step.queries, columns[first:last])
                yield known.setdefault(np.packbits(mask).tobytes() + bytes(f"{mask.shape}", "ascii"), mask)

        return tuple(tuple(masks(step)) for step in self.steps)

    @cached_property
    def distances(self) -> tuple[np.ndarray, ...]:
        """For each step [R, C]: position of the key minus that of the query, int64; equal ones are one array."""
        known: dict[bytes, np.ndarray] = {}

        def distance(step: Step) -> np.ndarray:
            row = self.rows[step.row]
            found = row.columns.positions[step.columns] - row.queries.positions[step.queries][:, None]
            return known.setdefault(hashlib.sha1(found.tobytes() + bytes(f"{found.shape}", "ascii")).digest(), found)

        return tuple(distance(step) for step in self.steps)


class Row(Protocol):
    """The pairs of one row of a batch."""

    queries: Tokens  # [T] each
    columns: Tokens  # of the keys, [S] each

    def runs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts and stops [E, R] of each query's runs of keys; a run is empty where stop <= start."""

    def allows(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[R, C] True where the query may see the key."""


class Tokens(NamedTuple):
    """Where the tokens of a row belong, on the host: [T] int64 each."""

    documents: np.ndarray
    positions: np.ndarray


class ContiguousRow:
    """A row in which a document's tokens stand together, in order of position, and documents are numbered upwards.

    Args:
        pattern: which position may attend to which.
        queries: where each query belongs.
        columns: where each key belongs.
    """

    def __init__(self, pattern: Pattern, queries: Tokens, columns: Tokens) -> None:
        self.pattern, self.queries, self.columns = pattern, queries, columns
        self.start, self.stop = _segments(queries.documents, columns.documents)  # [T] each
        last = len(columns.documents) - 1
        self.first = columns.positions[np.minimum(self.start, last)]  # [T] position of the key at `start`

    def runs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        position, low = self.queries.positions[queries], self.first[queries]
        shift = self.start[queries] - low
        high = self.stop[queries] - shift
        edges = [np.clip(np.broadcast_to(edge, position.shape), low, high) for edge in self.pattern.edges(position)]
        borders = np.sort(np.stack([low, *edges, high]), axis=0)
        starts, stops = borders[:-1], borders[1:]
        seen = np.asarray(self.pattern.allows(position, starts)) & (stops > starts)
        return np.where(seen, starts + shift, 0), np.where(seen, stops + shift, 0)

    def allows(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        near = self.pattern.allows(self.queries.positions[queries][:, None], self.columns.positions[keys])
        same = self.queries.documents[queries][:, None] == self.columns.documents[keys]
        return np.asarray(near & same)


class AnyRow:
    """A row of which nothing is known but its allowed pairs [T, S]: planned at the cost of looking at each."""

    def __init__(self, pairs: np.ndarray, queries: Tokens, columns: Tokens) -> None:
        self.pairs, self.queries, self.columns = pairs, queries, columns

    def runs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn = np.diff(self.pairs[queries].astype(np.int8), axis=1, prepend=0, append=0)  # [R, S + 1]
        most = max(int((turn > 0).sum(1).max(initial=0)), 1)
        starts, stops = (np.zeros((most, len(queries)), np.int64) for _ in range(2))
        for sign, borders in ((1, starts), (-1, stops)):
            query, where = np.nonzero(turn == sign)
            borders[np.arange(len(query)) - np.searchsorted(query, query), query] = where
        return starts, stops

    def allows(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return self.pairs[queries][:, keys]


@lru_cache(maxsize=64)
def plain_plan(pattern: Pattern, queries: int, keys: int, offset: int = 0) -> Plan:
    """The plan of unpadded rows of one document: queries at positions offset.., keys at 0.. . Kept from batch to batch."""
    row = ContiguousRow(
        pattern,
        Tokens(np.zeros(queries, np.int64), np.arange(offset, offset + queries)),
        Tokens(np.zeros(keys, np.int64), np.arange(keys)),
    )
    plans = [Plan(tuple(_steps(0, row, queries, tile)), (row,), alike=True) for tile in TILES]
    return min(plans, key=lambda plan: plan.cost)


def plan_rows(rows: Iterable[Row], queries: int, tile: int) -> Plan:
    """The plan of rows that differ."""
    made = tuple(rows)
    return Plan(tuple(step for index, row in enumerate(made) for step in _steps(index, row, queries, tile)), made)


def best_tile(pattern: Pattern, queries: int, keys: int) -> int:
    """The tile that serves plain rows of these lengths best."""
    steps = plain_plan(pattern, queries, keys, max(keys - queries, 0)).steps
    longest = max((len(step.queries) for step in steps), default=TILES[0])
    return min((tile for tile in TILES if tile >= longest), default=TILES[-1])


def _segments(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[start, stop) of each query's document among the keys, [T] each; empty at padding and where the document is not there."""
    real = np.flatnonzero(keys >= 0)
    numbers, index, count = np.unique(keys[real], return_index=True, return_counts=True)
    if not len(numbers):
        return np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64)
    place = np.minimum(np.searchsorted(numbers, queries), len(numbers) - 1)
    there = numbers[place] == queries  # padding's -1 is no key's number
    start = np.where(there, real[index][place], 0)
    return start, np.where(there, start + count[place], 0)


def _steps(index: int, row: Row, queries: int, tile: int) -> Iterator[Step]:
    """Tiles of neighbouring queries; those that see far more than their neighbours are gathered into tiles of their own."""
    keys = len(row.columns.documents)
    wide: list[np.ndarray] = []
    for start in range(0, queries, tile):
        near = np.arange(start, min(start + tile, queries))
        starts, stops = row.runs(near)
        kept = np.maximum(stops - starts, 0).sum(0)  # [R]
        alive = kept > 0
        if not alive.any():
            continue
        apart = kept > _WIDE * np.median(kept[alive]) + 2 * GRANULE
        wide.append(near[apart])
        usual = alive & ~apart
        yield _step(index, near[usual], starts[:, usual], stops[:, usual], keys)
    far = np.concatenate(wide) if wide else np.zeros(0, np.int64)
    for start in range(0, len(far), tile):
        gathered = far[start : start + tile]
        yield _step(index, gathered, *row.runs(gathered), keys)


def _step(index: int, queries: np.ndarray, starts: np.ndarray, stops: np.ndarray, keys: int) -> Step:
    counts = _counts(starts, stops, keys)
    sizes = np.minimum(GRANULE, keys - GRANULE * np.arange(len(counts)))
    spans: list[tuple[int, int]] = []
    for first, last in _flagged(counts > 0):
        start, stop = first * GRANULE, min(last * GRANULE, keys)
        if spans and start - spans[-1][1] < _GAP:
            start = spans.pop()[0]
        spans.append((start, stop))
    granule = np.concatenate([np.arange(start, stop) for start, stop in spans]) // GRANULE  # [C]
    partial = (counts < len(queries) * sizes)[granule]
    return Step(index, queries, tuple(spans), tuple(_flagged(partial)))


def _counts(starts: np.ndarray, stops: np.ndarray, keys: int) -> np.ndarray:
    """Allowed pairs in each granule of keys, all queries together: [granules]."""
    granules = -(-keys // GRANULE)
    total = np.zeros(granules, np.int64)
    for border, sign in ((starts, -1), (stops, 1)):
        cell, inside = np.divmod(border.ravel(), GRANULE)
        # up to key x are all the granules before x's own, and a part of its own
        ends = np.bincount(cell, minlength=granules + 1)
        total += sign * GRANULE * np.cumsum(ends[::-1])[::-1][1:]
        total += sign * np.bincount(cell, inside, granules + 1)[:-1].astype(np.int64)
    return total


def _flagged(flags: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of each run of True."""
    turns = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in zip(turns[::2], turns[1::2], strict=True)]

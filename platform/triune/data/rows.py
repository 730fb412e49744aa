"""Rows of a prepared corpus: row i -> the segments it holds, read from the shards' memory maps when asked for."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from triune.data.config import RowsConfig
from triune.data.packing import Plan, plan
from triune.data.shards import Shards
from triune.objectives.base import Objective
from triune.objectives.batch import Segment


class RowSource(Protocol):
    """Rows that a loader can read: of a corpus (`Rows`) or of labelled records (`TaskRows`)."""

    @property
    def plan(self) -> Plan:
        """Which documents share a row."""

    @property
    def bucketed(self) -> bool:
        """Whether batches are of rows of like length."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> list[Any]: ...


class Rows:
    """A corpus as rows, map-style: len(rows) rows, rows[i] the segments of row i. Holds no tokens.

    Args:
        corpus: the documents.
        plan: which pieces of which documents share a row.
    """

    def __init__(self, corpus: Shards, plan: Plan) -> None:
        self.corpus = corpus
        self.plan = plan

    @classmethod
    def of(cls, corpus: Shards, objective: Objective, config: RowsConfig) -> Rows:
        """The rows that `objective` is given of a corpus; a row has room for `objective.context` tokens."""
        made = plan(
            corpus.lengths,
            corpus.splits,
            cost=objective.cost,
            longest=objective.longest,
            capacity=objective.context,
            kind=config.kind,
        )
        return cls(corpus, made)

    @property
    def bucketed(self) -> bool:
        """Whether batches are of rows of like length, since padding is what rows of one document would waste."""
        return self.plan.kind == "single"

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> list[Segment]:
        """The segments of a row, as views of the shards; IndexError outside 0..len - 1."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return [self._segment(segment) for segment in range(self.plan.offsets[row], self.plan.offsets[row + 1])]

    def _segment(self, segment: int) -> Segment:
        document = int(self.plan.document[segment])
        start, stop = int(self.plan.start[segment]), int(self.plan.stop[segment])
        splits = self.corpus.splits
        return Segment(
            self.corpus.ids(document)[start:stop],
            starts=start == 0,
            ends=stop == self.corpus.lengths[document],
            split=None if splits is None else int(splits[document]),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a token does, or the rows that they fill: equal fingerprints give equal rows."""
        digest = hashlib.blake2b(f"{self.corpus.manifest.fingerprint} {self.plan.kind}".encode(), digest_size=16)
        for array in (self.plan.offsets, self.plan.document, self.plan.start, self.plan.stop):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        return digest.hexdigest()

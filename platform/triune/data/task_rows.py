"""Rows of labelled examples, encoded once and kept in memory: what `Rows` is for a corpus on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from triune.data.packing import plan
from triune.objectives.batch import Example
from triune.objectives.task import Encoded


class TaskRows:
    """Encoded examples as rows, map-style: rows[i] the examples of row i.

    Args:
        encoded: the examples; all fit into `capacity`.
        capacity: the longest row of either tower, in tokens.
        kind: packed lets examples share rows, walls between them; single gives each its row.
    """

    def __init__(self, encoded: Sequence[Encoded], *, capacity: int, kind: Literal["packed", "single"]) -> None:
        self.examples = [one.example for one in encoded]
        lengths = np.array([max(len(e.inputs), 0 if e.source is None else len(e.source)) for e in self.examples])
        self.plan = plan(lengths, None, cost=lambda lengths, _: lengths, longest=capacity, capacity=capacity, kind=kind)
        if self.plan.cut:
            raise ValueError(f"{self.plan.cut} examples are longer than a row of {capacity}; the task must cut them")

    @property
    def bucketed(self) -> bool:
        """Whether batches are of rows of like length."""
        return self.plan.kind == "single"

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> list[Example]:
        """The examples of a row; IndexError outside 0..len - 1."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return [self.examples[n] for n in self.plan.document[self.plan.offsets[row] : self.plan.offsets[row + 1]]]

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a token, a target or a weight does, or the rows that they fill."""
        digest = hashlib.blake2b(f"{self.plan.kind} {self.plan.capacity}".encode(), digest_size=16)
        for example in self.examples:
            for array in (example.inputs, example.targets, example.weights, example.source, example.values):
                digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

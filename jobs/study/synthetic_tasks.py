"""Two tasks that no model solves by luck or by the statistics of a text: recall and copying over a distance.

Every row is drawn afresh, so nothing can be learnt by heart. Both tasks are next-step predictions of a decoder: the target of
a position is known from the tokens up to it. Legend: B rows, T length, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a task, all [B, T] int64.

    Args:
        inputs: ids.
        targets: what each position should predict; 0 where nothing is asked.
        distances: how many positions back the token stands that holds the answer; 0 where nothing is asked.
        candidates: answers among which a guess chooses that recalls nothing: see the task.
    """

    inputs: np.ndarray
    targets: np.ndarray
    distances: np.ndarray
    candidates: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """Where a prediction counts: bool [B, T]."""
        return self.distances > 0


class Task(Protocol):
    """What the study asks of a task."""

    length: int

    @property
    def vocabulary(self) -> int:
        """Ids are 0 .. vocabulary - 1."""

    def rows(self, count: int, generator: np.random.Generator) -> Rows:
        """`count` fresh rows."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Multi-query associative recall (Arora et al. 2023, Zoology, section 3.1 and appendix E): a key asks for the value it came with.

    A row has P pairs "key value" at random places of its first half. All other positions are queries, keys of pairs that have
    passed (blanks before the first). The target of a query is its pair's value, which is not in the row again: each
    question has one token with its answer. Candidates are the values of the pairs that have passed. Zoology puts all pairs
    first and draws distances from a power law; here no place is special, so that seeing the first tokens is worth little.

    Args:
        length: T, even.
        pairs: P, at most a quarter of the length.
        keys: distinct keys, at least P; the values have an alphabet of their own of the same size.
    """

    length: int = 256
    pairs: int = 8
    keys: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= min(self.keys, self.length // 4):
            raise ValueError(
                f"pairs is {self.pairs}, but it must be from 1 to keys = {self.keys} and length / 4 = {self.length / 4:g}"
            )

    @property
    def vocabulary(self) -> int:
        """Keys are 0 .. keys - 1, values the next `keys` ids, and the last is the blank."""
        return 2 * self.keys + 1

    def rows(self, count: int, generator: np.random.Generator) -> Rows:
        """`count` rows."""
        shape = (count, self.pairs)
        keys = _distinct(generator, *shape, among=self.keys)
        values = generator.integers(self.keys, 2 * self.keys, shape)
        starts = 2 * np.sort(
            _distinct(generator, *shape, among=self.length // 4), axis=1
        )  # [B, P] where the keys stand

        row = np.arange(count)[:, None]
        passed = np.zeros((count, self.length), np.int64)
        np.add.at(passed, (row, starts), 1)
        passed = passed.cumsum(axis=1)  # [B, T] pairs at or before a position
        asked = passed > 0
        asked[row, starts] = asked[row, starts + 1] = False
        chosen = (generator.random((count, self.length)) * passed).astype(np.int64)  # [B, T] which pair is asked for

        inputs = np.where(passed > 0, keys[row, chosen], 2 * self.keys)
        inputs[row, starts], inputs[row, starts + 1] = keys, values
        where = np.arange(self.length) - (starts + 1)[row, chosen]
        return Rows(
            inputs=inputs,
            targets=np.where(asked, values[row, chosen], 0),
            distances=np.where(asked, where, 0),
            candidates=np.where(asked, passed, 0),
        )


@dataclass(frozen=True, kw_only=True)
class Duplication:
    """The duplication task of Reformer (Kitaev et al. 2020, section 5): rows 0w0w, judged on the second w.

    Predicting symbol n of the second w asks for symbol n of the first, T / 2 - 1 positions before the position that predicts it.
    Candidates are all symbols. The paper has T = 1,024 and 127 symbols.

    Args:
        length: T, even; w has T / 2 - 1 symbols.
        symbols: the alphabet of w is 1 .. symbols.
    """

    length: int = 256
    symbols: int = 127

    def __post_init__(self) -> None:
        if self.length % 2 or self.length < 4:
            raise ValueError(f"length is {self.length}, but it must be even and at least 4")

    @property
    def vocabulary(self) -> int:
        """0 is the separator."""
        return self.symbols + 1

    def rows(self, count: int, generator: np.random.Generator) -> Rows:
        """`count` rows."""
        half = self.length // 2
        word = generator.integers(1, self.symbols + 1, (count, half - 1))
        once = np.concatenate([np.zeros((count, 1), np.int64), word], axis=1)
        targets, distances, candidates = np.zeros((3, count, self.length), np.int64)
        targets[:, half:-1] = word
        distances[:, half:-1] = half - 1
        candidates[:, half:-1] = self.symbols
        return Rows(
            inputs=np.concatenate([once, once], axis=1), targets=targets, distances=distances, candidates=candidates
        )


def _distinct(generator: np.random.Generator, count: int, draws: int, among: int) -> np.ndarray:
    """[count, draws] int64 of 0 .. among - 1, no two equal in a row."""
    return generator.random((count, among)).argsort(axis=1)[:, :draws]

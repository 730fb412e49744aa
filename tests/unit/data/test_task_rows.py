"""Rows of labelled examples: each example in one row, alone or packed, and a fingerprint that sees every change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from triune.data.task_rows import TaskRows
from triune.objectives.batch import Example
from triune.objectives.task import Encoded


def encoded(number: int, length: int, source: int = 0) -> Encoded:
    ids = np.full(length, number, np.int64)
    own = np.zeros(length, np.int32)
    row = Example(inputs=ids, targets=ids, weights=np.ones(length, np.float32), documents=own, positions=own)
    if source:
        row = replace(row, source=np.full(source, number, np.int64))
    return Encoded(example=row, record=number)


LENGTHS = [3, 8, 1, 5, 5, 2]


def numbers(rows: TaskRows) -> list[list[int]]:
    return [[int(example.inputs[0]) for example in rows[row]] for row in range(len(rows))]


def test_single_gives_each_example_its_row_in_order() -> None:
    rows = TaskRows([encoded(n, length) for n, length in enumerate(LENGTHS)], capacity=8, kind="single")
    assert numbers(rows) == [[0], [1], [2], [3], [4], [5]]
    assert rows.bucketed


def test_packed_rows_hold_each_example_once_and_never_more_than_fits() -> None:
    rows = TaskRows([encoded(n, length) for n, length in enumerate(LENGTHS)], capacity=8, kind="packed")
    found = numbers(rows)
    assert sorted(n for row in found for n in row) == list(range(6))
    assert max(sum(LENGTHS[n] for n in row) for row in found) <= 8
    assert len(found) == 3  # 24 tokens in rows of 8
    assert not rows.bucketed


def test_the_longer_tower_decides_what_fits() -> None:
    examples = [encoded(0, 2, source=6), encoded(1, 2, source=6), encoded(2, 6, source=2)]
    assert len(TaskRows(examples, capacity=8, kind="packed")) == 3
    assert len(TaskRows(examples, capacity=12, kind="packed")) == 2


def test_an_example_longer_than_a_row_is_the_tasks_mistake() -> None:
    with pytest.raises(ValueError, match="1 examples are longer than a row of 4"):
        TaskRows([encoded(0, 4), encoded(1, 5)], capacity=4, kind="single")


def test_rows_outside_are_refused() -> None:
    rows = TaskRows([encoded(0, 4)], capacity=4, kind="single")
    for row in (-1, 1):
        with pytest.raises(IndexError):
            rows[row]


def test_the_fingerprint_sees_every_change() -> None:
    def fingerprint(example: Example, *, capacity: int = 8, kind: str = "single") -> str:
        return TaskRows([Encoded(example=example, record=0)], capacity=capacity, kind=kind).fingerprint  # type: ignore[arg-type]

    row = replace(encoded(1, 4, source=3).example, values=np.ones((1, 2), np.float32))
    changes = [
        replace(row, inputs=row.inputs + 1),
        replace(row, targets=row.targets + 1),
        replace(row, weights=row.weights * 2),
        replace(row, source=None),
        replace(row, values=row.values * 2),  # type: ignore[operator]
        replace(row, values=None),
    ]
    found = [
        fingerprint(row),
        *map(fingerprint, changes),
        fingerprint(row, capacity=9),
        fingerprint(row, kind="packed"),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(row) == fingerprint(replace(row))

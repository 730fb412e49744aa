"""What every supervised task stands on: frames around texts, rows joined end to end, batches with lines of values and segments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from class_task_cases import records, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.objectives.batch import Example, collate
from triune.objectives.task import joined, mark
from triune.objectives.task_config import TASK_FAMILIES, RegressionTask
from triune.objectives.tasks import _CLASSES, build_task, task_class
from triune.objectives.text import Frame

FRAME = Frame(before=(1,), after=(2,), pair_before=(1,), between=(2, 3), pair_after=(2,), segments=True)


def example(length: int, first: int, *, lines: int = 0, source: int = 0, types: bool = False) -> Example:
    """A row of one document: ids from `first` on; `lines` of values, each the target of one position."""
    ids = np.arange(first, first + length, dtype=np.int64)
    weights = np.zeros(length, np.float32)
    targets = np.zeros(length, np.int64)
    weights[:lines], targets[:lines] = 1, np.arange(lines)
    more: dict[str, Any] = {}
    if source:
        more["source"] = np.arange(source, dtype=np.int64) + 10 * first
        more["source_documents"] = np.zeros(source, np.int32)
        more["source_positions"] = np.arange(source, dtype=np.int32)
    return Example(
        inputs=ids,
        targets=targets,
        weights=weights,
        documents=np.zeros(length, np.int32),
        positions=np.arange(length, dtype=np.int32),
        values=np.full((lines, 2), first, np.float32) + np.arange(lines, dtype=np.float32)[:, None] if lines else None,
        token_types=np.ones(length, np.int64) if types else None,
        **more,
    )


# ---- frames -------------------------------------------------------------------------------------------------------


def test_a_text_and_a_pair_in_their_frames() -> None:
    alone = FRAME(np.array([7, 8]))
    assert (alone.ids.tolist(), alone.starts, alone.lengths) == ([1, 7, 8, 2], (1,), (2,))
    assert alone.token_types.tolist() == [0] * 4
    pair = FRAME(np.array([7, 8]), np.array([9]))
    assert pair.ids.tolist() == [1, 7, 8, 2, 3, 9, 2]
    assert (pair.starts, pair.lengths) == ((1, 5), (2, 1))
    assert pair.token_types.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert replace(FRAME, segments=False)(np.array([7]), np.array([9])).token_types.tolist() == [0] * 6


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(4, 20))
def test_a_pair_is_cut_one_by_one_from_the_longer(first: int, second: int, length: int) -> None:
    texts = [np.arange(first), 100 + np.arange(second)]
    framed = FRAME(*texts, length=length)
    kept = [list(text) for text in texts]
    while sum(map(len, kept)) > length - 4:  # the obvious way
        kept[0 if len(kept[0]) > len(kept[1]) else 1].pop()
    assert framed.ids.tolist() == [1, *kept[0], 2, 3, *kept[1], 2]
    assert framed.lengths == tuple(map(len, kept))


def test_a_text_alone_is_cut_at_its_end() -> None:
    assert FRAME(np.arange(7, 20), length=5).ids.tolist() == [1, 7, 8, 9, 2]
    assert (FRAME.room(5), FRAME.room(5, pair=True)) == (3, 1)


# ---- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [0, 3])
def test_joined_examples_are_walled_and_keep_their_lines(source: int) -> None:
    parts = [example(3, 10, lines=2, source=source, types=True), example(2, 20, lines=1, source=source, types=True)]
    row = joined([*parts, example(4, 30, lines=1, source=source, types=True)])
    assert row.inputs.tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 33]
    assert row.documents.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert row.values is not None
    assert row.values[row.targets[row.weights > 0], 0].tolist() == [10, 11, 20, 30]
    assert row.token_types is not None
    assert row.token_types.tolist() == [1] * 9
    assert (row.documents.dtype, row.targets.dtype, row.values.dtype) == (np.int32, np.int64, np.float32)
    if source:
        assert row.source_documents is not None
        assert row.source_documents.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert joined(parts[:1]) is parts[0]


def test_an_example_of_several_documents_is_joined_whole() -> None:
    two = joined([example(2, 10), example(1, 20)])
    assert joined([two, example(1, 30), two]).documents.tolist() == [0, 0, 1, 2, 3, 3, 4]


def test_a_batch_of_joined_rows_points_at_its_own_lines() -> None:
    rows = [
        joined([example(3, 10, lines=2), example(2, 20, lines=1)]),
        example(4, 30, lines=1),
        joined([example(2, 40, lines=2), example(2, 50, lines=2)]),
    ]
    batch = collate(rows, pad=0, length=None)
    assert batch.values is not None
    chosen = batch.weights > 0
    assert batch.values[batch.targets[chosen], 0].tolist() == [10, 11, 20, 30, 40, 41, 50, 51]
    assert batch.predicted == 8
    # what is read nowhere still points at a line
    assert int(batch.targets.min()) >= 0
    assert int(batch.targets.max()) < len(batch.values)


def test_segments_are_padded_with_0_and_values_go_along_to_another_device() -> None:
    batch = collate([example(3, 1, lines=1, types=True), example(1, 5, lines=1, types=True)], pad=9, length=4)
    assert batch.token_types is not None
    assert batch.token_types.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    moved = batch.to("meta")
    assert moved.values is not None
    assert moved.token_types is not None
    assert {moved.values.device.type, moved.token_types.device.type} == {"meta"}
    assert batch.values is not None
    assert batch.values.dtype == torch.float32


@pytest.mark.parametrize("odd", [{"lines": 1}, {"types": True}, {"source": 2}])
def test_examples_of_a_batch_agree_on_what_they_have(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must agree"):
        collate([example(2, 1), example(2, 1, **odd)], pad=0, length=None)


def test_marking_leaves_the_example_it_marks() -> None:
    plain = example(4, 1)
    marked = mark(plain, [1, 3], [7, 8], [0.5, 2.0])
    assert marked.targets.tolist() == [0, 7, 0, 8]
    assert marked.weights.tolist() == [0, 0.5, 0, 2]
    assert not plain.weights.any()


# ---- the table of tasks -------------------------------------------------------------------------------------------


def test_every_task_has_its_class_and_its_families() -> None:
    assert set(_CLASSES) == set(TASK_FAMILIES)
    for kind in TASK_FAMILIES:
        assert task_class(kind).kind == kind
        assert task_class(kind).fields


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("kind", TASK_FAMILIES)
def test_a_family_that_cannot_do_a_task_is_told_which_can(kind: str, family: str) -> None:
    if family in TASK_FAMILIES[kind]:
        task_class(kind).check_family(family)
        return
    with pytest.raises(UserError) as error:
        task_class(kind).check_family(family)
    able = [repr(other) for other, families in TASK_FAMILIES.items() if family in families]
    assert str(error.value) == (
        f"objective.kind: '{kind}' works from a model of family {' or '.join(TASK_FAMILIES[kind])}, not {family}; "
        f"from {family} these do: {', '.join(able)}"
    )


def test_an_encoder_decoder_reads_a_text_twice() -> None:
    """Its encoder as it is, its decoder shifted right from the start token (Lewis et al. 2020, 3.1)."""
    rows = records([{"text": "apple pear", "score": 1.0}])
    task = build_task(RegressionTask(), tokenizer(), 24, family="encoder_decoder", records=rows)
    read = task.read(np.array([5, 6, 7]))
    assert read.inputs.tolist() == [tokenizer().vocabulary.decoder_start, 5, 6]
    assert read.source is not None
    assert read.source.tolist() == [5, 6, 7]

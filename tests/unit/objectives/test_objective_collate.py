"""Rows to batches: shapes, padding, layouts, counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objective_cases import BOS, CONFIGS, EOS, PAD, VOCABULARY, cut, document

from triune.objectives.batch import Segment, collate
from triune.objectives.build import build
from triune.objectives.config import CausalObjective, MaskedObjective, PrefixObjective, SpanCorruptionObjective
from triune.objectives.seeding import generator


def rows(config, *lengths_of_rows):
    objective = build(config, VOCABULARY, 64)
    return [
        objective([Segment(document(n, seed=n)) for n in lengths], generator(0, 0, i))
        for i, lengths in enumerate(lengths_of_rows)
    ]


def test_rows_are_padded_with_pad_weight_0_and_document_minus_1():
    batch = collate(rows(CausalObjective(), [2, 1], [3]), pad=PAD, length=6)
    one, other, third = document(2, 2), document(1, 1), document(3, 3)
    assert batch.inputs.tolist() == [[BOS, *one, BOS, *other, PAD], [BOS, *third, PAD, PAD]]
    assert batch.targets.tolist() == [[*one, EOS, *other, EOS, PAD], [*third, EOS, PAD, PAD]]
    assert batch.weights.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.layout.documents.tolist() == [[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]
    assert batch.layout.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.layout.prefix is None
    assert not batch.layout.plain
    assert (batch.tokens, batch.predicted) == (9, 9)
    assert batch.source is None
    assert batch.source_layout is None
    types = [batch.inputs.dtype, batch.targets.dtype, batch.weights.dtype, batch.layout.documents.dtype]
    assert types == [torch.int64, torch.int64, torch.float32, torch.int32]
    assert batch.layout.positions.dtype == torch.int32


@pytest.mark.parametrize(
    ("config", "lengths", "length", "plain"),
    [
        (CausalObjective(), [[7], [7]], 8, True),
        (CausalObjective(), [[7], [7]], None, True),
        (MaskedObjective(), [[6], [6]], 8, True),
        (CausalObjective(), [[7], [6]], 8, False),  # padding
        (CausalObjective(), [[7], [3, 3]], 8, False),  # two documents
        (CausalObjective(), [[7], [7]], 9, False),
        (CausalObjective(), [[6], [6]], None, False),  # rounded up to 8
        (PrefixObjective(), [[7], [7]], 8, False),
    ],
)
def test_plain_is_said_of_whole_rows_of_one_document(config, lengths, length, plain):
    assert collate(rows(config, *lengths), pad=PAD, length=length).layout.plain is plain


@pytest.mark.parametrize(("multiple_of", "width"), [(1, 13), (8, 16), (5, 15)])
def test_the_longest_row_rounded_up(multiple_of, width):
    batch = collate(rows(CausalObjective(), [12], [3]), pad=PAD, length=None, multiple_of=multiple_of)
    assert batch.inputs.shape == (2, width)


def test_source_and_its_layout():
    examples = rows(SpanCorruptionObjective(), [20, 9], [30])
    batch = collate(examples, pad=PAD, length=24, source_length=None, multiple_of=4)
    assert batch.inputs.shape == (2, 24)
    widest = max(len(example.source) for example in examples)
    assert batch.source.shape == (2, -(-widest // 4) * 4)
    for i, example in enumerate(examples):
        n = len(example.source)
        assert batch.source[i].tolist() == [*example.source, *[PAD] * (batch.source.shape[1] - n)]
        assert batch.source_layout.documents[i, :n].tolist() == example.source_documents.tolist()
        assert (batch.source_layout.documents[i, n:] == -1).all()
        assert batch.source_layout.positions[i, :n].tolist() == example.source_positions.tolist()
        assert set(example.documents) == set(example.source_documents)
    assert batch.tokens == sum(len(example.source) + len(example.inputs) for example in examples)
    assert batch.predicted == sum(len(example.inputs) for example in examples)


def test_source_and_target_are_plain_each_for_itself():
    examples = rows(SpanCorruptionObjective(), [20], [20])
    source, target = len(examples[0].source), len(examples[0].inputs)
    batch = collate(examples, pad=PAD, length=target + 1, source_length=source)
    assert (batch.layout.plain, batch.source_layout.plain) == (False, True)


def test_prefix_marks_no_padding():
    examples = rows(PrefixObjective(), [5], [9])
    batch = collate(examples, pad=PAD, length=12)
    for i, example in enumerate(examples):
        assert batch.layout.prefix[i].tolist() == [*example.prefix, *[False] * (12 - len(example.inputs))]


def test_a_row_too_long_is_refused():
    examples = rows(SpanCorruptionObjective(), [30])
    with pytest.raises(ValueError, match="longer than the batch's length, 4"):
        collate(examples, pad=PAD, length=4)
    with pytest.raises(ValueError, match="longer than the batch's length, 9"):
        collate(examples, pad=PAD, length=None, source_length=9)


def test_rows_of_two_objectives_are_refused():
    with pytest.raises(ValueError, match="agree"):
        collate(rows(SpanCorruptionObjective(), [9]) + rows(CausalObjective(), [9]), pad=PAD, length=None)
    with pytest.raises(ValueError, match="agree"):
        collate(rows(PrefixObjective(), [9]) + rows(CausalObjective(), [9]), pad=PAD, length=None)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_has_no_weight_and_real_tokens_are_counted(name):
    config = CONFIGS[name]
    objective = build(config, VOCABULARY, 64)
    segments = [cut(document(n, n), pair=config.kind == "translation") for n in (11, 5)]
    batch = collate([objective(segments, generator(0, 0, i)) for i in range(3)], pad=PAD, length=64, source_length=64)
    assert (batch.weights[batch.layout.documents < 0] == 0).all()
    real = (batch.layout.documents >= 0).sum()
    if batch.source_layout is not None:
        real = real + (batch.source_layout.documents >= 0).sum()
    assert batch.tokens == int(real)
    assert batch.predicted == int((batch.weights > 0).sum())


def test_to_moves_every_tensor():
    batch = collate(rows(PrefixObjective(), [5]), pad=PAD, length=8)
    batch = type(batch)(**{**vars(batch), "source": batch.inputs, "source_layout": batch.layout})
    batch = type(batch)(**{**vars(batch), "extra": {"more": torch.ones(2)}})
    moved = batch.to("meta")
    tensors = [moved.inputs, moved.targets, moved.weights, moved.source, moved.extra["more"]]
    for layout in (moved.layout, moved.source_layout):
        tensors += [layout.documents, layout.positions, layout.prefix]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.tokens, moved.predicted, moved.layout.plain) == (batch.tokens, batch.predicted, False)
    assert batch.inputs.device.type == "cpu"


def test_pin_memory_asks_every_tensor(monkeypatch):
    """No page-locked memory without an accelerator: count the tensors asked instead."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(tensor) or tensor.clone())
    batch = collate(rows(SpanCorruptionObjective(), [20]), pad=PAD, length=None)
    pinned = batch.pin_memory()
    layouts = [batch.layout, batch.source_layout]
    expected = [batch.inputs, batch.targets, batch.weights, batch.source]
    expected += [tensor for layout in layouts for tensor in (layout.documents, layout.positions)]
    assert {id(tensor) for tensor in asked} == {id(tensor) for tensor in expected}
    assert pinned.inputs is not batch.inputs


def test_dtype_of_a_shard_does_not_matter():
    ids = document(9)
    narrow, wide = (
        build(CausalObjective(), VOCABULARY, 64)([Segment(ids.astype(t))], generator(0, 0, 0))
        for t in ("uint16", "int64")
    )
    assert np.array_equal(narrow.inputs, wide.inputs)
    assert narrow.inputs.dtype == wide.inputs.dtype == np.int64

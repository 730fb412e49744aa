"""Sequence layout: constructors, the promises of its flags, and the masks it remembers."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.attention import SequenceLayout, causal, full, global_tokens, window

cases = settings(max_examples=60, deadline=None, derandomize=True)


def test_plain_rows():
    layout = SequenceLayout.plain_rows(2, 3)
    assert layout.documents.tolist() == [[0, 0, 0]] * 2
    assert layout.positions.tolist() == [[0, 1, 2]] * 2
    assert layout.plain
    assert layout.right_padded
    assert layout.contiguous
    assert layout.shape == (2, 3)
    assert layout.real_tokens.item() == 6
    assert layout.documents.dtype == layout.positions.dtype == torch.int32


@pytest.mark.parametrize(
    ("side", "documents", "positions"),
    [
        ("right", [[0, 0, -1, -1], [0, 0, 0, 0], [-1] * 4], [[0, 1, 0, 0], [0, 1, 2, 3], [0] * 4]),
        ("left", [[-1, -1, 0, 0], [0, 0, 0, 0], [-1] * 4], [[0, 0, 0, 1], [0, 1, 2, 3], [0] * 4]),
    ],
)
def test_from_lengths(side, documents, positions):
    layout = SequenceLayout.from_lengths([2, 4, 0], 4, side=side)
    assert layout.documents.tolist() == documents
    assert layout.positions.tolist() == positions
    assert layout.padding.tolist() == [[number < 0 for number in row] for row in documents]
    assert layout.right_padded == (side == "right")
    assert not layout.plain
    assert layout.contiguous
    assert layout.real_tokens.item() == 6
    assert SequenceLayout.from_lengths([4, 4], 4, side=side).plain


def test_packed():
    layout = SequenceLayout.packed([[2, 1], [3], [4], []], 4)
    assert layout.documents.tolist() == [[0, 0, 1, -1], [0, 0, 0, -1], [0] * 4, [-1] * 4]
    assert layout.positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0], [0, 1, 2, 3], [0] * 4]
    assert layout.contiguous
    assert not layout.right_padded
    assert SequenceLayout.packed([[3], [4]], 4).right_padded
    assert SequenceLayout.packed([[4], [4]], 4).plain


def test_bad_layouts_are_refused():
    with pytest.raises(ValueError, match="row 1 holds 5 tokens"):
        SequenceLayout.packed([[4], [2, 3]], 4)
    with pytest.raises(ValueError, match="holds 5 tokens"):
        SequenceLayout.from_lengths([5], 4)
    with pytest.raises(ValueError, match="'top'"):
        SequenceLayout.from_lengths([1], 4, side="top")
    zeros = torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="one shape"):
        SequenceLayout(documents=zeros, positions=zeros[:, :2])
    with pytest.raises(ValueError, match="prefix"):
        SequenceLayout(documents=zeros, positions=zeros, prefix=torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"landmarks \[2, 2\]"):
        SequenceLayout(documents=zeros, positions=zeros, landmarks=torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="neither plain nor right_padded"):
        SequenceLayout(documents=zeros, positions=zeros, landmarks=torch.zeros(2, 3, dtype=torch.bool), plain=True)
    with pytest.raises(ValueError, match="neither plain nor right_padded"):
        SequenceLayout(documents=zeros, positions=zeros, prefix=torch.zeros(2, 3, dtype=torch.bool), plain=True)


@cases
@given(st.data())
def test_flags_promise_only_what_holds(data):
    """Arrays near to plain ones, so that each flag is often just true or just false."""
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    base = SequenceLayout.packed(
        [
            data.draw(st.sampled_from([[length], [length - 1], [1] * length, [length // 2, length // 2]]))
            for _ in range(batch)
        ],
        length,
    )
    documents, positions = base.documents.numpy().copy(), base.positions.numpy().copy()
    if data.draw(st.booleans()):
        row, column = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, length - 1))
        documents[row, column] = data.draw(st.integers(-1, 2))
        positions[row, column] = data.draw(st.integers(0, length))
    marks = st.sampled_from([None, np.zeros_like(documents, dtype=bool), np.ones_like(documents, dtype=bool)])
    prefix, landmarks = data.draw(marks), data.draw(marks)
    layout = SequenceLayout.from_arrays(documents, positions, prefix, landmarks)
    index = np.arange(length)
    for row, where in zip(documents, positions, strict=True):
        real = row >= 0
        if layout.plain:
            assert real.all()
        if layout.right_padded:
            assert (np.diff(real.astype(int)) <= 0).all()
            assert (row[real] == 0).all()
            assert (where[real] == index[real]).all()
        if layout.contiguous:
            for number in np.unique(row[real]):
                assert len(np.unique((where - index)[row == number])) == 1
    if layout.right_padded:
        assert layout.prefix is None
        assert layout.landmarks is None
    assert (layout.prefix is None) == (prefix is None or not prefix.any())
    assert (layout.landmarks is None) == (landmarks is None or not landmarks.any())


def test_contiguous_refuses_a_document_in_two_pieces():
    documents = np.array([[0, 0, 1, 0]])
    assert not SequenceLayout.from_arrays(documents, np.array([[0, 1, 0, 2]])).contiguous
    documents = np.array([[0, 0, -1, 0]])
    assert not SequenceLayout.from_arrays(documents, np.array([[0, 1, 0, 2]])).contiguous


def test_allowed_is_documents_and_padding_and_pattern_or_prefix():
    layout = SequenceLayout.from_arrays(
        np.array([[0, 0, 0, 1, 1, -1]]), np.array([[0, 1, 2, 0, 1, 0]]), np.array([[1, 1, 0, 0, 0, 0]], dtype=bool)
    )
    mask, dead = layout.allowed(causal(), layout)
    assert dead[0, 0, :, 0].tolist() == [False] * 5 + [True]
    rows = ["".join("#" if seen else "." for seen in row) for row in (mask & ~dead)[0, 0]]
    assert rows == ["##....", "##....", "###...", "...#..", "...##.", "......"]
    assert mask[0, 0, 5].all()  # a dead row stays open, so that no softmax runs over nothing


def pictures(mask, dead):
    return [["".join("#" if seen else "." for seen in row) for row in rows[0]] for rows in mask & ~dead]


def test_landmarks_see_and_are_seen_by_their_document():
    """Two documents of 4 and 2, one token of padding; token 2 of the first and the padding are marked."""
    layout = SequenceLayout.from_arrays(
        np.array([[0, 0, 0, 0, 1, 1, -1]]),
        np.array([[0, 1, 2, 3, 0, 1, 0]]),
        landmarks=np.array([[0, 0, 1, 0, 0, 0, 1]], dtype=bool),
    )
    both_ways = ["#.#....", ".##....", "####...", "..##...", "....#..", ".....#.", "......."]
    assert pictures(*layout.allowed(window(0, 0), layout))[0] == [
        "#......",
        ".#.....",
        "###....",
        "..##...",
        *both_ways[4:],
    ]
    # no proof that this one is causal: it may look ahead
    assert pictures(*layout.allowed(window(0, 1) & ~window(1, 1) | window(0, 0), layout))[0] == both_ways


def test_landmarks_equal_global_tokens_where_rows_agree():
    documents, positions = np.zeros((2, 6), dtype=np.int32), np.arange(6, dtype=np.int32)[None].repeat(2, 0)
    marks = np.zeros((2, 6), dtype=bool)
    marks[0, [0, 3]] = marks[1, [5]] = True
    layout = SequenceLayout.from_arrays(documents, positions, landmarks=marks)
    for pattern, limit in ((window(1, 1), full()), (window(1, 0), causal())):
        seen = pictures(*layout.allowed(pattern, layout))
        for row, indices in enumerate(([0, 3], [5])):
            wanted = ((pattern | global_tokens(indices=indices)) & limit).materialize(range(6), range(6))
            assert seen[row] == ["".join("#" if key else "." for key in query) for query in wanted]


def test_landmarks_of_keys_alone_and_of_queries_alone():
    """Queries go on where the keys end, as in cached decoding and in cross-attention with a pattern."""
    zeros = np.zeros((1, 4), dtype=np.int32)
    keys = SequenceLayout.from_arrays(zeros, np.arange(4)[None], landmarks=np.array([[1, 0, 0, 0]], dtype=bool))
    queries = SequenceLayout.from_arrays(zeros[:, :2], np.array([[3, 4]]))
    assert pictures(*queries.allowed(window(1, 0), keys)) == [["#.##", "#..#"]]
    plain = SequenceLayout.plain_rows(1, 4)
    marked = SequenceLayout.from_arrays(zeros[:, :2], np.array([[2, 3]]), landmarks=np.array([[0, 1]], dtype=bool))
    assert pictures(*marked.allowed(window(1, 0), plain)) == [[".##.", "####"]]


def test_a_landmark_sees_itself_where_the_pattern_sees_the_past_alone():
    zeros, marks = np.zeros((1, 3), dtype=np.int32), np.array([[0, 1, 0]], dtype=bool)
    layout = SequenceLayout.from_arrays(zeros, np.arange(3)[None], landmarks=marks)
    assert pictures(*layout.allowed(causal() & ~window(0, 0), layout)) == [["...", "##.", "##."]]


def test_masks_are_made_once_a_batch():
    queries, keys = SequenceLayout.packed([[2, 1]], 4), SequenceLayout.packed([[1, 3]], 5)
    first = queries.allowed(causal(), queries)
    assert queries.allowed(causal(), queries) is first
    assert queries.allowed(full(), queries) is not first
    across = queries.allowed(full(), keys)
    assert queries.allowed(full(), keys) is across
    assert across.mask.shape == (1, 1, 4, 5)
    other = SequenceLayout.packed([[3, 1]], 5)
    assert not torch.equal(queries.allowed(full(), other).mask, across.mask)


def test_copies_carry_everything_but_the_masks():
    packed = SequenceLayout.packed([[2, 1], [4]], 4)
    marks = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1]]).bool()
    layout = replace(packed, prefix=marks, landmarks=~marks)
    layout.allowed(causal(), layout)
    for twin in (layout.to("cpu"), pickle.loads(pickle.dumps(layout)), copy.copy(layout), copy.deepcopy(layout)):
        assert torch.equal(twin.documents, layout.documents)
        assert torch.equal(twin.positions, layout.positions)
        assert torch.equal(twin.prefix, marks)
        assert torch.equal(twin.landmarks, ~marks)
        assert (twin.plain, twin.right_padded, twin.contiguous) == (False, False, True)
        assert twin._memo == {}
    assert SequenceLayout.plain_rows(2, 3).to("cpu").plain
    assert SequenceLayout.plain_rows(2, 3).to("meta").documents.device.type == "meta"


def test_nothing_is_read_back_from_the_device():
    """On the meta device any read of a value raises: flags and masks come from host knowledge alone."""
    for layout in (
        SequenceLayout.plain_rows(2, 5),
        SequenceLayout.packed([[2, 1], [4]], 5),
        SequenceLayout.from_lengths([2], 5),
    ):
        there = layout.to("meta")
        assert there.allowed(causal(), there).mask.device.type == "meta"
        assert there.padding.device.type == there.real_tokens.device.type == "meta"

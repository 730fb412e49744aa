"""Packing: every token once, no row over capacity, best-fit decreasing exactly, the same each time."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.data.packing import best_fit, plan

KINDS = st.sampled_from(["packed", "single"])
LENGTHS = st.lists(st.integers(0, 40), max_size=60)
quick = settings(deadline=None, max_examples=60, derandomize=True)


def framed(lengths, splits):
    return lengths + 2


def segments(made):
    return list(zip(made.document.tolist(), made.start.tolist(), made.stop.tolist(), strict=True))


def best_fit_by_hand(costs, capacity):
    """Best-fit decreasing, word for word: the room left in each row."""
    rooms = []
    for cost in sorted(costs, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= cost]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= cost
        else:
            rooms.append(capacity - cost)
    return rooms


def fewest_rows(costs, capacity):
    """The optimum, by trying all assignments of at most 5 segments."""
    return min(
        len(set(rows))
        for rows in itertools.product(range(len(costs)), repeat=len(costs))
        if all(sum(c for c, r in zip(costs, rows, strict=True) if r == row) <= capacity for row in rows)
    )


@quick
@given(lengths=LENGTHS, kind=KINDS, capacity=st.integers(3, 30))
def test_every_token_of_every_document_is_in_exactly_one_row(lengths, kind, capacity):
    made = plan(np.array(lengths, int), None, cost=framed, longest=capacity - 2, capacity=capacity, kind=kind)
    tokens = sorted((d, t) for d, start, stop in segments(made) for t in range(start, stop))
    assert tokens == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert made.tokens == sum(lengths)
    assert made.empty == lengths.count(0)
    assert made.cut == sum(length > capacity - 2 for length in lengths)


@quick
@given(lengths=LENGTHS, kind=KINDS, capacity=st.integers(3, 30))
def test_no_row_is_empty_or_over_capacity_and_costs_and_waste_are_what_the_segments_take(lengths, kind, capacity):
    made = plan(np.array(lengths, int), None, cost=framed, longest=capacity - 2, capacity=capacity, kind=kind)
    costs = [
        sum(stop - start + 2 for _, start, stop in segments(made)[first:last])
        for first, last in itertools.pairwise(made.offsets.tolist())
    ]
    assert made.cost.tolist() == costs
    assert all(0 < cost <= capacity for cost in costs)
    assert made.waste == pytest.approx(1 - sum(costs) / (capacity * len(costs)) if costs else 1.0)
    if kind == "single":
        assert made.offsets.tolist() == list(range(len(costs) + 1))
        assert segments(made) == sorted(segments(made))


@quick
@given(costs=st.lists(st.integers(1, 24), min_size=1, max_size=80))
def test_grouped_best_fit_leaves_the_same_rooms_as_best_fit_by_hand(costs):
    # rows with equal room are interchangeable, so ties cannot change the rooms left
    rows = best_fit(np.array(costs), 24)
    filled = np.bincount(rows, costs)
    assert sorted((24 - filled).tolist()) == sorted(best_fit_by_hand(costs, 24))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(costs=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_rows_are_at_most_eleven_ninths_of_the_fewest_plus_six_ninths(costs):
    assert 1 + best_fit(np.array(costs), 12).max() <= (11 * fewest_rows(costs, 12) + 6) // 9


@quick
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=100))
def test_at_most_one_row_is_half_empty_as_in_any_first_fit(costs):
    filled = np.bincount(best_fit(np.array(costs), 50), costs)
    assert (filled <= 25).sum() <= 1
    assert len(filled) <= math.ceil(2 * sum(costs) / 50)


def test_equal_arguments_give_equal_plans():
    lengths = np.random.default_rng(0).integers(0, 300, 2000)
    one, two = (plan(lengths, None, cost=framed, longest=126, capacity=128) for _ in range(2))
    for name in ("offsets", "document", "start", "stop", "cost"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_text_of_mixed_lengths_packs_with_little_waste():
    lengths = np.random.default_rng(0).lognormal(4, 1, 20_000).astype(int)
    made = plan(lengths, None, cost=framed, longest=510, capacity=512)
    assert made.waste < 0.001
    assert "0.0" in str(made)
    assert "20,000 documents" in str(made)


@quick
@given(lengths=LENGTHS, kind=KINDS)
def test_pairs_are_whole_or_left_out_and_counted(lengths, kind):
    def larger_side(lengths, splits):
        return np.maximum(splits, lengths - splits) + 1

    lengths = np.array(lengths, int)
    splits = lengths // 3
    made = plan(lengths, splits, cost=larger_side, longest=5, capacity=12, kind=kind)
    fits = (larger_side(lengths, splits) <= 12) & (lengths > 0)
    assert sorted(segments(made)) == [(d, 0, int(lengths[d])) for d in np.flatnonzero(fits)]
    left_out = ~fits & (lengths > 0)
    assert (made.dropped, made.dropped_tokens) == (left_out.sum(), lengths[left_out].sum())
    assert made.cut == 0
    assert ("left out" in str(made)) == bool(made.dropped or made.empty)


def test_a_cost_above_the_capacity_is_refused():
    with pytest.raises(ValueError, match=r"must lie in 1\.\.8, got 6\.\.10"):
        plan(np.array([20]), None, cost=framed, longest=8, capacity=8)


def test_long_corpora_are_planned_in_groups(monkeypatch):
    """The loop runs O(D log C) times for D distinct sizes, not once a document."""
    visits = 0
    concatenate = np.concatenate

    def counted(*args, **kwargs):
        nonlocal visits
        visits += 1
        return concatenate(*args, **kwargs)

    monkeypatch.setattr(np, "concatenate", counted)
    best_fit(np.random.default_rng(0).integers(1, 257, 200_000), 256)
    assert visits <= 3 * 256 * 8  # three new groups a size, each emptied at most log2(256) times

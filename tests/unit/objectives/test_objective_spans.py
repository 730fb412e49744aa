"""The random choices under the objectives, against their distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.objectives import spans
from triune.objectives.seeding import generator

Z = 5.0  # two-sided normal bound: 6e-7; the seeds are fixed


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Standard score of Pearson's statistic by Wilson and Hilferty's cube root."""
    degrees = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def take(sizes, owners, budgets, stream):
    return spans.choose(sizes, owners, budgets, stream.random(len(sizes)), stream)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 2**64)
)
def test_choose_spends_the_budget_up_to_one_unit(documents, share, seed):
    sizes = np.array(list(itertools.chain(*documents)), int)
    owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    budgets = share * np.array([sum(document) for document in documents])
    chosen = take(sizes, owners, budgets, generator(seed, 0, 0))
    taken = np.bincount(owners, weights=sizes * chosen, minlength=len(documents))
    largest = np.array([max(document, default=0) for document in documents])
    assert (np.abs(taken - budgets) < largest + 1e-9).all()


def test_choose_takes_the_budget_exactly_in_expectation():
    sizes, owners = np.array([1, 5, 2, 3, 4, 1]), np.array([0, 0, 0, 1, 1, 1])
    budgets = np.array([2.3, 3.7])
    stream = generator(1, 0, 0)
    taken = np.array(
        [np.bincount(owners, sizes * take(sizes, owners, budgets, stream), minlength=2) for _ in range(6000)]
    )
    error = taken.std(axis=0) / math.sqrt(len(taken))
    assert (np.abs(taken.mean(axis=0) - budgets) < Z * error).all()


def test_choose_takes_whole_budgets_of_tokens_uniformly():
    sizes, owners, budgets = np.ones(7, int), np.array([0] * 3 + [2] * 4), np.array([2.0, 0.0, 1.0])
    stream = generator(2, 0, 0)
    counts = sum(take(sizes, owners, budgets, stream).astype(int) for _ in range(4000))
    assert counts[:3].sum() == 8000
    assert counts[3:].sum() == 4000
    share = np.array([2 / 3] * 3 + [1 / 4] * 4)
    assert (np.abs(counts - 4000 * share) < Z * np.sqrt(4000 * share * (1 - share))).all()


def test_partition_gives_every_way_to_cut_equally_often():
    """Five tokens in three parts: 6 ways. Two groups at once, beside an empty one and one of a single part."""
    stream = generator(3, 0, 0)
    ways: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        parts = spans.partition(np.array([0, 5, 4, 0, 5]), np.array([1, 3, 1, 0, 3]), stream)
        assert parts[0] == 0
        assert parts[4] == 4
        for way in (tuple(parts[1:4]), tuple(parts[5:8])):
            ways[way] = ways.get(way, 0) + 1
    assert all(sum(way) == 5 and min(way) >= 1 for way in ways)
    assert len(ways) == 6
    assert chi_square(np.array(list(ways.values())), np.full(6, 1000.0)) < Z


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8), st.integers(0, 99))
def test_partition_adds_up(groups, seed):
    totals = np.array([max(pair) for pair in groups])
    parts = np.array([min(pair) for pair in groups])
    lengths = spans.partition(totals, parts, generator(seed, 0, 0))
    assert len(lengths) == parts.sum()
    assert lengths.min() >= 1
    assert np.array_equal(np.add.reduceat(lengths, np.cumsum(parts) - parts), totals)


@pytest.mark.parametrize("mean", [1.0, 3.0, 8.0, 900.0])
def test_poisson_lengths_follow_the_distribution(mean):
    lengths = spans.poisson_lengths(60_000, mean, generator(4, 0, 0))
    assert lengths.sum() == 60_000
    if mean > 100:  # where exp(-mean) is 0
        assert abs(lengths[:-1].mean() - mean) < Z * math.sqrt(mean / (len(lengths) - 1))
        return
    values = np.arange(int(mean + 3 * math.sqrt(mean)))
    probability = np.array([math.exp(-mean) * mean**k / math.factorial(k) for k in values])
    counts = np.array([(lengths[:-1] == k).sum() for k in values])
    expected = probability * (len(lengths) - 1)
    rest = len(lengths) - 1 - counts.sum(), len(lengths) - 1 - expected.sum()
    assert chi_square(np.append(counts, rest[0]), np.append(expected, rest[1])) < Z


@pytest.mark.parametrize("total", [0, 1, 2, 17])
def test_poisson_lengths_end_with_the_one_that_reaches_the_total(total):
    for row in range(50):
        lengths = spans.poisson_lengths(total, 3.0, generator(5, 0, row))
        assert lengths.sum() == total
        assert (lengths >= 0).all()
        assert len(lengths) == 0 or lengths[-1] > 0

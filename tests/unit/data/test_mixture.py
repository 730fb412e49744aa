"""Mixtures: exact shares in every prefix, whole epochs of each source, any position by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.data.mixture import LONGEST_PERIOD, Mixture, interleave, slots
from triune.errors import UserError

quick = settings(deadline=None, max_examples=60, derandomize=True)


@quick
@given(parts=st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_every_prefix_holds_each_share_to_within_one_row(parts):
    source, turn = interleave(parts)
    given_ = np.cumsum(source[:, None] == np.arange(len(parts)), axis=0)
    ideal = np.arange(1, len(source) + 1)[:, None] * np.array(parts) / sum(parts)
    assert np.abs(given_ - ideal).max() < 1
    assert given_[-1].tolist() == parts
    np.testing.assert_array_equal(turn, given_[np.arange(len(source)), source] - 1)


@quick
@given(
    weights=st.lists(st.sampled_from([0.1, 0.2, 0.5, 1, 3, 0.25]), min_size=1, max_size=5), first=st.integers(0, 10**9)
)
def test_shares_of_a_mixture_hold_far_into_the_stream(weights, first):
    mixture = Mixture([10] * len(weights), weights, seed=1)
    places = mixture.locate(np.arange(first, first + 500))
    share = np.array(weights) / sum(weights)
    counts = np.bincount(places.source, minlength=len(weights))
    # a stretch is the difference of two prefixes, each within one row
    assert np.abs(counts - 500 * share).max() < 2


@quick
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), data=st.data(), bucketed=st.booleans())
def test_each_source_runs_through_whole_epochs(sizes, data, bucketed):
    weights = data.draw(st.none() | st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    lengths = [np.arange(size) for size in sizes] if bucketed else None
    places = Mixture(sizes, weights, seed=3, lengths=lengths).locate(np.arange(400))
    for source, size in enumerate(sizes):
        own = places[places.source == source]
        assert own.epoch.tolist() == [i // size for i in range(len(own))]
        for epoch in range(len(own) // size):
            assert sorted(own.row[own.epoch == epoch].tolist()) == list(range(size))


@quick
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4), first=st.integers(0, 10**9))
def test_a_position_is_found_by_itself(sizes, first):
    places = Mixture(sizes, seed=3).locate(np.arange(first, first + 30))
    alone = Mixture(sizes, seed=3).locate(np.array([first + 17]))
    assert (alone.source[0], alone.epoch[0], alone.row[0]) == (places.source[17], places.epoch[17], places.row[17])


def test_without_weights_all_sources_end_their_epochs_together():
    places = Mixture([60, 30, 10], seed=1).locate(np.arange(100))
    assert set(zip(places.source.tolist(), places.row.tolist(), strict=True)) == {
        (s, r) for s, size in enumerate([60, 30, 10]) for r in range(size)
    }
    assert not places.epoch.any()


def test_equal_sources_are_shuffled_differently():
    places = Mixture([50, 50], seed=1).locate(np.arange(100))
    assert places.row[places.source == 0].tolist() != places.row[places.source == 1].tolist()


def test_weights_without_a_short_period_are_rounded_and_never_to_none():
    parts = slots([10**7 + 3, 5_000_011, 7])
    assert max(parts) <= LONGEST_PERIOD
    assert parts[2] == 1
    shares = np.array(parts) / sum(parts)
    # each part is rounded by at most half, and the sum by at most half a part for each source
    assert np.abs(shares - np.array([10**7 + 3, 5_000_011, 7]) / 15_000_021).max() <= 2 / LONGEST_PERIOD
    assert slots([0.8, 0.2]) == [4, 1]
    assert slots([0.1, 0.1, 0.1]) == [1, 1, 1]
    assert slots([1 / 3, 2 / 3]) == [1, 2]
    assert slots([1 / 3, 1 / 7, 1 - 1 / 3 - 1 / 7]) == [7, 3, 11]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_above_zero(weight):
    with pytest.raises(UserError, match=r"data\.train\[1\]\.weight is .*above 0"):
        Mixture([5, 5], [1.0, weight], seed=1)

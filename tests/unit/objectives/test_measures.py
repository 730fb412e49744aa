"""Measures: the value of all examples, and the bootstrap's interval around it."""

from __future__ import annotations

import numpy as np
import pytest

from triune.objectives import measures
from triune.objectives.measures import Measure, mean, ratio


def f1(truth: np.ndarray, given: np.ndarray) -> Measure:
    """F1 of one class from sums of (hits, given, true)."""
    statistics = np.stack([truth & given, given, truth], 1)
    return Measure(
        name="F1",
        statistics=statistics,
        combine=lambda sums: ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2]),
    )


def test_the_value_is_the_direct_computation() -> None:
    draw = np.random.default_rng(3)
    hits = draw.random(57) < 0.3
    assert mean("accuracy", hits).value == hits.mean()
    truth, given = draw.random(57) < 0.4, draw.random(57) < 0.6
    precision, recall = (truth & given).sum() / given.sum(), (truth & given).sum() / truth.sum()
    assert f1(truth, given).value == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-15)


def test_what_counts_nothing_is_0() -> None:
    nothing = np.zeros(4, bool)
    measure = f1(nothing, nothing)
    assert measure.value == 0
    assert measure.interval(resamples=10) == (0, 0)
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 0.0])).tolist() == [0.5, 0, 0]
    assert mean("accuracy", np.zeros(0)).value == 0


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    measure = mean("accuracy", np.random.default_rng(0).random(40) < 0.5)
    assert measure.interval(seed=7) == measure.interval(seed=7)
    assert measure.interval(seed=7) != measure.interval(seed=8)
    low, high = measure.interval()
    assert low < measure.value < high


def test_a_higher_level_is_a_wider_interval() -> None:
    measure = mean("score", np.random.default_rng(1).normal(size=60))
    (low, high), (lower, higher) = measure.interval(level=0.5), measure.interval(level=0.99)
    assert lower < low < high < higher


def test_the_interval_is_the_percentiles_of_drawn_data_sets() -> None:
    values = np.random.default_rng(2).normal(size=25)
    draw = np.random.default_rng(5)
    means = [draw.choice(values, 25).mean() for _ in range(20_000)]
    expected = np.percentile(means, [2.5, 97.5])
    # the standard error of a percentile of 20,000 draws is sqrt(0.025 x 0.975 / 20,000) of the ranks, or 0.02 deviations of the mean
    deviation = values.std() / 5
    assert mean("score", values).interval(resamples=20_000) == pytest.approx(expected, abs=0.1 * deviation)


def test_few_counts_at_a_time_change_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = mean("accuracy", np.random.default_rng(0).random(40) < 0.5)
    whole = measure.interval(resamples=103)
    monkeypatch.setattr(measures, "_BLOCK", 40 * 10)
    assert measure.interval(resamples=103) == whole  # ten data sets at a time, and three at the end


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Accuracy of 200 answers of which 70% are right: 300 data sets, of which 95% should have 0.7 in their interval."""
    draw = np.random.default_rng(0)
    covered = [
        low <= 0.7 <= high
        for low, high in (
            mean("accuracy", draw.random(200) < 0.7).interval(resamples=300, seed=seed) for seed in range(300)
        )
    ]
    # three standard errors of a share of 0.95 in 300 are 0.038; the percentile bootstrap itself is a little short at 200 answers
    assert 0.95 - 0.045 <= np.mean(covered) <= 0.95 + 0.038

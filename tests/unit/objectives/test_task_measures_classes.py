"""Each metric of classes and numbers equals torchmetrics' on drawn cases; what is undefined is 0, in resamples too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.objectives.class_measures import multi_label_measures, single_label_measures
from triune.objectives.regression import ranks, regression_measures

LABELS = ["a", "b", "c", "d"]
FP32 = 2e-6  # torchmetrics computes in fp32


def values(measures: list[Any]) -> dict[str, float]:
    return {measure.name: measure.value for measure in measures}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 4))
def test_one_class_equals_torchmetrics(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    given = np.where(rng.random(count) < 0.5, truth, rng.integers(classes, size=count))
    found = values(single_label_measures(*([LABELS[n] for n in side] for side in (truth, given)), LABELS[:classes]))
    target, guess = torch.from_numpy(truth), torch.from_numpy(given)
    named: dict[str, Any] = {"task": "multiclass", "num_classes": classes}
    assert found["accuracy"] == pytest.approx(float(tm.accuracy(guess, target, average="micro", **named)), abs=FP32)
    assert found["macro F1"] == pytest.approx(float(tm.f1_score(guess, target, average="macro", **named)), abs=FP32)
    if len(set(truth)) > 1 and len(set(given)) > 1:  # else it is undefined, which torchmetrics answers in several ways
        expected = float(tm.matthews_corrcoef(guess, target, **named))
        assert found["Matthews correlation"] == pytest.approx(expected, abs=FP32)
    else:
        assert found["Matthews correlation"] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 4))
def test_several_classes_equal_torchmetrics(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((count, classes)) < 0.4
    given = np.where(rng.random(truth.shape) < 0.7, truth, ~truth)
    names = [[[LABELS[n] for n in np.flatnonzero(line)] for line in side] for side in (truth, given)]
    found = values(multi_label_measures(*names, LABELS[:classes]))
    target, guess = torch.from_numpy(truth).int(), torch.from_numpy(given).int()
    for average in ("micro", "macro"):
        expected = tm.classification.multilabel_f1_score(guess, target, num_labels=classes, average=average)
        assert found[f"{average} F1"] == pytest.approx(float(expected), abs=FP32)
    exact = tm.classification.multilabel_exact_match(guess, target, num_labels=classes)
    assert found["exact match"] == pytest.approx(float(exact), abs=FP32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.booleans())
def test_numbers_equal_torchmetrics(seed: int, count: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(count) / 4 if not ties else rng.permutation(np.arange(count) // 2)
    given = truth + rng.normal(size=count)
    given = np.round(given) + np.arange(count) // 3 if ties else given
    truth, given = truth.astype(np.float64), given.astype(np.float64)
    found = values(regression_measures(truth, given))
    target, guess = torch.from_numpy(truth), torch.from_numpy(given)
    assert found["Pearson correlation"] == pytest.approx(float(tm.pearson_corrcoef(guess, target)), abs=1e-9)
    assert found["Spearman correlation"] == pytest.approx(
        float(tm.spearman_corrcoef(guess, target)), abs=1e-5
    )  # adds 1e-6 to deviations
    assert found["mean squared error"] == pytest.approx(float(tm.mean_squared_error(guess, target)), rel=1e-9)


def test_a_correlation_far_from_0_is_not_lost_to_rounding() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50)
    given = truth + rng.normal(size=50)
    near, far = (values(regression_measures(truth, given + shift))["Pearson correlation"] for shift in (0, 1e6))
    assert near == pytest.approx(np.corrcoef(truth, given)[0, 1], rel=1e-12)
    assert far == pytest.approx(near, rel=1e-6)  # given + 1e6 has 10 digits left


def test_ties_share_their_mean_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_what_is_constant_correlates_with_nothing() -> None:
    truth, same = np.array([0.1, 0.7, 0.3]), np.full(3, 0.1)
    for pair in ((truth, same), (same, truth), (same, same)):
        found = values(regression_measures(*pair))
        assert found["Pearson correlation"] == found["Spearman correlation"] == 0


def test_intervals_hold_the_value_and_stay_finite() -> None:
    rng = np.random.default_rng(3)
    truth = [LABELS[n] for n in rng.integers(3, size=40)]
    given = [one if rng.random() < 0.7 else "b" for one in truth]
    numbers = rng.normal(size=40)
    sets = [[one] for one in truth], [[one] for one in given]
    for measure in (
        *single_label_measures(truth, given, LABELS),
        *multi_label_measures(*sets, LABELS),
        *regression_measures(numbers, numbers + rng.normal(size=40)),
    ):
        low, high = measure.interval(resamples=200)
        assert low < measure.value < high, measure.name
        assert measure.higher_is_better is (measure.name != "mean squared error")
    for measure in (
        *single_label_measures(truth[:2], given[:2], LABELS),
        *regression_measures(numbers[:3], numbers[3:6]),
    ):
        assert np.isfinite(measure.interval(resamples=200)).all()  # resamples of one example over and over


def test_a_class_outside_the_labels_counts_as_one_more() -> None:
    found = values(single_label_measures(["a", "b", "z"], ["a", "b", "b"], ["a", "b"]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro F1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_a_resample_of_one_example_correlates_with_nothing() -> None:
    """Its variance is rounding (1e-17 of standardised numbers), which is not to be divided by."""
    rng = np.random.default_rng(0)
    pearson, spearman, _ = regression_measures(rng.normal(size=40), rng.normal(size=40))
    for measure in (pearson, spearman):
        assert (measure.combine(37 * measure.statistics) == 0).all()  # each example 37 times

"""Schedules against their formulas, and the errors of impossible ones."""

import math

import pytest

from triune.errors import UserError
from triune.training.config import Cosine, InverseSquareRoot, Linear, WarmupStableDecay
from triune.training.schedules import schedule
from triune.units import Interval


def test_inverse_square_root_is_the_2017_formula_up_to_its_peak():
    warmup = 40
    factor = schedule(InverseSquareRoot(warmup=Interval.parse("40 steps")), total_steps=1000, batch_tokens=1)
    peak = warmup**-0.5
    for step in (1, 7, 40, 41, 400):  # the paper counts steps from 1
        assert factor(step - 1) == pytest.approx(min(step**-0.5, step * warmup**-1.5) / peak, rel=1e-12)


def test_cosine_ends_at_its_final_share_and_halves_in_the_middle():
    factor = schedule(Cosine(warmup=Interval.parse("10 steps"), final=0.1), total_steps=110, batch_tokens=1)
    assert factor(0) == pytest.approx(0.1)  # first step of ten
    assert factor(9) == 1.0
    assert factor(59) == pytest.approx(0.1 + 0.9 * 0.5)  # half of the decay
    assert factor(109) == pytest.approx(0.1)
    assert factor(10_000) == pytest.approx(0.1)


def test_linear_falls_by_equal_amounts():
    factor = schedule(Linear(warmup=Interval.parse("0 steps")), total_steps=4, batch_tokens=1)
    assert [factor(s) for s in range(4)] == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_warmup_stable_decay_keeps_its_plateau():
    config = WarmupStableDecay(warmup=Interval.parse("100"), decay=Interval.parse("0.5"), final=0.0)
    factor = schedule(config, total_steps=20, batch_tokens=25)  # 100 tokens are 4 steps
    assert [factor(s) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(factor(s) == 1.0 for s in range(4, 10))
    assert factor(10) == pytest.approx(0.9)
    assert factor(19) == pytest.approx(0.0)


@pytest.mark.parametrize("config", [Cosine(), Linear(), WarmupStableDecay(), InverseSquareRoot()])
def test_every_schedule_stays_between_zero_and_its_peak(config):
    factor = schedule(config, total_steps=50, batch_tokens=8)
    values = [factor(s) for s in range(60)]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert math.isfinite(sum(values))


def test_warmup_in_time_is_refused():
    with pytest.raises(UserError, match=r"schedule\.warmup: 30min is a time"):
        schedule(Cosine(warmup=Interval.parse("30min")), total_steps=10, batch_tokens=1)


def test_warmup_longer_than_the_run_is_refused_with_both_lengths():
    with pytest.raises(UserError, match=r"warm-up \(500 steps\).*run of 10 steps"):
        schedule(Linear(warmup=Interval.parse("500 steps")), total_steps=10, batch_tokens=1)

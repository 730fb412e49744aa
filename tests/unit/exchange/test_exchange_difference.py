"""What counts as rounding: by the RMS of a tensor, and by a number's own size where that is larger."""

import math

import pytest
import torch

from triune.exchange.parity import Difference

ALLOWED = 1e-5


@pytest.fixture
def theirs():
    """Ordinary numbers, and one as trained models have them, some hundred times the RMS."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[7] = 3e4
    return values


@pytest.mark.parametrize(
    ("place", "off", "fine"),
    [
        (
            7,
            3e4 * 5 * ALLOWED,
            True,
        ),  # 1.5: some 150 times the RMS by ten times what is allowed, but little of the number itself
        (7, 3e4 * 20 * ALLOWED, False),
        (8, 95 * 5 * ALLOWED, True),
        (8, 95 * 20 * ALLOWED, False),
        (8, math.nan, False),
    ],
)
def test_a_number_may_differ_by_ten_times_what_is_allowed_of_the_rms_or_of_itself(place, off, fine, theirs):
    rest = theirs.clone()
    rest[7] = 0
    assert rest.square().mean().sqrt() == pytest.approx(1, rel=0.01)
    scale = theirs.square().mean().sqrt()
    assert scale == pytest.approx(95, rel=0.01)
    ours = theirs.clone().double()
    ours[place] += off
    found = Difference.between(ours, theirs.double())
    assert (found.max_relative <= 10 * ALLOWED) is fine

"""Several sources as one endless stream: position -> (source, epoch of that source, row), by weights.

Legend: n positions asked for, K sources, D slots of the period.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from triune.data.order import Order, derive
from triune.errors import UserError

#: longest period of the interleave, in slots: weights are honoured to 1 part in so many of the stream
LONGEST_PERIOD = 1 << 16


@dataclass(frozen=True)
class Places:
    """Rows by source, epoch of the source and number in the source."""

    source: np.ndarray  # [n] int64
    epoch: np.ndarray  # [n] int64
    row: np.ndarray  # [n] int64

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: slice | np.ndarray) -> Places:
        return Places(self.source[part], self.epoch[part], self.row[part])


class Mixture:
    """The interleave of K sources: after p rows, a source of share w has given floor(pw) or ceil(pw) of them.

    The sources take turns in a fixed period of D slots, laid out by earliest deadline first (Tijdeman 1980, the
    chairman assignment problem), so that no draw is random and position p is one look-up. Each source runs through
    its own `Order` and is shuffled anew each time it is exhausted.

    The shares are exact where the weights have a common denominator of at most `LONGEST_PERIOD` (0.8 and 0.2: 5);
    else they are rounded to that many parts, and never to none.

    Args:
        sizes: [K] rows of each source.
        weights: [K] share of each source in the rows of the stream, relative to the others'; None is the sizes.
        seed: seed of the order.
        lengths: for each source, None or the [R] lengths that `Order` groups rows by.

    Raises:
        UserError: a weight that is not above 0.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        seed: int,
        lengths: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self.weights = [float(weight) for weight in (sizes if weights is None else weights)]
        for number, weight in enumerate(self.weights):
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"data.train[{number}].weight is {weight:g}: a weight must be above 0")
        buckets = lengths or [None] * len(sizes)
        self.orders = [
            Order(size, derive(seed, number), bucket)
            for number, (size, bucket) in enumerate(zip(sizes, buckets, strict=True))
        ]
        self.slots = slots(self.weights)
        self._source, self._turn = interleave(self.slots)

    def locate(self, positions: np.ndarray) -> Places:
        """[n] int64 positions from 0 -> the rows there."""
        period, slot = np.divmod(positions, len(self._source))
        source = self._source[slot]
        turn = period * np.array(self.slots)[source] + self._turn[slot]
        epoch, row = np.empty_like(turn), np.empty_like(turn)
        for number, order in enumerate(self.orders):
            here = source == number
            if here.any():
                epoch[here], row[here] = order.locate(turn[here])
        return Places(source, epoch, row)


def slots(weights: Sequence[float]) -> list[int]:
    """[K] weights -> [K] slots of each source in the period, each at least 1."""
    shares = [Fraction(weight / math.fsum(weights)) for weight in weights]
    simple = [share.limit_denominator(LONGEST_PERIOD) for share in shares]
    period = math.lcm(*(share.denominator for share in simple))
    # float64 holds a share to about 1e-16; simple fractions near a share that is none of them miss it by some 1e-10
    exact = all(abs(near - share) < 1e-12 for near, share in zip(simple, shares, strict=True)) and sum(simple) == 1
    if exact and period <= LONGEST_PERIOD:
        return [int(share * period) for share in simple]
    return [max(1, round(share * LONGEST_PERIOD)) for share in shares]


def interleave(slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """[K] slots of each source -> the source of each of the D slots [D], and how many of its own came before [D].

    Turn j of a source with c of D slots may begin at slot floor(jD/c) and is due before slot ceil((j+1)D/c): within
    these windows no source is ever a whole row ahead of or behind its share. Earliest deadline first meets them all.
    """
    period = sum(slots)
    begins = sorted(
        (turn * period // count, -(-(turn + 1) * period // count), source, turn)
        for source, count in enumerate(slots)
        for turn in range(count)
    )
    order = np.empty((2, period), np.int64)
    waiting: list[tuple[int, int, int]] = []
    next_ = 0
    for slot in range(period):
        while next_ < period and begins[next_][0] <= slot:
            heapq.heappush(waiting, begins[next_][1:])
            next_ += 1
        _, order[0, slot], order[1, slot] = heapq.heappop(waiting)
    return order[0], order[1]

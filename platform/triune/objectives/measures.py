"""Metrics of a whole data set with confidence intervals: values from sums over examples, intervals by the bootstrap.

Legend: N examples, K statistics of an example, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_RESAMPLES = 1000
_BLOCK = 2**22  # counts drawn at a time: R x N of a large data set would not fit


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric that is a function of sums over examples, as accuracy, F1 and BLEU are.

    Args:
        name: in the field's words ("macro F1").
        statistics: [N, K] what each example adds.
        combine: [..., K] sums -> [...] value; where nothing is counted the value is 0, not a division by 0.
        higher_is_better: false for losses and perplexities.
    """

    name: str
    statistics: np.ndarray = field(repr=False)
    combine: Callable[[np.ndarray], np.ndarray] = field(repr=False)
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """The metric over all examples."""
        return float(self.combine(self.statistics.sum(0)))

    def interval(self, *, level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap over examples (Efron & Tibshirani 1993, 13.3; for BLEU Koehn 2004): where the metric of
        `level` of all resampled data sets lies. The same seed gives the same interval."""
        count = len(self.statistics)
        draw = np.random.default_rng(seed)
        each = max(1, _BLOCK // max(1, count))
        values = []
        for start in range(0, resamples, each):
            chosen = draw.multinomial(count, np.full(count, 1 / count), size=min(each, resamples - start))  # [R, N]
            values.append(self.combine(chosen @ self.statistics))
        tail = 50 * (1 - level)
        low, high = np.percentile(np.concatenate(values), [tail, 100 - tail])
        return float(low), float(high)


def mean(name: str, values: np.ndarray, *, higher_is_better: bool = True) -> Measure:
    """The mean of [N] numbers: accuracy of hits, exact match, F1 of an answer."""
    values = np.asarray(values, np.float64)
    return Measure(
        name=name,
        statistics=np.stack([values, np.ones_like(values)], 1),
        combine=lambda sums: ratio(sums[..., 0], sums[..., 1]),
        higher_is_better=higher_is_better,
    )


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where below is 0."""
    below = np.asarray(below, np.float64)
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)

"""A number for a text or a pair of texts (STS-B; Cer et al. 2017). Legend: N records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from triune.errors import UserError
from triune.objectives.measures import Measure, mean, ratio
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Task, mark
from triune.objectives.task_config import TASK_FAMILIES, RegressionTask
from triune.objectives.whole_text import (
    PAIR,
    TEXT,
    check_room,
    cut_note,
    framed_texts,
    whole_text_head,
)

_CONSTANT = 1e-12  # variance of standardised numbers below which they are all the same but for rounding


class Regression(Task):
    """A number a text, learned by mean squared error. Evaluation: Pearson and Spearman correlation, mean squared error."""

    kind = "regression"
    families = frozenset(TASK_FAMILIES[kind])
    fields = (TEXT, PAIR, Field(name="score", kind="number", meaning="its number"))
    best = "Pearson correlation"
    config: RegressionTask

    def _check(self) -> None:
        check_room(self)
        self._plain_loss()

    def head(self) -> Mapping[str, Any]:
        return whole_text_head(self, labels=1, problem="regression")

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        if training and len({record.fields["score"] for record in records}) == 1 < len(records):
            raise UserError(
                f"data.train: every score is {records[0].fields['score']}, so that there is nothing to learn "
                "(is the column the right one?)"
            )
        encoded = []
        for number, (record, framed) in enumerate(zip(records, framed_texts(self, records), strict=True)):
            example = self.read(framed.ids, token_types=framed.token_types)
            place = self.pooled_position(len(framed.ids), self.pool())
            values = np.array([[record.fields["score"]]], np.float32)
            encoded.append(Encoded(example=replace(mark(example, [place], [0], [1.0]), values=values), record=number))
        return encoded

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        return [{"score": float(np.asarray(output, np.float64).item())} for output in outputs]

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        truth = np.array([record.fields["score"] for record in records], np.float64)
        given = np.array([prediction["score"] for prediction in predictions], np.float64)
        return regression_measures(truth, given)

    def describe(self, records: Sequence[Record]) -> str:
        scores = np.array([record.fields["score"] for record in records])
        text = (
            f"{len(records):,} examples: scores from {scores.min():g} to {scores.max():g}, "
            f"mean {scores.mean():.3g}, standard deviation {scores.std():.3g}"
        )
        return "\n".join(line for line in (text, cut_note(self, records)) if line)

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """Always the mean of the training data, which correlates with nothing."""
        constant = {"score": float(np.mean([record.fields["score"] for record in train]))}
        return {measure.name: measure.value for measure in self.measures([constant] * len(records), records)}


def regression_measures(truth: np.ndarray, given: np.ndarray) -> list[Measure]:
    """Of [N] numbers and [N] predictions. Spearman's is Pearson's of the ranks in the whole set (ties share their mean rank),
    so that its interval holds these ranks fixed."""
    return [
        _correlation("Pearson correlation", truth, given),
        _correlation("Spearman correlation", ranks(truth), ranks(given)),
        mean("mean squared error", (truth - given) ** 2, higher_is_better=False),
    ]


def ranks(values: np.ndarray) -> np.ndarray:
    """[N] rank of each from 1; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[group])


def _correlation(name: str, first: np.ndarray, second: np.ndarray) -> Measure:
    x, y = _standardised(first), _standardised(second)  # sums of squares of numbers far from 0 would cancel
    return Measure(
        name=name, statistics=np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1), combine=_pearson_of_sums
    )


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)


def _pearson_of_sums(sums: np.ndarray) -> np.ndarray:
    """[..., 6] sums of 1, x, y, xx, yy, xy -> [...] correlation; 0 where x or y does not vary."""
    x, y, xx, yy, xy = (ratio(sums[..., i], sums[..., 0]) for i in range(1, 6))
    variances = [np.where(each < _CONSTANT, 0.0, each) for each in (xx - x * x, yy - y * y)]
    return ratio(xy - x * y, np.sqrt(variances[0] * variances[1]))

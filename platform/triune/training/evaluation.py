"""A model measured on labelled records: predictions, metrics, confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triune.inference.outputs import outputs
from triune.models.factory import Transformer
from triune.objectives.measures import Measure
from triune.objectives.record import Record
from triune.objectives.task import Encoded, Task


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model made of labelled records.

    Args:
        records: what it was asked.
        predictions: what it answered, one a record.
        measures: how well, the most telling first.
    """

    records: Sequence[Record] = field(repr=False)
    predictions: Sequence[Mapping[str, Any]] = field(repr=False)
    measures: Sequence[Measure]

    @property
    def values(self) -> dict[str, float]:
        """Metric -> value."""
        return {measure.name: measure.value for measure in self.measures}

    def intervals(self, *, level: float = 0.95, resamples: int = 1000) -> dict[str, tuple[float, float]]:
        """Metric -> where `level` of resampled data sets lie; see `Measure.interval`."""
        return {measure.name: measure.interval(level=level, resamples=resamples) for measure in self.measures}


def evaluate(
    model: Transformer,
    task: Task,
    records: Sequence[Record],
    encoded: Sequence[Encoded] | None = None,
    **settings: Any,
) -> Evaluation:
    """Predictions of `model` for `records`, and how good they are.

    Args:
        model: of the task's family, with its head.
        task: what it was trained on.
        records: labelled.
        encoded: the records encoded for evaluation, where that was done before.
        settings: of `inference.outputs`.
    """
    encoded = task.encode(records, training=False) if encoded is None else encoded
    predictions = task.predict(encoded, outputs(model, task, encoded, **_writing(task), **settings), records)
    return Evaluation(records=records, predictions=predictions, measures=task.measures(predictions, records))


def _writing(task: Task) -> dict[str, Any]:
    """How a task that writes wants it done."""
    if task.output != "text":
        return {}
    config = task.config
    length = {"max_new_tokens": config.target_length} if config.target_length is not None else {}
    return {"writing": {"beams": config.beams, "length_penalty": config.length_penalty, **length}}

"""A class, or several, of a text or a pair of texts (Devlin et al. 2019, 4.1). Legend: N records, L classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from triune.errors import UserError
from triune.objectives.batch import Example
from triune.objectives.class_measures import multi_label_measures, single_label_measures
from triune.objectives.classes import UNKNOWN_WEIGHT, balance, check_weights, class_names, unknown_class, weights_of
from triune.objectives.measures import Measure
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Task, mark
from triune.objectives.task_config import TASK_FAMILIES, ClassificationTask, TaskConfig
from triune.objectives.whole_text import (
    PAIR,
    TEXT,
    check_room,
    cut_note,
    framed_texts,
    whole_text_head,
)

_LABEL = Field(name="label", kind="label", meaning="its class")
_LABELS = Field(name="labels", kind="labels", meaning="its classes, any number of them")


class Classification(Task):
    """One class a text; with `multi_label` any number of them.

    Evaluation: accuracy, macro F1 and Matthews correlation; with `multi_label` micro F1, macro F1 and exact match.
    """

    kind = "classification"
    families = frozenset(TASK_FAMILIES[kind])
    fields = (TEXT, PAIR, _LABEL)
    config: ClassificationTask

    def __init__(self, config: TaskConfig, *args: Any, **named: Any) -> None:
        super().__init__(config, *args, **named)
        self.best = "micro F1" if self.config.multi_label else "accuracy"  # type: ignore[misc]  # as its settings say

    @classmethod
    def fields_of(cls, config: TaskConfig) -> tuple[Field, ...]:
        assert isinstance(config, ClassificationTask)
        return (TEXT, PAIR, _LABELS if config.multi_label else _LABEL)

    @classmethod
    def labels_of(cls, config: TaskConfig, records: Sequence[Record]) -> list[str]:
        assert isinstance(config, ClassificationTask)
        found = (label for record in records for label in _labels(record))
        return class_names(config.labels, found, least=1 if config.multi_label else 2, what="label")

    @property
    def classes(self) -> list[str]:
        """The classes in the order of the scores."""
        assert self.labels is not None, "build_task gives the labels"
        return self.labels

    def _check(self) -> None:
        check_room(self)
        check_weights(self.config.class_weights, self.classes)
        if not 0 < self.config.threshold < 1:
            raise UserError(f"objective.threshold: {self.config.threshold} is a probability and must lie in (0, 1)")
        if not self.config.multi_label:
            return
        self._plain_loss()
        if self.config.class_weights != "none":
            raise UserError(
                "objective.class_weights: an example has one weight, but with multi_label it may be of several classes; "
                "set it to none"
            )

    def head(self) -> Mapping[str, Any]:
        problem = "multi_label" if self.config.multi_label else "single_label"
        return whole_text_head(self, labels=len(self.classes), problem=problem)

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        target = self._several if self.config.multi_label else self._one
        counts = Counter(label for record in records for label in _labels(record))
        weights = weights_of(self.config.class_weights, counts) if training else {}
        encoded = []
        for number, (record, framed) in enumerate(zip(records, framed_texts(self, records), strict=True)):
            if training:
                self._known(record)
            example = self.read(framed.ids, token_types=framed.token_types)
            place = self.pooled_position(len(framed.ids), self.pool())
            encoded.append(Encoded(example=target(example, place, record, weights), record=number))
        return encoded

    def _known(self, record: Record) -> None:
        """UserError for a label that is none of the classes."""
        for label in _labels(record):
            if label not in self._number:
                raise unknown_class(record.where, label, self.classes, "label")

    def _one(self, example: Example, place: int, record: Record, weights: Mapping[str, float]) -> Example:
        label = record.fields.get("label")
        if label not in self._number:  # nothing to compare with; the scores are wanted all the same
            return mark(example, [place], [0], [UNKNOWN_WEIGHT])
        return mark(example, [place], [self._number[label]], [weights.get(label, 1.0)])

    def _several(self, example: Example, place: int, record: Record, weights: Mapping[str, float]) -> Example:
        values = np.zeros((1, len(self.classes)), np.float32)
        values[0, [self._number[label] for label in _labels(record) if label in self._number]] = 1
        return replace(mark(example, [place], [0], [1.0]), values=values)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.classes)}

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        scores = np.concatenate([np.asarray(output, np.float64).reshape(1, -1) for output in outputs])  # [N, L]
        if self.config.multi_label:
            chances = 1 / (1 + np.exp(-scores))
            return [self._several_of(line) for line in chances]
        raised = np.exp(scores - scores.max(1, keepdims=True))
        return [self._one_of(line) for line in raised / raised.sum(1, keepdims=True)]

    def _one_of(self, chances: np.ndarray) -> dict[str, Any]:
        best = int(chances.argmax())
        return {"label": self.classes[best], "probability": float(chances[best]), "scores": self._named(chances)}

    def _several_of(self, chances: np.ndarray) -> dict[str, Any]:
        given = [label for label, chance in zip(self.classes, chances, strict=True) if chance >= self.config.threshold]
        return {"labels": given, "scores": self._named(chances)}

    def _named(self, chances: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes, chances.tolist(), strict=True))

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        if self.config.multi_label:
            given = [prediction["labels"] for prediction in predictions]
            return multi_label_measures([_labels(record) for record in records], given, self.classes)
        truth = [record.fields["label"] for record in records]
        return single_label_measures(truth, [prediction["label"] for prediction in predictions], self.classes)

    def describe(self, records: Sequence[Record]) -> str:
        counts = Counter(label for record in records for label in _labels(record))
        text = balance(self.classes, counts, total=len(records), unit="examples")
        return "\n".join(line for line in (text, cut_note(self, records)) if line)

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """Always the most frequent class (with `multi_label` those of more than half of the texts, else the most frequent)."""
        counts = Counter(label for record in train for label in _labels(record))
        most = max(self.classes, key=lambda label: counts[label])
        frequent = [label for label in self.classes if 2 * counts[label] > len(train)]
        constant = {"label": most, "labels": frequent or [most]}
        return {measure.name: measure.value for measure in self.measures([constant] * len(records), records)}


def _labels(record: Record) -> list[str]:
    """The classes of a record, whether it has one or several."""
    if "labels" in record.fields:
        return list(record.fields["labels"])
    return [record.fields["label"]] if "label" in record.fields else []

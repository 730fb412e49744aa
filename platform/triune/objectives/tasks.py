"""The supervised task that a config describes."""

from __future__ import annotations

from collections.abc import Sequence

from triune.objectives.classification import Classification
from triune.objectives.instruction import Instruction
from triune.objectives.question_answering import QuestionAnswering
from triune.objectives.record import Record
from triune.objectives.regression import Regression
from triune.objectives.response_selection import ResponseSelection
from triune.objectives.sequence_to_sequence import SequenceToSequence
from triune.objectives.task import Task
from triune.objectives.task_config import TaskConfig
from triune.objectives.text import TextEncoder
from triune.objectives.token_classification import TokenClassification

_CLASSES: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        Classification,
        Regression,
        TokenClassification,
        QuestionAnswering,
        SequenceToSequence,
        Instruction,
        ResponseSelection,
    )
}


def task_class(kind: str) -> type[Task]:
    """The class of `objective.kind`."""
    return _CLASSES[kind]


def build_task(
    config: TaskConfig,
    text: TextEncoder,
    context: int,
    *,
    family: str,
    records: Sequence[Record] = (),
    labels: Sequence[str] | None = None,
    token_types: bool = False,
) -> Task:
    """The task of `config`. Call its `check(family)` before use.

    Args:
        config: its settings.
        text: the tokenizer.
        context: the longest row of either tower, in tokens.
        family: of the model.
        records: the training data, from which the classes are taken where neither `labels` nor the config names them.
        labels: the classes of a model that was trained on this task already.
        token_types: whether the model knows segments.
    """
    kind = task_class(config.kind)
    known = labels if labels is not None else kind.labels_of(config, records)
    return kind(config, text, context, family=family, labels=known, token_types=token_types)

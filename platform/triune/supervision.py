"""Labelled data fitted to a model and a task: what `assembly.py` does for text, for the supervised objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

from triune.data.config import DataConfig
from triune.data.records import Supervised, read_supervised
from triune.data.task_rows import TaskRows
from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.task_heads import head_for
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.objectives.record import Record
from triune.objectives.task import Encoded, Task
from triune.objectives.task_config import TaskConfig
from triune.objectives.tasks import build_task, task_class
from triune.tree import construct, to_tree


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """A task with its data.

    Args:
        task: what is learned.
        data: the records.
        rows: training rows, one set a source.
        validation_rows: validation rows.
        encoded: the validation records, encoded for evaluation.
        model: the model's settings, with the head that the task needs.
    """

    task: Task
    data: Supervised
    rows: list[TaskRows]
    validation_rows: TaskRows
    encoded: list[Encoded]
    model: ModelConfig

    @property
    def train(self) -> list[Record]:
        """All training records."""
        return [record for part in self.data.train for record in part]

    def continues(self, known: Mapping[str, Any] | None) -> bool:
        """Whether the weights learned this kind of task with the same classes (`Saved.task`), so that their scores mean the same."""
        mine = self.described
        return (
            known is not None
            and known["objective"]["kind"] == mine["objective"]["kind"]
            and known.get("labels") == mine["labels"]
        )

    @property
    def described(self) -> dict[str, Any]:
        """What a model directory keeps of the task: its settings and its classes."""
        return {"objective": to_tree(self.task.config), "labels": self.task.labels}


def supervise(
    config: TaskConfig,
    data: DataConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    length: int,
    known: Mapping[str, Any] | None = None,
) -> Supervision:
    """Read the records, learn their classes, encode them and give the model its head.

    Args:
        config: the task.
        data: the `data` part of the experiment.
        model: settings of the model; a head of classes is kept in shape where it fits the task.
        tokenizer: text and ids.
        length: the longest row of either tower, in tokens.
        known: the task that the model was trained on before (`Saved.task`), whose classes stand where they cover the data's.

    Raises UserError for data that the task can't be learned from.
    """
    kind = task_class(config.kind)
    kind.check_family(model.family)
    records = read_supervised(data, kind.fields_of(config))
    train = [record for part in records.train for record in part]
    labels = _labels(config, kind, train, known)
    config = _with_pool(config, model.head)
    task = build_task(
        config, tokenizer, length, family=model.family, labels=labels, records=train, token_types=model.token_types > 1
    )
    task.check(model.family)
    packed = task.packs and data.rows.kind == "packed"
    learned = task.encode(train, training=True)  # of all sources at once: class weights are of the whole data
    rows = [
        TaskRows(
            [one for one in learned if start <= one.record < stop],
            capacity=task.capacity(training=True),
            kind="packed" if packed else "single",
        )
        for start, stop in pairwise(accumulate(map(len, records.train), initial=0))
    ]
    encoded = task.encode(records.validation, training=False)
    if not encoded:
        raise UserError("data.validation: no record to validate on; give more, or raise data.validation_share")
    return Supervision(
        task=task,
        data=records,
        rows=rows,
        validation_rows=TaskRows(encoded, capacity=task.capacity(training=False), kind="single"),
        encoded=encoded,
        model=dataclasses.replace(model, head=_head(task, model)),
    )


def _labels(
    config: TaskConfig, kind: type[Task], records: Sequence[Record], known: Mapping[str, Any] | None
) -> list[str] | None:
    """The classes: those of a model trained on the same kind of task where they cover the data's, so that its head is kept."""
    found = kind.labels_of(config, records)
    if found is None or known is None or known["objective"]["kind"] != config.kind or not known.get("labels"):
        return found
    before = list(known["labels"])
    return before if set(found) <= set(before) and getattr(config, "labels", None) is None else found


def _with_pool(config: TaskConfig, head: HeadConfig | ClassHeadConfig) -> TaskConfig:
    """The task with the pool of a model that has a head of classes already, where its own is not set."""
    if getattr(config, "pool", "") is None and isinstance(head, ClassHeadConfig) and head.pool != "none":
        return cast("TaskConfig", dataclasses.replace(cast("Any", config), pool=head.pool))
    return config


def _head(task: Task, model: ModelConfig) -> HeadConfig | ClassHeadConfig:
    """The head that the task needs: in the shape that the model's has, or that Hugging Face has for it, else the task's own."""
    wanted = task.head()
    if wanted is None:
        if isinstance(model.head, ClassHeadConfig):
            raise UserError(
                f"objective.kind: '{task.kind}' writes text, but these weights have a head of classes; start from a language model"
            )
        return model.head
    fixed = {name: wanted[name] for name in ("kind", "labels", "problem", "pool", "scale") if name in wanted}
    if isinstance(model.head, ClassHeadConfig):
        shape = to_tree(model.head)
    else:
        twin = (
            head_for(model, None, wanted["problem"], wanted["labels"], pool=wanted["pool"]) if wanted["labels"] else {}
        )
        shape = {**wanted, **twin}
    return construct(ClassHeadConfig, {**shape, **fixed}, "model.head")

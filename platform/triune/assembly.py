"""What one experiment is made of: prepared data, objective and batch geometry, fitted to one another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from triune import experiment as experiments
from triune.data.module import TextDataModule
from triune.data.prepare import Prepared, prepare
from triune.data.rows import Rows
from triune.data.task_rows import TaskRows
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError
from triune.experiment import Experiment
from triune.objectives.base import Objective
from triune.objectives.build import build as build_objective
from triune.objectives.config import ObjectiveConfig
from triune.objectives.task import Task
from triune.objectives.task_config import TaskConfig
from triune.supervision import Supervision, supervise
from triune.training.config import RunConfig
from triune.training.plan import MICRO_BATCH_TOKENS
from triune.units import Count

_VOCABULARY_MULTIPLE = 64  # matrix products like round numbers of columns


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one experiment is made of, built and fitted to one another: of text (`prepared`) or of labelled records (`supervision`)."""

    experiment: Experiment
    tokenizer: Tokenizer
    fingerprint: str  # of the data
    objective: Objective
    train: Sequence[Rows] | Sequence[TaskRows]
    weights: list[float] | None  # share of each source in training; None is their sizes
    validation: Sequence[Rows] | Sequence[TaskRows]
    length: int  # tokens of a row
    rows_per_step: int
    total_steps: int
    validate_steps: int
    prepared: Prepared | None = None
    supervision: Supervision | None = None

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.rows_per_step * self.length

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of validation text for each token predicted (a document's end is one), or None where the objective
        does not predict each token once from those before it."""
        if self.prepared is None or not self.objective.measures_bits_per_byte:
            return None
        shards = self.prepared.validation
        return sum(s.manifest.bytes for s in shards) / sum(s.tokens + s.documents for s in shards)


def assemble(
    experiment: Experiment, *, known: Mapping[str, Any] | None = None, tokenizer: Tokenizer | None = None
) -> Parts:
    """Prepare the data and fit objective, vocabulary and batch geometry to it.

    Args:
        experiment: the resolved tree.
        known: for a supervised task, the task that the weights were trained on before (`Saved.task`).
        tokenizer: for a supervised task, that of the run that goes on; None takes the experiment's.

    Raises:
        UserError: whatever does not fit.
    """
    if experiments.is_task(experiment):
        return _assemble_task(experiment, known, tokenizer or train_tokenizer(experiment.data.tokenizer, ()))
    prepared = prepare(experiment.data)
    vocabulary = prepared.tokenizer.vocabulary
    experiment = _with_vocabulary(experiment, prepared.tokenizer)
    length = row_length(experiment)
    objective = build_objective(cast("ObjectiveConfig", experiment.objective), vocabulary, length)
    objective.check(experiment.model.family)
    return Parts(
        tokenizer=prepared.tokenizer,
        fingerprint=prepared.fingerprint,
        prepared=prepared,
        objective=objective,
        train=[Rows.of(shards, objective, experiment.data.rows) for shards, _ in prepared.train],
        weights=[weight for _, weight in prepared.train],
        validation=[Rows.of(shards, objective, experiment.data.rows) for shards in prepared.validation],
        **_geometry(experiment, length),
    )


def _assemble_task(experiment: Experiment, known: Mapping[str, Any] | None, tokenizer: Tokenizer) -> Parts:
    experiment = _with_vocabulary(experiment, tokenizer)
    length = row_length(experiment)
    supervision = supervise(
        cast("TaskConfig", experiment.objective),
        experiment.data,
        experiment.model,
        tokenizer,
        length=length,
        known=known,
    )
    experiment = dataclasses.replace(
        experiment,
        model=supervision.model,
        objective=_spelled_out(supervision.task),
        run=_in_tokens(experiment, supervision),
    )
    weights = [source.weight for source in experiment.data.train]
    return Parts(
        tokenizer=tokenizer,
        fingerprint=supervision.data.fingerprint,
        supervision=supervision,
        objective=supervision.task,
        train=supervision.rows,
        weights=[float(weight) for weight in weights if weight is not None] or None,
        validation=[supervision.validation_rows],
        **_geometry(experiment, length),
    )


def _spelled_out(task: Task) -> TaskConfig:
    """The task's settings with its classes and its pool, so that the experiment beside the run says what each score means, and
    continues the run without the weights that it started from."""
    settings: dict[str, Any] = {}
    if task.labels is not None and hasattr(task.config, "labels"):
        settings["labels"] = task.labels
    if hasattr(task.config, "pool"):
        settings["pool"] = task.pool()
    return cast("TaskConfig", dataclasses.replace(task.config, **settings))


def _in_tokens(experiment: Experiment, supervision: Supervision) -> RunConfig:
    """The run with its epochs as tokens, rounded up to whole steps."""
    run = experiment.run
    if run.epochs is None:
        return run
    length, rows = row_length(experiment), sum(map(len, supervision.rows))
    rows_per_step = run.batch_tokens // length
    steps = max(1, math.ceil(run.epochs * rows / rows_per_step))
    return dataclasses.replace(run, tokens=Count(steps * rows_per_step * length))


def _with_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """The experiment with `model.vocabulary` set; UserError where the tokenizer has more entries."""
    entries = tokenizer.size
    if experiment.model.vocabulary is None:
        model = dataclasses.replace(experiment.model, vocabulary=round_up(entries))
        return dataclasses.replace(experiment, model=model)
    if experiment.model.vocabulary < entries:
        raise UserError(
            f"model.vocabulary: {experiment.model.vocabulary} is less than the tokenizer's {entries} entries; "
            "leave it out, or use at least that many"
        )
    return experiment


def _geometry(experiment: Experiment, length: int) -> dict[str, Any]:
    """Rows, steps and validations, as arguments of `Parts`."""
    run = experiment.run
    total_steps = experiments.total_steps(experiment)
    every = run.validate_every.steps(batch_tokens=run.batch_tokens, total_steps=total_steps)
    return {
        "experiment": experiment,
        "length": length,
        "rows_per_step": run.batch_tokens // length,
        "total_steps": total_steps,
        "validate_steps": max(1, min(every, total_steps)),
    }


def data_module(parts: Parts) -> TextDataModule:
    """The loaders of the experiment's rows."""
    experiment, run = parts.experiment, parts.experiment.run
    packed = experiment.data.rows.kind == "packed" and parts.supervision is None
    return TextDataModule(
        train=parts.train,
        weights=parts.weights,
        validation=parts.validation,
        objective=parts.objective,
        rows_per_step=parts.rows_per_step,
        micro_batch=run.micro_batch or max(1, MICRO_BATCH_TOKENS // parts.length),
        seed=run.seed,
        length=parts.length if packed and experiment.model.family != "encoder_decoder" else None,
        multiple_of=experiment.data.rows.multiple_of,
        # labelled data is validated on as a whole
        validation_rows=None if parts.supervision else max(1, run.validate_tokens // parts.length),
        workers=experiment.data.workers,
    )


def row_length(experiment: Experiment) -> int:
    """Tokens of a row: `data.rows.length`, else `model.context`."""
    return experiment.data.rows.length or int(experiment.model.context)


def round_up(entries: int) -> Count:
    """Rows of the embedding table for a tokenizer of `entries` entries."""
    return Count(-(-entries // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE)

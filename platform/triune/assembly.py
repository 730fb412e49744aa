"""What one experiment is made of: prepared data, objective and batch geometry, fitted to one another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from triune import experiment as experiments
from triune.data.module import TextDataModule
from triune.data.prepare import Prepared, prepare
from triune.data.rows import Rows
from triune.errors import UserError
from triune.experiment import Experiment
from triune.objectives.base import Objective
from triune.objectives.build import build as build_objective
from triune.training.plan import MICRO_BATCH_TOKENS
from triune.units import Count

_VOCABULARY_MULTIPLE = 64  # matrix products like round numbers of columns


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one experiment is made of, built and fitted to one another."""

    experiment: Experiment
    prepared: Prepared
    objective: Objective
    train: list[Rows]
    validation: list[Rows]
    length: int  # tokens of a row
    rows_per_step: int
    total_steps: int
    validate_steps: int

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, padding included."""
        return self.rows_per_step * self.length

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of validation text for each token predicted (a document's end is one), or None where the objective
        does not predict each token once from those before it."""
        if not self.objective.measures_bits_per_byte:
            return None
        shards = self.prepared.validation
        return sum(s.manifest.bytes for s in shards) / sum(s.tokens + s.documents for s in shards)


def assemble(experiment: Experiment) -> Parts:
    """Prepare the data and fit objective, vocabulary and batch geometry to it.

    Raises:
        UserError: whatever does not fit.
    """
    prepared = prepare(experiment.data)
    vocabulary = prepared.tokenizer.vocabulary
    if experiment.model.vocabulary is None:
        model = dataclasses.replace(experiment.model, vocabulary=round_up(vocabulary.size))
        experiment = dataclasses.replace(experiment, model=model)
    elif experiment.model.vocabulary < vocabulary.size:
        raise UserError(
            f"model.vocabulary: {experiment.model.vocabulary} is less than the tokenizer's {vocabulary.size} entries; "
            "leave it out, or use at least that many"
        )
    length = row_length(experiment)
    objective = build_objective(experiment.objective, vocabulary, length)
    objective.check(experiment.model.family)
    run = experiment.run
    total_steps = experiments.total_steps(experiment)
    rows_per_step = run.batch_tokens // length
    every = run.validate_every.steps(batch_tokens=run.batch_tokens, total_steps=total_steps)
    return Parts(
        experiment=experiment,
        prepared=prepared,
        objective=objective,
        train=[Rows.of(shards, objective, experiment.data.rows) for shards, _ in prepared.train],
        validation=[Rows.of(shards, objective, experiment.data.rows) for shards in prepared.validation],
        length=length,
        rows_per_step=rows_per_step,
        total_steps=total_steps,
        validate_steps=max(1, min(every, total_steps)),
    )


def data_module(parts: Parts) -> TextDataModule:
    """The loaders of the experiment's rows."""
    experiment, run = parts.experiment, parts.experiment.run
    packed = experiment.data.rows.kind == "packed"
    return TextDataModule(
        train=parts.train,
        weights=[weight for _, weight in parts.prepared.train],
        validation=parts.validation,
        objective=parts.objective,
        rows_per_step=parts.rows_per_step,
        micro_batch=run.micro_batch or max(1, MICRO_BATCH_TOKENS // parts.length),
        seed=run.seed,
        length=parts.length if packed and experiment.model.family != "encoder_decoder" else None,
        multiple_of=experiment.data.rows.multiple_of,
        validation_rows=max(1, run.validate_tokens // parts.length),
        workers=experiment.data.workers,
    )


def row_length(experiment: Experiment) -> int:
    """Tokens of a row: `data.rows.length`, else `model.context`."""
    return experiment.data.rows.length or int(experiment.model.context)


def round_up(entries: int) -> Count:
    """Rows of the embedding table for a tokenizer of `entries` entries."""
    return Count(-(-entries // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE)

"""Wires one experiment: data, objective, model, LightningModule, Trainer; then validates, saves and reports.

Each verb of the command line is one function here: prepare, plan, pretrain (and fine-tuning), generate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from triune import experiment as experiments
from triune.adapters.tuning import prepare as prepare_model
from triune.assembly import Parts, assemble, data_module, round_up, row_length
from triune.continuation import check_same, completed, known_task, open_directory, own_tokenizer
from triune.data.prepare import prepare as prepare_data
from triune.data.rows import Rows
from triune.ending import finish_task, finish_text, size
from triune.errors import UserError
from triune.exchange.model_directory import describe
from triune.experiment import Experiment
from triune.models.factory import Transformer
from triune.models.factory import build as build_model
from triune.tracking import report as reports
from triune.tracking.identity import Origin
from triune.tracking.loggers import (
    build_loggers,
    finish,
    identity_of,
    log_checkpoint,
    rewind,
)
from triune.tracking.peaks import Peak, device_peak
from triune.tracking.progress import StatusBar
from triune.tracking.throughput import Throughput
from triune.training.checkpoints import FILE, RunCheckpoints, latest_checkpoint
from triune.training.conversion import Conversion
from triune.training.module import TransformerModule
from triune.training.outcome import Outcome
from triune.training.plan import plan_report, training_flops
from triune.training.precision import default_precision
from triune.training.run_directory import RunDirectory, write_atomically
from triune.training.samples import SampleTable
from triune.training.schedules import schedule
from triune.training.seeds import summary
from triune.training.task_callbacks import Patience, TaskMetrics
from triune.training.task_outcome import Before
from triune.training.trainer import accelerator_of, build_trainer, check_trainer, world_size
from triune.training.weights import Start, read_start
from triune.training.writing import generate as write_answers


def prepare(experiment: Experiment) -> int:
    """Read the corpus, train or load the tokenizer, write the token shards; the exit code."""
    prepare_data(experiment.data)
    return 0


def plan(experiment: Experiment) -> int:
    """Print the resolved experiment, parameters, FLOPs and memory, and stop; no data is read, nothing is written."""
    check_trainer(experiment.trainer)
    model = experiment.model
    notes = []
    start = read_start(experiment.init)
    if start is not None:
        start.check(model)
    if model.vocabulary is None and start is not None:
        model = dataclasses.replace(model, vocabulary=start.vocabulary)
    elif model.vocabulary is None:
        entries = round_up(int(experiment.data.tokenizer.vocabulary))
        model = dataclasses.replace(model, vocabulary=entries)
        notes.append(("vocabulary", f"{entries:,}, as data.tokenizer.vocabulary asks; the tokenizer's size decides"))
    accelerator = accelerator_of(experiment.trainer)
    reports.plan_report(
        plan_report(
            name=experiment.name,
            text=experiments.dump(experiment),
            model=model,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            run=experiment.run,
            length=row_length(experiment),
            steps=experiments.total_steps(experiment),
            world=world_size(experiment.trainer),
            precision=_precision(experiment.trainer, accelerator),
            device="cuda" if accelerator == "gpu" else "cpu",
            notes=notes,
        )
    )
    if start is not None:
        print(f"\n{start.plan(model, None)}")
    return 0


def generate(run_directory: str, **options: Any) -> int:
    """Print, or write to a file, what a trained model makes of a person's texts (see `writing.generate`); the exit code."""
    return write_answers(run_directory, **options)


def pretrain(experiment: Experiment, *, stage: str = "pretrain", restart: bool = False) -> int:
    """Train, or continue, or say that the run is complete; the exit code.

    Args:
        experiment: the resolved tree.
        stage: "pretrain" or "finetune": the folder under `run.directory` and W&B's job type.
        restart: start afresh in a new directory.

    Raises:
        UserError: everything a user can mend.
    """
    check_trainer(experiment.trainer)
    if stage == "finetune" and not experiment.init.sources:
        raise UserError(
            "init.from: fine-tuning starts from weights; give a run directory, a checkpoint or a model/ directory (FROM=...)"
        )
    if experiment.seeds == 1:
        result = train(experiment, stage, restart=restart)
        if result is not None:
            reports.final_report(result.report)
        return 0
    return _seeds(experiment, stage, restart=restart)


def _seeds(experiment: Experiment, stage: str, *, restart: bool) -> int:
    """The same run with several seeds, one after the other, then mean and deviation."""
    results = []
    for seed in range(experiment.run.seed, experiment.run.seed + experiment.seeds):
        run = dataclasses.replace(experiment.run, seed=seed)
        one = dataclasses.replace(experiment, run=run, seeds=1, name=f"{experiment.name}-seed-{seed}")
        if not experiment.init.sources:  # else they join the group of what they start from
            group = experiment.tracking.group or experiment.name
            one = dataclasses.replace(one, tracking=dataclasses.replace(experiment.tracking, group=group))
        result = train(one, stage, restart=restart)
        if result is None:  # a rank above 0, or stopped early: the same command goes on
            return 0
        results.append(result)
    directory = Path(experiment.run.directory) / stage
    found = summary([result.report for result in results], title=f"{stage} {experiment.name}: {len(results)} seeds")
    write_atomically(directory / f"{experiment.name}-seeds.json", json.dumps(found.as_dict(), indent=2) + "\n")
    reports.seeds_report(found)
    return 0


def train(experiment: Experiment, stage: str, *, restart: bool = False) -> Outcome | None:
    """One run, to its end, or what it reported where it is complete; None on a rank above 0 and for a run stopped from outside."""
    directory = open_directory(experiment, stage, restart=restart)
    if not experiments.is_task(experiment):  # a task's settings are whole only once its data are read
        check_same(directory, experiment)
        if (done := completed(directory, experiment, experiments.total_steps(experiment))) is not None:
            return done
    start = _start(experiment, directory)
    known = known_task(experiment, directory, start)
    parts = assemble(experiment, known=known, tokenizer=own_tokenizer(directory))
    experiment = parts.experiment
    if parts.supervision is not None:
        check_same(directory, experiment)
        if (done := completed(directory, experiment, parts.total_steps)) is not None:
            return done
    if start and parts.supervision and not parts.supervision.continues(start.task):
        start = start.without_classes()
    pl.seed_everything(experiment.run.seed, workers=True, verbose=False)
    model = build_model(experiment.model)
    conversion = start.fill(model, parts.tokenizer) if start and not experiment.init.fresh else None
    origins = start.origins if start else []
    del start  # as many bytes as the model, and never read again
    experiment = dataclasses.replace(experiment, name=directory.path.name)
    return _train(dataclasses.replace(parts, experiment=experiment), model, directory, stage, conversion, origins)


def _start(experiment: Experiment, directory: RunDirectory) -> Start | None:
    """What a new run starts from, refused before any data is read where it can't; None for a fresh or a continued run."""
    if latest_checkpoint(directory.checkpoints) is not None:
        return None
    start = read_start(experiment.init)
    if start is not None:
        start.check(experiment.model)
    return start


def _train(
    parts: Parts,
    model: Transformer,
    directory: RunDirectory,
    stage: str,
    conversion: Conversion | None,
    origins: Sequence[Origin],
) -> Outcome | None:
    """Fit, validate, save and sum up; None on a rank above 0 and for a run that was stopped early."""
    experiment = parts.experiment
    checkpoint = latest_checkpoint(directory.checkpoints)
    before = _before(parts, model, directory) if parts.supervision else None
    trains = prepare_model(model, experiment.tuning, experiment.adapter)
    loggers = _loggers(parts, model, directory, stage, checkpoint, origins)
    peak = _peak(experiment.trainer)
    module = _module(parts, model, peak, identity_of(loggers))
    callbacks = _callbacks(parts, module, directory, loggers, before)
    trainer, how = build_trainer(
        experiment.trainer,
        experiment.run,
        directory=directory.path,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        loggers=loggers,
        callbacks=callbacks,
    )
    if trainer.is_global_zero:
        directory.path.mkdir(parents=True, exist_ok=True)
        parts.tokenizer.save(directory.tokenizer)
        directory.withdraw_report()
        write_atomically(directory.experiment, experiments.dump(experiment))
        if before is not None and checkpoint is None:
            before.write(directory.before)
        if conversion is not None:
            write_atomically(directory.conversion, f"{conversion}\n")
            print(f"{conversion}\n")
        print(_opening(parts, model, directory, how, checkpoint, trains))
    rewind(loggers, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
    data = data_module(parts)
    failed = True
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint / FILE) if checkpoint else None)
        early = any(isinstance(callback, Patience) and callback.exhausted for callback in callbacks)
        reached = trainer.global_step >= parts.total_steps or early
        if reached and module.validated_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
        failed = False
        if reached and trainer.is_global_zero:
            if before is not None:
                return finish_task(parts, module, before, directory, loggers, peak, ended_early=early)
            return finish_text(parts, module, data, directory, loggers, peak, ended_early=early)
        if trainer.is_global_zero:  # trainer.max_time, or a callback of the user's
            print(f"stopped at step {trainer.global_step:,} of {parts.total_steps:,}; the same command goes on")
        return None
    finally:
        finish(loggers, failed=failed)


def _loggers(
    parts: Parts,
    model: Transformer,
    directory: RunDirectory,
    stage: str,
    checkpoint: Path | None,
    origins: Sequence[Origin],
) -> list[Logger]:
    experiment = parts.experiment
    saved = None
    if checkpoint is not None:
        state = torch.load(checkpoint / FILE, map_location="meta", weights_only=True, mmap=True)
        saved = state["triune"].get("wandb")
    return build_loggers(
        experiment.tracking,
        run_directory=directory.path,
        name=directory.path.name,
        job_type=stage,
        tags=[experiment.model.family, experiment.objective.kind, *_patterns(model)],
        resolved_config=experiments.to_tree(experiment),
        facts={"parameters": size(model), "data": parts.fingerprint},
        origins=origins,
        saved_identity=saved,
    )


def _module(parts: Parts, model: Transformer, peak: Peak | None, wandb: dict[str, Any] | None) -> TransformerModule:
    experiment, run = parts.experiment, parts.experiment.run
    task = parts.supervision.described if parts.supervision else None
    return TransformerModule(
        model=model,
        objective=parts.objective,
        optimizer=experiment.optimizer,
        schedule=schedule(experiment.schedule, total_steps=parts.total_steps, batch_tokens=run.batch_tokens),
        total_steps=parts.total_steps,
        rows_per_step=parts.rows_per_step,
        row_tokens=parts.length,
        gradient_clip=run.gradient_clip,
        seed=run.seed,
        log_every=experiment.tracking.log_every,
        throughput=Throughput(
            flops_per_token=training_flops(experiment.model, experiment.objective, parts.length),
            peak_flops=peak.flops * world_size(experiment.trainer) if peak else None,
        ),
        description={
            **describe(model, objective=experiment.objective.kind, tokenizer=parts.tokenizer.fingerprint, task=task),
            "adapter": None if experiment.adapter is None else experiments.to_tree(experiment.adapter),
            "wandb": wandb,
        },
        bytes_per_token=parts.bytes_per_token,
        compile=run.compile,
        layer_decay=experiment.tuning.layer_decay,
    )


def _callbacks(
    parts: Parts, module: TransformerModule, directory: RunDirectory, loggers: list[Logger], before: Before | None
) -> list[Callback]:
    experiment, run = parts.experiment, parts.experiment.run
    bar = [StatusBar(module.status)] if experiment.trainer.get("enable_progress_bar", True) else []
    metric, higher = ("validation/loss", False)
    if parts.supervision is not None and before is not None:
        own = (
            parts.supervision.task.best if before.higher_is_better else None
        )  # else the loss is what each validation has
        metric, higher = _best(before, run.best or own)
    upload = (lambda path, names: log_checkpoint(loggers, path, names)) if experiment.tracking.checkpoints else None
    checkpoints = RunCheckpoints(
        directory.checkpoints,
        run,
        batch_tokens=run.batch_tokens,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        metric=metric,
        higher_is_better=higher,
        on_saved=upload,
    )
    patience = [Patience(metric, higher_is_better=higher, patience=run.patience)] if run.patience else []
    if parts.supervision is None:
        rows = cast("Sequence[Rows]", parts.validation)
        table = SampleTable(parts.objective, parts.tokenizer, rows, experiment.tracking.samples)
        return [*bar, table, *patience, checkpoints]
    supervision = parts.supervision
    return [
        *bar,
        TaskMetrics(supervision.task, supervision.data.validation, supervision.encoded),
        *patience,
        checkpoints,
    ]


def _best(before: Before, chosen: str | None) -> tuple[str, bool]:
    try:
        return before.best(chosen)
    except KeyError as known:
        raise UserError(f"run.best: {chosen!r} is no metric of this task; its metrics are {known.args[0]}") from None


def _before(parts: Parts, model: Transformer, directory: RunDirectory) -> Before:
    """How the weights that training starts from do on the validation records; a continued run remembers."""
    assert parts.supervision is not None
    supervision = parts.supervision
    kept = Before.read(directory.before)
    if kept is not None:
        return kept
    return Before.of(model, supervision.task, supervision.data.validation, supervision.encoded)


def _patterns(model: Transformer) -> list[str]:
    """The attention patterns in use, as tags."""
    found = [str(module.pattern) for module in model.modules() if hasattr(module, "pattern")]
    return list(dict.fromkeys(found))


def _precision(arguments: dict[str, Any], accelerator: str) -> str:
    return str(arguments.get("precision", default_precision(accelerator)[0]))


def _peak(arguments: dict[str, Any]) -> Peak | None:
    accelerator = accelerator_of(arguments)
    precision = _precision(arguments, accelerator)
    kind = "bf16" if "bf16" in precision else "fp16" if "16" in precision else "fp32"
    return device_peak(torch.device("cuda" if accelerator == "gpu" else "cpu"), kind)


def _opening(
    parts: Parts, model: Transformer, directory: RunDirectory, how: str, checkpoint: Path | None, trains: str
) -> str:
    """A few lines before the bar: what trains on what, and where it starts."""
    begin = f"continuing from {checkpoint}" if checkpoint else "from the first step"
    rows = sum(map(len, parts.train))
    lines = [
        f"{directory.path}: {parts.experiment.model.family} of {size(model) / 1e6:.1f}M parameters, {how}",
        f"{parts.total_steps:,} steps of {parts.step_tokens:,} tokens over {rows:,} rows of {parts.length}; {begin}",
    ]
    if parts.supervision is None:
        return "\n".join(lines)
    steps = f"{parts.total_steps:,} steps of {parts.rows_per_step:,} rows over {rows:,}, up to {parts.length} tokens each; {begin}"
    told = parts.supervision.task.describe(parts.supervision.train)
    held = f"{len(parts.supervision.data.validation):,} records to validate on"
    return "\n".join([lines[0], steps, trains, *([told] if told else []), held])

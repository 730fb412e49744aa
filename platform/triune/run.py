"""Wires one experiment: data, objective, model, LightningModule, Trainer; then validates, saves and reports.

Each verb of the command line is one function here: prepare, plan, pretrain (and fine-tuning), generate.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from triune import experiment as experiments
from triune.data.module import TextDataModule
from triune.data.prepare import Prepared
from triune.data.prepare import prepare as prepare_data
from triune.data.rows import Rows
from triune.errors import UserError
from triune.experiment import Experiment
from triune.models.build import Transformer
from triune.models.build import build as build_model
from triune.objectives.base import Objective
from triune.objectives.build import build as build_objective
from triune.tracking import report as reports
from triune.tracking.loggers import address_of, build_loggers, finish, identity_of, log_checkpoint, rewind
from triune.tracking.peaks import Peak, device_peak
from triune.tracking.progress import StatusBar
from triune.tracking.throughput import Throughput
from triune.training.checkpoints import FILE, RunCheckpoints, latest_checkpoint
from triune.training.module import TransformerModule
from triune.training.outcome import Outcome, baselines, outcome
from triune.training.plan import MICRO_BATCH_TOKENS, plan_report, training_flops
from triune.training.precision import default_precision
from triune.training.run_directory import RunDirectory, write_atomically
from triune.training.samples import SampleTable, complete, write_samples
from triune.training.schedules import schedule
from triune.training.trainer import accelerator_of, build_trainer, check_trainer, world_size
from triune.training.weights import describe, load_model, read_weights, save_model, start_from
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


def prepare(experiment: Experiment) -> int:
    """Read the corpus, train or load the tokenizer, write the token shards; the exit code."""
    prepare_data(experiment.data)
    return 0


def plan(experiment: Experiment) -> int:
    """Print the resolved experiment, parameters, FLOPs and memory, and stop; no data is read, nothing is written."""
    check_trainer(experiment.trainer)
    model = experiment.model
    notes = []
    if model.vocabulary is None:
        entries = _round_up(int(experiment.data.tokenizer.vocabulary))
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
            length=_row_length(experiment),
            steps=experiments.total_steps(experiment),
            world=world_size(experiment.trainer),
            precision=_precision(experiment.trainer, accelerator),
            device="cuda" if accelerator == "gpu" else "cpu",
            notes=notes,
        )
    )
    return 0


def generate(
    run_directory: str,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 1,
) -> int:
    """Print what a trained model makes of `prompt`; the exit code."""
    model, saved = load_model(run_directory)
    print(
        complete(
            model,
            saved,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
    )
    return 0


def pretrain(
    experiment: Experiment, *, stage: str = "pretrain", restart: bool = False, config_path: str | None = None
) -> int:
    """Train, or continue, or say that the run is complete; the exit code.

    Args:
        experiment: the resolved tree.
        stage: "pretrain" or "finetune": the folder under `run.directory` and W&B's job type.
        restart: start afresh in a new directory.
        config_path: the YAML it came from.

    Raises:
        UserError: everything a user can mend.
    """
    check_trainer(experiment.trainer)
    if stage == "finetune" and experiment.init.from_ is None:
        raise UserError(
            "init.from: fine-tuning starts from weights; give a run directory, a checkpoint or a model/ directory"
        )
    directory = _open_directory(experiment, stage, restart=restart)
    report = directory.report()
    if report is not None and report["steps"] >= experiments.total_steps(experiment):
        print(
            f"{directory.path}: this run is complete ({report['steps']:,} steps). Raise run.tokens to go on, or start afresh with RESTART=1."
        )
        reports.final_report(Outcome.from_dict(report).report)
        return 0

    parts = assemble(experiment)
    experiment = parts.experiment
    pl.seed_everything(experiment.run.seed, workers=True, verbose=False)
    model = build_model(experiment.model)
    if experiment.init.from_ is not None:
        start_from(model, read_weights(experiment.init.from_), tokenizer=parts.prepared.tokenizer.fingerprint)
    experiment = dataclasses.replace(experiment, name=directory.path.name)
    result = _train(dataclasses.replace(parts, experiment=experiment), model, directory, stage)
    if result is not None:
        reports.final_report(result.report)
    return 0


def assemble(experiment: Experiment) -> Parts:
    """Prepare the data and fit objective, vocabulary and batch geometry to it.

    Raises:
        UserError: whatever does not fit.
    """
    prepared = prepare_data(experiment.data)
    vocabulary = prepared.tokenizer.vocabulary
    if experiment.model.vocabulary is None:
        model = dataclasses.replace(experiment.model, vocabulary=_round_up(vocabulary.size))
        experiment = dataclasses.replace(experiment, model=model)
    elif experiment.model.vocabulary < vocabulary.size:
        raise UserError(
            f"model.vocabulary: {experiment.model.vocabulary} is less than the tokenizer's {vocabulary.size} entries; "
            "leave it out, or use at least that many"
        )
    length = _row_length(experiment)
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


def _train(parts: Parts, model: Transformer, directory: RunDirectory, stage: str) -> Outcome | None:
    """Fit, validate, save and sum up; None on a rank above 0."""
    experiment, run = parts.experiment, parts.experiment.run
    checkpoint = latest_checkpoint(directory.checkpoints)
    data = data_module(parts)
    accelerator = accelerator_of(experiment.trainer)
    identity = describe(model, objective=experiment.objective.kind, tokenizer=parts.prepared.tokenizer.fingerprint)
    loggers = build_loggers(
        experiment.tracking,
        run_directory=directory.path,
        name=directory.path.name,
        job_type=stage,
        tags=[experiment.model.family, experiment.objective.kind, *_patterns(model)],
        resolved_config=experiments.to_tree(experiment),
        facts={"parameters": sum(p.numel() for p in model.parameters()), "data": parts.prepared.fingerprint},
        saved_identity=_saved_identity(checkpoint),
    )
    identity["wandb"] = identity_of(loggers)
    peak = _peak(experiment.trainer, accelerator)
    throughput = Throughput(
        flops_per_token=training_flops(experiment.model, experiment.objective, parts.length),
        peak_flops=peak.flops * world_size(experiment.trainer) if peak else None,
    )
    module = TransformerModule(
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
        throughput=throughput,
        description=identity,
        bytes_per_token=parts.bytes_per_token,
    )
    if run.compile:
        model.compile()
    checkpoints = RunCheckpoints(
        directory.checkpoints,
        run,
        batch_tokens=run.batch_tokens,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        on_saved=(lambda path, names: log_checkpoint(loggers, path, names))
        if experiment.tracking.checkpoints
        else None,
    )
    table = SampleTable(parts.objective, parts.prepared.tokenizer, parts.validation, experiment.tracking.samples)
    bar = [StatusBar(module.status)] if experiment.trainer.get("enable_progress_bar", True) else []
    trainer, how = build_trainer(
        experiment.trainer,
        run,
        directory=directory.path,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        loggers=loggers,
        callbacks=[*bar, table, checkpoints],
    )
    if trainer.is_global_zero:
        directory.path.mkdir(parents=True, exist_ok=True)
        parts.prepared.tokenizer.save(directory.tokenizer)
        write_atomically(directory.experiment, experiments.dump(experiment))
        print(_opening(parts, model, directory, how, checkpoint))
    rewind(loggers, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
    failed = True
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint / FILE) if checkpoint else None)
        if trainer.global_step < parts.total_steps:  # trainer.max_time, or a callback of the user's
            failed = False
            if trainer.is_global_zero:
                print(f"stopped at step {trainer.global_step:,} of {parts.total_steps:,}; the same command goes on")
            return None
        if module.validated_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
        failed = False
        return _finish(parts, module, data, trainer, directory, address_of(loggers), peak)
    finally:
        finish(loggers, failed=failed)


def _finish(
    parts: Parts,
    module: TransformerModule,
    data: TextDataModule,
    trainer: pl.Trainer,
    directory: RunDirectory,
    wandb: str | None,
    peak: Peak | None,
) -> Outcome | None:
    """Save `model/`, compare with counting, write a sample and keep the report."""
    if not trainer.is_global_zero:
        return None
    model = module.model.to("cpu").eval()
    tokenizer, objective = parts.prepared.tokenizer, parts.objective
    save_model(model, tokenizer, directory.model, objective=objective.kind)
    count = sum(p.numel() for p in model.parameters())
    result = outcome(
        title=f"{directory.path.parent.name} {directory.path.name}: complete",
        model=f"{parts.experiment.model.family}, {count / 1e6:.1f}M parameters, {objective.kind}",
        validation=module.validation,
        counted=baselines(data, parts.prepared, bytes_per_token=parts.bytes_per_token),
        steps=trainer.global_step,
        throughput=module.throughput,
        mfu_against=peak.label if peak else None,
        samples=write_samples(model, objective, tokenizer, parts.validation, count=1),
        directory=directory.path,
        wandb=wandb,
        following=_following(parts, directory, wandb),
    )
    directory.write_report(result.as_dict())
    return result


def _open_directory(experiment: Experiment, stage: str, *, restart: bool) -> RunDirectory:
    """The run's directory; UserError where another experiment lives there."""
    directory = RunDirectory(Path(experiment.run.directory) / stage / experiment.name)
    if restart and directory.started:
        fresh = directory.fresh()
        print(f"{directory.path} is left as it is; starting afresh in {fresh.path}")
        return fresh
    if directory.started:
        before, now = experiments.load(directory.experiment), experiment
        if now.model.vocabulary is None:  # there it is resolved: the tokenizer's size
            now = dataclasses.replace(now, model=dataclasses.replace(now.model, vocabulary=before.model.vocabulary))
        lines = experiments.differences(before, now)
        if lines:
            shown = "\n  ".join(lines[:10]) + (f"\n  … and {len(lines) - 10} more" if len(lines) > 10 else "")
            raise UserError(
                f"{directory.path} holds the run of a different experiment; give this one another NAME (--name), "
                f"or start it afresh with RESTART=1 (--restart)\n  {shown}"
            )
    return directory


def _saved_identity(checkpoint: Path | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    state = torch.load(checkpoint / FILE, map_location="meta", weights_only=True, mmap=True)
    return state["triune"].get("wandb")


def _patterns(model: Transformer) -> list[str]:
    """The attention patterns in use, as tags."""
    found = [str(module.pattern) for module in model.modules() if hasattr(module, "pattern")]
    return list(dict.fromkeys(found))


def _precision(arguments: dict[str, Any], accelerator: str) -> str:
    return str(arguments.get("precision", default_precision(accelerator)[0]))


def _peak(arguments: dict[str, Any], accelerator: str) -> Peak | None:
    precision = _precision(arguments, accelerator)
    kind = "bf16" if "bf16" in precision else "fp16" if "16" in precision else "fp32"
    return device_peak(torch.device("cuda" if accelerator == "gpu" else "cpu"), kind)


def _row_length(experiment: Experiment) -> int:
    return experiment.data.rows.length or int(experiment.model.context)


def _opening(parts: Parts, model: Transformer, directory: RunDirectory, how: str, checkpoint: Path | None) -> str:
    """Two lines before the bar: what trains on what, and where it starts."""
    count = sum(p.numel() for p in model.parameters())
    begin = f"continuing from {checkpoint}" if checkpoint else "from the first step"
    rows = sum(map(len, parts.train))
    return (
        f"{directory.path}: {parts.experiment.model.family} of {count / 1e6:.1f}M parameters, {how}\n"
        f"{parts.total_steps:,} steps of {parts.step_tokens:,} tokens over {rows:,} rows of {parts.length}; {begin}"
    )


def _following(parts: Parts, directory: RunDirectory, wandb: str | None) -> list[tuple[str, str]]:
    """The next commands a person would want."""
    config, stage, run = directory.experiment, directory.path.parent.name, directory.path
    longer = 2 * parts.total_steps * parts.experiment.run.batch_tokens
    own_text = f"init.from={run} data.tokenizer={{kind:pretrained,path:{run}/model}} data.train=[{{path:my.txt}}]"
    return [
        ("continue it, for as long again", f'make {stage} CONFIG={config} ARGS="run.tokens={longer}"'),
        ("fine-tune it on text of yours", f'make finetune CONFIG={config} NAME=mine ARGS="{own_text}"'),
        *([("open its W&B run", wandb)] if wandb else []),
    ]


def _round_up(entries: int) -> Count:
    return Count(-(-entries // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE)

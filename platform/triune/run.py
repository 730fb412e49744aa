"""Wires one experiment: data, objective, model, LightningModule, Trainer; then validates, saves and reports.

Each verb of the command line is one function here: prepare, plan, pretrain (and fine-tuning), generate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from triune import experiment as experiments
from triune.assembly import Parts, assemble, data_module, round_up, row_length
from triune.data.module import TextDataModule
from triune.data.prepare import prepare as prepare_data
from triune.errors import UserError
from triune.exchange.model_directory import describe, save_model
from triune.experiment import Experiment
from triune.models.factory import Transformer
from triune.models.factory import build as build_model
from triune.tracking import report as reports
from triune.tracking.loggers import address_of, build_loggers, finish, identity_of, log_checkpoint, rewind
from triune.tracking.peaks import Peak, device_peak
from triune.tracking.progress import StatusBar
from triune.tracking.throughput import Throughput
from triune.training.checkpoints import FILE, RunCheckpoints, latest_checkpoint
from triune.training.conversion import Conversion
from triune.training.module import TransformerModule
from triune.training.outcome import Outcome, baselines, outcome, text_accuracy
from triune.training.plan import plan_report, training_flops
from triune.training.precision import default_precision
from triune.training.run_directory import RunDirectory, write_atomically
from triune.training.samples import SampleTable, complete, write_samples
from triune.training.schedules import schedule
from triune.training.trainer import accelerator_of, build_trainer, check_trainer, world_size
from triune.training.weights import Start, load_model, read_start


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

    start = _start(experiment, directory)
    parts = assemble(experiment)
    experiment = parts.experiment
    pl.seed_everything(experiment.run.seed, workers=True, verbose=False)
    model = build_model(experiment.model)
    conversion = start.fill(model, parts.prepared.tokenizer) if start else None
    del start  # as many bytes as the model, and never read again
    experiment = dataclasses.replace(experiment, name=directory.path.name)
    result = _train(dataclasses.replace(parts, experiment=experiment), model, directory, stage, conversion)
    if result is not None:
        reports.final_report(result.report)
    return 0


def _start(experiment: Experiment, directory: RunDirectory) -> Start | None:
    """What a new run starts from, refused before any data is read where it can't; None for a fresh or a continued run."""
    if latest_checkpoint(directory.checkpoints) is not None:
        return None
    start = read_start(experiment.init)
    if start is not None:
        start.check(experiment.model)
    return start


def _train(
    parts: Parts, model: Transformer, directory: RunDirectory, stage: str, conversion: Conversion | None
) -> Outcome | None:
    """Fit, validate, save and sum up; None on a rank above 0 and for a run that was stopped early."""
    experiment = parts.experiment
    checkpoint = latest_checkpoint(directory.checkpoints)
    loggers = _loggers(parts, model, directory, stage, checkpoint)
    peak = _peak(experiment.trainer)
    module = _module(parts, model, peak, identity_of(loggers))
    trainer, how = build_trainer(
        experiment.trainer,
        experiment.run,
        directory=directory.path,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        loggers=loggers,
        callbacks=_callbacks(parts, module, directory, loggers),
    )
    if trainer.is_global_zero:
        directory.path.mkdir(parents=True, exist_ok=True)
        parts.prepared.tokenizer.save(directory.tokenizer)
        write_atomically(directory.experiment, experiments.dump(experiment))
        if conversion is not None:
            write_atomically(directory.conversion, f"{conversion}\n")
            print(f"{conversion}\n")
        print(_opening(parts, model, directory, how, checkpoint))
    rewind(loggers, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
    data = data_module(parts)
    failed = True
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint / FILE) if checkpoint else None)
        reached = trainer.global_step >= parts.total_steps
        if reached and module.validated_step != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
        failed = False
        if reached and trainer.is_global_zero:
            return _finish(parts, module, data, directory, address_of(loggers), peak)
        if trainer.is_global_zero:  # trainer.max_time, or a callback of the user's
            print(f"stopped at step {trainer.global_step:,} of {parts.total_steps:,}; the same command goes on")
        return None
    finally:
        finish(loggers, failed=failed)


def _loggers(
    parts: Parts, model: Transformer, directory: RunDirectory, stage: str, checkpoint: Path | None
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
        facts={"parameters": _size(model), "data": parts.prepared.fingerprint},
        saved_identity=saved,
    )


def _module(parts: Parts, model: Transformer, peak: Peak | None, wandb: dict[str, Any] | None) -> TransformerModule:
    experiment, run = parts.experiment, parts.experiment.run
    fingerprint = parts.prepared.tokenizer.fingerprint
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
            **describe(model, objective=experiment.objective.kind, tokenizer=fingerprint),
            "wandb": wandb,
        },
        bytes_per_token=parts.bytes_per_token,
        compile=run.compile,
    )


def _callbacks(
    parts: Parts, module: TransformerModule, directory: RunDirectory, loggers: list[Logger]
) -> list[Callback]:
    experiment, run = parts.experiment, parts.experiment.run
    bar = [StatusBar(module.status)] if experiment.trainer.get("enable_progress_bar", True) else []
    table = SampleTable(parts.objective, parts.prepared.tokenizer, parts.validation, experiment.tracking.samples)
    upload = (lambda path, names: log_checkpoint(loggers, path, names)) if experiment.tracking.checkpoints else None
    checkpoints = RunCheckpoints(
        directory.checkpoints,
        run,
        batch_tokens=run.batch_tokens,
        total_steps=parts.total_steps,
        validate_steps=parts.validate_steps,
        on_saved=upload,
    )
    return [*bar, table, checkpoints]


def _finish(
    parts: Parts,
    module: TransformerModule,
    data: TextDataModule,
    directory: RunDirectory,
    wandb: str | None,
    peak: Peak | None,
) -> Outcome:
    """Save `model/`, compare with counting, write a sample and keep the report."""
    model = module.model.to("cpu").eval()
    tokenizer, objective = parts.prepared.tokenizer, parts.objective
    save_model(model, tokenizer, directory.model, objective=objective.kind)
    result = outcome(
        title=f"{directory.path.parent.name} {directory.path.name}: complete",
        model=f"{parts.experiment.model.family}, {_size(model) / 1e6:.1f}M parameters, {objective.kind}",
        validation=module.validation,
        counted=baselines(data, parts.prepared, bytes_per_token=parts.bytes_per_token),
        text=text_accuracy(model, data, tokenizer.vocabulary) if parts.experiment.model.family != "decoder" else None,
        steps=module.trainer.global_step,
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


def _size(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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


def _opening(parts: Parts, model: Transformer, directory: RunDirectory, how: str, checkpoint: Path | None) -> str:
    """Two lines before the bar: what trains on what, and where it starts."""
    begin = f"continuing from {checkpoint}" if checkpoint else "from the first step"
    rows = sum(map(len, parts.train))
    return (
        f"{directory.path}: {parts.experiment.model.family} of {_size(model) / 1e6:.1f}M parameters, {how}\n"
        f"{parts.total_steps:,} steps of {parts.step_tokens:,} tokens over {rows:,} rows of {parts.length}; {begin}"
    )


def _following(parts: Parts, directory: RunDirectory, wandb: str | None) -> list[tuple[str, str]]:
    """The next commands a person would want."""
    config, stage, run = directory.experiment, directory.path.parent.name, directory.path
    longer = 2 * parts.total_steps * parts.experiment.run.batch_tokens
    tokenizer = f"data.tokenizer.kind=pretrained data.tokenizer.path={run}/model"
    own_text = f"init.from={run} {tokenizer} 'data.train=[{{path: my.txt, document: paragraph}}]'"
    return [
        ("continue it, for as long again", f'make {stage} CONFIG={config} ARGS="run.tokens={longer}"'),
        ("fine-tune it on text of yours", f'make finetune CONFIG={config} NAME=mine ARGS="{own_text}"'),
        *([("open its W&B run", wandb)] if wandb else []),
    ]

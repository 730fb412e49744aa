"""How a run ends: weights saved, figures gathered, a report for the terminal and one for the run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from lightning.pytorch.loggers import Logger

from triune.adapters.placement import merged_copy
from triune.assembly import Parts
from triune.data.module import TextDataModule
from triune.data.rows import Rows
from triune.exchange.adapter_files import save_adapter
from triune.exchange.architecture import TokenIds
from triune.exchange.model_directory import save_model
from triune.models.factory import Transformer
from triune.tracking.loggers import address_of, log_model, maker_of
from triune.tracking.peaks import Peak
from triune.training.evaluation import evaluate
from triune.training.module import TransformerModule
from triune.training.outcome import Outcome, baselines, final_figures, outcome, text_accuracy
from triune.training.run_directory import RunDirectory
from triune.training.samples import write_samples
from triune.training.task_callbacks import metric_name
from triune.training.task_outcome import PREDICTIONS, SAMPLES, Before, load_best, scores, write_predictions
from triune.training.task_samples import beside, task_samples
from triune.training.weights import is_foreign


def finish_text(
    parts: Parts,
    module: TransformerModule,
    data: TextDataModule,
    directory: RunDirectory,
    loggers: list[Logger],
    peak: Peak | None,
    *,
    ended_early: bool,
) -> Outcome:
    """Save `model/`, compare with counting, write a sample and keep the report."""
    assert parts.prepared is not None
    model = _saved(parts, module, directory, loggers)
    tokenizer, objective = parts.tokenizer, parts.objective
    wandb = address_of(loggers)
    result = outcome(
        title=f"{directory.path.parent.name} {directory.path.name}: complete",
        model=f"{parts.experiment.model.family}, {size(model) / 1e6:.1f}M parameters, {objective.kind}",
        validation=module.validation,
        counted=baselines(data, parts.prepared, bytes_per_token=parts.bytes_per_token),
        text=text_accuracy(model, data, tokenizer.vocabulary) if parts.experiment.model.family != "decoder" else None,
        steps=module.trainer.global_step,
        throughput=module.throughput,
        mfu_against=peak.label if peak else None,
        samples=write_samples(model, objective, tokenizer, cast("Sequence[Rows]", parts.validation), count=1),
        directory=directory.path,
        wandb=wandb,
        following=_following(parts, directory, wandb),
    )
    result = dataclasses.replace(result, ended_early=ended_early)
    directory.write_report(result.as_dict())
    return result


def finish_task(
    parts: Parts,
    module: TransformerModule,
    before: Before,
    directory: RunDirectory,
    loggers: list[Logger],
    peak: Peak | None,
    *,
    ended_early: bool,
) -> Outcome:
    """Take the best checkpoint's weights, save them, measure them on the validation records and keep report and predictions."""
    assert parts.supervision is not None
    supervision, task = parts.supervision, parts.supervision.task
    best = load_best(module.model, directory.checkpoints)
    model = _saved(parts, module, directory, loggers)
    found = evaluate(model, task, supervision.data.validation, supervision.encoded)
    write_predictions(found, directory.path / PREDICTIONS)
    measured = {metric_name(name): value for name, value in found.values.items()}
    for logger in loggers:
        logger.log_metrics(measured, step=module.trainer.global_step)
    wandb = address_of(loggers)
    records = supervision.data.validation
    shown = scores(found, before, task.baseline(supervision.train, records))
    report = final_figures(
        title=f"{directory.path.parent.name} {directory.path.name}: {'ended early' if ended_early else 'complete'}",
        model=f"{parts.experiment.model.family}, {size(model) / 1e6:.1f}M parameters, {task.kind}; weights of step {best or module.trainer.global_step:,}, the best",
        scores=shown,
        steps=module.trainer.global_step,
        throughput=module.throughput,
        mfu_against=peak.label if peak else None,
        samples=beside(before.samples, task_samples(model, task, records, found.predictions, count=SAMPLES)),
        directory=directory.path,
        wandb=wandb,
        following=_following_task(parts, directory, wandb),
    )
    result = Outcome(
        steps=module.trainer.global_step,
        validation={**module.validation, **measured},
        baselines={score.name: dict(score.baselines) for score in shown},
        report=report,
        ended_early=ended_early,
    )
    directory.write_report(result.as_dict())
    return result


def _saved(parts: Parts, module: TransformerModule, directory: RunDirectory, loggers: list[Logger]) -> Transformer:
    """Write `model/`, and `adapter/` where there is one; the model as it was saved, adapters merged into its weights."""
    model = module.model.to("cpu").eval()
    if parts.experiment.adapter is not None:
        source = parts.experiment.init.from_ or ""
        base = source if is_foreign(source) else ""  # where PEFT finds it; a model of ours has to be exported first
        ids = TokenIds.of(parts.tokenizer)
        save_adapter(model, directory.path / "adapter", parts.experiment.adapter, base=base, ids=ids)
        model = merged_copy(model).eval()
    task = parts.supervision.described if parts.supervision else None
    save_model(
        model, parts.tokenizer, directory.model, objective=parts.objective.kind, wandb=maker_of(loggers), task=task
    )
    log_model(loggers, directory.model)
    return model


def _following(parts: Parts, directory: RunDirectory, wandb: str | None) -> list[tuple[str, str]]:
    """The next commands a person would want."""
    config, stage, run = directory.experiment, directory.path.parent.name, directory.path
    longer = 2 * parts.total_steps * parts.experiment.run.batch_tokens
    tokenizer = f"data.tokenizer.kind=pretrained data.tokenizer.path={run}/model"
    own_text = f"init.from={run} {tokenizer} 'data.train=[{{path: my.txt, document: paragraph}}]'"
    return [
        ("continue it, for as long again", f'make {stage} CONFIG={config} ARGS="run.tokens={longer}"'),
        ("fine-tune it on text of yours", f'make finetune CONFIG={config} NAME=mine ARGS="{own_text}"'),
        (
            "or on a task",
            f'make finetune FROM={run} CONFIG=configs/finetune/classification.yaml ARGS="data.train=my.csv"',
        ),
        *([("open its W&B run", wandb)] if wandb else []),
    ]


def _following_task(parts: Parts, directory: RunDirectory, wandb: str | None) -> list[tuple[str, str]]:
    """The next commands after a fine-tuning."""
    run = directory.path
    writes = parts.supervision is not None and parts.supervision.task.head() is None
    return [
        ("measure it on other data", f"make evaluate RUN={run} DATA=test.csv"),
        *([("write with it", f'make generate RUN={run} PROMPT="…"')] if writes else []),
        ("hand it to transformers", f".venv/bin/triune export {run} exported"),
        *([("open its W&B run", wandb)] if wandb else []),
    ]


def size(model: Transformer) -> int:
    """Parameters of a model, each tied tensor once."""
    return sum(parameter.numel() for parameter in model.parameters())

"""`triune evaluate`: a fine-tuned model on labelled data, with predictions, intervals and a W&B run beside the one that trained it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triune.data.config import DataConfig, SourceConfig
from triune.data.records import read_records
from triune.data.sources import describe
from triune.errors import UserError
from triune.exchange.model_directory import Saved
from triune.models.factory import Transformer
from triune.objectives.task import Task
from triune.objectives.task_config import TASK_FAMILIES, TaskConfig
from triune.objectives.tasks import build_task
from triune.tracking import report as reports
from triune.tracking.config import TrackingConfig
from triune.tracking.identity import FILE as IDENTITY
from triune.tracking.lineage import EVALUATED, beside, origin_of
from triune.tracking.loggers import build_loggers, finish, log_predictions
from triune.training.evaluation import Evaluation
from triune.training.evaluation import evaluate as measure
from triune.training.run_directory import write_atomically
from triune.training.task_callbacks import metric_name
from triune.training.task_outcome import PREDICTIONS, Before, scores, write_predictions
from triune.training.weights import load_model, tokenizer_of
from triune.tree import construct, override

_STAGE = "evaluate"
#: what weights of a pretraining objective can be measured as
_PRETRAINED: Mapping[str, dict[str, Any]] = {"translation": {"objective": {"kind": "sequence_to_sequence"}}}
REPORT = "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Holder:
    """What the command line's `a.b=c` may set here: sources and task as in an experiment."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: dict[str, Any] = dataclasses.field(default_factory=dict)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


def evaluate(
    run_directory: str,
    *,
    data: str | None = None,
    output: str | None = None,
    settings: tuple[str, ...] = (),
    resamples: int = 1000,
) -> int:
    """Measure a fine-tuned model; the exit code.

    Args:
        run_directory: a run, a checkpoint, a model directory, or a classifier of Hugging Face's.
        data: file of labelled records; None takes `settings`' data.train.
        output: directory to write to; None is `evaluations/<name of the data>` beside the model.
        settings: assignments `a.b=c` of data (`data.train.0.columns.text=sentence`), objective and tracking.
        resamples: of the bootstrap.

    Raises UserError for a model without a task, or data that do not fit it.
    """
    if not run_directory:
        raise UserError("no run is named; give one, such as RUN=runs/finetune/classification")
    holder = _settings(data, settings)
    model, saved = load_model(run_directory)
    task = _task(model, saved, holder.objective)
    records = [
        record for source in holder.data.train for record in read_records(source, type(task).fields_of(task.config))
    ]
    if not records:
        raise UserError("--data: no records to measure on")
    found = measure(model, task, records)
    place = Path(output) if output else _place(saved, holder.data.train[0])
    place.mkdir(parents=True, exist_ok=True)
    write_predictions(found, place / PREDICTIONS)
    shown = scores(found, Before(), {}, resamples=resamples)
    sources = [describe(source) for source in holder.data.train]
    facts = {
        "model": str(saved.path),
        "data": sources,
        "records": len(records),
        "scores": [dataclasses.asdict(score) for score in shown],
    }
    write_atomically(place / REPORT, json.dumps(facts, indent=2) + "\n")
    _follow(holder.tracking, saved, place, found, facts)
    reports.scores_report(
        f"{_STAGE} {run_directory}: {task.kind}, {len(records):,} records of {', '.join(sources)}",
        shown,
        [("predictions", str(place / PREDICTIONS)), ("figures", str(place / REPORT))],
    )
    return 0


def _settings(data: str | None, settings: tuple[str, ...]) -> _Holder:
    tree = override({}, [*([f"data.train={json.dumps([{'path': data}])}"] if data else []), *settings])
    holder = construct(_Holder, tree)
    if not holder.data.train:
        raise UserError("--data: no file is given; name one, such as --data test.csv")
    return holder


def _task(model: Transformer, saved: Saved, changed: Mapping[str, Any]) -> Task:
    """The task that the model was trained on, with what the command line changes of it."""
    known = saved.task or _PRETRAINED.get(str(saved.objective))
    if known is None and "kind" in changed:
        known = {"objective": {}}
    if known is None:
        raise UserError(
            f"{saved.path}: its weights were not fine-tuned on a task (objective {saved.objective or 'unknown'}); "
            f"give a run of `triune finetune`, or say what to measure it as: objective.kind={', '.join(TASK_FAMILIES)}"
        )
    tree = {**known["objective"], **changed}
    config = construct(_Objective, {"objective": tree}).objective
    tokenizer = tokenizer_of(saved)
    return build_task(
        config,
        tokenizer,
        int(model.config.context),
        family=model.config.family,
        labels=known.get("labels"),
        token_types=model.config.token_types > 1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Objective:
    objective: TaskConfig


def _place(saved: Saved, source: SourceConfig) -> Path:
    """`evaluations/<data>` of the run that the weights lie in, else of their own directory."""
    around = saved.path if saved.path.is_dir() else saved.path.parent
    run = (
        around.parent
        if around.name == "model"
        else around.parents[1]
        if around.parent.name == "checkpoints"
        else around
    )
    return run / "evaluations" / Path(describe(source)).name.replace(" ", "-")


def _follow(tracking: TrackingConfig, saved: Saved, place: Path, found: Evaluation, facts: Mapping[str, Any]) -> None:
    """A W&B run of its own, in the group of the run that trained the model, which it names as its input."""
    (place / IDENTITY).unlink(missing_ok=True)  # measuring again is a run of its own
    origin = origin_of(EVALUATED, saved.path, saved.wandb)
    loggers = build_loggers(
        beside(tracking, origin),
        run_directory=place,
        name=f"{origin.name or saved.path.name}-{place.name}",
        job_type=_STAGE,
        tags=[saved.model.family, str(saved.objective)],
        resolved_config={},
        facts=facts,
        origins=[origin],
    )
    failed = True
    try:
        for logger in loggers:
            logger.log_metrics({metric_name(name): value for name, value in found.values.items()}, step=0)
        log_predictions(loggers, place / PREDICTIONS)
        failed = False
    finally:
        finish(loggers, failed=failed)

"""How fine-tuning ended: the task's metrics before and after, with intervals, and what the model answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from triune.models.factory import Transformer
from triune.objectives.measures import Measure
from triune.objectives.record import Record
from triune.objectives.task import Encoded, Task
from triune.tracking.report import Sample, Score
from triune.training.checkpoints import FILE
from triune.training.evaluation import Evaluation, evaluate
from triune.training.run_directory import write_atomically
from triune.training.task_callbacks import measured_often, metric_name
from triune.training.task_samples import task_samples

PREDICTIONS = "predictions.jsonl"
SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the weights that fine-tuning starts from made of the validation records.

    Args:
        values: metric -> value.
        higher_is_better: metric -> direction, of those that each validation measures.
        samples: what the model answered.
    """

    values: dict[str, float] = field(default_factory=dict)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, model: Transformer, task: Task, records: Sequence[Record], encoded: Sequence[Encoded]) -> Before:
        """Measure `model`; a task that writes is not measured, since weights that never learned it write without end."""
        if task.output == "text":
            return cls()
        measures = evaluate(model, task, records, encoded).measures
        return cls(
            values={measure.name: measure.value for measure in measures},
            higher_is_better={m.name: m.higher_is_better for m in measures if measured_often(task)},
            samples=task_samples(model, task, records, None, count=SAMPLES),
        )

    @classmethod
    def read(cls, path: Path) -> Before | None:
        """What `write` kept; None where there is nothing."""
        if not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**kept, "samples": [Sample(**sample) for sample in kept["samples"]]})

    def write(self, path: Path) -> None:
        """Keep it beside the run: a continued run reports the same."""
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    def best(self, chosen: str | None) -> tuple[str, bool]:
        """(validation metric by which the best checkpoint is chosen, whether it should rise).

        Args:
            chosen: `run.best`, else the task's own; None is the first metric, or the loss where none was measured.

        Raises KeyError with the metrics that there are where `chosen` is none.
        """
        known = {metric_name(name): higher for name, higher in self.higher_is_better.items()}
        known["validation/loss"] = False
        name = next(iter(known)) if chosen is None else metric_name(chosen.removeprefix("validation/"))
        if name not in known:
            raise KeyError(", ".join(metric.removeprefix("validation/") for metric in known))
        return name, known[name]


def load_best(model: Transformer, checkpoints: Path) -> int | None:
    """Give the model the weights of the best checkpoint; its step, or None where there is none."""
    best = checkpoints / "best"
    if not (best / FILE).exists():
        return None
    state = torch.load(best / FILE, map_location="cpu", weights_only=True)["state_dict"]
    own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    model.load_state_dict(own)
    return int(best.resolve().name.removeprefix("step-"))


def scores(
    evaluation: Evaluation, before: Before, baseline: Mapping[str, float], *, resamples: int = 1000
) -> list[Score]:
    """The lines of the report: each metric with its interval, beside the start and what needs no learning."""
    intervals = evaluation.intervals(resamples=resamples)
    return [_score(measure, intervals[measure.name], before, baseline) for measure in evaluation.measures]


def _score(measure: Measure, interval: tuple[float, float], before: Before, baseline: Mapping[str, float]) -> Score:
    beside = {"before": before.values[measure.name]} if measure.name in before.values else {}
    if measure.name in baseline:
        beside["baseline"] = baseline[measure.name]
    return Score(
        name=measure.name,
        value=measure.value,
        baselines=beside,
        higher_is_better=measure.higher_is_better,
        interval=interval,
    )


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """One JSON object a record: where it was, its fields, what the model answered."""
    lines = [
        json.dumps(
            {"where": record.where, "record": dict(record.fields), "prediction": prediction},
            default=vars,
            ensure_ascii=False,
        )
        for record, prediction in zip(evaluation.records, evaluation.predictions, strict=True)
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines))

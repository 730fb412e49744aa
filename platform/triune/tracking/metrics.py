"""Every metric that a run logs: one name, one unit, one meaning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

STEP = "trainer/global_step"
TOKENS = "progress/tokens"
SAMPLES = "samples"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that is logged against the optimizer step.

    Args:
        name: `group/what`.
        unit: what one is one of.
        meaning: one line.
        summary: which value stands for the run in W&B's table of runs.
    """

    name: str
    unit: str
    meaning: str
    summary: Literal["last", "min", "max", "mean"] = "last"


def _metric(name: str, unit: str, meaning: str, summary: Literal["last", "min", "max", "mean"] = "last") -> Metric:
    return Metric(name=name, unit=unit, meaning=meaning, summary=summary)


METRICS: tuple[Metric, ...] = (
    _metric("train/loss", "nats/token", "cross-entropy of the predicted tokens since the last log line", "min"),
    _metric("train/perplexity", "1", "exp of train/loss", "min"),
    _metric("train/accuracy", "share", "share of the predicted tokens that the model ranks first", "max"),
    _metric("train/learning_rate", "1", "learning rate of the first parameter group at this step"),
    _metric("train/grad_norm", "1", "L2 norm of the whole gradient before clipping", "max"),
    _metric("train/tokens_per_second", "tokens/s", "tokens trained on per second of training, all devices", "mean"),
    _metric(
        "train/mfu", "share", "model FLOPs utilisation: FLOPs that the model needs, over the devices' peak", "mean"
    ),
    _metric("validation/loss", "nats/token", "cross-entropy of the predicted tokens of the validation budget", "min"),
    _metric("validation/perplexity", "1", "exp of validation/loss", "min"),
    _metric("validation/bits_per_byte", "bits/byte", "validation/loss over the bytes of the text it predicts", "min"),
    _metric(
        "validation/accuracy", "share", "share of the predicted validation tokens that the model ranks first", "max"
    ),
    _metric("progress/tokens", "tokens", "tokens trained on since the first step, all devices, padding included"),
    _metric("progress/epoch", "epochs", "passes over the training rows since the first step"),
    _metric("progress/seconds", "s", "time spent training, without validation and checkpoints, over all continuations"),
    _metric("memory/peak", "bytes", "most memory that tensors of one device have held", "max"),
)

NAMES: tuple[str, ...] = tuple(metric.name for metric in METRICS)


def define(run: Any) -> None:
    """Tell a W&B run the x-axis of every metric (the optimizer step) and which value sums it up.

    `progress/tokens` is logged with every row, so that any panel can be switched to tokens as its x-axis.
    """
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    for metric in METRICS:
        run.define_metric(metric.name, step_metric=STEP, summary=metric.summary)


def table() -> str:
    """The metrics as a Markdown table, for the documentation."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in METRICS]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(table(), end="")

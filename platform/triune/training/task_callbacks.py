"""What happens at each validation of a supervised task: its own metrics, and whether more training helps."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from triune.objectives.record import Record
from triune.objectives.task import Encoded, Task
from triune.training.evaluation import evaluate


def metric_name(measure: str) -> str:
    """`validation/macro_f1` of "macro F1"."""
    return "validation/" + measure.lower().replace(" ", "_").replace("@", "_at_")


def measured_often(task: Task) -> bool:
    """Whether a task's metrics are worth a pass at each validation: writing takes long, and a likelihood is the loss itself."""
    return task.output not in ("text", "likelihoods")


class TaskMetrics(Callback):
    """Measures the task on its validation records after each validation, and logs what it finds beside the loss.

    Rank 0 measures and tells the others, so that all of them choose the same best checkpoint.

    Args:
        task: what is learned.
        records: validation records.
        encoded: the same, encoded for evaluation.
    """

    def __init__(self, task: Task, records: list[Record], encoded: list[Encoded]) -> None:
        self.task = task
        self.records = records
        self.encoded = encoded
        self.found: dict[str, float] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, outside the clock of training: now, because an average of the weights stands in the model until the epoch's end."""
        self.found = {}
        if trainer.sanity_checking or not measured_often(self.task):
            return
        pl_module.throughput.pause()  # type: ignore[union-attr, operator]
        if trainer.is_global_zero:
            model: Any = pl_module.model
            values = evaluate(model, self.task, self.records, self.encoded).values
            self.found = {metric_name(name): value for name, value in values.items()}
        self.found = trainer.strategy.broadcast(self.found, src=0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log beside the loss what was measured."""
        if self.found:
            pl_module.validation.update(self.found)  # type: ignore[union-attr, operator]
            pl_module.log_now(self.found, trainer.global_step)  # type: ignore[operator]


class Patience(Callback):
    """Ends the run once so many validations in a row were no better than the best (early stopping).

    Args:
        metric: what is watched, by its name in `validation`.
        higher_is_better: whether it should rise.
        patience: validations without a new best that end the run.
    """

    def __init__(self, metric: str, *, higher_is_better: bool, patience: int) -> None:
        self.metric = metric
        self.sign = 1.0 if higher_is_better else -1.0
        self.patience = patience
        self.best = -math.inf
        self.waited = 0

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return "triune.Patience"

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    @property
    def exhausted(self) -> bool:
        """Whether the run has ended, or should, for want of progress."""
        return self.waited >= self.patience

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        found: Any = pl_module.validation
        value: float = self.sign * found[self.metric]
        better = value > self.best
        self.best = max(self.best, value)
        self.waited = 0 if better else self.waited + 1
        if self.exhausted:
            trainer.should_stop = True

"""The progress bar: step, loss, tokens per second, time left.

It shows numbers that are on the host already. Lightning's own bars take their loss from `self.log(prog_bar=True)`, which reads the
device at every step; here the training loop writes what it reads at its log lines into a `TrainingStatus`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from triune.tracking.formatting import clock as clock_text
from triune.tracking.formatting import figure

_REDRAW = 0.25  # seconds between two redraws: more often nobody sees, and each costs milliseconds
_LOOK_BACK = 60.0  # seconds that "time left" is judged by


@dataclass(kw_only=True)
class TrainingStatus:
    """What the training loop knows on the host; it updates this at its log lines. Numbers, never tensors.

    Args:
        total_steps: optimizer steps of the whole run.
        loss: last logged training loss, nats per token.
        tokens_per_second: last logged speed, all devices.
        learning_rate: last logged learning rate.
        validation_loss: last validation loss, nats per token.
    """

    total_steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    learning_rate: float | None = None
    validation_loss: float | None = None

    def numbers(self) -> str:
        """`loss 4.213  val 4.402  2,512 tokens/s`, as far as known."""
        parts = []
        if self.loss is not None:
            parts.append(f"loss {figure(self.loss)}")
        if self.validation_loss is not None:
            parts.append(f"val {figure(self.validation_loss)}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        return "  ".join(parts)


class StatusBar(ProgressBar):
    """A bar on a terminal, a line now and then elsewhere; rank 0 only.

    Args:
        status: the numbers to show.
        console: where to; None is a rich console on stdout.
        line_every: seconds between two lines where there is no terminal.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        status: TrainingStatus,
        *,
        console: Console | None = None,
        line_every: float = 10.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self.status = status
        self._console = console or Console(highlight=False)
        self._every = _REDRAW if self._console.is_terminal else line_every
        self._clock = clock
        self._enabled = True
        self._bar: Progress | None = None
        self._next = 0.0
        self._pace: deque[tuple[float, int]] = deque()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self._console.print(*args, markup=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now, step = self._clock(), trainer.global_step
        self._pace = deque([(now, step)])
        self._next = now
        if self._enabled and self._console.is_terminal:
            self._bar = _bar(self._console)
            self._bar.add_task("train", total=self.status.total_steps, completed=step, numbers="", left="")
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        now = self._clock()
        if now >= self._next:
            self._show(now, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="validate")
            self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # without this an interrupted run leaves the terminal without a cursor
        self._close(trainer.global_step)

    def seconds_left(self, now: float, step: int) -> float | None:
        """Time to the end of the run at the pace of the last minute, validations included; None before the second step."""
        if step > self._pace[-1][1]:
            self._pace.append((now, step))
        while len(self._pace) > 2 and now - self._pace[1][0] >= _LOOK_BACK:
            self._pace.popleft()
        start, first = self._pace[0]
        if step == first or now <= start:
            return None
        return (self.status.total_steps - step) * (now - start) / (step - first)

    def _show(self, now: float, step: int) -> None:
        if not self._enabled:
            return
        self._next = now + self._every
        left = self.seconds_left(now, step)
        text = "" if left is None else f"{clock_text(left)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=self.status.numbers(), left=text)
            self._bar.refresh()
        elif not self._console.is_terminal:
            parts = [f"step {step:,}/{self.status.total_steps:,}", self.status.numbers(), text]
            self._console.print("  ".join(part for part in parts if part), markup=False, soft_wrap=True)

    def _close(self, step: int) -> None:
        if self._pace:
            self._show(self._clock(), step)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._pace.clear()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description} {task.completed:,.0f}/{task.total:,.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
        TextColumn("{task.fields[left]}", style="dim"),
        console=console,
        expand=True,
        auto_refresh=False,  # a thread that redraws would take the interpreter from the training loop
    )

"""The bar on a terminal and the lines elsewhere."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from triune.tracking.progress import StatusBar, TrainingStatus


def drive(bar: StatusBar, clock: list[float], steps: int, seconds: float, first: int = 0) -> None:
    trainer: Any = SimpleNamespace(global_step=first)
    module: Any = None
    bar.on_train_start(trainer, module)
    for step in range(first + 1, steps + 1):
        clock[0] += seconds
        trainer.global_step = step
        bar.on_train_batch_end(trainer, module)
    bar.on_train_end(trainer, module)


def test_without_a_terminal_it_is_a_line_now_and_then() -> None:
    clock, out = [0.0], io.StringIO()
    status = TrainingStatus(total_steps=1200, loss=4.2134, tokens_per_second=2512.3, validation_loss=4.5)
    drive(StatusBar(status, console=Console(file=out, width=80), clock=lambda: clock[0]), clock, 1200, 0.05)
    lines = out.getvalue().splitlines()
    # one at the start, one each 10 s of the 60, one at the end
    assert 6 <= len(lines) <= 8
    assert lines[1].startswith("step 201/1,200  loss 4.213  val 4.500  2,512 tokens/s  0:50 left")
    assert lines[-1].startswith("step 1,200/1,200")
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_it_is_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    clock, out = [0.0], io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    status = TrainingStatus(total_steps=1200, loss=4.2134, tokens_per_second=1_002_512.3, validation_loss=4.5)
    drive(StatusBar(status, console=console, clock=lambda: clock[0]), clock, 1200, 5.0, first=1000)
    drawn = out.getvalue()
    last = drawn.replace("\r", "\n").splitlines()
    text = [line for line in last if "1,200/1,200" in line][-1]
    assert "loss 4.213  val 4.500  1,002,512 tokens/s" in text
    assert "0:00 left" in text
    # the line never grows over the width: rich would wrap it and leave its remains
    assert all(len(line.encode("ascii", "ignore").decode().split("\x1b")[0]) <= 80 for line in last)


def test_time_left_follows_the_last_minute() -> None:
    clock = [0.0]
    bar = StatusBar(TrainingStatus(total_steps=1000), console=Console(file=io.StringIO()), clock=lambda: clock[0])
    trainer: Any = SimpleNamespace(global_step=500)
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert bar.seconds_left(0.0, 500) is None
    for step in range(501, 601):
        left = bar.seconds_left((step - 500) * 10.0, step)
    assert left == pytest.approx(400 * 10.0)
    for number in range(1, 101):  # ten times as fast: after a minute the past is forgotten
        left = bar.seconds_left(1000.0 + number, 600 + number)
    assert left == pytest.approx(300 * 1.0)


def test_other_ranks_and_disabled_bars_are_silent() -> None:
    clock, out = [0.0], io.StringIO()
    bar = StatusBar(TrainingStatus(total_steps=5), console=Console(file=out), clock=lambda: clock[0])
    bar.setup(SimpleNamespace(is_global_zero=False), None, "fit")  # type: ignore[arg-type]
    drive(bar, clock, 5, 100.0)
    assert out.getvalue() == ""


class Module(LightningModule):
    def __init__(self, status: TrainingStatus) -> None:
        super().__init__()
        self.status = status
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        if self.global_step == 2:
            self.status.loss = 1.25
        if self.global_step == 5:
            raise KeyboardInterrupt
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_in_a_trainer_it_shows_the_status_and_gives_the_terminal_back() -> None:
    """The Trainer takes it in place of its own bar; Ctrl-C leaves the cursor visible."""
    out = io.StringIO()
    status = TrainingStatus(total_steps=8)
    bar = StatusBar(status, console=Console(file=out, width=80, force_terminal=True))
    trainer = Trainer(
        accelerator="cpu", max_steps=8, logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[bar]
    )  # fmt: skip
    data = torch.utils.data.DataLoader([torch.ones(2)] * 8)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(Module(status), data, data)
    drawn = out.getvalue()
    assert "loss 1.250" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")  # cursor shown after hidden

"""Checkpoints of a run directory: `checkpoints/step-00001000/`, atomic `last` and `best`, kept counts, resume.

A checkpoint is written under a temporary name and renamed when it is whole, so that one with a final name always
loads; `last` and `best` are symbolic links replaced by a rename.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from triune.errors import UserError
from triune.training.config import RunConfig

FILE = "checkpoint.ckpt"
_STEP = re.compile(r"step-(\d{8,})")


def step_directory(directory: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return directory / f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints of `<run>/checkpoints`, oldest first."""
    found = [p for p in directory.glob("step-*") if _STEP.fullmatch(p.name) and (p / FILE).exists()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None. The step directories are what counts; `last` is for people."""
    found = list_checkpoints(directory)
    return found[-1] if found else None


class RunCheckpoints(Checkpoint):
    """Writes, links and prunes the checkpoints of one run.

    Every rank takes part in the save; rank 0 renames, links and prunes. At a step that also validates, the checkpoint
    is written after the validation, so that a resume neither repeats nor loses it.

    Args:
        directory: `<run>/checkpoints`.
        config: `checkpoint_every` and `keep`.
        batch_tokens: tokens of one optimizer step.
        total_steps: optimizer steps of the run; the last one is always saved.
        validate_steps: optimizer steps between two validations.
        metric: validation metric by which the best checkpoint is chosen.
        higher_is_better: whether it should rise.
        on_saved: called on rank 0 with the path and the links that point at it (artifact upload).
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        *,
        batch_tokens: int,
        total_steps: int,
        validate_steps: int,
        metric: str = "validation/loss",
        higher_is_better: bool = False,
        on_saved: Callable[[Path, list[str]], None] | None = None,
    ) -> None:
        self.directory = directory
        self.keep = config.keep
        self.total_steps = total_steps
        self.validate_steps = validate_steps
        self.metric = metric
        self.sign = -1.0 if higher_is_better else 1.0
        self.on_saved = on_saved
        self.seconds = config.checkpoint_every.amount if config.checkpoint_every.unit == "seconds" else None
        self.every = (
            None
            if self.seconds is not None
            else max(1, config.checkpoint_every.steps(batch_tokens=batch_tokens, total_steps=total_steps))
        )
        self.best = math.inf
        self.best_step = -1
        self._saved_step = -1
        self._saved_at = time.monotonic()

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return "triune.RunCheckpoints"

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and clear what a killed run left half written."""
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for leftover in self.directory.glob("*.tmp"):
                leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if one is due and no validation follows at this step."""
        step = trainer.global_step
        if step % self.validate_steps != 0 and self._due(trainer, step):
            self.save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a new best and save if one is due, or if this is the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        found: Any = pl_module.validation
        value: float = self.sign * found[self.metric]
        best = value < self.best
        if best:
            self.best, self.best_step = value, trainer.global_step
        if best or self._due(trainer, trainer.global_step):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state the run ended in, however it ended short of an error."""
        if trainer.global_step > self._saved_step:
            self.save(trainer, pl_module)

    def _due(self, trainer: Trainer, step: int) -> bool:
        if step == self._saved_step:
            return False
        if step == self.total_steps:
            return True
        if self.every is not None:
            return step % self.every == 0
        assert self.seconds is not None
        late = time.monotonic() - self._saved_at >= self.seconds
        if trainer.world_size > 1:  # the clocks of ranks differ: rank 0 decides, for every 10th step
            late = trainer.strategy.broadcast(late, src=0) if step % 10 == 0 else False
        return late

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `step-N` whole, move `last` (and `best`) to it, prune; UserError where the disk is full."""
        step = trainer.global_step
        final = step_directory(self.directory, step)
        draft = final.with_name(final.name + ".tmp")
        meter = pl_module.throughput  # type: ignore[union-attr]
        training = meter.running  # type: ignore[union-attr]
        meter.pause()  # type: ignore[union-attr, operator]
        try:
            trainer.save_checkpoint(draft / FILE)
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                shutil.rmtree(draft, ignore_errors=True)
            raise self._explain(error, final) from error
        if trainer.is_global_zero:
            self._publish(draft, final, best=self.best_step == step)
        trainer.strategy.barrier()
        self._saved_step = step
        self._saved_at = time.monotonic()
        if training:
            meter.resume()  # type: ignore[union-attr, operator]

    def _publish(self, draft: Path, final: Path, *, best: bool) -> None:
        _sync(draft / FILE)
        if final.exists():  # left by a run that went on from an earlier checkpoint
            shutil.rmtree(final)
        draft.rename(final)
        links = ["last", "best"] if best else ["last"]
        for name in links:
            _point(self.directory / name, final.name)
        _sync(self.directory)
        self._prune()
        if self.on_saved is not None:
            self.on_saved(final, links)

    def _prune(self) -> None:
        checkpoints = list_checkpoints(self.directory)
        kept = {p.name for p in checkpoints[-max(1, self.keep) :]}
        kept.add(f"step-{self.best_step:08d}")
        for path in checkpoints:
            if path.name not in kept:
                shutil.rmtree(path)

    def _explain(self, error: Exception, final: Path) -> Exception:
        """A full disk is the user's to mend; anything else keeps its traceback."""
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "write" in str(error).lower():  # torch's zip writer hides the errno
            full = shutil.disk_usage(self.directory).free < 2**26
        if not full:
            return error
        good = latest_checkpoint(self.directory)
        return UserError(
            f"no room on disk to write {final}; "
            + (f"the last good checkpoint is whole: {good}. " if good else "there is no earlier checkpoint. ")
            + "Free some space and run the same command again to continue from it"
        )


def _point(link: Path, target: str) -> None:
    draft = link.with_name(link.name + ".tmp")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk before its name is relied on."""
    if path.is_dir() and path.name == FILE:  # a sharded checkpoint is a directory
        for part in path.rglob("*"):
            if part.is_file():
                _sync(part)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

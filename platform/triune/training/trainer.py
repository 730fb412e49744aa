"""Lightning's Trainer from an experiment: its own arguments untouched, our defaults under them."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import Logger

from triune.errors import UserError
from triune.training.config import RunConfig
from triune.training.precision import default_precision

#: Trainer arguments that another option of ours owns, with that option
_OWNED = {
    "accumulate_grad_batches": "run.batch_tokens (accumulation follows from it)",
    "gradient_clip_val": "run.gradient_clip",
    "gradient_clip_algorithm": "run.gradient_clip",
    "val_check_interval": "run.validate_every",
    "check_val_every_n_epoch": "run.validate_every",
    "log_every_n_steps": "tracking.log_every",
    "default_root_dir": "run.directory",
    "logger": "tracking",
    "callbacks": "tracking and run",
    "max_epochs": "run.tokens",
    "use_distributed_sampler": "nothing: the loader shards rows itself",
}


def check_trainer(arguments: dict[str, Any]) -> None:
    """Refuse what Lightning's Trainer does not know or another option owns, and devices that are not there.

    Raises:
        UserError: with the option to use instead, or the nearest spelling.
    """
    known = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    for name, value in arguments.items():
        if name in _OWNED:
            raise UserError(f"trainer.{name}: {value!r} is set by triune; use {_OWNED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean 'trainer.{near[0]}'?" if near else ""
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such argument{hint}")
    _check_devices(arguments)


def accelerator_of(arguments: dict[str, Any]) -> str:
    """ "gpu" or "cpu" (or another of Lightning's, as given)."""
    chosen = arguments.get("accelerator", "auto")
    if chosen in ("auto", "cuda"):
        return "gpu" if torch.cuda.is_available() else "cpu"
    return str(chosen)


def _check_devices(arguments: dict[str, Any]) -> None:
    accelerator = accelerator_of(arguments)
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: gpu, but torch sees no GPU here; use accelerator=cpu or leave it out")
    there = torch.cuda.device_count() if accelerator == "gpu" else (os.cpu_count() or 1)
    devices = arguments.get("devices", 1)
    if devices == "auto" or isinstance(devices, list):
        wanted = max(devices, default=-1) + 1 if isinstance(devices, list) else 1
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.lstrip("-").isdigit()):
        wanted = int(devices)
        if wanted == 0 or wanted < -1:
            raise UserError(f"trainer.devices: {devices} must be at least 1, or auto (-1)")
    else:
        raise UserError(f"trainer.devices: {devices!r} must be a number, a list of numbers or auto")
    if wanted > there:
        kind = "GPU(s)" if accelerator == "gpu" else "CPU core(s), one process each"
        raise UserError(
            f"trainer.devices: {wanted} is more than there are: {there} {kind}; use devices={there} or less"
        )


def world_size(arguments: dict[str, Any]) -> int:
    """Processes of the run over all nodes, as Lightning will count them."""
    devices = arguments.get("devices", 1)
    if isinstance(devices, list):
        local = len(devices)
    elif devices in ("auto", -1, "-1"):
        local = max(1, torch.cuda.device_count()) if accelerator_of(arguments) == "gpu" else 1
    else:
        local = int(devices)
    return local * int(arguments.get("num_nodes", 1))


def build_trainer(
    arguments: dict[str, Any],
    run: RunConfig,
    *,
    directory: Path,
    total_steps: int,
    validate_steps: int,
    loggers: list[Logger],
    callbacks: list[Callback],
) -> tuple[Trainer, str]:
    """The Trainer of a run, and one line on how it computes."""
    accelerator = accelerator_of(arguments)
    precision, why = default_precision(accelerator)
    if "precision" in arguments:
        precision, why = arguments["precision"], f"{arguments['precision']} precision, as asked"
    if run.average:
        callbacks = [EMAWeightAveraging(decay=run.average, use_buffers=False), *callbacks]
    settings: dict[str, Any] = {
        "devices": 1,
        "accelerator": accelerator,
        "precision": precision,
        "max_steps": total_steps,
        "max_epochs": -1,
        "val_check_interval": validate_steps,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_checkpointing": True,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "default_root_dir": str(directory),
        "logger": loggers,
        "callbacks": callbacks,
    }
    _quiet()
    settings.update(arguments)
    settings["max_steps"] = total_steps
    trainer = Trainer(**settings)
    return trainer, f"{trainer.num_devices * trainer.num_nodes} {accelerator.upper()} device(s), {why}"


def _quiet() -> None:
    """Silence Lightning's advice that does not hold here; what is said of the run, we say."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",  # rows are memory-mapped: a worker would cost more than it saves
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",  # our loader resumes to the row
        ".*`IterableDataset` has `__len__` defined.*",
        ".*Trying to infer the `batch_size`.*",
        ".*LeafSpec.*is deprecated.*",  # Lightning 2.6 over torch 2.13
    ):
        warnings.filterwarnings("ignore", message=text)

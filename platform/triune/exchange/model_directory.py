"""Our own model directory (`<run>/model/`): weights, config and tokenizer, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.files import CONFIG, WEIGHTS, WeightFiles, draft_of, read_json
from triune.models.config import ModelConfig
from triune.models.factory import Transformer
from triune.tree import construct, to_tree

MODEL_TYPE = "triune"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Weights read from disk, with what they belong to."""

    path: Path
    model: ModelConfig
    objective: str
    tokenizer: str  # fingerprint; empty for a model that reads no text
    tensors: dict[str, Tensor]
    wandb: dict[str, Any] | None = None  # the W&B run that made them, for lineage
    task: dict[str, Any] | None = None  # {"objective": settings, "labels": names or None} of a supervised task


def describe(
    model: Transformer, *, objective: str, tokenizer: str, task: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What `config.json` and each checkpoint say about the weights beside them; of a supervised task also its settings and labels."""
    facts = {
        "model_type": MODEL_TYPE,
        "model": to_tree(model.config),
        "objective": objective,
        "tokenizer": tokenizer,
    }
    return facts if task is None else facts | {"task": task}


def own_tensors(model: Transformer) -> dict[str, Tensor]:
    """Parameters by name, each tied tensor once, under its first name."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def save_model(
    model: Transformer,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    objective: str,
    wandb: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
) -> None:
    """Write `directory` with weights, config (with the W&B run that made them, if any, and the task with its labels, if it is one) and
    tokenizer; it has its name only when whole."""
    with draft_of(directory) as draft:
        fill_directory(model, tokenizer, draft, objective=objective, wandb=wandb, task=task)


def fill_directory(
    model: Transformer,
    tokenizer: Tokenizer | None,
    directory: Path,
    *,
    objective: str,
    wandb: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
) -> None:
    """Write weights, config and, for a model that reads text, tokenizer into a directory that is there."""
    save_file(own_tensors(model), directory / WEIGHTS, metadata={"format": "pt"})
    fingerprint = "" if tokenizer is None else tokenizer.fingerprint
    facts = describe(model, objective=objective, tokenizer=fingerprint, task=task)
    if wandb is not None:
        facts["wandb"] = wandb
    if tokenizer is not None:
        tokenizer.save(directory)
    (directory / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_model(directory: Path) -> Saved:
    """What `save_model` wrote; UserError where it is damaged."""
    return saved_from(directory, read_json(directory / CONFIG), WeightFiles(directory).read())


def saved_from(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    """Weights with the facts that `describe` wrote beside them."""
    missing = [key for key in ("model", "objective", "tokenizer") if key not in facts]
    if missing:
        raise UserError(f"{path}: its {CONFIG} lacks {', '.join(missing)}; write the model again")
    return Saved(
        path=path,
        model=construct(ModelConfig, facts["model"], "model"),
        objective=facts["objective"],
        tokenizer=facts["tokenizer"],
        tensors=tensors,
        wandb=facts.get("wandb"),
        task=facts.get("task"),
    )

"""Final weights: `model/` (safetensors + config + tokenizer), written whole or not at all, and starting from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.models.config import ModelConfig
from triune.models.factory import Transformer, build
from triune.training.checkpoints import FILE, latest_checkpoint
from triune.training.conversion import Conversion, plan_conversion
from triune.tree import construct, to_tree

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Weights read from disk, with what they belong to."""

    path: Path
    model: ModelConfig
    objective: str
    tokenizer: str  # fingerprint
    tensors: dict[str, Tensor]


def describe(model: Transformer, *, objective: str, tokenizer: str) -> dict[str, Any]:
    """What `config.json` and each checkpoint say about the weights beside them."""
    return {
        "model_type": "triune",
        "model": to_tree(model.config),
        "objective": objective,
        "tokenizer": tokenizer,
    }


def own_tensors(model: Transformer) -> dict[str, Tensor]:
    """Parameters by name, each tied tensor once, under its first name."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def save_model(model: Transformer, tokenizer: Tokenizer, directory: Path, *, objective: str) -> None:
    """Write `directory` with weights, config and tokenizer; it has its name only when it is whole."""
    draft = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(own_tensors(model), draft / WEIGHTS, metadata={"format": "pt"})
    facts = describe(model, objective=objective, tokenizer=tokenizer.fingerprint)
    tokenizer.save(draft)
    (draft / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    draft.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def read_weights(path: str | Path, *, option: str = "init.from") -> Saved:
    """Weights from a run directory, its `model/`, a `step-…` checkpoint directory or a checkpoint file of ours.

    Raises:
        UserError: nothing of that kind there.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"{option}: {place} does not exist; give a run directory, a checkpoint or a model/ directory")
    for directory in (place, place / "model"):
        if (directory / WEIGHTS).exists() and (directory / CONFIG).exists():
            facts = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
            if facts.get("model_type") == "triune":
                return _saved(directory, facts, load_file(directory / WEIGHTS))
    checkpoint = _checkpoint_file(place)
    if checkpoint is None:
        raise UserError(
            f"{option}: {place} holds no weights of ours; give a run directory (with model/ or checkpoints/), "
            f"a step-… checkpoint or a directory with {WEIGHTS} and {CONFIG}"
        )
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    tensors = {
        name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items() if name.startswith("model.")
    }
    return _saved(checkpoint, state["triune"], tensors)


def _checkpoint_file(place: Path) -> Path | None:
    newest = latest_checkpoint(place / "checkpoints")
    candidates = [place] if place.is_file() else [place / FILE, *([newest / FILE] if newest else [])]
    return next((p for p in candidates if p.is_file() and p.suffix == ".ckpt"), None)


def _saved(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    return Saved(
        path=path,
        model=construct(ModelConfig, facts["model"], "model"),
        objective=facts["objective"],
        tokenizer=facts["tokenizer"],
        tensors=tensors,
    )


def load_model(path: str | Path) -> tuple[Transformer, Saved]:
    """A model in eval mode with the weights at `path`."""
    saved = read_weights(path, option="model")
    model = build(saved.model)
    start_from(model, saved, tokenizer=saved.tokenizer)
    return model.eval(), saved


def start_from(model: Transformer, saved: Saved, *, tokenizer: str) -> Conversion:
    """Fill `model` with trained weights, carried to its own context and patterns; what happened to each.

    Args:
        model: a built model.
        saved: what `read_weights` found.
        tokenizer: fingerprint of the tokenizer the model will read text through.

    Raises:
        UserError: another tokenizer, another family, settings that give the tensors another meaning, or tensors that do not fit.
    """
    if saved.tokenizer != tokenizer:
        raise UserError(
            f"init.from: {saved.path} was trained with another tokenizer (fingerprint {saved.tokenizer[:12]}, the data's is "
            f"{tokenizer[:12]}); set data.tokenizer: {{kind: pretrained, path: {tokenizer_place(saved.path)}}}"
        )
    conversion = plan_conversion(saved.model, model.config, place=saved.path)
    conversion.apply(model, saved.tensors)
    return conversion


def tokenizer_place(path: Path) -> Path:
    """Where the tokenizer of weights at `path` lies: in `model/` itself, or for a checkpoint in `<run>/tokenizer`."""
    return path if path.is_dir() else path.parent.parent.parent / "tokenizer"


def tokenizer_of(saved: Saved) -> Tokenizer:
    """The tokenizer beside the weights; UserError where it is gone."""
    place = tokenizer_place(saved.path)
    if not place.is_dir():
        raise UserError(f"{saved.path}: its tokenizer is not at {place}; give the run directory as a whole")
    return Tokenizer.load(place)

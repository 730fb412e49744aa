"""Trained weights, wherever they lie (a run, a checkpoint, a model directory of ours or of Hugging Face's), and starting from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triune.adapters.config import LoraAdapter
from triune.adapters.placement import merged_tensors
from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.exchange.files import CONFIG, WEIGHTS, read_json
from triune.exchange.importing import as_saved
from triune.exchange.model_directory import MODEL_TYPE, Saved, read_model, saved_from
from triune.gguf_file import is_gguf
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.models.factory import Transformer, build
from triune.tracking.identity import Origin
from triune.tracking.lineage import origin_of
from triune.training.checkpoints import FILE, latest_checkpoint
from triune.training.config import InitConfig
from triune.training.conversion import Conversion
from triune.training.conversion_plan import plan_conversion
from triune.training.conversion_settings import Setting
from triune.training.token_rows import TokenRows, join_tokens, same_tokens
from triune.training.towers import Source, source_of
from triune.tree import construct
from triune.units import Count


def read_weights(path: str | Path, *, option: str = "init.from") -> Saved:
    """Weights from a run directory, its `model/`, a `step-…` checkpoint directory or a checkpoint file of ours, or from a directory
    of Hugging Face's or a GGUF file, which are imported in memory.

    Raises:
        UserError: nothing of that kind there, or weights that are damaged or of no architecture that triune knows.
    """
    place = Path(path)
    if not place.exists():
        config = Path("configs") / "pretrain" / f"{place.name}.yaml"
        made = (
            f"; `make pretrain CONFIG={config}` makes it" if place.parent.name == "pretrain" and config.exists() else ""
        )
        raise UserError(
            f"{option}: {place} does not exist; give a run directory, a checkpoint or a model/ directory{made}"
        )
    if is_gguf(place):
        return as_saved(place)
    for directory in (place, place / "model"):
        if (directory / CONFIG).is_file():
            ours = read_json(directory / CONFIG).get("model_type") == MODEL_TYPE
            return read_model(directory) if ours else as_saved(directory)
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
    adapter = state["triune"].get("adapter")
    if adapter is not None:
        tensors = merged_tensors(tensors, construct(LoraAdapter, adapter, "adapter"))
    return saved_from(checkpoint, state["triune"], tensors)


def is_foreign(path: str | Path) -> bool:
    """Whether there is a model directory of Hugging Face's."""
    config = Path(path) / CONFIG
    return config.is_file() and read_json(config).get("model_type") != MODEL_TYPE


def _checkpoint_file(place: Path) -> Path | None:
    newest = latest_checkpoint(place / "checkpoints")
    candidates = [place] if place.is_file() else [place / FILE, *([newest / FILE] if newest else [])]
    return next((p for p in candidates if p.is_file() and p.suffix == ".ckpt"), None)


def load_model(path: str | Path) -> tuple[Transformer, Saved]:
    """A model in eval mode with the weights at `path`."""
    saved = read_weights(path, option="model")
    model = build(saved.model)
    Start(init=InitConfig(from_=str(path)), saved={"init.from": saved}).fill(model, None)
    return model.eval(), saved


@dataclass(frozen=True, kw_only=True)
class Start:
    """Everything that `init` names, read.

    Args:
        init: which part of a model starts from what.
        saved: option -> weights.
    """

    init: InitConfig
    saved: Mapping[str, Saved]

    @property
    def vocabulary(self) -> Count | None:
        """Rows of the token table that a model would take; None for weights that read no tokens."""
        return self.saved[source_of(self.saved, self.init)[0]].model.vocabulary

    @property
    def task(self) -> Mapping[str, Any] | None:
        """The supervised task that the whole model was trained on, with its classes; None where it was none."""
        saved = self.saved.get("init.from")
        return None if saved is None else saved.task

    def without_classes(self) -> Start:
        """The same start without the scores of its classes: those of another task, or of other classes, are drawn anew."""
        saved = dict(self.saved)
        whole = saved.get("init.from")
        if whole is not None and isinstance(whole.model.head, ClassHeadConfig):
            model = dataclasses.replace(whole.model, head=dataclasses.replace(whole.model.head, labels=0))
            tensors = {n: tensor for n, tensor in whole.tensors.items() if n not in ("head.weight", "head.bias")}
            saved["init.from"] = dataclasses.replace(whole, model=model, tensors=tensors)
        return dataclasses.replace(self, saved=saved)

    @property
    def origins(self) -> list[Origin]:
        """Where the weights come from, for W&B's lineage."""
        return [origin_of(option, saved.path, saved.wandb) for option, saved in self.saved.items()]

    def check(self, model: ModelConfig) -> None:
        """Raise UserError where a model can't start from these weights, whatever its vocabulary will be."""
        self.plan(dataclasses.replace(model, vocabulary=self.vocabulary), None)

    def plan(self, model: ModelConfig, tokenizer: Tokenizer | None) -> Conversion:
        """What will become of each tensor.

        Args:
            model: settings of the model; `vocabulary` is set.
            tokenizer: what the model will read text through; None takes it to be the one that the weights were trained with.

        Raises:
            UserError: another tokenizer under `init.vocabulary` kept, families, layers or settings that do not fit together, or
                tensors that do not fit.
        """
        sources = [Source(option=option, place=saved.path, model=saved.model) for option, saved in self.saved.items()]
        plan = plan_conversion(sources, model, self.init, self._tokens(model, tokenizer))
        if tokenizer is None and self.init.vocabulary == "joined":
            unknown = Setting(
                "init.vocabulary", "joined", "which rows are copied shows once the data's tokenizer is there"
            )
            plan = dataclasses.replace(plan, settings=[*plan.settings, unknown])
        return plan

    def fill(self, model: Transformer, tokenizer: Tokenizer | None) -> Conversion:
        """Fill a built model with the weights; what happened to each. Arguments and errors as `plan`."""
        conversion = self.plan(model.config, tokenizer)
        conversion.apply(model, {option: saved.tensors for option, saved in self.saved.items()})
        return conversion

    def _tokens(self, model: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, TokenRows]:
        """Option -> rows of its vocabulary, of those whose rows the model takes and takes otherwise than as they are."""
        table, head = source_of(self.saved, self.init)
        scored = not model.tie_embeddings or (isinstance(model.head, HeadConfig) and model.head.bias)
        found = {}
        for option in dict.fromkeys([table, *([head] if head and scored else [])]):
            saved = self.saved[option]
            if saved.model.vocabulary is not None and model.vocabulary is not None:
                found[option] = _token_rows(option, saved, model.vocabulary, tokenizer, self.init)
        return {option: rows for option, rows in found.items() if rows is not None}


def read_start(init: InitConfig) -> Start | None:
    """What `init` names, read; None where it names nothing. UserError as `read_weights`."""
    saved = {option: read_weights(path, option=option) for option, path in init.sources.items()}
    return Start(init=init, saved=saved) if saved else None


def _token_rows(
    option: str, saved: Saved, entries: int, tokenizer: Tokenizer | None, init: InitConfig
) -> TokenRows | None:
    """Rows of the source's vocabulary for a model of so many entries; None takes them as they are."""
    before = int(saved.model.vocabulary or 0)
    if tokenizer is None or saved.tokenizer == tokenizer.fingerprint:
        known = before if tokenizer is None else tokenizer.size
        return None if before == entries else same_tokens(before=before, after=entries, known=known)
    if init.vocabulary == "kept":
        raise UserError(
            f"{option}: {saved.path} was trained with another tokenizer (fingerprint {saved.tokenizer[:12]}, the data's is "
            f"{tokenizer.fingerprint[:12]}); set data.tokenizer: {{kind: pretrained, path: {tokenizer_place(saved.path)}}}, or "
            "init.vocabulary=joined to carry the rows of tokens that both have"
        )
    return join_tokens(tokenizer_of(saved), tokenizer, before=before, after=entries)


def tokenizer_place(path: Path) -> Path:
    """Where the tokenizer of weights at `path` lies: in `model/` or the GGUF file itself, or for a checkpoint in `<run>/tokenizer`."""
    return path if path.is_dir() or is_gguf(path) else path.parent.parent.parent / "tokenizer"


def tokenizer_of(saved: Saved) -> Tokenizer:
    """The tokenizer beside the weights; UserError where it is gone."""
    place = tokenizer_place(saved.path)
    if not place.exists():
        raise UserError(f"{saved.path}: its tokenizer is not at {place}; give the run directory as a whole")
    return Tokenizer.load(place)

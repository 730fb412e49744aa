"""Adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, under the names of the exported architecture.

Our projections are fused where theirs are apart. An adapter of a fused one has one A, which each of theirs gets, and a B (and
for DoRA lengths of rows) that is cut as the weight is: W_q + s B_q A, W_k + s B_k A, ... is W + s B A row by row. Read back,
modules that hold one A become one adapter again; where they hold several (PEFT trained them apart), A is all of them stacked and B
has blocks: the same function at a rank that is the sum. What is which comes from the mapping of the architecture.

Legend: I width in, O width out, R rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from triune.adapters.config import AdapterConfig, LoraAdapter
from triune.adapters.low_rank import AdaptedLinear
from triune.adapters.placement import adapted, freeze_for_adapters, put
from triune.errors import UserError
from triune.exchange.architecture import Architecture, TokenIds
from triune.exchange.files import draft_of, read_json, read_safetensors
from triune.exchange.mapping import Entry, Part, TensorMapping, Transposed, Viewed, to_ours, to_theirs
from triune.exchange.obstacles import choose
from triune.models.factory import Transformer
from triune.models.layers.linear import Linear

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's wrappers
_A, _B, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_TASKS = {
    "AutoModel": "FEATURE_EXTRACTION",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}
#: architectures whose modules are not called as in their files (`transformers/conversion_mapping.py`)
_RENAMED = ("vit",)
#: options of PEFT's LoRA that make it another function, and the value under which they do not
_PLAIN = {
    "bias": "none",
    "lora_bias": False,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
}


def save_adapter(
    model: Transformer,
    directory: str | Path,
    config: AdapterConfig,
    *,
    base: str = "",
    architecture: str | None = None,
    ids: TokenIds | None = None,
) -> None:
    """Write the adapters of `model`, and what trained whole beside them, for `peft.PeftModel.from_pretrained(base, directory)`.

    A model that has no twin on Hugging Face is written under our own names, for `load_adapter` (and for PEFT over a model of ours).

    Args:
        model: with adapters attached; stays as it is.
        directory: written whole or not at all; what was there is replaced.
        config: what the adapters were attached with.
        base: name or directory of the exported base model, for `base_model_name_or_path`.
        architecture: `model_type` of the base; None is the one that `to_huggingface` takes.
        ids: special tokens, which count for RoBERTa's kin.

    Raises UserError for a model without adapters, an architecture that it is not, or an adapter of a layer that PEFT keeps as a convolution.
    """
    layers = adapted(model)
    if not layers:
        raise UserError(f"{directory}: the model has no adapter to save; attach one first, or export the model itself")
    names = _names_for(model, architecture, ids)
    tensors: dict[str, Tensor] = {}
    settings: dict[str, tuple[int, float]] = {}
    for name, layer in layers.items():
        for piece in names.pieces(name):
            settings[piece.module] = (layer.rank, layer.scale)
            tensors |= {f"{piece.module}.{kind}": value for kind, value in piece.cut(layer).items()}
    whole = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    saved = names.rename(to_theirs(names.only(whole), whole)) if whole else {}
    values = names.settings(config, settings, base=base)
    values["modules_to_save"] = sorted({name.rpartition(".")[0] for name in saved}) or None
    with draft_of(Path(directory)) as draft:
        written = {_PREFIX + name: tensor.cpu().clone() for name, tensor in (tensors | saved).items()}
        save_file({name: tensor.contiguous() for name, tensor in written.items()}, draft / WEIGHTS, {"format": "pt"})
        (draft / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def load_adapter(
    model: Transformer, directory: str | Path, *, architecture: str | None = None, ids: TokenIds | None = None
) -> AdapterConfig:
    """Put the adapters of a directory, ours or PEFT's, onto a plain model; what they were attached with.

    The base is frozen, adapters and what was saved whole train, as after `attach`.

    Args:
        model: the base; stays as it was where an error is raised.
        directory: what `save_adapter` or PEFT's `save_pretrained` wrote.
        architecture: `model_type` whose names are in it; None is the one that `to_huggingface` takes.
        ids: special tokens, which count for RoBERTa's kin.

    Raises UserError for another kind of adapter, options of LoRA's that ours does not have, and tensors that do not fit the model.
    """
    place = Path(directory)
    if adapted(model):
        raise UserError(f"{place}: the model has an adapter already; merge or detach it before another one")
    values = read_json(place / CONFIG)
    config = _read_config(values, place / CONFIG)
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in read_safetensors(place / WEIGHTS).items()}
    names = _OWN if _ours(model, tensors) else _names_for(model, architecture, ids)
    plain = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    reader = _Reader(tensors=tensors, values=values, config=config, place=place)
    layers = {name: reader.layer(layer, names.pieces(name)) for name, layer in plain.items() if names.holds(name)}
    whole = reader.whole(names, model)
    reader.check_all_read()
    freeze_for_adapters(model)
    chosen = {name: layer for name, layer in layers.items() if layer is not None}
    for name, layer in chosen.items():
        put(model, name, layer)
    for parameter, value in whole:
        parameter.copy_(value)
        parameter.requires_grad_(True)
    return replace(config, targets=list(chosen))


# ---- names --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """A module of theirs, and the rows of a layer of ours that it is."""

    module: str
    part: Part
    start: int

    def cut(self, layer: AdaptedLinear) -> dict[str, Tensor]:
        """Its tensors, by the ends of their names."""
        found = {_A: layer.lora_a.detach(), _B: self.to_theirs(layer.lora_b.detach())}
        if layer.lora_magnitude is not None:
            found[_MAGNITUDE] = self.to_theirs(layer.lora_magnitude.detach())
        return found

    def rows(self, ours: Tensor) -> Tensor:
        """Its rows of a tensor of ours."""
        return ours[self.start :] if self.part.rows is None else ours.narrow(0, self.start, self.part.rows)

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Rows of ours [O, ...] in their order. A transposed matrix is one in PEFT too (`fan_in_fan_out`), its factors are not."""
        rows = self.rows(ours)
        return rows if isinstance(self.part.reshape, Transposed) else self.part.reshape.to_theirs(rows)

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Rows of theirs in our order."""
        return theirs if isinstance(self.part.reshape, Transposed) else self.part.reshape.to_ours(theirs)


@dataclass(frozen=True)
class _Names:
    """Names of modules as an architecture has them.

    Args:
        entries: by our names; None is our own names.
        dropped: what is left out at their beginning (the bare class's).
        task: PEFT's word for what the model does.
        parent: where its class comes from.
        concrete: its class.
    """

    entries: Mapping[str, Entry] | None = None
    dropped: str = ""
    task: str | None = None
    parent: str = "triune"
    concrete: str = ""

    def entry(self, ours: str) -> Entry:
        """The entry of a tensor of ours."""
        return Entry(ours, (Part((ours,)),)) if self.entries is None else self.entries[ours]

    def holds(self, layer: str) -> bool:
        """Whether the architecture has this layer."""
        return self.entries is None or f"{layer}.weight" in self.entries

    def pieces(self, layer: str) -> list[_Piece]:
        """The modules of theirs that are a linear layer of ours."""
        found, start = [], 0
        for part in self.entry(f"{layer}.weight").theirs:
            if isinstance(part.reshape, Viewed):
                raise UserError(
                    f"adapter of {layer}: {part.names[0]} is a convolution there, which triune has no adapter files for; leave "
                    "it out of adapter.targets, or merge the adapters and export the model"
                )
            module = part.names[0].removeprefix(self.dropped).removesuffix(".weight")
            found.append(_Piece(module, part, start))
            start += part.rows or 0
        return found

    def only(self, ours: Iterable[str]) -> TensorMapping:
        """The mapping of these tensors alone."""
        return TensorMapping(entries=tuple(self.entry(name) for name in ours))

    def rename(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the names of the class that is opened."""
        return {name.removeprefix(self.dropped): tensor for name, tensor in theirs.items()}

    def settings(self, config: AdapterConfig, modules: Mapping[str, tuple[int, float]], *, base: str) -> dict[str, Any]:
        """`adapter_config.json` but for `modules_to_save`."""
        usual = (config.rank, config.scale)
        others = {name: setting for name, setting in modules.items() if setting != usual}
        strength = {
            name: scale * (rank**0.5 if config.rank_stabilised else rank) for name, (rank, scale) in others.items()
        }
        transposed = self.entries is not None and any(
            isinstance(part.reshape, Transposed) for entry in self.entries.values() for part in entry.theirs
        )
        return {
            "peft_type": "LORA",
            "task_type": self.task,
            "base_model_name_or_path": base,
            "auto_mapping": {"base_model_class": self.concrete, "parent_library": self.parent},
            "r": config.rank,
            "lora_alpha": config.alpha,
            "use_rslora": config.rank_stabilised,
            "use_dora": config.kind == "dora",
            "lora_dropout": config.dropout,
            "rank_pattern": {re.escape(name): rank for name, (rank, _) in others.items()},
            "alpha_pattern": {re.escape(name): alpha for name, alpha in strength.items()},
            "target_modules": list(self._targets(modules)),
            "fan_in_fan_out": transposed,
            "bias": "none",
            "inference_mode": True,
        }

    def _targets(self, modules: Mapping[str, Any]) -> Iterator[str]:
        """What follows the layer's number, where all modules of theirs that end so are meant; else whole names."""
        if self.entries is None:
            yield from modules
            return
        names = [part.names[0].removeprefix(self.dropped) for entry in self.entries.values() for part in entry.theirs]
        others = {name.removesuffix(".weight") for name in names if name.endswith(".weight")} - set(modules)
        ends = {name: re.split(r"\.\d+\.", name)[-1] for name in modules}
        taken = {end for end in ends.values() if any(other.endswith(f".{end}") for other in others)}
        yield from dict.fromkeys(name if end in taken else end for name, end in ends.items())


_OWN = _Names()


def _names_for(model: Transformer, wanted: str | None, ids: TokenIds | None) -> _Names:
    """Names of the wanted architecture, of the one that the model exports to, or our own where there is none."""
    own = replace(_OWN, concrete=type(model).__name__)
    if wanted in _RENAMED:
        raise UserError(
            f"adapter: transformers 5 calls the modules of {wanted} otherwise than its files do, so that an adapter would fit some "
            "versions only; leave the architecture out to write it under our own names, or merge the adapters and export the model"
        )
    try:
        target: Architecture = choose(model.config, wanted, ids)
    except UserError:
        if wanted is not None:
            raise
        return own
    if target.model_type in _RENAMED:
        return own
    classes = target.classes(model.config)
    return _Names(
        entries={entry.ours: entry for entry in target.mapping(model.config).entries},
        dropped=target.prefix if classes.bare else "",
        task=_TASKS.get(classes.auto),
        parent=f"transformers.models.{target.model_type.replace('-', '_')}",
        concrete=classes.concrete,
    )


def _ours(model: Transformer, tensors: Mapping[str, Tensor]) -> bool:
    own = {name for name, _ in model.named_modules()}
    return any(name.removesuffix(f".{_A}") in own for name in tensors if name.endswith(_A))


# ---- reading ------------------------------------------------------------------------------------------------------


def _read_config(values: Mapping[str, Any], file: Path) -> LoraAdapter:
    """What ours needs of `adapter_config.json`, without targets; UserError for an adapter that ours is not."""
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {values.get('peft_type')!r}, but triune reads LORA")
    for option, plain in _PLAIN.items():
        if (values.get(option) or plain) != plain:
            raise UserError(f"{file}: {option} is {values[option]!r}, but triune's LoRA has {plain!r} alone")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(f"{file}: r is {rank!r} and lora_alpha {alpha!r}, but both must be numbers")
    return LoraAdapter(
        kind="dora" if values.get("use_dora") else "lora",
        rank=rank,
        alpha=float(alpha),
        rank_stabilised=bool(values.get("use_rslora")),
        dropout=float(values.get("lora_dropout") or 0.0),
    )


@dataclass(frozen=True)
class _Reader:
    """Takes tensors out of a file, and knows which are left."""

    tensors: dict[str, Tensor]
    values: Mapping[str, Any]
    config: LoraAdapter
    place: Path

    def layer(self, layer: Linear, pieces: list[_Piece]) -> AdaptedLinear | None:
        """The layer with the adapters of its pieces, or None where none of them has one."""
        held = [piece for piece in pieces if f"{piece.module}.{_A}" in self.tensors]
        if not held:
            return None
        factors: list[Tensor] = []  # the different A there are
        columns: list[tuple[_Piece, int, Tensor]] = []  # a piece, the place of its A, its B
        scale = self._scale(held[0])
        for piece in held:
            a = self._take(f"{piece.module}.{_A}", (None, layer.in_features))
            b = piece.to_ours(self._take(f"{piece.module}.{_B}", (len(piece.rows(layer.weight)), len(a))))
            place = next((index for index, other in enumerate(factors) if torch.equal(a, other)), len(factors))
            factors += [a] * (place == len(factors))
            columns.append((piece, place, b if self._scale(piece) == scale else b * (self._scale(piece) / scale)))
        dora = self.config.kind == "dora"
        rank = sum(map(len, factors))
        found = AdaptedLinear(layer, rank=rank, scale=scale, dropout=self.config.dropout, dora=dora)
        found.lora_a.copy_(torch.cat(factors))
        starts = [sum(map(len, factors[:index])) for index in range(len(factors))]
        for piece, place, b in columns:
            piece.rows(found.lora_b)[:, starts[place] : starts[place] + b.shape[1]] = b
            if found.lora_magnitude is not None:
                lengths = self._take(f"{piece.module}.{_MAGNITUDE}", (len(b),))
                piece.rows(found.lora_magnitude).copy_(piece.to_ours(lengths))
        return found

    def whole(self, names: _Names, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters that the file holds whole, with their values."""
        found = []
        for name, parameter in model.named_parameters():
            if names.entries is not None and name not in names.entries:
                continue
            entry = names.entry(name)
            held = [part.names[0].removeprefix(names.dropped) for part in entry.theirs]
            if all(one in self.tensors for one in held):
                shapes = to_theirs(names.only([name]), {name: parameter.detach()})
                taken = {part.names[0]: one for part, one in zip(entry.theirs, held, strict=True)}
                values = {full: self._take(one, tuple(shapes[full].shape)) for full, one in taken.items()}
                found.append((parameter, to_ours(names.only([name]), values, place=self.place)[name]))
        return found

    def check_all_read(self) -> None:
        """Raise UserError that lists what no part of the model took."""
        if self.tensors:
            listed = ", ".join(sorted(self.tensors)[:4])
            raise UserError(
                f"{self.place / WEIGHTS}: {len(self.tensors)} tensors belong to no linear layer of this model ({listed}, ...); is it "
                "the adapter of another base?"
            )

    def _take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise UserError(f"{self.place / WEIGHTS}: {name}: is missing")
        if tensor.ndim != len(shape) or any(
            want not in (None, got) for got, want in zip(tensor.shape, shape, strict=True)
        ):
            wanted = ", ".join("rank" if size is None else str(size) for size in shape)
            raise UserError(
                f"{self.place / WEIGHTS}: {name}: {list(tensor.shape)}, expected [{wanted}]: it is the adapter of another base"
            )
        return tensor

    def _scale(self, piece: _Piece) -> float:
        """s of a module, with PEFT's patterns of ranks and strengths."""
        rank, alpha = (
            next(
                (v for k, v in (self.values.get(option) or {}).items() if re.match(rf"(.*\.)?({k})$", piece.module)),
                usual,
            )
            for option, usual in (("rank_pattern", self.config.rank), ("alpha_pattern", self.config.alpha))
        )
        return replace(self.config, rank=int(rank), alpha=float(alpha)).scale

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
from collections.abc import Mapping
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
from triune.exchange.adapter_names import MAGNITUDE, OWN, A, B, Names, Piece, names_for
from triune.exchange.architecture import TokenIds
from triune.exchange.files import draft_of, read_json, read_safetensors
from triune.exchange.mapping import to_ours, to_theirs
from triune.models.factory import Transformer
from triune.models.layers.linear import Linear

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's wrappers
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
#: ways to draw A and B that leave W as it is; the others (pissa, olora, loftq, ...) take from W what they put into B A
_DRAWS = (None, True, False, "gaussian", "orthogonal", "eva")


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
    names = names_for(model, architecture, ids)
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
    names = OWN if _ours(model, tensors) else names_for(model, architecture, ids)
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


# ---- reading ------------------------------------------------------------------------------------------------------


def _read_config(values: Mapping[str, Any], file: Path) -> LoraAdapter:
    """What ours needs of `adapter_config.json`, without targets; UserError for an adapter that ours is not."""
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {values.get('peft_type')!r}, but triune reads LORA")
    for option, plain in _PLAIN.items():
        if (values.get(option) or plain) != plain:
            raise UserError(f"{file}: {option} is {values[option]!r}, but triune's LoRA has {plain!r} alone")
    draw = values.get("init_lora_weights")
    if draw not in _DRAWS:
        raise UserError(
            f"{file}: init_lora_weights is {draw!r}, which changed the base as well: convert the adapter to a plain one with "
            "peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
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


def _ours(model: Transformer, tensors: Mapping[str, Tensor]) -> bool:
    own = {name for name, _ in model.named_modules()}
    return any(name.removesuffix(f".{A}") in own for name in tensors if name.endswith(A))


@dataclass(frozen=True)
class _Reader:
    """Takes tensors out of a file, and knows which are left."""

    tensors: dict[str, Tensor]
    values: Mapping[str, Any]
    config: LoraAdapter
    place: Path

    def layer(self, layer: Linear, pieces: list[Piece]) -> AdaptedLinear | None:
        """The layer with the adapters of its pieces, or None where none of them has one."""
        held = [piece for piece in pieces if f"{piece.module}.{A}" in self.tensors]
        if not held:
            return None
        factors: list[Tensor] = []  # the different A there are
        columns: list[tuple[Piece, int, Tensor]] = []  # a piece, the place of its A, its B
        scale = self._scale(held[0])
        for piece in held:
            a = self._take(f"{piece.module}.{A}", (None, layer.in_features))
            b = piece.to_ours(self._take(f"{piece.module}.{B}", (len(piece.rows(layer.weight)), len(a))))
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
                lengths = self._take(f"{piece.module}.{MAGNITUDE}", (len(b),))
                piece.rows(found.lora_magnitude).copy_(piece.to_ours(lengths))
        return found

    def whole(self, names: Names, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
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

    def _scale(self, piece: Piece) -> float:
        """s of a module, with PEFT's patterns of ranks and strengths."""
        rank, alpha = (
            next(
                (v for k, v in (self.values.get(option) or {}).items() if re.match(rf"(.*\.)?({k})$", piece.module)),
                usual,
            )
            for option, usual in (("rank_pattern", self.config.rank), ("alpha_pattern", self.config.alpha))
        )
        return replace(self.config, rank=int(rank), alpha=float(alpha)).scale

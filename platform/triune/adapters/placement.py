"""Adapters onto a model and off it again: which layers get one, merging, and tensors of an adapted model as those of a plain one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from triune.adapters.config import AdapterConfig
from triune.adapters.low_rank import AdaptedLinear, folded
from triune.errors import UserError, nearest
from triune.models.block import Block
from triune.models.factory import Transformer
from triune.models.heads import VocabularyHead
from triune.models.layers.linear import Linear

#: words of `adapter.targets` for linear layers of the blocks: the word, and the block's part
_PARTS = {"attention": "attention", "cross_attention": "cross_attention", "feed_forward": "feed_forward"}


def attach(model: Transformer, config: AdapterConfig) -> list[str]:
    """Freeze `model`, put an adapter on each targeted layer, and return the names of these layers.

    Names of the base's parameters stay as they were; a head that is not over the vocabulary goes on training, whole. The drawn
    matrices come from torch's default generator, in the order of the modules.

    Raises UserError for a target that matches no layer, a rank above a layer's widths, or a model that has adapters already.
    """
    if adapted(model):
        raise UserError("adapter: the model has one already; merge or detach it before another one")
    chosen = targets(model, config.targets)
    for name, layer in chosen.items():
        least = min(layer.weight.shape)
        if config.rank > least:
            raise UserError(
                f"adapter.rank: {config.rank} is above {least}, the smaller width of {name} {list(layer.weight.shape)}: no matrix "
                f"there has that rank; set it to {least} or less, or leave the layer out of adapter.targets"
            )
    freeze_for_adapters(model)
    dora = config.kind == "dora"
    for name, layer in chosen.items():
        put(model, name, AdaptedLinear(layer, rank=config.rank, scale=config.scale, dropout=config.dropout, dora=dora))
    return list(chosen)


def freeze_for_adapters(model: Transformer) -> None:
    """Freeze all parameters but those of a head that is not over the vocabulary, which a pretrained model never had."""
    model.requires_grad_(False)
    if not isinstance(model.head, VocabularyHead):
        model.head.requires_grad_(True)


def merge(model: Transformer) -> None:
    """Fold all adapters into plain weights, in place; every parameter trains again.

    The model gives what it gave, up to the rounding of one sum: W x + s B A x was two products, and is one.
    """
    _strip(model, merged=True)


def detach(model: Transformer) -> None:
    """Take all adapters off, in place: the model as it was before them (but for a head that was trained). Every parameter trains again."""
    _strip(model, merged=False)


def merged_copy(model: Transformer) -> Transformer:
    """A plain model with the adapters folded in; `model` stays as it is, and can be trained on."""
    plain = copy.deepcopy(model)
    merge(plain)
    return plain


def merged_tensors(tensors: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors of an adapted model by name (of a checkpoint), as those of the merged one.

    Args:
        tensors: weights with `lora_a`, `lora_b` and for dora `lora_magnitude` beside them; others are taken as they are.
        config: the adapter that they were trained with.
    """
    found = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b, magnitude = tensors[f"{layer}.lora_b"], tensors.get(f"{layer}.lora_magnitude")
            found[f"{layer}.weight"] = folded(tensors[f"{layer}.weight"], a, b, magnitude, config.scale_at(len(a)))
    return found


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Layers with an adapter, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, AdaptedLinear)}


def put(model: nn.Module, name: str, layer: Linear) -> None:
    """Set `layer` in place of the module of that dotted name."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, layer)


def _strip(model: Transformer, *, merged: bool) -> None:
    for name, layer in adapted(model).items():
        put(model, name, layer.plain(merged=merged))
    model.requires_grad_(True)


# ---- which layers -------------------------------------------------------------------------------------------------


def targets(model: Transformer, wanted: list[str]) -> dict[str, Linear]:
    """Linear layers that `adapter.targets` names, in the order of the model; UserError for a word that names none."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    groups = _groups(model, layers)
    chosen: set[str] = set()
    for word in wanted:
        found = groups.get(word) or [name for name in layers if fnmatchcase(name, word)]
        if not found:
            raise UserError(_unmatched(model, word, groups, list(layers)))
        chosen |= set(found)
    return {name: layer for name, layer in layers.items() if name in chosen}


def _groups(model: Transformer, layers: Mapping[str, Linear]) -> dict[str, list[str]]:
    """Word -> names of its layers, of words that name any."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, Block)]
    groups = {"all": [name for name in layers if any(name.startswith(f"{block}.") for block in blocks)]}
    for word, part in _PARTS.items():
        groups[word] = [name for name in layers if any(name.startswith(f"{block}.{part}.") for block in blocks)]
    groups["head"] = [name for name in layers if name.startswith("head.")]
    taken = {name for names in groups.values() for name in names}
    groups["input"] = [name for name in layers if name not in taken]
    return {word: names for word, names in groups.items() if names}


def _unmatched(model: Transformer, word: str, groups: Mapping[str, list[str]], layers: list[str]) -> str:
    """Why a target names no layer, and what there is."""
    known = ", ".join([*groups, *_shapes(layers)])
    if isinstance(model.get_submodule("head"), VocabularyHead) and word.startswith(("head", "embedding")):
        return (
            f"adapter.targets: {word!r} names a table over the vocabulary, which a loss in chunks and a tied embedding read as it is: "
            f"it takes no adapter; this model's linear layers are {known}"
        )
    hint = nearest(word, [*groups, *layers])
    return f"adapter.targets: {word!r} names no linear layer of this {model.config.family}{hint}; it has {known}"


def _shapes(layers: list[str]) -> Iterator[str]:
    """Names of layers with `*` for the numbers of blocks, each once."""
    yield from dict.fromkeys(".".join("*" if step.isdigit() else step for step in name.split(".")) for name in layers)

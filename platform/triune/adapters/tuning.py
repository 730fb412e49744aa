"""A model made ready for fine-tuning: what is frozen, what is added, and a line that says what trains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from triune.adapters.config import AdapterConfig, TuningConfig
from triune.adapters.placement import attach
from triune.errors import UserError
from triune.models.factory import Transformer
from triune.models.stack import Stack


def prepare(model: Transformer, tuning: TuningConfig, adapter: AdapterConfig | None = None) -> str:
    """Freeze what stays, attach the adapter, and say what trains: "trains 0.6M of 134.5M parameters (lora, rank 8)".

    Call it once the weights are filled and before the optimizer is built (and before a checkpoint is restored: its tensors are
    those of the prepared model).

    Raises UserError for settings that contradict one another or the model, or that leave nothing to train.
    """
    if adapter is not None:
        if tuning.freeze != "none":
            raise UserError(
                f"tuning.freeze: {tuning.freeze} with adapter.kind: {adapter.kind}, which freezes all weights but the head's already; "
                "leave one of the two out"
            )
        attach(model, adapter)
        how = f"{adapter.kind}, rank {adapter.rank}"
        return _line(model, f"{how}, rank-stabilised" if adapter.rank_stabilised else how)
    freeze(model, tuning)
    return _line(model, "" if tuning.freeze == "none" else f"frozen: {_frozen(tuning)}")


def freeze(model: Transformer, tuning: TuningConfig) -> None:
    """Freeze what `tuning` names; UserError where nothing is left, or where a stack has fewer blocks."""
    if tuning.freeze == "backbone":
        model.requires_grad_(False)
        shared = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("head.")}
        own = [parameter for parameter in model.head.parameters() if id(parameter) not in shared]
        if not own:
            raise UserError(
                "tuning.freeze: backbone leaves nothing to train: the head of this model is the token table alone; use an adapter, "
                "tuning.freeze: embeddings, or a model.head of its own"
            )
        _set(own, True)
    elif tuning.freeze == "embeddings":
        for module in model.children():
            if not isinstance(module, Stack) and module is not model.head:
                module.requires_grad_(False)
        for name, stack in stacks(model).items():
            _freeze_blocks(name, stack, tuning.freeze_layers)


def stacks(model: nn.Module) -> dict[str, Stack]:
    """The stacks of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Stack)}


def _freeze_blocks(name: str, stack: Stack, count: int) -> None:
    if count > len(stack.blocks):
        raise UserError(f"tuning.freeze_layers: {count} is more than the {len(stack.blocks)} blocks of the {name}")
    for block in stack.blocks[:count]:
        block.requires_grad_(False)
    if stack.relative is not None:  # T5's table of distances: an embedding that all blocks share
        stack.relative.requires_grad_(False)


def _set(parameters: Iterable[nn.Parameter], trains: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trains)


def _frozen(tuning: TuningConfig) -> str:
    blocks = f" and the first {tuning.freeze_layers} blocks of each stack" if tuning.freeze_layers else ""
    return f"{tuning.freeze}{blocks}"


def _line(model: Transformer, how: str) -> str:
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    counts = (
        f"trains {_millions(trained)} of {_millions(sum(parameter.numel() for parameter in parameters))} parameters"
    )
    return f"{counts} ({how})" if how else counts


def _millions(count: int) -> str:
    """A count in millions, with two digits where it is small: 134.5M, 0.6M, 0.0012M."""
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count / 1e6:.2g}M"

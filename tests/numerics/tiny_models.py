"""Tiny models with large random weights, so that every connection shows in the output, and how tests decode with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.models.factory import build

V = 40
POSITIONS: dict[str, dict[str, Any]] = {
    "sinusoidal": {"kind": "sinusoidal"},
    "learned": {"kind": "learned"},
    "rotary": {"kind": "rotary"},
    "yarn": {"kind": "rotary", "scaling": "yarn", "factor": 2.0, "base": [10000.0, 500.0]},
    "alibi": {"kind": "alibi"},
    "t5": {"kind": "t5", "buckets": 8, "max_distance": 12},
    "none": {"kind": "none"},
}


def tiny(family: str, position: str = "rotary", **settings: Any) -> Any:
    """A tiny model whose weights are large enough that every connection shows."""
    base: dict[str, Any] = {
        "family": family,
        "vocabulary": V,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "key_value_heads": 2,
    }
    base |= {"context": 64, "position": POSITIONS[position], "head": {"bias": True}}
    model = build(base, **settings).eval()
    strong(model)
    return model


def strong(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.25).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


@torch.no_grad()
def decode(
    model: Any,
    inputs: Tensor,
    steps: list[int],
    layout: SequenceLayout | None = None,
    *,
    cache: Any = None,
    **first: Any,
) -> Tensor:
    """Hidden states of `inputs`, fed in pieces of `steps` tokens; the first piece has `layout` and all of `first`."""
    cache = model.new_cache(inputs.shape[0]) if cache is None else cache
    first["layout"] = layout
    pieces = []
    for piece in inputs[:, : sum(steps)].split(steps, dim=1):
        pieces.append(model(piece, cache=cache, **first))
        first = {}
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def after_prompt(model: Any, inputs: Tensor, row: int, length: int, room: int, side: str) -> Tensor:
    """Hidden states [1, T - room] that follow a row's prompt of `length` tokens in `room`, padded at `side`; without padding."""
    start = room - length if side == "left" else 0
    prompt = inputs[row : row + 1, start : start + length]
    return model(torch.cat([prompt, inputs[row : row + 1, room:]], dim=1))[:, length:]

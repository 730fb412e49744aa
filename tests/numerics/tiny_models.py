"""Tiny models with large random weights, so that every connection shows in the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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

"""Activations as `config.json` names them, beside ours."""

from __future__ import annotations

from typing import Any

from triune.exchange.architecture import Settings
from triune.models.config import FeedForwardConfig

_PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same function, rounded otherwise (GPT-NeoX 20B)
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
_GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
}


def read_activation(settings: Settings, key: str, default: str, *, gated: bool = False) -> Any:
    """Our `feed_forward.kind`; UserError for an activation that ours does not compute."""
    return settings.choice(key, _GATED if gated else _PLAIN, default=default)


def write_activation(config: FeedForwardConfig, default: str, *, gated: bool = False) -> str:
    """Their name of it; of a kind that is gated where theirs is not, or the reverse, its activation, or else the default."""
    names = {ours: name for name, ours in reversed([*_PLAIN.items(), *_GATED.items()])}
    name = names[config.kind]
    return name if name in (_GATED if gated else _PLAIN) else default

"""The position-wise network. Legend: B batch, T length, M model width, F inner width."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from triune.models.config import FeedForwardConfig
from triune.models.layers.linear import Linear


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu_squared": _relu_squared,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
}


class FeedForward(nn.Module):
    """activation(x W1 + b1) W2 + b2 (Vaswani et al. 2017, 3.3); a gated kind is (activation(x W) * x V) W2 (Shazeer 2020).

    A gated kind keeps W and V stacked, in this order, in one `up` projection [2F, M]: one matrix product, not two.
    """

    def __init__(self, config: FeedForwardConfig, width: int, *, bias: bool) -> None:
        super().__init__()
        inner = config.inner_width(width)
        self.gated = config.gated
        self.activation = _ACTIVATIONS[config.kind]
        self.up = Linear(width, 2 * inner if self.gated else inner, bias=bias)
        self.dropout = nn.Dropout(config.dropout)
        self.down = Linear(inner, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, M] -> [B, T, M]."""
        inner = self.up(hidden)  # [B, T, F] or [B, T, 2F]
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * value  # [B, T, F]
        else:
            inner = self.activation(inner)
        return self.down(self.dropout(inner))

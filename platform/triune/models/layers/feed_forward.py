"""The position-wise network. Legend: B batch, T length, M model width, F inner width."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triune.models.config import FeedForwardConfig
from triune.models.layers.activation import ACTIVATIONS
from triune.models.layers.linear import Linear

#: what the gate of a gated kind passes through
_GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


class FeedForward(nn.Module):
    """activation(x W1 + b1) W2 + b2 (Vaswani et al. 2017, 3.3); a gated kind is (activation(x W) * x V) W2 (Shazeer 2020).

    A gated kind keeps W and V stacked, in this order, in one `up` projection [2F, M]: one matrix product, not two.

    With `config.chunk`, that many positions of each row pass at once (Kitaev et al. 2020, section 3), and in training each
    chunk is recomputed in the backward pass: inner activations of B x chunk x F numbers at a time, instead of B x T x F kept
    in every layer, for one more forward pass of this network. Results are the same up to the order of sums in the weights'
    gradients; dropout draws chunk by chunk.
    """

    def __init__(self, config: FeedForwardConfig, width: int, *, bias: bool) -> None:
        super().__init__()
        inner = config.inner_width(width)
        self.gated = config.gated
        self.chunk = config.chunk
        self.activation = ACTIVATIONS[_GATES.get(config.kind, config.kind)]
        self.up = Linear(width, 2 * inner if self.gated else inner, bias=bias)
        self.dropout = nn.Dropout(config.dropout)
        self.down = Linear(inner, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, M] -> [B, T, M]."""
        if self.chunk is None or hidden.shape[1] <= self.chunk:
            return self._positions(hidden)
        chunks = hidden.split(self.chunk, dim=1)  # each [B, <= chunk, M]
        if not torch.is_grad_enabled():
            return torch.cat([self._positions(chunk) for chunk in chunks], dim=1)
        draws = self.training and self.dropout.p > 0
        recomputed = partial(checkpoint, self._positions, use_reentrant=False, preserve_rng_state=draws)
        return torch.cat([recomputed(chunk) for chunk in chunks], dim=1)

    def _positions(self, hidden: Tensor) -> Tensor:
        """[B, T, M] -> [B, T, M], all positions at once."""
        inner = self.up(hidden)  # [B, T, F] or [B, T, 2F]
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * value  # [B, T, F]
        else:
            inner = self.activation(inner)
        return self.down(self.dropout(inner) if self.training else inner)

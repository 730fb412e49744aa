"""What native sparse attention learns beside its projections: how blocks are compressed, and gates (Yuan et al. 2025, 3.3).

Legend: B batch, T query length, N documents, C blocks, E tokens of a compressed block, H heads, K key/value heads, D head
width, M model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.attention.routed.call import Branches
from triune.attention.routed.patterns import Nsa
from triune.models.config import ModelConfig
from triune.models.layers.linear import Linear

#: separate keys and values: of the selected, the compressed and the sliding branch
BRANCHES = 3


class Compression(nn.Module):
    """One vector for a block of vectors: W2 gelu(W1 [x_1 + p_1, ..., x_E + p_E]), with a learned p a head and place in the block.

    The paper says "a learnable MLP with intra-block position encoding"; its width is ours (D), and the heads share it.
    """

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        super().__init__()
        width = config.resolved_head_width
        self.position = nn.Parameter(torch.empty(config.resolved_key_value_heads, tokens, width))
        self.up = Linear(tokens * width, width, bias=config.bias)
        self.down = Linear(width, width, bias=config.bias)

    def forward(self, blocks: Tensor) -> Tensor:
        """[N, K, C, E, D] -> [N, K, C, D] in the same dtype; computed in that of the parameters."""
        placed = blocks.to(self.position.dtype) + self.position[:, None]
        return self.down(F.gelu(self.up(placed.flatten(-2)))).to(blocks.dtype)


class NativeSparse(nn.Module):
    """Compression of keys and of values, and a gate for each head and branch: sigmoid(W x + b)."""

    def __init__(self, config: ModelConfig, pattern: Nsa) -> None:
        super().__init__()
        self.heads = config.heads
        self.key = Compression(config, pattern.compress)
        self.value = Compression(config, pattern.compress)
        self.gate = Linear(config.width, BRANCHES * config.heads, bias=True)

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Branches]:
        """Keys and values [B, 3 K, S, D] of all branches -> those of the selected one, each [B, K, S, D], and the rest.

        Args:
            hidden: [B, T, M] what the gates are made of.
            key: selected, compressed and sliding, one after the other.
            value: in the same order.
        """
        gates = self.gate(hidden).sigmoid().unflatten(-1, (self.heads, BRANCHES)).transpose(1, 2)  # [B, H, T, 3]
        keys, values = key.chunk(BRANCHES, dim=1), value.chunk(BRANCHES, dim=1)
        rest = Branches(
            compressed=(keys[1], values[1]),
            window=(keys[2], values[2]),
            gates=gates,
            compress=lambda key_blocks, value_blocks: (self.key(key_blocks), self.value(value_blocks)),
        )
        return keys[0], values[0], rest

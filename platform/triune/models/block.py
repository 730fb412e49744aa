"""THE block of all three families. Legend: B batch, T length, S source length, M model width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from triune.attention.patterns import Pattern, full
from triune.models.config import ModelConfig
from triune.models.layers.attention import MultiHeadAttention, Surroundings
from triune.models.layers.cache import LayerCache
from triune.models.layers.drop import StochasticDepth
from triune.models.layers.feed_forward import FeedForward
from triune.models.layers.norm import build_norm


class Residual(nn.Module):
    """A residual connection around a sublayer, with its norms, dropout and stochastic depth.

    post: LayerNorm(x + Sublayer(x)) (Vaswani et al. 2017, 3.1); pre: x + Sublayer(norm(x)) (Xiong et al. 2020);
    sandwich: x + norm(Sublayer(norm(x))) (Ding et al. 2021).

    Args:
        config: norm and dropout.
        drop: probability of leaving the branch out in training.
        skip_norm: leave out the norm before the sublayer.
    """

    def __init__(self, config: ModelConfig, *, drop: float, skip_norm: bool = False) -> None:
        super().__init__()
        placement = config.norm.placement

        def norm(wanted: bool) -> nn.Module | None:
            return build_norm(config.norm, config.width) if wanted else None

        self.norm_before = norm(placement in ("pre", "sandwich") and not skip_norm)
        self.norm_branch = norm(placement == "sandwich")
        self.norm_sum = norm(placement == "post")
        self.dropout = nn.Dropout(config.dropout)
        self.drop = StochasticDepth(drop)

    def forward(self, hidden: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, T, M] -> [B, T, M]."""
        branch = sublayer(hidden if self.norm_before is None else self.norm_before(hidden))
        if self.norm_branch is not None:
            branch = self.norm_branch(branch)
        hidden = hidden + self.drop(self.dropout(branch))
        return hidden if self.norm_sum is None else self.norm_sum(hidden)


class Block(nn.Module):
    """Self-attention, cross-attention where asked for, and a feed-forward, each in a residual connection.

    Args:
        config: the model.
        pattern: which position may attend to which in self-attention.
        cross: add attention to an encoder's memory.
        first: the first block of its stack.
        drop: probability of leaving a branch out in training.
    """

    def __init__(
        self, config: ModelConfig, pattern: Pattern, *, cross: bool = False, first: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config, pattern)
        self.attention_residual = Residual(config, drop=drop, skip_norm=first and config.norm.skip_first)
        self.cross_attention = MultiHeadAttention(config, full(), cross=True) if cross else None
        self.cross_residual = Residual(config, drop=drop) if cross else None
        self.feed_forward = FeedForward(config.feed_forward, config.width, bias=config.bias)
        self.feed_forward_residual = Residual(config, drop=drop)

    def forward(
        self,
        hidden: Tensor,
        around: Surroundings,
        *,
        memory: Tensor | None = None,
        across: Surroundings | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[B, T, M] -> [B, T, M]; `memory` [B, S, M] and `across` are the encoder's output and where it belongs."""
        hidden = self.attention_residual(hidden, lambda x: self.attention(x, around, cache=cache))
        if self.cross_attention is not None and self.cross_residual is not None and across is not None:
            cross = self.cross_attention
            hidden = self.cross_residual(hidden, lambda x: cross(x, across, memory=memory, cache=cache))
        return self.feed_forward_residual(hidden, self.feed_forward)

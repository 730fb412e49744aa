"""THE block of all three families. Legend: B batch, T length, S source length, M model width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from triune.attention.patterns import Pattern, full
from triune.attention.routed.patterns import Routed
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
        hidden = hidden + self.branch(hidden, sublayer)
        return hidden if self.norm_sum is None else self.norm_sum(hidden)

    def branch(self, hidden: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """What is added to the residual stream, [B, T, M] -> [B, T, M]."""
        branch = sublayer(hidden if self.norm_before is None else self.norm_before(hidden))
        if self.norm_branch is not None:
            branch = self.norm_branch(branch)
        return self.drop(self.dropout(branch)) if self.training else branch


class Block(nn.Module):
    """Self-attention, cross-attention where asked for, and a feed-forward, each in a residual connection.

    One after the other, or with `config.parallel` side by side: x + attention(norm(x)) + feed_forward(norm'(x)) (Wang &
    Komatsuzaki 2021; GPT-NeoX: Black et al. 2022, 2.1, each branch with a norm of its own).

    Args:
        config: the model.
        pattern: which position may attend to which in self-attention.
        cross: add attention to an encoder's memory.
        first: the first block of its stack.
        drop: probability of leaving a branch out in training.
    """

    def __init__(
        self,
        config: ModelConfig,
        pattern: Pattern | Routed,
        *,
        cross: bool = False,
        first: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.parallel = config.parallel
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
        read = hidden
        for residual, _, function in self.sublayers(around, memory=memory, across=across, cache=cache):
            hidden = hidden + residual.branch(read, function) if self.parallel else residual(hidden, function)
        return hidden

    def sublayers(
        self,
        around: Surroundings,
        *,
        memory: Tensor | None = None,
        across: Surroundings | None = None,
        cache: LayerCache | None = None,
    ) -> Iterator[tuple[Residual, nn.Module, Callable[[Tensor], Tensor]]]:
        """The block's sublayers in order: the connection around each, its module, and its function [B, T, M] -> [B, T, M]."""
        attention, cross, feed_forward = self.attention, self.cross_attention, self.feed_forward
        yield self.attention_residual, attention, partial(attention, around=around, cache=cache)
        if cross is not None and self.cross_residual is not None and across is not None:
            yield self.cross_residual, cross, partial(cross, around=across, memory=memory, cache=cache)
        yield self.feed_forward_residual, feed_forward, feed_forward

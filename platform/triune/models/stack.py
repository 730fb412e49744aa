"""THE stack: blocks of one tower, what they share, and the final norm.

Legend: B batch, T length, S source length, H heads, M model width.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triune.attention.bias import AlibiBias
from triune.attention.layout import SequenceLayout
from triune.models.block import Block
from triune.models.checks import layer_patterns, rotary_bases
from triune.models.config import AlibiPosition, ModelConfig, RotaryPosition, T5Position
from triune.models.layers.attention import Surroundings
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.norm import build_norm
from triune.models.layers.position import RelativeBias, Rotary


class Stack(nn.Module):
    """Blocks in a row. They share rotary angles, the score bias and boolean masks, each computed once a forward pass.

    Patterns and rotary bases that are lists are repeated to the depth. Stochastic depth grows linearly, block by block,
    to `stochastic_depth` at the last.

    Args:
        config: the model.
        layers: number of blocks.
        decoder: each position sees itself and the past (for T5's buckets, and as the pattern where none is given).
        cross: blocks also attend to an encoder's memory.
    """

    def __init__(self, config: ModelConfig, *, layers: int, decoder: bool, cross: bool = False) -> None:
        super().__init__()
        self.checkpointing = config.activation_checkpointing
        #: residual branches from the first block to the last (GPT-2's depth scaling divides by its square root)
        self.branches = layers * (3 if cross else 2)
        chosen = layer_patterns(config, layers, decoder=decoder, cross=cross)
        self.blocks = nn.ModuleList(
            Block(
                config,
                pattern,
                cross=cross,
                first=index == 0,
                drop=config.stochastic_depth * (index + 1) / layers,
            )
            for index, pattern in enumerate(chosen)
        )
        self.bases: list[float | None] = [*rotary_bases(config)] or [None]
        self.rotaries = _rotaries(config)
        self.relative = None
        if isinstance(config.position, T5Position):
            self.relative = RelativeBias(config.position, heads=config.heads, bidirectional=not decoder)
        self.alibi = AlibiBias(config.heads) if isinstance(config.position, AlibiPosition) else None
        self.norm = build_norm(config.norm, config.width) if config.final_norm else None

    def forward(
        self,
        hidden: Tensor,
        layout: SequenceLayout,
        *,
        memory: Tensor | None = None,
        memory_layout: SequenceLayout | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """[B, T, M] -> [B, T, M].

        Args:
            hidden: embedded tokens.
            layout: where each token belongs.
            memory: [B, S, M] an encoder's output, for cross-attention.
            memory_layout: where each token of the memory belongs.
            cache: keys and values of earlier calls; it has been extended by `layout` already.
        """
        around, across = self._surroundings(layout, memory_layout, cache)
        for index, block in enumerate(self.blocks):
            layer = partial(
                block,
                around=around[index % len(around)],
                across=across,
                memory=memory,
                cache=None if cache is None else cache.layers[index],
            )
            recomputed = self.checkpointing and self.training
            hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
        return hidden if self.norm is None else self.norm(hidden)

    def _surroundings(
        self, layout: SequenceLayout, memory_layout: SequenceLayout | None, cache: KeyValueCache | None
    ) -> tuple[list[Surroundings], Surroundings]:
        """What self-attention (one a rotary base, in the order of the layers) and cross-attention must know."""
        keys = layout if cache is None or cache.layout is None else cache.layout
        rotations = {base: rotary(_positions(layout)) for base, rotary in self.rotaries.items()}
        bias = self.alibi if self.relative is None else self.relative(layout, keys)
        going_on = keys.plain and keys is not layout  # plain rows that a cache began: attend needs no layout for them
        queries = None if going_on else layout
        around = [
            Surroundings(
                query_layout=queries,
                key_layout=None if going_on else keys,
                rotation=rotations.get(base),
                bias=bias,
            )
            for base in self.bases
        ]
        if going_on and memory_layout is not None and memory_layout.plain:
            return around, Surroundings()
        return around, Surroundings(query_layout=layout, key_layout=memory_layout)


def _positions(layout: SequenceLayout) -> Tensor:
    """[B, T] positions, or [1, T] where all rows are alike."""
    return layout.positions[:1] if layout.plain else layout.positions


def _rotaries(config: ModelConfig) -> dict[float | None, Rotary]:
    """One set of rotary angles a distinct base; empty for other positions."""
    if not isinstance(config.position, RotaryPosition):
        return {}
    settings = {"head_width": config.resolved_head_width, "context": config.context}
    return {base: Rotary(config.position, base=base, **settings) for base in rotary_bases(config)}

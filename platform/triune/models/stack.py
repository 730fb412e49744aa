"""THE stack: blocks of one tower, what they share, and the final norm.

Legend: B batch, T length, S source length, H heads, M model width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triune.attention.bias import AlibiBias, ScoreBias
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.attention.routed.patterns import Routed
from triune.attention.rule import prefers_tiles, unfused_time
from triune.models import reversible
from triune.models.block import Block
from triune.models.checks import layer_patterns, rotary_bases
from triune.models.config import AlibiPosition, ModelConfig, RotaryPosition, T5Position
from triune.models.layers.attention import Surroundings
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.norm import build_norm
from triune.models.layers.position import RelativeBias, Rotary, Rotation


class Stack(nn.Module):
    """Blocks in a row. They share rotary angles, the score bias and boolean masks, each computed once a forward pass.

    Patterns and rotary bases that are lists are repeated to the depth. Stochastic depth grows linearly, block by block,
    to `stochastic_depth` at the last. With `reversible` there are two residual streams (`triune.models.reversible`); the
    final norm reads their mean.

    Args:
        config: the model.
        layers: number of blocks.
        decoder: each position sees itself and the past (for T5's buckets, and as the pattern where none is given).
        cross: blocks also attend to an encoder's memory.
    """

    def __init__(self, config: ModelConfig, *, layers: int, decoder: bool, cross: bool = False) -> None:
        super().__init__()
        self.checkpointing = config.activation_checkpointing
        self.reversible = config.reversible
        self.backend = config.attention.backend
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
        caches = [None] * len(self.blocks) if cache is None else cache.layers
        calls = [
            {"around": around[index], "across": across, "memory": memory, "cache": caches[index]}
            for index in range(len(self.blocks))
        ]
        if self.reversible:
            hidden = self._two_streams(hidden, calls)
        else:
            recomputed = self.checkpointing and self.training
            for block, call in zip(self.blocks, calls, strict=True):
                layer = partial(block, **call)
                hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
        return hidden if self.norm is None else self.norm(hidden)

    def new_cache(self, batch: int, capacity: int = 0) -> KeyValueCache:
        """An empty cache for `batch` rows, with room for `capacity` tokens a row before it has to grow."""
        return KeyValueCache(patterns=self._patterns(), batch=batch, capacity=capacity)

    def _two_streams(self, hidden: Tensor, calls: list[dict[str, Any]]) -> Tensor:
        """[B, T, M] -> [B, T, M] through the sublayers of all blocks as branches of a reversible stack."""
        branches = []
        for block, call in zip(cast("list[Block]", self.blocks), calls, strict=True):
            bias = call["around"].bias
            shared = [tensor for tensor in (call["memory"], bias) if isinstance(tensor, Tensor)]
            if self.relative is not None and not isinstance(bias, Tensor):  # a rule that reads the table itself
                shared += self.relative.parameters()
            for residual, module, sublayer in block.sublayers(**call):
                inputs = (*residual.parameters(), *module.parameters(), *shared)
                branches.append(reversible.Branch(function=partial(residual.branch, sublayer=sublayer), inputs=inputs))
        return reversible.run(branches, hidden)

    def _patterns(self) -> list[Pattern | Routed]:
        return [block.attention.pattern for block in cast("list[Block]", self.blocks)]

    def _surroundings(
        self, layout: SequenceLayout, memory_layout: SequenceLayout | None, cache: KeyValueCache | None
    ) -> tuple[list[Surroundings], Surroundings]:
        """What each layer's self-attention (shared by layers of one rotary base and pattern) and cross-attention must know."""
        rotations = {base: rotary(_positions(layout)) for base, rotary in self.rotaries.items()}
        across = _across(layout, memory_layout, cache)
        if cache is not None:
            return self._with_cache(layout, cache, rotations), across
        biases: dict[bool, ScoreBias | Tensor | None] = {}
        around = []
        for index, pattern in enumerate(self._patterns()):
            tiled = self._tiled(pattern, layout, layout)
            if tiled not in biases:
                biases[tiled] = self._bias(layout, layout, tiled=tiled)
            rotation = rotations.get(self.bases[index % len(self.bases)])
            around.append(Surroundings(query_layout=layout, key_layout=layout, rotation=rotation, bias=biases[tiled]))
        return around, across

    def _with_cache(
        self, layout: SequenceLayout, cache: KeyValueCache, rotations: dict[float | None, Rotation]
    ) -> list[Surroundings]:
        """What each layer's self-attention must know where it also sees stored keys, which differ with its pattern."""
        biases: dict[tuple[SequenceLayout, bool], ScoreBias | Tensor | None] = {}
        made: dict[Any, Surroundings] = {}
        around = []
        for index, (pattern, layer) in enumerate(zip(self._patterns(), cache.layers, strict=True)):
            base, store = self.bases[index % len(self.bases)], layer.store
            assert store is not None
            if (base, pattern) not in made:
                place = store.layout, self._tiled(pattern, layout, store.layout)
                if place not in biases:
                    biases[place] = self._bias(layout, store.layout, tiled=place[1])
                bias = biases[place]
                view = store.view(pattern, by_position=bias is not None and not isinstance(bias, Tensor))
                made[base, pattern] = Surroundings(**view._asdict(), rotation=rotations.get(base), bias=bias)
            around.append(made[base, pattern])
        return around

    def _bias(self, queries: SequenceLayout, keys: SequenceLayout, *, tiled: bool) -> ScoreBias | Tensor | None:
        """What is added to the scores of self-attention between the tokens of two layouts.

        T5's learned scores are made once for all layers that share them; where a backend skips tiles, and so must not have the
        scores of all pairs, the rule is handed on instead.
        """
        if self.relative is None:
            return self.alibi
        return self.relative.rule() if tiled else self.relative(queries, keys)

    def _tiled(self, pattern: Pattern | Routed, queries: SequenceLayout, keys: SequenceLayout) -> bool:
        """Whether a layer's attention under a learned bias will skip tiles."""
        if self.relative is None or isinstance(pattern, Routed) or self.backend != "auto":
            return self.backend in ("blocked", "flex")
        heads, dense = self.relative.weight.shape[1], unfused_time(queries.documents)
        return any(prefers_tiles(part, queries, keys, heads=heads, dense=dense) for part in pattern.heads())


def _across(layout: SequenceLayout, memory_layout: SequenceLayout | None, cache: KeyValueCache | None) -> Surroundings:
    """What cross-attention must know; plain rows need no layouts, as all of them see all."""
    if cache is not None and cache.plain and memory_layout is not None and memory_layout.plain:
        return Surroundings()
    return Surroundings(query_layout=layout, key_layout=memory_layout)


def _positions(layout: SequenceLayout) -> Tensor:
    """[B, T] positions, or [1, T] where all rows are alike."""
    return layout.positions[:1] if layout.plain else layout.positions


def _rotaries(config: ModelConfig) -> dict[float | None, Rotary]:
    """One set of rotary angles a distinct base; empty for other positions."""
    if not isinstance(config.position, RotaryPosition):
        return {}
    settings = {"head_width": config.resolved_head_width, "context": int(config.context)}
    return {base: Rotary(config.position, base=base, **settings) for base in rotary_bases(config)}

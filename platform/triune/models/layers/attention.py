"""THE attention layer: self and cross, any number of key/value heads, with or without a cache.

Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width, M model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triune.attention.bias import ScoreBias
from triune.attention.dispatch import attend
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern, window
from triune.attention.routed.call import Branches
from triune.attention.routed.patterns import Lsh, Nsa, Routed
from triune.models.checks import global_part
from triune.models.config import ModelConfig
from triune.models.layers.cache import LayerCache
from triune.models.layers.linear import Linear
from triune.models.layers.native_sparse import BRANCHES, NativeSparse
from triune.models.layers.norm import build_norm
from triune.models.layers.position import Rotation, rotate


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What an attention layer must know of a forward pass beside its hidden states.

    Layouts None are plain rows whose last query stands at the last key.
    """

    query_layout: SequenceLayout | None = None
    key_layout: SequenceLayout | None = None
    pattern: Pattern | None = None  # in place of the layer's own, where the layouts leave nothing else to tell apart
    rotation: Rotation | None = None
    bias: ScoreBias | Tensor | None = None  # a rule, or scores [B or 1, H, T, S]


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_H) W^O with head_i = softmax(Q_i K_i^T * scale) V_i (Vaswani et al. 2017, 3.2).

    Groups of H/K query heads share a key/value head (Ainslie et al. 2023). Queries, keys and values are one projection
    in self-attention (weight [(H + 2K) D, M], in this order), queries and key-values two in cross-attention. With `lsh` one
    vector is query and key ([(H + K) D, M] with K = H), with `nsa` each of three branches has its keys and values ([(H + 6K) D, M]).
    With `global_projections` the queries of global tokens, and the keys and values that these see, are a projection of their own,
    of the same shape; other queries see the ordinary keys and values of global tokens (Longformer: Beltagy et al. 2020, 3.1).

    Args:
        config: widths, heads, biases, scale, dropout, query/key norm and backend.
        pattern: which query may attend to which key.
        cross: keys and values come from `memory`.
    """

    def __init__(self, config: ModelConfig, pattern: Pattern | Routed, *, cross: bool = False) -> None:
        super().__init__()
        self.heads = config.heads
        self.key_value_heads = config.resolved_key_value_heads
        self.head_width = config.resolved_head_width
        self.pattern = pattern
        self.cross = cross
        self.shared = isinstance(pattern, Lsh)  # one vector is query and key
        self.branches = BRANCHES if isinstance(pattern, Nsa) else 1  # sets of keys and values
        self.scale = config.attention.scale
        self.dropout = config.attention.dropout
        self.backend = config.attention.backend

        query, key = self.heads * self.head_width, self.key_value_heads * self.head_width
        bias = config.resolved_qkv_bias
        if cross:
            self.query = Linear(config.width, query, bias=bias)
            self.key_value = Linear(config.width, 2 * key, bias=bias)
        else:
            sets = 1 if self.shared else 2 * self.branches
            self.query_key_value = Linear(config.width, query + sets * key, bias=bias)
        own = config.attention.global_projections and not cross
        self.global_query_key_value = Linear(config.width, query + 2 * key, bias=bias) if own else None
        self.global_tokens = global_part(pattern) if own else None
        norms = config.attention.qk_norm
        self.query_norm = build_norm(config.norm, self.head_width) if norms else None
        self.key_norm = build_norm(config.norm, self.head_width) if norms and not self.shared else None
        self.native_sparse = NativeSparse(config, pattern) if isinstance(pattern, Nsa) else None
        self.output = Linear(query, config.width, bias=config.bias)

    def forward(
        self, hidden: Tensor, around: Surroundings, *, memory: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """[B, T, M] -> [B, T, M].

        Args:
            hidden: what queries (and, in self-attention, keys and values) are made of.
            around: layouts, rotary angles and score bias.
            memory: [B, S, M] what keys and values are made of in cross-attention; may be None once the cache has them.
            cache: keys and values of earlier calls; self-attention appends to them.
        """
        if self.cross:
            query, key, value = self._cross(hidden, memory, cache)
        else:
            query, key, value = self._self(self.query_key_value(hidden), around, cache)
        branches: Branches | None = None
        if self.native_sparse is not None:
            key, value, branches = self.native_sparse(hidden, key, value)
        attended = self._attend(query, key, value, around.pattern or self.pattern, around, branches)  # [B, H, T, D]
        if self.global_query_key_value is not None:
            attended = self._ask_globally(self.global_query_key_value(hidden), attended, around)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: Pattern | Routed,
        around: Surroundings,
        branches: Branches | None = None,
    ) -> Tensor:
        return attend(
            query,
            key,
            value,
            pattern=pattern,
            query_layout=around.query_layout,
            key_layout=around.key_layout,
            bias=around.bias,
            scale=self.scale,
            dropout=self.dropout,
            training=self.training,
            backend=self.backend,
            branches=branches,
        )

    def _ask_globally(self, projected: Tensor, attended: Tensor, around: Surroundings) -> Tensor:
        """[B, H, T, D] -> the same, but for global tokens, whose rows are what `projected` [B, T, (H + 2K) D] finds.

        The second call's pattern lets a global token see its whole document; what other tokens find in it is left. With landmarks
        alone it must be any pattern that is not causal, under which a landmark sees all.
        """
        layout, tokens = around.query_layout, self.global_tokens
        assert layout is not None
        if tokens is None and layout.landmarks is None:
            return attended
        chosen = torch.zeros_like(layout.positions, dtype=torch.bool)  # [B, T]
        if tokens is not None:
            chosen = tokens.allows(layout.positions, -1)  # no key stands at -1: which queries are global
        if layout.landmarks is not None:
            chosen = chosen | layout.landmarks
        found = self._attend(*self._self(projected, around, None), tokens or window(0, 1), around)
        return torch.where(chosen[:, None, :, None], found, attended)

    def _self(self, projected: Tensor, around: Surroundings, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, (H + 2K) D] -> queries [B, H, T, D], keys and values [B, K, S, D] (with `nsa` 3K) of the tokens themselves."""
        heads = self._split(projected)  # [B, T, H + 2K, D]
        values = self.branches * self.key_value_heads
        keys = 0 if self.shared else values
        query_key, value = heads.split([self.heads + keys, values], dim=2)
        if self.query_norm is not None:
            query, key = query_key.split([self.heads, keys], dim=2)
            normed = [self.query_norm(query)] if self.key_norm is None else [self.query_norm(query), self.key_norm(key)]
            query_key = torch.cat(normed, dim=2).to(value.dtype)
        if around.rotation is not None:
            query_key = rotate(query_key, around.rotation)  # queries and keys at once: [B, T, H + K, D]
        query, key = query_key.transpose(1, 2).split([self.heads, keys], dim=1)
        key = query if self.shared else key
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        return query, key, value

    def _cross(self, hidden: Tensor, memory: Tensor | None, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D] of the tokens, keys and values [B, K, S, D] of the memory, computed once a cache."""
        query = self._split(self.query(hidden))
        if self.query_norm is not None:
            query = self.query_norm(query).to(query.dtype)
        query = query.transpose(1, 2)
        if cache is not None and cache.memory is not None:
            return query, *cache.memory
        if memory is None:
            raise ValueError("cross-attention needs memory where its cache is empty")
        key, value = self._split(self.key_value(memory)).chunk(2, dim=2)  # [B, S, K, D]
        if self.key_norm is not None:
            key = self.key_norm(key).to(value.dtype)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            cache.memory = key, value
        return query, key, value

    def _split(self, projected: Tensor) -> Tensor:
        """[B, T, heads * D] -> [B, T, heads, D]."""
        return projected.unflatten(-1, (-1, self.head_width))

    def extra_repr(self) -> str:
        kind = "cross" if self.cross else "self"
        return (
            f"{kind}, heads={self.heads}/{self.key_value_heads}, head_width={self.head_width}, pattern={self.pattern}"
        )

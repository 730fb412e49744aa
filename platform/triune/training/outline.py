"""Names and shapes of a model's tensors and what their rows stand for, without memory for weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from triune.models.config import HeadConfig, ModelConfig
from triune.models.factory import build
from triune.models.layers.attention import MultiHeadAttention
from triune.models.layers.embedding import InputEmbedding, TokenEmbedding
from triune.models.stack import Stack
from triune.training.conversion_rows import BranchRows, PositionRows

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a model is made of.

    Args:
        shapes: name -> shape of each parameter, tied ones once.
        tables: learned position tables.
        projections: queries, keys and values of self-attention, where keys are no queries.
        tokens: tensors of one row a token.
        patterns: stack -> one a layer.
    """

    shapes: dict[str, Shape]
    tables: dict[str, PositionRows]
    projections: dict[str, BranchRows]
    tokens: frozenset[str]
    patterns: dict[str, list[str]]

    @classmethod
    def of(cls, config: ModelConfig) -> Outline:
        """The outline of a model whose `vocabulary` is set. Draws no random number."""
        with torch.device("meta"):
            model = build(config)
        modules = dict(model.named_modules())
        vocabulary = {"embedding.weight"} if isinstance(model.embedding, TokenEmbedding) else set()
        if isinstance(config.head, HeadConfig):
            vocabulary |= {"head.weight", "head.bias"}
        return cls(
            shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
            tables={
                f"{name}.positions.weight": PositionRows(module.offset, module.context, module.context)
                for name, module in modules.items()
                if isinstance(module, InputEmbedding) and module.positions is not None
            },
            projections={
                f"{name}.{projection}.{part}": _projection(module, branches)
                for name, module in modules.items()
                if isinstance(module, MultiHeadAttention) and not module.cross and not module.shared
                for projection, branches in (("query_key_value", module.branches), ("global_query_key_value", 1))
                for part in ("weight", "bias")
            },
            tokens=frozenset(vocabulary),
            patterns={
                name: [str(m.pattern) for m in module.modules() if isinstance(m, MultiHeadAttention) and not m.cross]
                for name, module in modules.items()
                if isinstance(module, Stack)
            },
        )


def dense(config: ModelConfig) -> ModelConfig:
    """The same model with the dense pattern of its family: what it has no tensors for belongs to the pattern."""
    attention = dataclasses.replace(config.attention, pattern=None, global_projections=False)
    return dataclasses.replace(config, attention=attention)


def _projection(module: MultiHeadAttention, branches: int) -> BranchRows:
    return BranchRows(module.heads * module.head_width, module.key_value_heads * module.head_width, branches)

"""How weights start, said by the role of each tensor.

Legend: M model width, E embedding width, D head width, H heads, F inner width, V vocabulary, n residual branches of a stack.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from triune.models.config import ModelConfig
from triune.models.heads import ClassHead, VocabularyHead
from triune.models.layers.attention import MultiHeadAttention
from triune.models.layers.embedding import InputEmbedding, PatchEmbedding
from triune.models.layers.feed_forward import FeedForward
from triune.models.layers.native_sparse import Compression, NativeSparse
from triune.models.layers.norm import RMSNorm
from triune.models.layers.position import RelativeBias
from triune.models.stack import Stack

Role = Literal["embedding", "position", "query", "hidden", "residual", "relative", "output"]


def deviation(config: ModelConfig, role: Role, fan_out: int, fan_in: int, branches: int = 1) -> float:
    """Standard deviation of a tensor [fan_out, fan_in] at the start.

    Roles: embedding (token table, also the vocabulary where it is tied), position (learned positions, token types and class
    token), query, hidden (keys, values, up projections, the head's dense layer, what leads patches or narrow embeddings to M),
    residual (the last matrix of a residual branch), relative (T5's biases), output (a vocabulary of its own, classes).

    | kind         | embedding | position | query                 | hidden               | residual            | output          |
    |--------------|-----------|----------|-----------------------|----------------------|---------------------|-----------------|
    | xavier       | E^-0.5    | E^-0.5   | sqrt(2/(in + out))    | sqrt(2/(in + out))   | sqrt(2/(in + out))  | in^-0.5         |
    | normal       | std       | std      | std                   | std                  | std                 | std             |
    | depth_scaled | std       | std      | std                   | std                  | std / sqrt(n)       | std             |
    | t5           | 1         | 1        | (in D)^-0.5 / scale   | in^-0.5              | in^-0.5             | in^-0.5         |
    | mup          | std       | std      | std sqrt(m)           | std sqrt(m)          | std sqrt(m)         | std m           |

    with m = base_width / M. The matrices of xavier are uniform (Glorot & Bengio 2010), all else is normal. Sources: xavier is
    the 2017 Transformer's (tensor2tensor), normal BERT's, depth_scaled GPT-2's (Radford et al. 2019, 2.3; n = 2 x layers, or 3 x
    layers in a stack with cross-attention). t5 gives scores of unit variance whatever multiplies them (Raffel et al. 2020: scale 1;
    relative biases M^-0.5). mup is the initialization of Yang et al. 2022, table 3; its learning rates (hidden matrices m
    times that of the rest, under Adam) are the optimizer's, and a tied vocabulary wants model.head.scale = m.
    """
    settings, width = config.initialization, config.width
    narrowing = settings.base_width / width
    match settings.kind:
        case "xavier":
            if role in ("embedding", "position", "output"):
                return fan_in**-0.5
            return width**-0.5 if role == "relative" else (2 / (fan_in + fan_out)) ** 0.5
        case "normal":
            return settings.std
        case "depth_scaled":
            return settings.std / branches**0.5 if role == "residual" else settings.std
        case "t5":
            return _t5(config, role, fan_in)
        case "mup":
            power = {"embedding": 0.0, "position": 0.0, "relative": 0.0, "output": 1.0}.get(role, 0.5)
            return settings.std * narrowing**power


def _t5(config: ModelConfig, role: Role, fan_in: int) -> float:
    if role in ("embedding", "position"):
        return 1.0
    if role == "relative":
        return config.width**-0.5
    if role == "query":
        head_width = config.resolved_head_width
        scale = head_width**-0.5 if config.attention.scale is None else config.attention.scale
        return (fan_in * head_width) ** -0.5 / scale
    return fan_in**-0.5


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Draw every parameter of `model` from torch's default generator, in the order of its modules: biases 0, norms 1."""
    start = _Start(config)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    branches = {child: stack.branches for stack in stacks for child in stack.modules()}
    for module in model.modules():
        start.module(module, branches.get(module, 1))


class _Start:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def module(self, module: nn.Module, branches: int) -> None:
        """Draw the parameters that `module` owns, and the matrices of the linear layers in it."""
        match module:
            case nn.Linear() if module.bias is not None:
                nn.init.zeros_(module.bias)
            case nn.LayerNorm() | RMSNorm():
                module.reset_parameters()
            case RelativeBias():
                self.draw(module.weight, "relative")
            case InputEmbedding():
                for table in (module.positions, module.token_types):
                    if table is not None:
                        self.draw(table.weight, "position")
                if module.projection is not None:
                    self.draw(module.projection.weight, "hidden")
            case PatchEmbedding():
                self.draw(module.projection.weight, "hidden")
                if module.class_token is not None:
                    self.draw(module.class_token.unsqueeze(0), "position")
            case MultiHeadAttention():
                self.attention(module, branches)
            case NativeSparse():
                self.draw(module.gate.weight, "hidden")
            case Compression():
                nn.init.zeros_(module.position)
                self.draw(module.up.weight, "hidden")
                self.draw(module.down.weight, "hidden")
            case FeedForward():
                for matrix in module.up.weight.chunk(2 if module.gated else 1):
                    self.draw(matrix, "hidden")
                self.draw(module.down.weight, "residual", branches)
            case VocabularyHead() | ClassHead():
                self.head(module)
        if isinstance(table := getattr(module, "embedding", None), nn.Embedding):
            self.draw(table.weight, "embedding")

    def attention(self, module: MultiHeadAttention, branches: int) -> None:
        query, key = module.heads * module.head_width, module.key_value_heads * module.head_width
        if module.cross:
            matrices = (module.query.weight, *module.key_value.weight.split([key, key]))
        else:
            rest = module.query_key_value.weight.shape[0] - query  # keys and values, [K D, M] each
            matrices = module.query_key_value.weight.split([query, *[key] * (rest // key)])
        own = module.global_query_key_value
        asking = () if own is None else own.weight.split([query, key, key])
        for projections in (matrices, asking):
            for index, matrix in enumerate(projections):
                self.draw(matrix, "hidden" if index else "query")
        self.draw(module.output.weight, "residual", branches)

    def head(self, module: VocabularyHead | ClassHead) -> None:
        if module.dense is not None:
            self.draw(module.dense.weight, "hidden")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if module.weight is not None and (isinstance(module, ClassHead) or not module.tied):
            self.draw(module.weight, "output")

    def draw(self, tensor: Tensor, role: Role, branches: int = 1) -> None:
        fan_out, fan_in = tensor.shape
        std = deviation(self.config, role, fan_out, fan_in, branches)
        if self.config.initialization.kind == "xavier" and role in ("query", "hidden", "residual"):
            tensor.uniform_(-(3**0.5) * std, 3**0.5 * std)
        else:
            tensor.normal_(0.0, std)

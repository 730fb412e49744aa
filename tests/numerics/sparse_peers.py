"""What the parity tests of sparse attention share: the weights of BERT's descendants in `transformers`, mapped onto ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from test_models_parity import fused, put, two
from torch import Tensor, nn

from triune.attention.patterns import EVERYWHERE, Pattern, Reach

LAYERS, V, M, F, H = 2, 96, 32, 48, 4
#: settings that Longformer, BigBird and BERT share here; nothing is dropped, so that training mode is deterministic
SHAPE = {
    "vocab_size": V, "hidden_size": M, "num_hidden_layers": LAYERS, "num_attention_heads": H, "intermediate_size": F,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 2,
}  # fmt: skip
#: the same of ours, as `build` reads them
OURS = {
    "family": "encoder", "vocabulary": V, "width": M, "layers": LAYERS, "heads": H, "token_types": 2,
    "feed_forward": {"kind": "gelu", "width": F}, "norm": {"placement": "post", "epsilon": 1e-12, "embedding": True},
}  # fmt: skip


@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of keys that each block of queries sees, as a table."""

    block: int
    seen: tuple[tuple[int, ...], ...]

    def allows(self, query_index: Any, key_index: Any) -> Any:
        query, key = query_index // self.block, key_index // self.block
        allowed = (query < 0) & (key < 0)
        for row, keys in enumerate(self.seen):
            for column in keys:
                allowed = allowed | ((query == row) & (key == column))
        return allowed

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [self.block * index for index in range(len(self.seen) + 1)]

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE

    def __str__(self) -> str:
        return f"blocks({self.block}, {self.seen})"


def mapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of theirs, or the gradients of these (the mapping only stacks), under the names of ours."""
    ours = {
        "embedding.weight": tensors["embeddings.word_embeddings.weight"],
        "input.positions.weight": tensors["embeddings.position_embeddings.weight"],
        "input.token_types.weight": tensors["embeddings.token_type_embeddings.weight"],
    }
    put(ours, "input.norm", two("embeddings.LayerNorm", tensors))
    for i in range(LAYERS):
        a, b = f"encoder.layer.{i}", f"stack.blocks.{i}"
        local = fused(tensors, [f"{a}.attention.self.{name}" for name in ("query", "key", "value")])
        put(ours, f"{b}.attention.query_key_value", local)
        put(ours, f"{b}.attention.output", two(f"{a}.attention.output.dense", tensors))
        put(ours, f"{b}.attention_residual.norm_sum", two(f"{a}.attention.output.LayerNorm", tensors))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.intermediate.dense", tensors))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.output.dense", tensors))
        put(ours, f"{b}.feed_forward_residual.norm_sum", two(f"{a}.output.LayerNorm", tensors))
    return ours


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter by name; zero where none arrived."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def backward(ours: Tensor, theirs: Tensor, real: Tensor) -> None:
    """Both sides backwards from the same random weights of the real tokens' outputs.

    Args:
        ours: [B, T, M] with a graph.
        theirs: [B, T, M] with a graph.
        real: [B, T] bool.
    """
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)) * real[..., None]
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()


def same_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Every gradient of ours within 1e-4 of the largest value of its tensor and 1e-6 of the largest of all.

    A gradient passes twice as many operations as an output (forward and backward), through which 1e-5 of
    test_models_parity.py becomes 2e-5; sums over up to 100 tokens where an output sums over 64 numbers add sqrt(100 / 64);
    1e-4 leaves a factor of 4. A key's bias has the gradient 0 (softmax does not see it), rounding at both sides: hence 1e-6.
    """
    found = gradients(model)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        bound = 1e-4 * float(gradient.abs().max()) + 1e-6 * largest
        difference = float((found[name] - gradient).abs().max())
        assert difference <= bound, f"{name}: {difference:.2e} apart, {bound:.2e} allowed"


def tied(weights: dict[str, Tensor]) -> dict[str, Any]:
    """With the head's weight, which is the embedding's."""
    return weights | {"head.weight": weights["embedding.weight"]}

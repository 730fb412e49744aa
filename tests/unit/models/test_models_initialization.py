"""The standard deviation and mean of every kind of tensor, for every kind of initialization.

A sample of n normal numbers has a standard deviation within 5 sigma = 5 / sqrt(2 n) of the truth, relatively (for uniform
ones 5 sqrt(0.2 / n), which is less), and a mean within 5 std / sqrt(n).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from triune.models.factory import build

M, F, H, K, D, V, L = 48, 80, 4, 2, 16, 150, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model(kind: str, family: str = "decoder", **settings: Any) -> Any:
    base: dict[str, Any] = {
        "family": family, "vocabulary": V, "width": M, "layers": L, "heads": H, "key_value_heads": K, "head_width": D,
        "context": 64, "feed_forward": {"kind": "swiglu", "width": F}, "head": {"transform": True, "bias": True},
        "initialization": {"kind": kind, "std": 0.05, "base_width": 12},
    }  # fmt: skip
    return build(base, **settings)


def spread(tensors: list[Tensor], std: float) -> None:
    numbers = torch.cat([tensor.detach().flatten() for tensor in tensors])
    n = numbers.numel()
    assert float(numbers.std()) == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
    assert abs(float(numbers.mean())) <= 5 * std / n**0.5


def parts(stack: Any) -> dict[str, list[Tensor]]:
    """The matrices of a stack by what they are."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("query", "key", "value", "output", "gate", "up", "down")}
    for block in stack.blocks:
        for layer in (block.attention, block.cross_attention):
            if layer is None:
                continue
            if layer.cross:
                matrices = [layer.query.weight, *layer.key_value.weight.chunk(2)]
            else:
                matrices = list(layer.query_key_value.weight.split([H * D, K * D, K * D]))
            for name, matrix in zip(("query", "key", "value"), matrices, strict=True):
                found[name].append(matrix)
            found["output"].append(layer.output.weight)
        gate, up = block.feed_forward.up.weight.chunk(2)
        found["gate"].append(gate)
        found["up"].append(up)
        found["down"].append(block.feed_forward.down.weight)
    return found


def glorot(fan_out: int, fan_in: int) -> float:
    return (2 / (fan_in + fan_out)) ** 0.5


NARROW = 12 / M
EXPECTED: dict[str, dict[str, float]] = {
    "xavier": {
        "embedding": M**-0.5, "vocabulary": M**-0.5, "dense": glorot(M, M), "query": glorot(H * D, M),
        "key": glorot(K * D, M), "value": glorot(K * D, M), "output": glorot(M, H * D), "gate": glorot(F, M),
        "up": glorot(F, M), "down": glorot(M, F),
    },
    "normal": dict.fromkeys(
        ["embedding", "vocabulary", "dense", "query", "key", "value", "output", "gate", "up", "down"], 0.05
    ),
    "depth_scaled": {
        **dict.fromkeys(["embedding", "vocabulary", "dense", "query", "key", "value", "gate", "up"], 0.05),
        "output": 0.05 / (2 * L) ** 0.5, "down": 0.05 / (2 * L) ** 0.5,
    },
    "t5": {
        "embedding": 1.0, "vocabulary": M**-0.5, "dense": M**-0.5, "query": (M * D) ** -0.5, "key": M**-0.5,
        "value": M**-0.5, "output": (H * D) ** -0.5, "gate": M**-0.5, "up": M**-0.5, "down": F**-0.5,
    },
    "mup": {
        "embedding": 0.05, "vocabulary": 0.05 * NARROW,
        **dict.fromkeys(["dense", "query", "key", "value", "output", "gate", "up", "down"], 0.05 * NARROW**0.5),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_matrix_has_its_deviation(kind: str) -> None:
    built = model(kind, tie_embeddings=False, attention={"scale": 1.0})
    found = parts(built.stack)
    found |= {
        "embedding": [built.embedding.weight],
        "vocabulary": [built.head.weight],
        "dense": [built.head.dense.weight],
    }
    assert found.keys() == EXPECTED[kind].keys()
    for name, tensors in found.items():
        spread(tensors, EXPECTED[kind][name])
    if kind == "xavier":
        bound = (6 / (M + H * D)) ** 0.5  # uniform: no number beyond sqrt(6 / (in + out)), and some near it
        assert 0.97 * bound < float(found["query"][0].detach().abs().max()) <= bound


@pytest.mark.parametrize("kind", EXPECTED)
def test_biases_start_at_zero_and_norms_at_one(kind: str) -> None:
    built = model(kind, norm={"embedding": True, "placement": "sandwich"}, attention={"qk_norm": True})
    seen = 0
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
            seen += 1
    assert seen == L * 6 + 3  # a block: 2 x before, 2 x branch, query, key; embedding, final, head


@pytest.mark.parametrize(
    ("kind", "std"), [("xavier", M**-0.5), ("normal", 0.05), ("depth_scaled", 0.05), ("t5", 1.0), ("mup", 0.05)]
)
def test_positions_and_token_types(kind: str, std: float) -> None:
    built = model(kind, position={"kind": "learned"}, token_types=8)
    spread([built.input.positions.weight], std)
    spread([built.input.token_types.weight], std)


@pytest.mark.parametrize("kind", ["xavier", "normal", "t5"])
def test_narrow_embeddings_images_and_classes(kind: str) -> None:
    """xavier tables by their own width; what leads to the model's width is as any hidden matrix, classes as a vocabulary."""
    narrow, pixels = 24, 2 * 8 * 8
    hidden = {"xavier": glorot(M, narrow), "normal": 0.05, "t5": narrow**-0.5}[kind]
    table = {"xavier": narrow**-0.5, "normal": 0.05, "t5": 1.0}[kind]
    built = model(kind, embedding_width=narrow, position={"kind": "learned"})
    spread([built.input.projection.weight], hidden)
    spread([built.embedding.weight], table)
    spread([built.input.positions.weight], table)
    assert (built.input.projection.bias == 0).all()

    output = {"xavier": M**-0.5, "normal": 0.05, "t5": M**-0.5}[kind]
    token = {"xavier": M**-0.5, "normal": 0.05, "t5": 1.0}[kind]
    projection = {"xavier": glorot(M, pixels), "normal": 0.05, "t5": pixels**-0.5}[kind]
    built = model(
        kind, "encoder", vocabulary=None, context=10, head={"kind": "classes", "labels": 90, "transform": True},
        input={"kind": "patches", "image": 24, "patch": 8, "channels": 2},
    )  # fmt: skip
    spread([built.embedding.projection.weight], projection)
    spread([built.embedding.class_token], token)
    spread([built.head.weight], output)
    spread([built.head.dense.weight], {"xavier": glorot(M, M), "normal": 0.05, "t5": M**-0.5}[kind])
    assert not built.head.bias.any()
    assert not built.head.dense.bias.any()
    assert not built.embedding.projection.bias.any()


def test_projections_of_global_tokens_start_as_the_others() -> None:
    built = model(
        "t5", "encoder", attention={"pattern": "window(2, 2) | global_tokens(first=1)", "global_projections": True}
    )
    found = [block.attention.global_query_key_value.weight.split([H * D, K * D, K * D]) for block in built.stack.blocks]
    spread([matrices[0] for matrices in found], M**-0.5)
    spread([matrix for matrices in found for matrix in matrices[1:]], M**-0.5)
    built = model("t5", "encoder", attention={"scale": 1.0, "global_projections": True})
    spread([block.attention.global_query_key_value.weight[: H * D] for block in built.stack.blocks], (M * D) ** -0.5)


@pytest.mark.parametrize(("kind", "std"), [("xavier", M**-0.5), ("normal", 0.05), ("t5", M**-0.5)])
def test_relative_biases(kind: str, std: float) -> None:
    spread([model(kind, position={"kind": "t5"}).stack.relative.weight], std)


def test_depth_scaling_counts_the_residual_branches_of_each_stack() -> None:
    built = model("depth_scaled", "encoder_decoder", decoder_layers=5)
    encoder, decoder = parts(built.encoder), parts(built.decoder)
    spread(encoder["output"] + encoder["down"], 0.05 / (2 * L) ** 0.5)
    spread(decoder["output"] + decoder["down"], 0.05 / (3 * 5) ** 0.5)
    spread(decoder["query"] + decoder["key"], 0.05)


def test_t5_queries_make_scores_of_unit_variance_whatever_the_scale() -> None:
    for scale, std in ((1.0, (M * D) ** -0.5), (None, M**-0.5), (0.5, 2 * (M * D) ** -0.5)):
        spread(parts(model("t5", attention={"scale": scale}).stack)["query"], std)


def test_a_tied_vocabulary_starts_as_the_embedding() -> None:
    built = model("t5")
    assert built.head.weight is built.embedding.weight
    spread([built.head.weight], 1.0)


def test_no_parameter_is_left_as_it_was() -> None:
    """Every parameter starts as a number that `initialize` wrote: rows of NaN before it are gone after it."""
    from triune.models.initialization import initialize

    images: dict[str, Any] = {"input": {"kind": "patches", "image": 8, "patch": 4}, "context": 5, "vocabulary": None}
    images |= {"head": {"kind": "classes", "transform": True}, "attention": {"global_projections": True}}
    tokens: dict[str, Any] = {"token_types": 2, "tie_embeddings": False, "embedding_width": 24}
    for family, more in (("encoder", tokens), ("decoder", tokens), ("encoder_decoder", tokens), ("encoder", images)):
        for position in ("learned", "t5", "rotary"):
            built = model("normal", family, position={"kind": position}, **more)
            with torch.no_grad():
                for parameter in built.parameters():
                    parameter.fill_(float("nan"))
            initialize(built, built.config)
            for name, parameter in built.named_parameters():
                assert torch.isfinite(parameter).all(), name

"""The closed forms of the cost model equal what built models hold and do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from triune.attention.expression import parse
from triune.errors import UserError
from triune.models import cost
from triune.models.factory import build, resolve

torch.set_num_threads(1)

TINY: dict[str, Any] = {"vocabulary": 40, "context": 32, "width": 32, "layers": 2, "heads": 4}
FAMILIES = ["encoder", "decoder", "encoder_decoder"]


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4]))
    family = draw(st.sampled_from(FAMILIES))
    placement = draw(st.sampled_from(["post", "pre", "sandwich"]))
    flag = st.booleans()
    kinds = ["relu", "gelu", "gelu_tanh", "silu", "relu_squared", "swiglu", "geglu", "geglu_tanh"]
    position = st.sampled_from(["sinusoidal", "learned", "rotary", "alibi", "t5", "none"])
    tree: dict[str, Any] = {
        "family": family,
        "vocabulary": draw(st.integers(1, 90)),
        "context": draw(st.integers(1, 50)),
        "width": draw(st.sampled_from([16, 32, 48])),
        "layers": draw(st.integers(1, 3)),
        "heads": heads,
        "key_value_heads": draw(st.sampled_from([None, *(k for k in (1, 2, 4) if heads % k == 0)])),
        "head_width": draw(st.sampled_from([None, 6, 8])),
        "attention": {"qk_norm": draw(flag)},
        "position": {"kind": draw(position)},
        "norm": {
            "kind": draw(st.sampled_from(["layer", "rms"])),
            "placement": placement,
            "bias": draw(flag),
            "embedding": draw(flag),
            "final": draw(st.sampled_from([None, True, False])),
            "skip_first": placement != "post" and draw(flag),
        },
        "feed_forward": {"kind": draw(st.sampled_from(kinds)), "width": draw(st.sampled_from([None, 20]))},
        "head": draw(st.sampled_from(["vocabulary", "classes"])),
        "embedding_width": draw(st.sampled_from([None, None, 8, 24])),
        "parallel": placement != "post" and family != "encoder_decoder" and draw(flag),
        "bias": draw(flag),
        "qkv_bias": draw(st.sampled_from([None, True, False])),
        "tie_embeddings": draw(flag),
        "token_types": draw(st.integers(0, 2)),
    }
    if tree["position"]["kind"] == "learned":
        tree["position"]["offset"] = draw(st.integers(0, 2))
    if family == "encoder_decoder":
        tree["decoder_layers"] = draw(st.sampled_from([None, 1, 3]))
    if family == "encoder":
        tree["attention"]["global_projections"] = draw(flag)
    if family == "encoder" and draw(st.integers(0, 3)) == 0:
        tree |= draw(images())
    if tree["head"] == "vocabulary":
        tree["head"] = {name: draw(flag) for name in ("transform", "transform_bias", "bias")}
    elif tree["head"] == "classes":
        pools = st.sampled_from(["last", "mean", "none"])
        tree["head"] = {
            "kind": "classes",
            "labels": draw(st.integers(1, 5)),
            "pool": draw(pools),
            "transform": draw(flag),
        }
    return tree


@st.composite
def images(draw: st.DrawFn) -> dict[str, Any]:
    """What an encoder of images has in place of tokens."""
    sides, patch, token = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.booleans())
    patches = {"image": sides * patch, "patch": patch, "channels": draw(st.integers(1, 3)), "class_token": token}
    rest = {"head": "classes", "vocabulary": None, "embedding_width": None, "token_types": 0}
    return {"input": {"kind": "patches", **patches}, "context": sides * sides + token, **rest}


def on_meta(tree: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return build(tree)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(configs())
def test_parameters_are_those_of_the_built_model(tree: dict[str, Any]) -> None:
    try:
        model = on_meta(tree)
    except UserError:  # a combination that does not fit together
        assume(False)
    found = sorted(tuple(parameter.shape) for parameter in model.parameters())
    assert sorted(weight.shape for weight in cost.weights(model.config)) == found
    counted = cost.parameters(model.config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.embedding + counted.non_embedding == counted.total
    blocks = sorted(tuple(p.shape) for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2)
    matrices = sorted(w.shape for w in cost.weights(model.config) if w.in_block and len(w.shape) == 2)
    assert matrices == blocks


def counted_by_torch(model: torch.nn.Module, inputs: dict[str, torch.Tensor], predicted: int, *, backward: bool) -> int:
    """FLOPs of one pass, as torch counts the matrix products that are run."""
    targets = torch.zeros_like(inputs["inputs"])
    weights = torch.zeros(targets.shape)
    weights.view(-1)[:predicted] = 1.0
    with FlopCounterMode(display=False) as counter:
        loss = model.head.loss(model(**inputs), targets, weights)
        if backward:
            loss.total.backward()
    return counter.get_total_flops()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"key_value_heads": 2, "head_width": 12},
    "gated": {"feed_forward.kind": "swiglu", "norm.kind": "rms", "bias": False, "tie_embeddings": False},
    "masked head": {"head.transform": True, "head.bias": True, "position": {"kind": "learned"}},
    "t5": {"position": {"kind": "t5"}},
    "narrow": {"embedding_width": 12, "head.transform": True},
    "narrow, untied": {"embedding_width": 12, "head.transform": True, "tie_embeddings": False},
    "tokens' classes": {"head": {"kind": "classes", "labels": 3, "pool": "none", "transform": True}},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts(family: str, variant: str) -> None:
    """Equal to the last FLOP. The counter sees products of matrices and no more, as the convention has it.

    The reference backend multiplies every pair and masks afterwards, so the pairs that the causal pattern drops are added here.
    """
    batch, length, source, predicted = 2, 12, 7, 6
    overrides = {"family": family, "attention.backend": "reference", **VARIANTS[variant]}
    model = build(TINY, **overrides)
    inputs = {"inputs": torch.randint(40, (batch, length))}
    if family == "encoder_decoder":
        inputs["source"] = torch.randint(40, (batch, source))
    share = predicted / (batch * length)
    source_length = source if family == "encoder_decoder" else None
    expected = cost.flops(model.config, length, source_length=source_length, predicted_share=share)
    dropped = 0 if family == "encoder" else 2 * (length * length - parse("causal()").kept(length, length))
    masked = 4 * model.config.heads * model.config.resolved_head_width * dropped
    vocabulary = 2 * predicted * model.head.weight.numel()
    # the head makes its gradients in the forward pass: that of hidden states by mm, that of the vocabulary by addmm_, which
    # the counter does not know
    forward = counted_by_torch(model, inputs, predicted, backward=False) - vocabulary
    assert batch * (expected.forward + masked) == forward
    training = counted_by_torch(model, inputs, predicted, backward=True) + vocabulary
    assert batch * (expected.training + 3 * masked) == training


@pytest.mark.parametrize(("pool", "class_token"), [("first", True), ("mean", False)])
def test_flops_of_an_image_are_those_that_torch_counts(pool: str, class_token: bool) -> None:
    """A class token is read by no patch projection, and one vector of an image by the classes."""
    patches = {"kind": "patches", "image": 12, "patch": 4, "channels": 2, "class_token": class_token}
    model = build(
        {"width": 32, "layers": 2, "heads": 4}, family="encoder", input=patches, context=9 + class_token,
        position={"kind": "learned"}, attention={"backend": "reference"},
        head={"kind": "classes", "labels": 7, "pool": pool, "transform": True},
    )  # fmt: skip
    pictures, labels = torch.randn(3, 2, 12, 12), torch.tensor([0, 3, 6])
    with FlopCounterMode(display=False) as counter:
        model.head.loss(model(pictures), labels, torch.ones(3))
    vocabulary = 2 * 3 * model.head.weight.numel()  # the head makes its gradient in the forward pass, as above
    assert 3 * cost.flops(model.config, 9 + class_token).forward == counter.get_total_flops() - vocabulary


def test_flops_of_global_projections() -> None:
    """What asks globally costs a projection more; no pair more, since a global token's ordinary query is not needed."""
    pattern = "window(2, 2) | global_tokens(first=1)"
    plain = resolve({**TINY, "family": "encoder", "attention": {"pattern": pattern}})
    own = resolve(plain, **{"attention.global_projections": True})
    before, after = cost.flops(plain, 32).parts, cost.flops(own, 32).parts
    assert after["attention"] - before["attention"] == 2 * 2 * 32 * 3 * 32 * 32
    assert after["attention scores"] == before["attention scores"]


def test_flops_follow_the_pattern_of_each_head() -> None:
    settings = {**TINY, "family": "decoder", "heads": 4}
    whole = {**settings, "attention": {"pattern": "causal()"}}
    split = {**settings, "attention": {"pattern": ["per_head(causal(), window(2, 0))", "causal()"]}}
    pairs = [cost.flops(resolve(tree), 32).parts["attention scores"] for tree in (whole, split)]
    config = resolve(split)
    every, near = parse("causal()").kept(32, 32), parse("window(2, 0)").kept(32, 32)
    first, others = (config.layers + 1) // 2, config.layers // 2
    pair = 4 * config.resolved_head_width
    assert pairs[0] == pair * config.layers * 4 * every
    assert pairs[1] == pair * (first * (2 * every + 2 * near) + others * 4 * every)


def test_flops_follow_the_pattern() -> None:
    full = cost.flops(resolve({**TINY, "family": "encoder"}), 32).parts
    window = cost.flops(
        resolve({**TINY, "family": "encoder", "attention": {"pattern": ["full()", "window(2, 2)"]}}), 32
    ).parts
    assert full["attention scores"] == 4 * 32 * 2 * 32 * 32
    assert window["attention scores"] == 4 * 32 * (32 * 32 + 32 * 5 - 6)
    assert {name: value for name, value in full.items() if name != "attention scores"} == {
        name: value for name, value in window.items() if name != "attention scores"
    }


def test_per_token_is_per_row_over_the_tokens_read() -> None:
    config = resolve({**TINY, "family": "encoder_decoder"})
    row = cost.flops(config, 8, source_length=24)
    assert cost.flops_per_token(config, 8, source_length=24) == row.training / 32 == 3 * row.forward_per_token


def test_palm_convention() -> None:
    """GPT-2 small at 1,024 by hand: N without positions = 124,439,808 - 1024 * 768; 6 N + 12 * 12 * 768 * 1024."""
    config = resolve("configs/model/gpt2-small.yaml")
    assert cost.flops_per_token_palm(config, 1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    # the exact count is below: half of the pairs, no biases or norms
    assert 0.9 < cost.flops_per_token(config, 1024) / cost.flops_per_token_palm(config, 1024) < 0.95
    with pytest.raises(ValueError, match="encoder_decoder"):
        cost.flops_per_token_palm(resolve({**TINY, "family": "encoder_decoder"}), 8)


def test_a_source_is_asked_for_and_refused() -> None:
    with pytest.raises(ValueError, match="source_length is None"):
        cost.flops(resolve({**TINY, "family": "encoder_decoder"}), 8)
    with pytest.raises(ValueError, match="source_length is 8"):
        cost.flops(resolve(TINY), 8, source_length=8)


def _saved_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps, parameters left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"feed_forward.kind": "swiglu", "norm.kind": "rms", "key_value_heads": 1},
        {"norm.placement": "post", "position": {"kind": "learned"}, "norm.embedding": True},
        {"norm.placement": "sandwich", "position": {"kind": "none"}},
        {"position": {"kind": "t5"}},
        {"dropout": 0.1, "feed_forward.dropout": 0.1},
        {"parallel": True},
    ],
    ids=lambda overrides: ",".join(overrides) or "default",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_that_autograd_keeps(family: str, overrides: dict[str, Any]) -> None:
    """Within 6 %: left out are two statistics a norm and token, rotary tables and ids, and the embeddings' own norm and dropout."""
    if family == "encoder_decoder" and "parallel" in overrides:
        pytest.skip("its blocks have three branches, one after the other")
    model = build({**TINY, "width": 64, "layers": 4}, family=family, **overrides)
    inputs = {"inputs": torch.randint(40, (3, 32))}
    source = 16 if family == "encoder_decoder" else None
    if source:
        inputs["source"] = torch.randint(40, (3, source))
    estimated = cost.memory(model.config, batch=3, length=32, source_length=source).parts["activations"]
    assert estimated / _saved_bytes(model, inputs) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_parallel_branches_share_the_input_of_their_norms(family: str) -> None:
    """What autograd keeps less of, to the byte: one residual stream in fp32 a block."""
    models = [build({**TINY, "layers": 3}, family=family, parallel=parallel) for parallel in (False, True)]
    inputs = {"inputs": torch.randint(40, (3, 32))}
    saved = [_saved_bytes(model, inputs) for model in models]
    estimated = [cost.memory(model.config, batch=3, length=32).parts["activations"] for model in models]
    assert saved[0] - saved[1] == estimated[0] - estimated[1] == 3 * 3 * 32 * 32 * 4


def test_memory_by_precision_and_checkpointing() -> None:
    config = resolve({**TINY, "layers": 8, "tie_embeddings": False})
    count = cost.parameters(config).total
    full = cost.memory(config, batch=4, length=32).parts
    mixed = cost.memory(config, batch=4, length=32, precision="bf16-mixed").parts
    pure = cost.memory(config, batch=4, length=32, precision="bf16-true").parts
    assert (full["parameters"], full["gradients"], full["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert (mixed["parameters"], pure["parameters"], pure["optimizer"]) == (4 * count, 2 * count, 4 * count)
    assert pure["activations"] < mixed["activations"] < full["activations"]
    assert mixed["copies of weights"] == 2 * sum(
        w.size for w in cost.weights(config) if w.in_block and len(w.shape) == 2
    )
    fewer = cost.memory(resolve(config, activation_checkpointing=True), batch=4, length=32).parts
    assert fewer["activations"] < full["activations"] / 3
    assert cost.memory(config, batch=4, length=32).total == sum(full.values())
    with pytest.raises(ValueError, match="int8"):
        cost.memory(config, batch=4, length=32, precision="int8")


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
def test_optimizer_numbers_are_those_that_it_keeps(kind: cost.OptimizerKind) -> None:
    model = build({**TINY, "family": "encoder_decoder", "position": {"kind": "t5"}})
    named = list(model.named_parameters())
    matrices = [p for name, p in named if "blocks." in name and p.ndim == 2]
    rest = [p for name, p in named if not ("blocks." in name and p.ndim == 2)]
    optimizers = {
        "adamw": lambda: [torch.optim.AdamW(model.parameters())],
        "muon": lambda: [torch.optim.Muon(matrices), torch.optim.AdamW(rest)],
        "adafactor": lambda: [torch.optim.Adafactor(model.parameters())],
    }[kind]()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    kept = 0
    for optimizer in optimizers:
        optimizer.step()
        for state in optimizer.state.values():
            kept += sum(v.numel() for name, v in state.items() if torch.is_tensor(v) and name != "step")
    assert cost.optimizer_numbers(model.config, kind) == kept


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_cache_bytes(family: str) -> None:
    model = build({**TINY, "layers": 3}, family=family, key_value_heads=2).eval()
    cache = model.new_cache(1, capacity=5)
    memory = {"memory": torch.randn(1, 5, 32)} if family == "encoder_decoder" else {}
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache, **memory)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cost.key_value_bytes_per_token(model.config, itemsize=4) * 5 == held


def test_imports_no_torch() -> None:
    code = "import sys, triune.models.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

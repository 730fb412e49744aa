"""Adapters on models of every family: no effect at first, gradients to them alone, exact merging, and which layers get one."""

import copy

import pytest
import torch
from torch import nn

from triune.adapters import attach, detach, merge, merged_copy
from triune.adapters.config import LoraAdapter
from triune.adapters.low_rank import AdaptedLinear
from triune.adapters.placement import adapted, merged_tensors, targets
from triune.errors import UserError
from triune.models import build
from triune.models.layers.linear import Linear

KINDS = {
    "lora": LoraAdapter(rank=3, alpha=5.0),
    "dora": LoraAdapter(kind="dora", rank=3, alpha=5.0),
    "rslora": LoraAdapter(rank=3, alpha=5.0, rank_stabilised=True),
    "rank-stabilised dora": LoraAdapter(kind="dora", rank=3, alpha=5.0, rank_stabilised=True),
}
BASE = {"vocabulary": 40, "context": 32, "width": 32, "layers": 2, "heads": 4, "key_value_heads": 2}
MODELS = {
    "encoder": {"family": "encoder", "head": {"transform": True, "bias": True}, "norm": {"placement": "post"}},
    "decoder": {"family": "decoder", "feed_forward": {"kind": "swiglu"}, "bias": False},
    "encoder_decoder": {"family": "encoder_decoder", "decoder_layers": 3, "position": {"kind": "t5"}},
    "classes": {"family": "encoder", "head": {"kind": "classes", "labels": 3, "transform": True}},
    "reversible": {"family": "decoder", "reversible": True},
    "reversible both": {"family": "encoder_decoder", "reversible": True, "key_value_heads": 4},
    "checkpointed": {"family": "encoder_decoder", "activation_checkpointing": True},
    "chunked": {"family": "decoder", "feed_forward": {"chunk": 4}},
    "nsa": {"family": "decoder", "attention": {"pattern": "nsa(compress=4, stride=4, select=4, top=3, window=4)"}},
    "global projections": {
        "family": "encoder",
        "attention": {"pattern": "window(2, 2) | global_tokens(first=1)", "global_projections": True},
        "key_value_heads": 4,
    },
    "untied": {"family": "decoder", "tie_embeddings": False, "parallel": True},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name, dtype=torch.float32):
    model = build(BASE | MODELS[name]).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def rows(name):
    """Arguments of a forward pass."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 40, (2, 12), generator=draw)
    across = MODELS[name]["family"] == "encoder_decoder"
    return {"inputs": inputs} | ({"source": torch.randint(0, 40, (2, 9), generator=draw)} if across else {})


def scores(model, name):
    return model.head.logits(model(**rows(name)))


@torch.no_grad()
def trained(model):
    """As if the adapters had been trained."""
    for layer in adapted(model).values():
        layer.lora_b.normal_(0, 0.3)
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.mul_(1 + 0.3 * torch.rand_like(layer.lora_magnitude))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
@torch.no_grad()  # a bias that is frozen is added by another kernel than one that trains
def test_a_new_adapter_changes_nothing_to_the_bit(name, kind):
    model = make(name)
    before = scores(model, name)
    names = dict(model.named_parameters())
    attach(model, KINDS[kind])
    assert torch.equal(scores(model, name), before)
    now = dict(model.named_parameters())
    assert names.keys() <= now.keys()  # the base loads as ever
    assert all(now[n] is p for n, p in names.items())
    assert {n.rpartition(".")[2] for n in now.keys() - names.keys()} <= {"lora_a", "lora_b", "lora_magnitude"}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_nor_under_bf16_autocast(kind):
    model = make("decoder")
    with torch.autocast("cpu", torch.bfloat16):
        before = scores(model, "decoder")
        attach(model, KINDS[kind])
        after = scores(model, "decoder")
    assert after.dtype == before.dtype
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradients_flow_to_adapters_and_new_heads_alone(name, kind):
    model = make(name).train()
    attach(model, KINDS[kind])
    trained(model)
    scores(model, name).square().sum().backward()
    has = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    head = {n for n, _ in model.named_parameters() if n.startswith("head.")} if name == "classes" else set()
    assert has == {n for n, _ in model.named_parameters() if ".lora_" in n} | head
    assert {n for n, p in model.named_parameters() if p.requires_grad} == has


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in MODELS for kind in ("lora", "dora")), *(("decoder", kind) for kind in KINDS)],
)
def test_merging_is_exact(name, kind):
    """In fp64 a sum of some hundred products of numbers about 1 is rounded by 1e-14; two layers of such sums, and exp of scores of
    some tens, enlarge that to 1e-13. 1e-12 is far below what any mistake makes (bf16 merging: 1e-2, a wrong scale: 1)."""
    model = make(name, torch.float64)
    before = scores(model, name)
    attach(model, KINDS[kind])
    trained(model)
    apart = scores(model, name)
    plain = merged_copy(model)
    assert not adapted(plain)
    assert torch.equal(scores(model, name), apart)  # the model in training is left as it was
    assert (scores(plain, name) - apart).abs().max() <= 1e-12 * apart.abs().max()
    assert (before - apart).abs().max() > 1e-2 * apart.abs().max()  # the adapter shows
    merge(model)
    assert torch.equal(scores(model, name), scores(plain, name))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == make(name).state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_merging_is_rounding(kind):
    """fp32 rounds 5e8 times as much as fp64: 1e-12 becomes 5e-4 at most; measured 1e-6."""
    model = make("decoder")
    attach(model, KINDS[kind])
    trained(model)
    apart = scores(model, "decoder")
    merge(model)
    assert (scores(model, "decoder") - apart).abs().max() <= 1e-5 * apart.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_checkpoint_merge_as_the_model_does(kind):
    model = make("encoder_decoder")
    attach(model, KINDS[kind])
    trained(model)
    tensors = merged_tensors(model.state_dict(), KINDS[kind])
    merge(model)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_detaching_gives_the_base_back():
    model = make("decoder").eval()
    before = copy.deepcopy(model.state_dict())
    attach(model, KINDS["dora"])
    trained(model)
    detach(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    attach(model, KINDS["lora"])  # and takes another


def test_adapted_rows_do_not_leak_in_a_cache():
    """A decoder with an adapter writes token by token what it computes at once."""
    model = make("decoder").eval()
    attach(model, KINDS["dora"])
    trained(model)
    inputs = rows("decoder")["inputs"]
    with torch.no_grad():
        cache = model.new_cache(2)
        pieces = torch.cat([model(inputs[:, i : i + 1], cache=cache) for i in range(inputs.shape[1])], dim=1)
        assert (pieces - model(inputs)).abs().max() < 1e-5  # the tolerance of test_models_cache


@pytest.mark.parametrize("name", ["checkpointed", "reversible", "chunked"])
def test_recomputed_activations_give_the_same_gradients(name):
    """Of plain autograd in fp64: the order of sums is all that differs. The stack with two streams has its own reference in
    test_models_reversible; here adapters are compared with the gradient of the merged weight, which is B^T dW and dW A^T."""
    config = KINDS["lora"]
    model = make(name, torch.float64).train()
    attach(model, config)
    trained(model)
    plain = merged_copy(model).train()
    scores(model, name).square().sum().backward()
    scores(plain, name).square().sum().backward()
    for layer, module in adapted(model).items():
        slope = plain.get_submodule(layer).weight.grad * config.scale
        for got, expected in (
            (module.lora_a.grad, module.lora_b.detach().T @ slope),
            (module.lora_b.grad, slope @ module.lora_a.detach().T),
        ):
            assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


# ---- which layers -------------------------------------------------------------------------------------------------


def short(names):
    return sorted({".".join(step for step in name.split(".") if not step.isdigit()) for name in names})


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        (
            "encoder_decoder",
            ["all"],
            "decoder.blocks.attention.output decoder.blocks.attention.query_key_value decoder.blocks.cross_attention.key_value "
            "decoder.blocks.cross_attention.output decoder.blocks.cross_attention.query decoder.blocks.feed_forward.down "
            "decoder.blocks.feed_forward.up encoder.blocks.attention.output encoder.blocks.attention.query_key_value "
            "encoder.blocks.feed_forward.down encoder.blocks.feed_forward.up",
        ),
        ("decoder", ["attention"], "stack.blocks.attention.output stack.blocks.attention.query_key_value"),
        ("decoder", ["feed_forward"], "stack.blocks.feed_forward.down stack.blocks.feed_forward.up"),
        ("encoder", ["head", "feed_forward"], "head.dense stack.blocks.feed_forward.down stack.blocks.feed_forward.up"),
        ("encoder_decoder", ["cross_attention"],
         "decoder.blocks.cross_attention.key_value decoder.blocks.cross_attention.output decoder.blocks.cross_attention.query"),
        ("encoder_decoder", ["decoder.blocks.*.attention.output"], "decoder.blocks.attention.output"),
        ("nsa", ["attention"],
         "stack.blocks.attention.native_sparse.gate stack.blocks.attention.native_sparse.key.down "
         "stack.blocks.attention.native_sparse.key.up stack.blocks.attention.native_sparse.value.down "
         "stack.blocks.attention.native_sparse.value.up stack.blocks.attention.output stack.blocks.attention.query_key_value"),
    ],
)  # fmt: skip
def test_targets_in_words(name, wanted, expected):
    assert short(targets(make(name), wanted)) == expected.split()


def test_all_is_every_linear_layer_of_the_blocks():
    for name in MODELS:
        model = make(name)
        inside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".blocks." in n]
        assert list(targets(model, ["all"])) == inside
        assert all(isinstance(model.get_submodule(n), Linear) for n in inside)


def test_one_block_by_its_number():
    model = make("decoder")
    assert attach(model, LoraAdapter(targets=["stack.blocks.1.feed_forward.down"])) == [
        "stack.blocks.1.feed_forward.down"
    ]
    assert list(adapted(model)) == ["stack.blocks.1.feed_forward.down"]
    assert isinstance(model.stack.blocks[1].feed_forward.down, AdaptedLinear)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "decoder",
            {"targets": ["cross_attention"]},
            r"adapter.targets: 'cross_attention' names no linear layer of this decoder; did you mean 'attention'\?; it has all, "
            r"attention, feed_forward, stack.blocks.\*.attention.query_key_value, ",
        ),
        ("decoder", {"targets": ["all", "q_proj"]}, r"'q_proj' names no linear layer of this decoder"),
        ("decoder", {"targets": ["head"]}, r"'head' names a table over the vocabulary, .* it takes no adapter"),
        ("decoder", {"targets": ["embedding"]}, r"'embedding' names a table over the vocabulary"),
        ("decoder", {"rank": 33}, r"adapter.rank: 33 is above 32, the smaller width of stack.blocks.0.attention.query_key_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_leaves_the_model(name, settings, message):
    model = make(name)
    with pytest.raises(UserError, match=message):
        attach(model, LoraAdapter(**settings))
    assert not adapted(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_is_refused():
    model = make("decoder")
    attach(model, KINDS["lora"])
    with pytest.raises(UserError, match="the model has one already"):
        attach(model, KINDS["dora"])

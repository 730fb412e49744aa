"""What trains and how fast: frozen parts, rates by depth for each family and optimizer, and resuming with adapters."""

import copy

import pytest
import torch

from triune.adapters import attach, merge, prepare
from triune.adapters.config import LoraAdapter, TuningConfig
from triune.errors import UserError
from triune.exchange.model_directory import describe
from triune.models import build
from triune.training.config import Adafactor, AdamW, Muon
from triune.training.optimizers import build_optimizer, layer_shares
from triune.training.weights import read_weights
from triune.tree import to_tree

BASE = {"vocabulary": 40, "context": 32, "width": 32, "layers": 3, "heads": 4}
CLASSES = {"family": "encoder", "position": {"kind": "learned"}, "token_types": 2, "norm": {"embedding": True}}
CLASSES |= {"head": {"kind": "classes", "labels": 3, "transform": True}}
BOTH = {"family": "encoder_decoder", "decoder_layers": 2, "position": {"kind": "t5"}}


def make(**settings):
    torch.manual_seed(0)
    return build(BASE | settings)


def trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def under(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


# ---- what trains --------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_leaves_the_head():
    model = make(**CLASSES)
    line = prepare(model, TuningConfig(freeze="backbone"))
    assert trains(model) == {"head.dense.weight", "head.dense.bias", "head.weight", "head.bias"}
    assert line == "trains 0.0012M of 0.042M parameters (frozen: backbone)"


def test_a_tied_table_is_backbone_too():
    model = make(family="encoder", head={"transform": True, "bias": True})
    prepare(model, TuningConfig(freeze="backbone"))
    assert trains(model) == {"head.bias", "head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"}


def test_a_head_that_is_the_token_table_alone_leaves_nothing():
    with pytest.raises(UserError, match=r"tuning.freeze: backbone leaves nothing to train"):
        prepare(make(family="decoder"), TuningConfig(freeze="backbone"))


def test_frozen_embeddings():
    model = make(**CLASSES)
    prepare(model, TuningConfig(freeze="embeddings"))
    assert trains(model) == under(model, "stack.", "head.")
    both = make(**BOTH)
    prepare(both, TuningConfig(freeze="embeddings"))
    assert trains(both) == under(both, "encoder.", "decoder.") - under(both, "encoder.relative", "decoder.relative")


def test_first_blocks_of_each_stack():
    model = make(**BOTH)
    line = prepare(model, TuningConfig(freeze="embeddings", freeze_layers=1))
    frozen = under(
        model, "embedding.", "encoder.blocks.0.", "decoder.blocks.0.", "encoder.relative", "decoder.relative"
    )
    assert trains(model) == {name for name, _ in model.named_parameters()} - frozen
    assert line.endswith("(frozen: embeddings and the first 1 blocks of each stack)")
    with pytest.raises(UserError, match=r"tuning.freeze_layers: 3 is more than the 2 blocks of the decoder"):
        prepare(make(**BOTH), TuningConfig(freeze="embeddings", freeze_layers=3))


def test_nothing_frozen():
    model = make(**CLASSES)
    assert prepare(model, TuningConfig()) == "trains 0.042M of 0.042M parameters"
    assert trains(model) == {name for name, _ in model.named_parameters()}


def test_an_adapter_says_what_it_trains():
    model = make(**CLASSES)
    line = prepare(model, TuningConfig(layer_decay=0.9), LoraAdapter(rank=4, kind="dora", rank_stabilised=True))
    assert line == "trains 0.0082M of 0.049M parameters (dora, rank 4, rank-stabilised)"
    assert under(model, "head.") <= trains(model)
    with pytest.raises(UserError, match=r"tuning.freeze: backbone with adapter.kind: lora"):
        prepare(make(**CLASSES), TuningConfig(freeze="backbone"), LoraAdapter())


# ---- how fast -----------------------------------------------------------------------------------------------------


def rates(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def expected(name):
    """Distances from the top, written out for a stack of three blocks and the pair of three and two."""
    table = {
        "stack.blocks.2.": 1, "stack.blocks.1.": 2, "stack.blocks.0.": 3,
        "encoder.blocks.2.": 1, "encoder.blocks.1.": 2, "encoder.blocks.0.": 3,
        "decoder.blocks.1.": 1, "decoder.blocks.0.": 2,
        "stack.norm.": 0, "encoder.norm.": 0, "decoder.norm.": 0, "head.": 0,
        "embedding.": 4, "input.": 4, "encoder.relative": 4, "decoder.relative": 4,
    }  # fmt: skip
    return next(distance for prefix, distance in table.items() if name.startswith(prefix))


@pytest.mark.parametrize(
    "settings", [{"family": "decoder", "tie_embeddings": False}, CLASSES, BOTH], ids=lambda s: s["family"]
)
@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=2, kind="dora")], ids=["full", "dora"])
@pytest.mark.parametrize("config", [AdamW(learning_rate=0.5), Adafactor(learning_rate=0.5)], ids=lambda c: c.kind)
def test_rates_of_each_family(settings, adapter, config):
    model = make(**settings)
    prepare(model, TuningConfig(), adapter)
    found = rates(build_optimizer(config, model, layer_decay=0.8), model)
    assert found == {name: 0.5 * 0.8 ** expected(name) for name in trains(model)}


@pytest.mark.parametrize("settings", [{"family": "decoder"}, BOTH], ids=lambda s: s["family"])
def test_rates_of_muon(settings):
    model = make(**settings)
    config = Muon(learning_rate=0.5, adamw_learning_rate=0.25)
    found = rates(build_optimizer(config, model, layer_decay=0.8), model)
    for name, parameter in model.named_parameters():
        peak = 0.5 if ".blocks." in name and parameter.ndim == 2 else 0.25
        assert found[name] == peak * 0.8 ** expected(name)


@pytest.mark.parametrize("config", [AdamW(), Adafactor(), Muon()], ids=lambda c: c.kind)
def test_without_a_decay_the_groups_are_as_they_were(config):
    model = make(**CLASSES)
    groups = build_optimizer(config, model).param_groups
    assert [group["lr"] for group in groups] == [
        group["lr"] for group in build_optimizer(config, model, layer_decay=1.0).param_groups
    ]
    assert len(groups) == (3 if isinstance(config, Muon) else 2)


@pytest.mark.parametrize(
    "config", [AdamW(learning_rate=0.5), Adafactor(learning_rate=0.5), Muon(learning_rate=0.5)], ids=lambda c: c.kind
)
def test_a_schedule_multiplies_each_rate(config):
    model = make(**CLASSES)
    optimizer = build_optimizer(config, model, layer_decay=0.5)
    peaks = rates(optimizer, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in (2, 3):
        optimizer.step()
        scheduler.step()
        assert rates(optimizer, model) == {name: rate / step for name, rate in peaks.items()}
    assert optimizer.param_groups[0]["lr"] == max(
        group["lr"] for group in optimizer.param_groups
    )  # the one that is logged


def test_weight_decay_stays_with_matrices():
    model = make(**CLASSES)
    prepare(model, TuningConfig(), LoraAdapter(kind="dora"))
    optimizer = build_optimizer(AdamW(weight_decay=0.3), model, layer_decay=0.9)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if decay} == {
        name for name in trains(model) if name.endswith(("lora_a", "lora_b", "head.weight", "dense.weight"))
    }


def test_muon_leaves_the_factors_of_an_adapter_to_adamw():
    model = make(family="decoder")
    attach(model, LoraAdapter())
    found = rates(build_optimizer(Muon(learning_rate=0.5, adamw_learning_rate=0.25), model), model)
    assert set(found.values()) == {0.25}


def test_shares_of_names():
    names = ["embedding.weight", "blocks.0.weight", "blocks.1.weight", "norm.weight", "head.weight"]
    assert layer_shares(names, 0.5) == dict(zip(names, [0.125, 0.25, 0.5, 1.0, 1.0], strict=True))
    assert layer_shares(["embedding.weight", "head.weight"], 0.5) == {"embedding.weight": 0.5, "head.weight": 1.0}


# ---- training and resuming ----------------------------------------------------------------------------------------


def steps(model, optimizer, scheduler, first, count):
    losses = []
    for step in range(first, first + count):
        draw = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, 40, (3, 9), generator=draw)
        torch.manual_seed(step)  # of dropout
        across = {"source": inputs} if model.config.family == "encoder_decoder" else {}
        output = model.head.loss(model(inputs, **across), (inputs + 7) % 40, torch.ones(3, 9))
        (output.total / output.weight).backward()
        losses.append(output.total.item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses


def start(config, adapter, settings):
    model = make(**settings).train()
    prepare(model, TuningConfig(), adapter)
    optimizer = build_optimizer(config, model, layer_decay=0.9)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


@pytest.mark.parametrize(
    ("config", "adapter", "settings"),
    [
        (AdamW(), LoraAdapter(dropout=0.2), {"family": "decoder", "reversible": True}),
        (Adafactor(), LoraAdapter(kind="dora"), BOTH),
        (Muon(), LoraAdapter(kind="dora", dropout=0.2), {"family": "encoder", "head": {"transform": True}}),
        (Muon(), None, {"family": "decoder"}),
    ],
    ids=["adamw", "adafactor", "muon", "full"],
)
def test_a_resumed_run_goes_on_to_the_bit(config, adapter, settings):
    model, optimizer, scheduler = start(config, adapter, settings)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = steps(model, optimizer, scheduler, 0, 3)
    saved = copy.deepcopy([part.state_dict() for part in (model, optimizer, scheduler)])
    assert len(saved[1]["state"]) == len(trains(model))
    expected_losses = steps(model, optimizer, scheduler, 3, 3)
    assert expected_losses[-1] != losses[0]
    again = start(config, adapter, settings)
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    assert steps(*again, 3, 3) == expected_losses
    assert all(torch.equal(p, again[0].get_parameter(name)) for name, p in model.named_parameters())
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in frozen.items())  # the base has not moved


def test_a_checkpoint_with_an_adapter_is_read_as_the_merged_model(tmp_path):
    """An unfinished run has no model/ yet: `init.from` and `triune generate` read its checkpoint."""
    adapter = LoraAdapter(kind="dora", rank=3)
    model, optimizer, scheduler = start(AdamW(learning_rate=0.1), adapter, {"family": "decoder"})
    steps(model, optimizer, scheduler, 0, 2)
    facts = {**describe(model, objective="causal", tokenizer=""), "adapter": to_tree(adapter)}
    state = {"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, "triune": facts}
    torch.save(state, tmp_path / "checkpoint.ckpt")
    found = read_weights(tmp_path / "checkpoint.ckpt").tensors
    merge(model)
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())
    assert len(found) == len(model.state_dict())


def test_adapters_learn():
    """30 steps of mapping each token to another one, over a frozen random base whose table is large enough to tell tokens apart."""
    model, optimizer, _ = start(AdamW(learning_rate=1e-2), LoraAdapter(rank=8), {"family": "encoder"})
    with torch.no_grad():
        model.embedding.weight.mul_(25)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    losses = steps(model, optimizer, still, 0, 30)
    assert losses[-1] < 0.5 * losses[0]

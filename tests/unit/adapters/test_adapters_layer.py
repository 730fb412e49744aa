"""One adapted layer against its formula written out, and its settings."""

import math

import pytest
import torch
import torch.nn.functional as F

from triune.adapters.config import LoraAdapter, TuningConfig
from triune.adapters.low_rank import AdaptedLinear
from triune.errors import UserError
from triune.models.layers import linear
from triune.models.layers.linear import Linear
from triune.tree import construct, to_tree


def layer(*, bias=True, dora=False, rank=3, scale=1.7, dropout=0.0, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = AdaptedLinear(Linear(7, 5, bias=bias).to(dtype), rank=rank, scale=scale, dropout=dropout, dora=dora)
    with torch.no_grad():
        made.lora_b.normal_()
        if dora:
            made.lora_magnitude.mul_(1 + torch.rand(5, dtype=dtype))
    return made


def written_out(made, x):
    """The formulas of the papers, with the norm's gradient detached for DoRA."""
    delta = made.scale * made.lora_b @ made.lora_a
    weight = made.weight + delta
    if made.lora_magnitude is not None:
        lengths = weight.square().sum(1).sqrt().detach()
        weight = (made.lora_magnitude / lengths).unsqueeze(1) * weight
    return F.linear(x, weight, made.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_equals_the_formula_in_outputs_and_gradients(bias, dora):
    """fp64: sums of 7 and 3 products, in another order: 1e-15 each."""
    made = layer(bias=bias, dora=dora)
    x = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    wanted = [x, made.lora_a, made.lora_b] + ([made.lora_magnitude] if dora else [])
    ours, theirs = made(x), written_out(made, x)
    assert (ours - theirs).abs().max() < 1e-13
    upstream = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        assert (got - expected).abs().max() < 1e-12


def test_starts_as_the_papers_say():
    torch.manual_seed(0)
    made = AdaptedLinear(Linear(400, 300), rank=50, scale=1.0, dora=True)
    assert made.lora_b.abs().max() == 0
    bound = 400**-0.5  # Kaiming's uniform with a = sqrt(5), as torch's linear layers and PEFT
    assert made.lora_a.abs().max() <= bound
    assert made.lora_a.detach().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # 20,000 draws
    assert torch.equal(made.lora_magnitude, torch.linalg.vector_norm(made.weight, dim=1))
    assert made.training


def test_attaching_draws_a_alone():
    """The base's weights are not drawn anew: the next numbers are those after A."""
    torch.manual_seed(3)
    plain = Linear(7, 5)
    torch.manual_seed(4)
    AdaptedLinear(plain, rank=3, scale=1.0)
    after = torch.rand(3)
    torch.manual_seed(4)
    torch.nn.init.kaiming_uniform_(torch.empty(3, 7), a=math.sqrt(5))
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("dora", [True, False])
def test_dropout_is_before_a_alone_and_in_training_alone(dora):
    made = layer(dora=dora, dropout=0.5)
    x = torch.randn(6, 7, dtype=torch.float64)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    torch.manual_seed(1)
    found = made(x)
    gain = 1.0
    if dora:
        gain = made.lora_magnitude / (made.weight + made.scale * made.lora_b @ made.lora_a).norm(dim=1)
    expected = gain * (x @ made.weight.T + made.scale * dropped @ made.lora_a.T @ made.lora_b.T) + made.bias
    assert (found - expected).abs().max() < 1e-13
    assert (made.eval()(x) - written_out(made, x)).abs().max() < 1e-13


@pytest.mark.parametrize("dora", [True, False])
def test_a_row_of_zeros_stays_finite(dora):
    plain = Linear(7, 5)
    with torch.no_grad():
        plain.weight[2] = 0
    made = AdaptedLinear(plain, rank=3, scale=1.0, dora=dora)
    x = torch.randn(4, 7)
    out = made(x)
    assert torch.equal(out, F.linear(x, plain.weight, plain.bias))
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in (made.lora_a, made.lora_b))
    assert bool(torch.isfinite(made.plain(merged=True).weight).all())


@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("quick", [True, False])
def test_bf16_autocast_rounds_as_bf16_does(dora, quick, monkeypatch):
    """Four roundings to bf16 (2^-9 of numbers up to 20) one after another: 0.16."""
    monkeypatch.setattr(linear, "cpu_multiplies_bfloat16", lambda: not quick)
    made = layer(dora=dora, dtype=torch.float32)
    x = torch.randn(9, 7)
    exact = written_out(made, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 4 * 2**-9 * exact.abs().max().clamp_min(10)
    found.float().sum().backward()
    assert made.lora_a.grad.dtype == torch.float32


def test_a_frozen_weight_keeps_no_activation(monkeypatch):
    """Under bf16 autocast without AMX: what the backward pass of the base product holds is its weight alone."""
    monkeypatch.setattr(linear, "cpu_multiplies_bfloat16", lambda: False)
    plain = Linear(7, 5, bias=False)
    plain.weight.requires_grad_(False)
    x = torch.randn(9, 7, requires_grad=True)
    kept = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t),
    ):
        out = plain(x)
    assert kept == [(5, 7)]
    out.float().sum().backward()
    rounded = plain.weight.bfloat16().float()
    assert torch.equal(x.grad, rounded.sum(0).expand(9, 7)) or (x.grad - rounded.sum(0)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (LoraAdapter(rank=16, alpha=8), 0.5),
        (LoraAdapter(rank=16, alpha=8, rank_stabilised=True), 2.0),
        (LoraAdapter(kind="dora", rank=4, alpha=4), 1.0),
    ],
)
def test_scale(config, scale):
    assert config.scale == scale


def test_settings_go_through_yaml():
    tree = {"kind": "dora", "rank": 4, "alpha": 8.0, "targets": ["attention", "feed_forward"]}
    config = construct(LoraAdapter, tree, "adapter")
    assert config == LoraAdapter(kind="dora", rank=4, alpha=8.0, targets=["attention", "feed_forward"])
    assert construct(LoraAdapter, to_tree(config), "adapter") == config


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (LoraAdapter, {"rank": 0}, r"adapter.rank: 0 must be 1 or more"),
        (LoraAdapter, {"alpha": 0.0}, r"adapter.alpha: 0 must be above 0"),
        (LoraAdapter, {"dropout": 1.0}, r"adapter.dropout: 1 must be 0 or more and below 1"),
        (LoraAdapter, {"targets": []}, r"adapter.targets: \[\] leaves nothing to train"),
        (LoraAdapter, {"kind": "lorax"}, r"adapter.kind: 'lorax' is not one of lora, dora; did you mean 'lora'"),
        (TuningConfig, {"layer_decay": 0.0}, r"tuning.layer_decay: 0 must be above 0 and at most 1"),
        (TuningConfig, {"layer_decay": 1.1}, r"tuning.layer_decay: 1.1 must be above 0 and at most 1"),
        (TuningConfig, {"freeze_layers": -1}, r"tuning.freeze_layers: -1 must be 0 or more"),
        (TuningConfig, {"freeze_layers": 2}, r"tuning.freeze_layers: 2 .* set tuning.freeze: embeddings"),
        (TuningConfig, {"freeze_layers": 2, "freeze": "backbone"}, r"backbone freezes all blocks"),
        (TuningConfig, {"freeze": "all"}, r"tuning.freeze: 'all' is not one of none, embeddings, backbone"),
    ],
)
def test_bad_settings_say_what_to_do(cls, values, message):
    with pytest.raises(UserError, match=message):
        construct(cls, values, "adapter" if cls is LoraAdapter else "tuning")

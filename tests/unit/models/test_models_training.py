"""What differs between training and evaluation, and activation checkpointing."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.models.block import Block, Residual
from triune.models.factory import build, resolve
from triune.models.layers.drop import StochasticDepth

TINY: dict[str, Any] = {"vocabulary": 40, "width": 32, "layers": 3, "heads": 4, "context": 16}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 40, shape)


@pytest.mark.parametrize("option", ["dropout", "attention.dropout", "feed_forward.dropout", "stochastic_depth"])
def test_dropout_is_on_in_training_and_off_in_evaluation(option: str) -> None:
    settings = {**TINY, "initialization": {"kind": "normal", "std": 0.3}}
    model, plain = build(settings, **{option: 0.5}), build(settings)
    plain.load_state_dict(model.state_dict())
    inputs = ids(4, 12)
    model.train()
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))
    assert torch.equal(model(inputs), plain(inputs))  # plain is in training mode, without any dropout
    with torch.no_grad():
        cache = model.new_cache(4)
        steps = [model(inputs[:, i : i + 1], cache=cache) for i in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), plain(inputs).detach(), rtol=1e-4, atol=1e-4)


def test_stochastic_depth_drops_whole_rows_and_keeps_the_mean() -> None:
    """Kept rows are scaled by 1 / 0.75. Of 4,000 rows, the share kept is within 5 sigma = 5 sqrt(0.75 x 0.25 / 4000) = 0.034."""
    drop = StochasticDepth(0.25).train()
    out = drop(torch.ones(4000, 3, 2))
    assert ((out == 0).all((1, 2)) | (out == 1 / 0.75).all((1, 2))).all()
    assert abs(float((out[:, 0, 0] != 0).float().mean()) - 0.75) < 0.034
    x = torch.ones(2, 3, 2)
    assert drop.eval()(x) is x


def test_stochastic_depth_grows_linearly_to_the_last_block() -> None:
    model = build(TINY, stochastic_depth=0.3)
    drops = [block.attention_residual.drop.probability for block in model.stack.blocks]
    assert drops == pytest.approx([0.1, 0.2, 0.3])
    assert drops == [block.feed_forward_residual.drop.probability for block in model.stack.blocks]


def test_a_dropped_branch_leaves_the_residual_stream() -> None:
    residual = Residual(resolve(TINY), drop=1 - 1e-12).train()
    x = torch.randn(2, 3, 32)
    assert torch.equal(residual(x, lambda y: y + 1), x)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("position", ["rotary", "t5"])
def test_activation_checkpointing_changes_neither_outputs_nor_gradients(family: str, position: str) -> None:
    settings = {**TINY, "family": family, "position": {"kind": position}, "dropout": 0.2, "stochastic_depth": 0.2}
    plain, saved = build(settings), build(settings, activation_checkpointing=True)
    saved.load_state_dict(plain.state_dict())
    inputs, layout = ids(2, 12), SequenceLayout.packed([[5, 6], [12]], 12)
    more = {}
    if family == "encoder_decoder":
        more = {"source": ids(2, 9), "source_layout": SequenceLayout.packed([[4, 4], [9]], 9)}
    outputs, runs = [], []
    for model in (plain, saved):
        count = [0]
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        torch.manual_seed(1)
        hidden = model(inputs, layout, **more)
        hidden.square().sum().backward()
        outputs.append(hidden)
        runs.append(count[0])
    assert torch.equal(*outputs)
    for one, other in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert runs[1] == 2 * runs[0]  # each block ran again in the backward pass
    saved.eval()(inputs, layout, **more)


def test_seed_decides_the_weights() -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(build(TINY).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not torch.equal(weights(3)[0], weights(4)[0])


def compiled_and_eager(family: str, backend: str) -> None:
    """Forward and gradients, packed. The compiler fuses and reorders fp32 sums of up to 32 terms: 1e-4 as for the cache."""
    torch._dynamo.reset()
    model: Any = build(TINY, family=family, layers=1, norm={"kind": "rms"})
    nn.init.normal_(model.embedding.weight)
    compiled = torch.compile(model, dynamic=False, backend=backend)
    inputs, layout = ids(2, 8), SequenceLayout.packed([[3, 5], [8]], 8)
    more = {"source": ids(2, 6)} if family == "encoder_decoder" else {}
    grads = []
    for runner in (model, compiled):
        model.zero_grad()
        hidden = runner(inputs, layout, **more)
        hidden.square().mean().backward()
        grads.append([hidden.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_traced_for_the_compiler_equals_eager(family: str) -> None:
    compiled_and_eager(family, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile wants a C++ compiler")
def test_compiled_equals_eager() -> None:
    compiled_and_eager("decoder", "inductor")

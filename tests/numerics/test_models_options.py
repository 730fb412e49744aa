"""Options of the block and its inputs, by hand in fp64 or against a road that does without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import decode, ids, strong, tiny
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.attention.patterns import causal
from triune.models.block import Block
from triune.models.factory import build, resolve
from triune.models.layers.attention import Surroundings
from triune.models.layers.embedding import drop_masked
from triune.models.layers.position import sinusoidal

M, T, MASK = 32, 9, 3
TIGHT = {"rtol": 1e-12, "atol": 1e-12}  # fp64: some hundred operations of 1e-16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_a_parallel_block_reads_one_input_twice(placement: str) -> None:
    """x + attention(norm(x)) + feed_forward(norm'(x)); sandwich normalises each branch before it is added."""
    config = resolve({"width": M, "heads": 4, "parallel": True, "norm": {"placement": placement}})
    block = Block(config, causal()).double()
    strong(block)
    layout = SequenceLayout.plain_rows(2, T)
    around = Surroundings(query_layout=layout, key_layout=layout)
    x = torch.randn(2, T, M, dtype=torch.float64)
    expected = x
    for residual, function in (
        (block.attention_residual, lambda y: block.attention(y, around)),
        (block.feed_forward_residual, block.feed_forward),
    ):
        norm = residual.norm_before
        branch = function(F.layer_norm(x, (M,), norm.weight, norm.bias, norm.eps))
        if placement == "sandwich":
            branch = residual.norm_branch(branch)
        expected = expected + branch
    torch.testing.assert_close(block(x, around), expected, **TIGHT)


def test_a_parallel_decoder_goes_on_from_its_cache() -> None:
    """The bounds of test_models_cache.py: sums in another order, in fp32."""
    model, inputs = tiny("decoder", parallel=True), ids(2, 12)
    with torch.no_grad():
        full = model(inputs)
    torch.testing.assert_close(decode(model, inputs, [4, 1, 1, 3, 3]), full, rtol=1e-5, atol=2e-5)


def test_activation_checkpointing_of_parallel_blocks_changes_nothing() -> None:
    inputs, found = ids(2, 12), []
    for again in (False, True):
        torch.manual_seed(1)
        model = tiny("decoder", parallel=True, activation_checkpointing=again, dropout=0.1).train()
        torch.manual_seed(2)
        model(inputs).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_halves_are_the_columns_of_2017_in_another_order() -> None:
    positions = torch.tensor([[0, 1, 7, 4095]])
    usual, halves = sinusoidal(positions, M, 500.0), sinusoidal(positions, M, 500.0, "halves")
    assert torch.equal(halves, torch.cat([usual[..., 0::2], usual[..., 1::2]], dim=-1))
    exact = 4095 / 500.0 ** (torch.arange(0, M, 2, dtype=torch.float64) / M)
    assert float((halves[0, 3, : M // 2] - exact.sin()).abs().max()) <= 2**-25  # one rounding of a number below 1
    assert halves.dtype == torch.float32


def test_narrow_embeddings_are_normalised_before_they_are_projected() -> None:
    model = build(
        {"vocabulary": 40, "width": M, "layers": 1, "heads": 4, "context": 16}, family="encoder", embedding_width=12,
        norm={"embedding": True}, position={"kind": "learned"}, token_types=2, scale_embeddings=True, head={"transform": True},
    ).double().eval()  # fmt: skip
    strong(model)
    read = model.input
    inputs = ids(2, 9)
    summed = model.embedding.weight[inputs] * 12**0.5 + read.positions.weight[:9] + read.token_types.weight[0]
    normal = F.layer_norm(summed, (12,), read.norm.weight, read.norm.bias, read.norm.eps)
    expected = normal @ read.projection.weight.T + read.projection.bias
    layout = SequenceLayout.plain_rows(2, 9)
    torch.testing.assert_close(read(model.embedding(inputs), layout), expected, **TIGHT)
    hidden = torch.randn(2, 9, M, dtype=torch.float64)
    inner = model.head.norm(F.gelu(hidden @ model.head.dense.weight.T + model.head.dense.bias))
    assert inner.shape[-1] == 12
    torch.testing.assert_close(model.head.logits(hidden), inner @ model.embedding.weight.T, **TIGHT)


LAYOUTS = {
    "plain": SequenceLayout.plain_rows(2, 8),
    "right": SequenceLayout.from_lengths([8, 5], 8),
    "left": SequenceLayout.from_lengths([8, 5], 8, side="left"),
    "packed": SequenceLayout.packed([[3, 4], [2, 2, 3]], 8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_masked_tokens_are_dropped(name: str) -> None:
    """Token by token: 0 at a mask, else times 0.88 / (1 - share of masks among its document's tokens)."""
    layout, vectors = LAYOUTS[name], torch.randn(2, 8, 4, dtype=torch.float64)
    masked = torch.rand(2, 8) < 0.4
    masked[0] = False  # a row without masks is scaled as well
    found = drop_masked(vectors, masked, layout, 0.12)
    for row in range(2):
        for place in range(8):
            document = layout.documents[row] == layout.documents[row, place]
            if layout.documents[row, place] < 0:
                continue
            share = masked[row][document].double().mean()
            factor = torch.zeros(()) if masked[row, place] else 0.88 / (1 - share)
            torch.testing.assert_close(found[row, place], vectors[row, place] * factor, **TIGHT)


def test_token_dropout_reads_the_ids_of_masks() -> None:
    config: dict[str, Any] = {"vocabulary": 40, "width": M, "layers": 1, "heads": 4, "family": "encoder"}
    model = build(config, token_dropout={"mask": MASK, "rate": 0.25}).eval()
    plain = build(config).eval()
    plain.load_state_dict(model.state_dict())
    inputs = ids(1, 8).masked_fill_(torch.tensor([[False] * 6 + [True] * 2]), MASK)
    inputs[0, :6] = torch.tensor([4, 5, 6, 7, 8, 9])
    with torch.no_grad():
        assert torch.equal(model(inputs), _scaled(plain, inputs, 1.0))  # a quarter is masked, as in training
        inputs[0, 6] = 10
        torch.testing.assert_close(model(inputs), _scaled(plain, inputs, 0.75 / 0.875), rtol=1e-5, atol=1e-5)


def _scaled(model: Any, inputs: Tensor, factor: float) -> Tensor:
    vectors = model.embedding(inputs) * factor * (inputs != MASK).unsqueeze(-1)
    layout = SequenceLayout.plain_rows(*inputs.shape)
    return model.stack(model.input(vectors, layout), layout)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_the_stream_stays_wide_under_autocast(family: str) -> None:
    narrow = build(
        {"vocabulary": 40, "width": M, "layers": 2, "heads": 4},
        family=family,
        embedding_width=12,
        head={"transform": True},
    )
    images = build(
        {"width": M, "layers": 2, "heads": 4}, family="encoder", context=5,
        input={"kind": "patches", "image": 8, "patch": 4}, head={"kind": "classes"},
    )  # fmt: skip
    no_token = {"context": 4, "input.class_token": False, "head.pool": "mean"}
    bare = build(images.config, **no_token)
    source = {"source": ids(2, 5)} if family == "encoder_decoder" else {}
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(ids(2, 9), **source).dtype == torch.float32
        assert images(torch.randn(2, 3, 8, 8)).dtype == torch.float32
        assert bare(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_every_parameter_of_the_options_gets_a_gradient() -> None:
    model = build(
        {"vocabulary": 40, "width": M, "layers": 2, "heads": 4, "context": 16}, family="encoder", parallel=True,
        embedding_width=12, head={"transform": True, "bias": True}, position={"kind": "learned"},
        attention={"pattern": "window(2, 2) | global_tokens(first=1)", "global_projections": True, "qk_norm": True},
    )  # fmt: skip
    model.head.logits(model(ids(2, 16))).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())

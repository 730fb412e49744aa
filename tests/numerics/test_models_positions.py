"""Rotary angles and their scalings, ALiBi and T5's buckets, against their formulas and `transformers`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from tiny_models import ids, tiny
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from triune.attention.bias import t5_bucket
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import causal, full
from triune.models.config import RotaryPosition, T5Position
from triune.models.factory import resolve
from triune.models.layers.attention import MultiHeadAttention, Surroundings
from triune.models.layers.position import RelativeBias, Rotary, rotate

D = 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def rotary(base: float = 10000.0, **settings: Any) -> Rotary:
    return Rotary(RotaryPosition(base=base, **settings), base=base, head_width=D, context=2048)


def turned(x: Tensor, positions: Tensor, **settings: Any) -> Tensor:
    """x [T, D] at `positions` [T]."""
    return rotate(x[None, :, None], rotary(**settings)(positions[None]))[0, :, 0]


def test_rotary_turns_each_pair_by_its_angle() -> None:
    """(x_i + j x_{i + D/2}) exp(j pos base^(-2i/D)) in complex fp64 (Su et al. 2021, eq. 34 with the halves as pairs).

    An fp32 angle of up to 900 radians is off by at most 900 x 2^-24 x 3 = 1.6e-4.
    """
    positions = torch.tensor([0, 1, 5, 63, 900])
    x = torch.randn(5, D)
    frequency = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = positions[:, None].double() * frequency
    z = torch.complex(x[:, : D // 2].double(), x[:, D // 2 :].double()) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned(x, positions).double(), torch.cat([z.real, z.imag], 1), rtol=0, atol=1e-3)
    torch.testing.assert_close(turned(x, positions)[:4].double(), torch.cat([z.real, z.imag], 1)[:4], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"scaling": "linear", "factor": 4.0}, {"scaling": "ntk", "factor": 4.0}], ids=str
)
def test_rotary_scores_depend_on_the_distance_only(settings: dict[str, Any]) -> None:
    q, k = torch.randn(1, D), torch.randn(1, D)

    def score(m: int, n: int) -> float:
        return float((turned(q, torch.tensor([m]), **settings) * turned(k, torch.tensor([n]), **settings)).sum())

    for m, n in ((7, 3), (20, 20), (2, 30)):
        for shift in (1, 50, 300):  # angles up to 330: off by 330 x 3 x 2^-24 = 6e-5 of |q| |k|, about 16
            assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=2e-3)
    assert max(abs(score(7, 3) - score(7, n)) for n in range(4, 7)) > 1e-2


def test_rotary_keeps_lengths_and_position_zero() -> None:
    x, positions = torch.randn(4, D), torch.tensor([0, 3, 17, 200])
    y = turned(x, positions)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
    assert torch.equal(y[0], x[0])


def test_rotary_fraction_turns_the_first_numbers_only() -> None:
    x, positions = torch.randn(4, D), torch.tensor([1, 3, 17, 200])
    y = turned(x, positions, fraction=0.25)
    assert torch.equal(y[:, 4:], x[:, 4:])
    narrow = Rotary(RotaryPosition(), base=10000.0, head_width=4, context=2048)
    torch.testing.assert_close(y[:, :4], rotate(x[None, :, None, :4], narrow(positions[None]))[0, :, 0])


def test_rotary_gradient_is_the_turn_back() -> None:
    x = torch.randn(2, 5, 3, D, dtype=torch.float64, requires_grad=True)
    angles = rotary(scaling="yarn", factor=4.0)(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]))
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles), (x,))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_model_does_not_round_the_angles(half: torch.dtype) -> None:
    model = tiny("decoder").to(half)
    angle = next(iter(model.stack.rotaries.values()))(torch.tensor([[1000]]))
    exact = next(iter(tiny("decoder").stack.rotaries.values()))(torch.tensor([[1000]]))
    assert torch.equal(angle.cosine, exact.cosine)
    assert model(ids(1, 4)).dtype == half


def frequencies(base: float) -> list[float]:
    return [base ** (-2 * i / D) for i in range(D // 2)]


def test_linear_scaling_divides_positions() -> None:
    expected = torch.tensor([f / 8 for f in frequencies(10000.0)])
    torch.testing.assert_close(rotary(scaling="linear", factor=8.0).frequencies(), expected)


def test_ntk_scaling_keeps_the_shortest_and_stretches_the_longest_wavelength() -> None:
    got = rotary(scaling="ntk", factor=8.0).frequencies()
    torch.testing.assert_close(got, torch.tensor(frequencies(10000.0 * 8 ** (D / (D - 2)))))
    torch.testing.assert_close(got[0], torch.tensor(1.0))
    torch.testing.assert_close(got[-1], torch.tensor(frequencies(10000.0)[-1] / 8))


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize(("base", "factor", "original"), [(10000.0, 4.0, 512), (500000.0, 8.0, 8192), (500.0, 2.0, 64)])
def test_scalings_equal_transformers(kind: str, base: float, factor: float, original: int) -> None:
    """Tolerance: a power, two divisions and an interpolation in fp32, 2^-24 each: 1e-6 is 16 of them."""
    config = transformers.LlamaConfig(
        hidden_size=D * 2, num_attention_heads=2, head_dim=D, max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": kind, "rope_theta": base, "factor": factor, "original_max_position_embeddings": original,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
    )  # fmt: skip
    theirs, magnitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours = rotary(base=base, scaling=kind, factor=factor, original_context=original)
    torch.testing.assert_close(ours.frequencies(), theirs, rtol=1e-6, atol=1e-9)
    assert float(ours(torch.tensor([[0]])).cosine.max()) == pytest.approx(magnitude, rel=1e-6)


def test_original_context_defaults_to_the_context_over_the_factor() -> None:
    assert rotary(scaling="yarn", factor=4.0).original_context == 512
    given = rotary(scaling="yarn", factor=4.0, original_context=512).frequencies()
    assert torch.equal(rotary(scaling="yarn", factor=4.0).frequencies(), given)


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_the_papers(heads: int) -> None:
    """softmax(q_i K^T / sqrt(d) - slope (i - j)) v, slopes 2^(-8 h / n) for n a power of two (Press et al. 2022, 3)."""
    slopes = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}[heads]
    config = resolve(
        {"vocabulary": 8, "width": heads * 4, "heads": heads, "position": {"kind": "alibi"}, "bias": False}
    )
    stack = tiny("decoder", "alibi", width=heads * 4, heads=heads, key_value_heads=None, layers=1).stack
    layer = MultiHeadAttention(config, causal()).eval()
    x = torch.randn(1, 9, heads * 4)
    layout = SequenceLayout.plain_rows(1, 9)
    around = stack._surroundings(layout, None, None)[0][0]
    q, k, v = layer.query_key_value(x)[0].unflatten(-1, (3, heads, 4)).unbind(1)
    scores = torch.einsum("thd,shd->hts", q, k) / 2
    distance = torch.arange(9)[:, None] - torch.arange(9)[None, :]
    scores = scores - torch.tensor(slopes)[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v).flatten(1) @ layer.output.weight.T
    torch.testing.assert_close(layer(x, around)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 12), (16, 100)])
def test_t5_buckets_equal_transformers(bidirectional: bool, buckets: int, farthest: int) -> None:
    distance = torch.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
    ours = t5_bucket(distance, buckets=buckets, max_distance=farthest, bidirectional=bidirectional)
    assert torch.equal(ours, theirs)


def test_t5_bias_is_added_to_unscaled_scores_and_shared_by_the_layers_of_a_stack() -> None:
    model = tiny("encoder_decoder", "t5", attention={"scale": 1.0})
    assert [name for name, _ in model.named_parameters() if "relative" in name] == [
        "encoder.relative.weight",
        "decoder.relative.weight",
    ]
    assert model.encoder.relative.bidirectional
    assert not model.decoder.relative.bidirectional
    layout = SequenceLayout.plain_rows(1, 6)
    _, across = model.decoder._surroundings(layout, layout, None)
    assert across.bias is None  # cross-attention has no positions
    assert across.rotation is None
    table = RelativeBias(T5Position(buckets=8, max_distance=12), heads=4, bidirectional=True)
    with torch.no_grad():
        table.weight.copy_(model.encoder.relative.weight)
    config = resolve({"vocabulary": 8, "width": 32, "heads": 4, "bias": False, "attention": {"scale": 1.0}})
    layer = MultiHeadAttention(config, full()).eval()
    x = torch.randn(1, 6, 32)
    got = layer(x, Surroundings(query_layout=layout, key_layout=layout, bias=table(layout, layout)))[0]
    q, k, v = layer.query_key_value(x)[0].unflatten(-1, (3, 4, 8)).unbind(1)
    distance = torch.arange(6)[None, :] - torch.arange(6)[:, None]
    bias = table.weight[t5_bucket(distance, buckets=8, max_distance=12, bidirectional=True)].permute(2, 0, 1)
    weights = (torch.einsum("thd,shd->hts", q, k) + bias).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v).flatten(1) @ layer.output.weight.T
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary", "yarn", "alibi", "t5"])
def test_the_order_of_tokens_counts_and_without_positions_it_does_not(position: str) -> None:
    inputs = ids(1, 8)
    order = torch.tensor([0, 5, 2, 3, 4, 1, 6, 7])
    with torch.no_grad():
        model = tiny("encoder", position)
        assert not torch.allclose(model(inputs[:, order]), model(inputs)[:, order], atol=1e-2)
        model = tiny("encoder", "none")
        torch.testing.assert_close(model(inputs[:, order]), model(inputs)[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_t5_biases_are_the_same_shared_and_by_rule(family):
    """A stack whose layers skip tiles never makes the scores of all pairs; the table's gradient stays the same."""
    torch.manual_seed(0)
    patterns = {"encoder": "window(9, 5)", "decoder": "window(9, 0)", "encoder_decoder": "window(9, 5)"}
    model = tiny(family, "t5", **{"attention.pattern": patterns[family]}).double()
    rows = ids(2, 40)
    source = {"source": ids(2, 40)} if family == "encoder_decoder" else {}
    found = []
    for backend in ("sdpa", "blocked"):
        model.zero_grad()
        for module in model.modules():
            if hasattr(module, "backend"):
                module.backend = backend
        hidden = model(rows, **source)
        hidden.square().sum().backward()
        tables = [parameter.grad for name, parameter in model.named_parameters() if "relative" in name]
        assert all(table.abs().sum() > 0 for table in tables)
        found.append([hidden, *tables])
    for shared, ruled in zip(*found, strict=True):
        # some 100 roundings of fp64 along either way
        assert (shared - ruled).abs().max() <= 1e-12 * shared.abs().max()

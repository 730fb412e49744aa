"""What the papers define, written out, against the layers. In fp64, where rounding is 1e-16 and any wrong term shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.attention.patterns import causal, full
from triune.models.block import Block, Residual
from triune.models.config import FeedForwardConfig, ModelConfig, NormConfig
from triune.models.factory import resolve
from triune.models.layers.attention import MultiHeadAttention, Surroundings
from triune.models.layers.embedding import InputEmbedding
from triune.models.layers.feed_forward import FeedForward
from triune.models.layers.norm import RMSNorm, build_norm
from triune.models.layers.position import sinusoidal

B, T, S, M, H, D = 2, 7, 5, 24, 4, 6
TIGHT = {"rtol": 1e-10, "atol": 1e-12}  # some hundred fp64 roundings of 1e-16 each, of numbers near 1, with room


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def config(**settings: object) -> ModelConfig:
    return resolve({"vocabulary": 50, "width": M, "heads": H, "layers": 1, "context": 32, **settings})


def random(module: nn.Module) -> nn.Module:
    """In fp64, with weights that make every term count."""
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.1, 0.5)
    return module.eval()


def rows(length: int) -> SequenceLayout:
    return SequenceLayout.plain_rows(B, length)


def attention_formula(
    x: Tensor, memory: Tensor, w: list[Tensor], b: list[Tensor], *, heads: int, groups: int, masked: bool, scale: float
) -> Tensor:
    """Concat(head_1 .. head_h) W^O with head_i = softmax(Q_i K_i^T scale) V_i, one row, query and head at a time (3.2.2)."""
    out = torch.zeros(*x.shape[:2], heads * D, dtype=x.dtype)
    for row in range(x.shape[0]):
        for head in range(heads):
            mine, shared = slice(head * D, head * D + D), slice(head // groups * D, head // groups * D + D)
            q = x[row] @ w[0][mine].T + b[0][mine]
            k = memory[row] @ w[1][shared].T + b[1][shared]
            v = memory[row] @ w[2][shared].T + b[2][shared]
            for i in range(x.shape[1]):
                seen = i + 1 if masked else memory.shape[1]
                scores = torch.stack([q[i] @ k[j] * scale for j in range(seen)])
                weight = scores.exp() / scores.exp().sum()
                out[row, i, mine] = sum(weight[j] * v[j] for j in range(seen))
    return out @ w[3].T + b[3]


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_is_the_papers(key_value_heads: int, masked: bool) -> None:
    settings = config(key_value_heads=key_value_heads)
    layer = random(MultiHeadAttention(settings, causal() if masked else full()))
    x = torch.randn(B, T, M, dtype=torch.float64)
    sizes = [H * D, key_value_heads * D, key_value_heads * D]
    w = [*layer.query_key_value.weight.split(sizes), layer.output.weight]
    b = [*layer.query_key_value.bias.split(sizes), layer.output.bias]
    expected = attention_formula(
        x, x, w, b, heads=H, groups=H // key_value_heads, masked=masked, scale=1 / math.sqrt(D)
    )
    layout = rows(T)
    got = layer(x, Surroundings(query_layout=layout, key_layout=layout))
    torch.testing.assert_close(got, expected, **TIGHT)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_cross_attention_is_the_papers(scale: float | None) -> None:
    layer = random(MultiHeadAttention(config(key_value_heads=2, attention={"scale": scale}), full(), cross=True))
    x, memory = torch.randn(B, T, M, dtype=torch.float64), torch.randn(B, S, M, dtype=torch.float64)
    w = [layer.query.weight, *layer.key_value.weight.chunk(2), layer.output.weight]
    b = [layer.query.bias, *layer.key_value.bias.chunk(2), layer.output.bias]
    expected = attention_formula(
        x, memory, w, b, heads=H, groups=2, masked=False, scale=1 / math.sqrt(D) if scale is None else scale
    )
    got = layer(x, Surroundings(query_layout=rows(T), key_layout=rows(S)), memory=memory)
    torch.testing.assert_close(got, expected, **TIGHT)


def test_query_key_norm_is_per_head_before_the_product() -> None:
    settings = config(attention={"qk_norm": True}, norm={"kind": "rms"}, bias=False)
    layer = random(MultiHeadAttention(settings, full()))
    x = torch.randn(1, T, M, dtype=torch.float64)
    q, k, v = layer.query_key_value(x)[0].unflatten(-1, (3, H, D)).unbind(1)  # each [T, H, D]
    q = q / (q.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.query_norm.weight
    k = k / (k.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.key_norm.weight
    weights = torch.einsum("thd,shd->hts", q, k).div(math.sqrt(D)).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v).flatten(1) @ layer.output.weight.T
    layout = SequenceLayout.plain_rows(1, T)
    got = layer(x, Surroundings(query_layout=layout, key_layout=layout))[0]
    torch.testing.assert_close(got, expected, **TIGHT)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "relu": lambda x: x.clamp_min(0),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu_squared": lambda x: x.clamp_min(0) ** 2,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_feed_forward_is_the_papers(kind: str) -> None:
    layer = random(FeedForward(FeedForwardConfig(kind=kind, width=10), M, bias=True))
    x = torch.randn(B, T, M, dtype=torch.float64)
    act = ACTIVATIONS[kind]
    if kind in ("swiglu", "geglu", "geglu_tanh"):
        w, v = layer.up.weight[:10], layer.up.weight[10:]
        inner = act(x @ w.T + layer.up.bias[:10]) * (x @ v.T + layer.up.bias[10:])
    else:
        inner = act(x @ layer.up.weight.T + layer.up.bias)  # max(0, x W1 + b1) for relu (3.3)
    torch.testing.assert_close(layer(x), inner @ layer.down.weight.T + layer.down.bias, **TIGHT)


def test_sinusoidal_table_is_the_papers() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/M)), PE(pos, 2i + 1) = cos(the same).

    Tolerance: the angle is fp32 with two roundings and a power of 3 units: 5 x 2^-24 x position moves the sine by as much.
    """
    positions = torch.tensor([0, 1, 2, 10, 100, 511])
    table = sinusoidal(positions, M)
    for row, pos in enumerate(positions.tolist()):
        for i in range(M // 2):
            angle = pos / 10000 ** (2 * i / M)
            bound = 5 * 2**-24 * angle + 1e-7
            assert abs(float(table[row, 2 * i]) - math.sin(angle)) <= bound
            assert abs(float(table[row, 2 * i + 1]) - math.cos(angle)) <= bound


def test_embeddings_are_scaled_by_the_root_of_the_width_and_added_to_positions() -> None:
    layer = InputEmbedding(config(scale_embeddings=True, position={"kind": "sinusoidal"})).eval()
    vectors = torch.randn(B, T, M)
    torch.testing.assert_close(layer(vectors, rows(T)), vectors * math.sqrt(M) + sinusoidal(torch.arange(T), M))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("placement", ["post", "pre", "sandwich"])
def test_residual_is_the_papers(placement: str) -> None:
    residual = random(Residual(config(norm={"placement": placement}), drop=0.0))
    x, w = torch.randn(B, T, M, dtype=torch.float64), torch.randn(M, M, dtype=torch.float64)

    def sublayer(y: Tensor) -> Tensor:
        return y @ w

    if placement == "post":  # LayerNorm(x + Sublayer(x)) (Vaswani et al. 2017, 3.1)
        expected = layer_norm(x + sublayer(x), residual.norm_sum)
    elif placement == "pre":
        expected = x + sublayer(layer_norm(x, residual.norm_before))
    else:
        expected = x + layer_norm(sublayer(layer_norm(x, residual.norm_before)), residual.norm_branch)
    torch.testing.assert_close(residual(x, sublayer), expected, **TIGHT)


@pytest.mark.parametrize("cross", [False, True])
def test_block_is_attention_then_cross_attention_then_feed_forward(cross: bool) -> None:
    block = random(Block(config(norm={"placement": "post"}), causal(), cross=cross))
    x, memory = torch.randn(B, T, M, dtype=torch.float64), torch.randn(B, S, M, dtype=torch.float64)
    layout = rows(T)
    around = Surroundings(query_layout=layout, key_layout=layout)
    across = Surroundings(query_layout=layout, key_layout=rows(S))
    expected = layer_norm(x + block.attention(x, around), block.attention_residual.norm_sum)
    if cross:
        branch = block.cross_attention(expected, across, memory=memory)
        expected = layer_norm(expected + branch, block.cross_residual.norm_sum)
    expected = layer_norm(expected + block.feed_forward(expected), block.feed_forward_residual.norm_sum)
    got = block(x, around, memory=memory if cross else None, across=across if cross else None)
    torch.testing.assert_close(got, expected, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rms_norm_value_and_gradients(dtype: torch.dtype) -> None:
    """Against the formula by autograd in fp64.

    fp32: sums of 24 terms and some 10 roundings of 2^-24 each, of numbers up to 8. bf16: inputs are the same numbers and the
    work is fp32, so one rounding of 2^-9 of the result is left.
    """
    norm = RMSNorm(M, 1e-5)
    nn.init.normal_(norm.weight, 1.0, 0.5)
    if dtype == torch.float64:
        norm.double()
    x = (torch.randn(B, T, M) * 2).to(dtype).requires_grad_()
    gradient = torch.randn(B, T, M).to(dtype)
    norm(x).backward(gradient)
    x2, w2 = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    y2 = x2 / (x2.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w2
    y2.backward(gradient.double())
    bound = {torch.float64: 1e-13, torch.float32: 2**-18, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(norm(x).double(), y2, rtol=bound, atol=min(bound, 2**-18))
    torch.testing.assert_close(x.grad.double(), x2.grad, rtol=bound, atol=min(bound, 2**-18))
    torch.testing.assert_close(norm.weight.grad.double(), w2.grad, rtol=2**-18, atol=2**-18)
    assert norm(x).dtype == dtype


def test_rms_norm_gradients_by_finite_differences() -> None:
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(5, 1e-2).double()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(function, (x, weight))


def test_layer_norm_without_bias_has_none() -> None:
    assert build_norm(NormConfig(kind="layer", bias=False), M).bias is None
    assert isinstance(build_norm(NormConfig(kind="rms"), M), RMSNorm)

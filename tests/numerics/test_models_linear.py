"""The bf16 product through fp32's kernel equals autocast's own, in outputs and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.models.layers import linear
from triune.models.layers.linear import Linear

torch.set_num_threads(1)
#: a bf16 result is within half a unit in the last place, 2^-9 of its size, of the exact sum of rounded products;
#: two kernels that round once each differ by at most one unit, 2^-8. Sums in another order add fp32's rounding.
UNIT = 2.0**-8


def close(ours, theirs, scale):
    assert (ours.float() - theirs.float()).abs().max() <= UNIT * scale + 1e-6


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.integers(1, 9),
    fan_in=st.integers(1, 70),
    fan_out=st.integers(1, 70),
    bias=st.booleans(),
    rounded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_autocast(rows, fan_in, fan_out, bias, rounded, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "cpu_multiplies_bfloat16", lambda: False)
        torch.manual_seed(seed)
        layer = Linear(fan_in, fan_out, bias=bias)
        x = torch.randn(2, rows, fan_in, dtype=torch.bfloat16 if rounded else torch.float32, requires_grad=True)
        upstream = torch.randn(2, rows, fan_out).to(torch.bfloat16)
        parameters = [x, *layer.parameters()]
        with torch.autocast("cpu", torch.bfloat16):
            ours = layer(x)
            theirs = F.linear(x, layer.weight, layer.bias)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        close(ours, theirs, theirs.float().abs().max())
        got = torch.autograd.grad(ours, parameters, upstream)
        expected = torch.autograd.grad(theirs, parameters, upstream)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == other.dtype
            close(one, other, other.float().abs().max())


def test_outside_autocast_and_with_fast_bf16_it_is_torchs_own(monkeypatch):
    layer, x = Linear(5, 3), torch.randn(2, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    monkeypatch.setattr(linear, "cpu_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(linear._RoundedProduct, "apply", None)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)

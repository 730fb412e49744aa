"""Dropout of attention weights: on in training with the right share and mean, off otherwise, harmless to empty rows."""

import pytest
import torch

from triune.attention import SequenceLayout, block_local, causal, full
from triune.attention.backends import steps
from triune.attention.bias import AlibiBias
from triune.attention.choice import BACKENDS
from triune.attention.dispatch import attend

torch.set_num_threads(1)
BACKEND = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
B, H, T = 4, 4, 16


def weights(backend, rate, *, pattern=None, layout=None, draws=1, training=True, bias=None):
    """Attention weights [draws * B, H, T, T], read off with the unit matrix as values (so D = T)."""
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(B, H, T, T, generator=generator).repeat(draws, 1, 1, 1) for _ in range(2))
    return attend(
        query,
        key,
        torch.eye(T).expand(draws * B, H, T, T),
        pattern=pattern or full(),
        query_layout=layout,
        key_layout=layout,
        bias=bias,
        dropout=rate,
        training=training,
        backend=backend,
    )


@BACKEND
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_scale_and_mean(backend, rate):
    torch.manual_seed(0)
    draws = 200
    kept = weights(backend, 0.0)
    dropped = weights(backend, rate, draws=draws).view(draws, B, H, T, T)
    zeros = (dropped == 0).float()
    # a binomial share over n draws stands within 5 standard deviations of the rate: once in 1.7 million seeds it does not
    n = zeros.numel()
    assert abs(zeros.mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    # what is left is scaled by 1 / (1 - rate), up to the rounding of a product and a softmax
    alive = dropped != 0
    expected = (kept / (1 - rate)).expand_as(dropped)
    assert ((dropped - expected)[alive].abs() <= 32 * torch.finfo(torch.float32).eps * expected[alive] + 1e-7).all()
    # the mean over draws of w x Bernoulli(1 - rate) / (1 - rate) has deviation w sqrt(rate / (1 - rate) / draws)
    deviation = kept * (rate / (1 - rate) / draws) ** 0.5
    assert ((dropped.mean(0) - kept).abs() < 5.5 * deviation + 1e-6).all()


@BACKEND
def test_rows_heads_and_tiles_draw_for_themselves(backend, monkeypatch):
    """Four blocks of 128 queries in each of two heads of two rows, of which any two drop different weights."""
    monkeypatch.setattr(steps, "CPU_SCORES", 1)  # one head at a time
    torch.manual_seed(0)
    length, block = 512, 128
    value = torch.eye(length).expand(2, 2, -1, -1)
    query, key = torch.zeros(2, 2, 2, length, length)
    found = attend(query, key, value, pattern=block_local(block), dropout=0.5, training=True, backend=backend)
    tiles = found.unflatten(2, (4, block)).unflatten(-1, (4, block)).diagonal(dim1=2, dim2=4)  # [2, 2, block, block, 4]
    dropped = (tiles == 0).movedim(-1, 2).flatten(0, 2).flatten(1).float() * 2 - 1
    assert len(dropped) == 16
    # the mean product of n = 16,384 pairs of fair signs has deviation 1 / sqrt(n) = 1 / 128; equal tiles have 1
    alike = dropped @ dropped.mT / block**2 - torch.eye(16)
    assert alike.abs().max() < 6 / block


@BACKEND
def test_off_in_evaluation(backend):
    assert torch.equal(weights(backend, 0.5, training=False), weights(backend, 0.0, training=True))


@BACKEND
@pytest.mark.parametrize("bias", [None, AlibiBias(H)], ids=["no bias", "alibi"])
def test_rows_that_see_nothing_stay_zero(backend, bias):
    lengths = [0, 5, T, 1]
    for side in ("left", "right"):
        layout = SequenceLayout.from_lengths(lengths, T, side=side)
        for pattern in (causal(), full()):
            query = torch.randn(B, H, T, T, requires_grad=True)
            key, value = (torch.randn(B, 2, T, T, requires_grad=True) for _ in range(2))
            output = attend(
                query, key, value, pattern=pattern, query_layout=layout, key_layout=layout, bias=bias,
                dropout=0.3, training=True, backend=backend,
            )  # fmt: skip
            output.backward(torch.randn_like(output))
            for tensor in (output, query.grad, key.grad, value.grad):
                assert torch.isfinite(tensor).all()
                assert (tensor.transpose(1, 2)[layout.padding] == 0).all()
            assert (output.transpose(1, 2)[~layout.padding].abs().sum(-1) > 0).any()

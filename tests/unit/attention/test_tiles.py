"""The tile kernel against the definition, in outputs, log-sum-exps and gradients, and parts merged into one attention."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.attention.backends import tiles as module
from triune.attention.backends.tiles import merge, tile_attention

torch.set_num_threads(1)
# sums of at most 9 terms of order 10 in fp64, a few of them in a row
ERROR = 1e-12


def definition(query, key, value, mask, scale):
    scores = (query @ key.mT * scale).masked_fill(~mask, -torch.inf)
    dead = ~mask.any(-1)
    lse = scores.masked_fill(dead[..., None], 0.0).logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(dead[..., None], 0.0)
    return weights @ value, lse.masked_fill(dead, -torch.inf)


def results(function, leaves, weight):
    output, lse = function(*leaves)
    some = lse.masked_fill(lse == -torch.inf, 0.0)
    total = (output * weight).sum() + some.square().sum()
    return [output, lse, *torch.autograd.grad(total, leaves)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), shape=st.tuples(*[st.integers(1, 6)] * 3), share=st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_it_is_the_definition(seed, shape, share):
    generator = torch.Generator().manual_seed(seed)
    tiles, rows, keys = shape

    def normal(*size):
        return torch.randn(*size, 4, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = normal(tiles, rows), normal(tiles, keys), normal(tiles, keys)
    mask = torch.rand(tiles, rows, keys, generator=generator) < share
    weight = torch.randn(tiles, rows, 4, generator=generator, dtype=torch.float64)
    found = results(lambda *x: tile_attention(*x, mask=mask, scale=0.7), leaves, weight)
    expected = results(lambda *x: definition(*x, mask, 0.7), leaves, weight)
    for a, b in zip(found, expected, strict=True):
        assert ((a == b) | ((a - b).abs() <= ERROR * (1 + b.abs()))).all()


def test_parts_merge_to_the_whole_and_nothing_stays_nothing():
    torch.manual_seed(0)
    leaves = [torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, 5, 5) < 0.5
    mask[0, 1] = False
    parts = [torch.arange(5) // 2 == part for part in range(3)]

    def merged(query, key, value):
        found = [tile_attention(query, key, value, mask=mask & part, scale=0.7) for part in parts]
        output, lse = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
        return merge(output, lse, 1), torch.zeros(2, 5, dtype=torch.float64)

    def whole(*leaves):
        output, lse = definition(*leaves, mask, 0.7)
        return output, torch.zeros_like(lse)

    weight = torch.randn(2, 5, 4, dtype=torch.float64)
    found = results(merged, leaves, weight)
    assert (found[0][0, 1] == 0).all()
    for a, b in zip(found, results(whole, leaves, weight), strict=True):
        assert ((a - b).abs() <= ERROR * (1 + b.abs())).all()


def test_dropout_is_the_same_in_both_passes():
    leaves = [torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def function(*leaves):
        torch.manual_seed(5)
        return tile_attention(*leaves, scale=0.5, dropout=0.4)

    assert torch.autograd.gradcheck(function, leaves)


def test_dropout_of_each_tile_is_its_own(monkeypatch):
    monkeypatch.setattr(module, "CPU_SCORES", 1)  # one tile at a time
    torch.manual_seed(0)
    query, key = torch.zeros(2, 6, 8, 64)
    output, _ = tile_attention(query, key, torch.eye(64)[:8].expand(6, 8, 64), scale=1.0, dropout=0.5)
    # 64 fair coins a tile: two of the 6 agree once in 2^64 / 15 seeds
    assert len((output[..., :8] == 0).flatten(1).unique(dim=0)) == 6

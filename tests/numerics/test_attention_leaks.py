"""Packed rows never leak: changing one document, or the padding, leaves every other document bit-equal, gradients too."""

import pytest
import torch

from triune.attention import SequenceLayout, causal, full, prefix, window
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.choice import BACKENDS
from triune.attention.dispatch import attend

torch.set_num_threads(1)
B, H, K, T, D = 2, 4, 2, 40, 8
PACKED = [[7, 18, 9], [20, 13]]
SOURCE = [[11, 5, 16], [9, 30]]
S = 45
PATTERNS = [causal(), full(), window(5, 0), window(3, 4), causal() | prefix(3), ~causal()]


def run(tensors, queries, keys, **options):
    query, key, value, gradient = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    output = attend(*leaves, query_layout=queries, key_layout=keys, **options)
    output.backward(gradient)
    return output.detach(), *(leaf.grad for leaf in leaves)


def documents_stay(queries, keys, tensors, options, changed):
    """Change document `changed` (-1: the padding) on both sides; compare everything outside it."""
    before = run(tensors, queries, keys, **options)
    generator = torch.Generator().manual_seed(9)
    moved = []
    for tensor, layout in zip(tensors, (queries, keys, keys, queries), strict=True):
        noise = 3 * torch.randn(tensor.shape, generator=generator)
        moved.append(torch.where((layout.documents == changed)[:, None, :, None], noise, tensor))
    after = run(moved, queries, keys, **options)
    for a, b, layout in zip(before, after, (queries, queries, keys, keys), strict=True):
        others = (layout.documents != changed) & ~layout.padding
        assert torch.equal(a.transpose(1, 2)[others], b.transpose(1, 2)[others])
        inside = layout.documents == changed
        if changed >= 0:
            assert not torch.equal(a.transpose(1, 2)[inside], b.transpose(1, 2)[inside])  # the test can fail


def tensors(queries, keys):
    generator = torch.Generator().manual_seed(3)
    shapes = (B, H, queries, D), (B, K, keys, D), (B, K, keys, D), (B, H, queries, D)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("bias", ["none", "alibi", "t5"])
@pytest.mark.parametrize("changed", [-1, 0, 1])
def test_self_attention(backend, pattern, bias, changed):
    layout = SequenceLayout.packed(PACKED, T)
    table = torch.randn(8, H, generator=torch.Generator().manual_seed(5)).requires_grad_()
    biases = {"none": None, "alibi": AlibiBias(H), "t5": T5Bias(table, bidirectional=True, max_distance=16)}
    options = {"pattern": pattern, "bias": biases[bias], "backend": backend}
    documents_stay(layout, layout, tensors(T, T), options, changed)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
@pytest.mark.parametrize("changed", [-1, 0, 1])
def test_cross_attention(backend, changed):
    queries, keys = SequenceLayout.packed(PACKED, T), SequenceLayout.packed(SOURCE, S)
    documents_stay(queries, keys, tensors(T, S), {"pattern": full(), "backend": backend}, changed)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pattern", [causal(), full(), window(4, 0), window(2, 2)], ids=str)
def test_padding(backend, side, pattern):
    layout = SequenceLayout.from_lengths([13, 31], T, side=side)
    documents_stay(layout, layout, tensors(T, T), {"pattern": pattern, "backend": backend}, -1)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
def test_a_document_in_a_row_equals_the_document_alone(backend):
    """Packing changes nothing but the shape: to rounding (matrix products of other sizes sum in another order)."""
    layout = SequenceLayout.packed(PACKED, T)
    query, key, value, _ = tensors(T, T)
    together = attend(query, key, value, pattern=causal(), query_layout=layout, key_layout=layout, backend=backend)
    for row, lengths in enumerate(PACKED):
        start = 0
        for length in lengths:
            piece = slice(start, start + length)
            alone = attend(
                *(t[row : row + 1, :, piece] for t in (query, key, value)), pattern=causal(), backend=backend
            )
            # D and S additions of numbers of order one on each side
            bound = 2 * (D + T) * torch.finfo(torch.float32).eps * float(value.abs().max())
            torch.testing.assert_close(together[row : row + 1, :, piece], alone, rtol=0, atol=bound)
            start += length

"""Routed attention by tiles equals its definition written out, in outputs and every gradient, over generated cases.

Legend: B batch, T length, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triune.attention.dispatch import attend
from triune.attention.layout import SequenceLayout
from triune.attention.routed.call import Branches
from triune.attention.routed.patterns import Lsh, Nsa, Routed, lsh, moba, nsa

torch.set_num_threads(1)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)

LSH = st.builds(
    lsh,
    buckets=st.sampled_from([2, 4, 6, 16]),
    chunk=st.sampled_from([1, 2, 3, 5, 8, 40]),
    rounds=st.integers(1, 3),
    causal=st.booleans(),
    seed=st.integers(0, 9),
)
MOBA = st.builds(moba, block=st.sampled_from([1, 2, 3, 7, 40]), top=st.sampled_from([1, 2, 3, 9]))


@st.composite
def native(draw: st.DrawFn) -> Nsa:
    stride = draw(st.integers(1, 3))
    compress = stride * draw(st.integers(1, 3))
    select = compress + stride * draw(st.integers(0, 3))
    window = draw(st.sampled_from([1, 2, 5, 40]))
    return nsa(compress=compress, stride=stride, select=select, top=draw(st.integers(3, 5)), window=window)


@st.composite
def layouts(draw: st.DrawFn, batch: int, length: int) -> SequenceLayout:
    kind = draw(st.sampled_from(["plain", "right", "left", "packed", "pieces"]))
    if kind == "plain":
        return SequenceLayout.plain_rows(batch, length)
    if kind in ("right", "left"):
        return SequenceLayout.from_lengths([draw(st.integers(0, length)) for _ in range(batch)], length, side=kind)
    rows = []
    for _ in range(batch):
        cuts = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
        rows.append([b - a for a, b in zip([0, *cuts], cuts, strict=False)])  # what follows the last cut is padding
    layout = SequenceLayout.packed(rows, length)
    if kind == "packed":
        return layout
    order = torch.tensor(draw(st.permutations(range(length))))  # tokens anywhere in the row: documents in pieces
    return SequenceLayout.from_arrays(layout.documents[:, order].numpy(), layout.positions[:, order].numpy())


@dataclass
class Case:
    """Inputs, all random normal, in fp64."""

    pattern: Routed
    layout: SequenceLayout
    heads: tuple[int, int]
    width: int
    seed: int
    scale: float | None

    def inputs(self) -> list[Tensor]:
        """Query, key, value, four tensors of NSA's branches, its gates and the matrix of its compression."""
        generator = torch.Generator().manual_seed(self.seed)
        (batch, length), (heads, keys), width = self.layout.shape, self.heads, self.width
        shapes = [
            (batch, heads, length, width),
            *[(batch, keys, length, width)] * 6,
            (batch, heads, length, 3),
            (width, width),
        ]
        return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def attend(self, inputs: list[Tensor], backend: str, **options: object) -> Tensor:
        query, key, value, *rest = inputs
        branches = None
        if isinstance(self.pattern, Lsh):
            key = query
        if isinstance(self.pattern, Nsa):
            matrix = rest[5]
            branches = Branches(
                compressed=(rest[0], rest[1]),
                window=(rest[2], rest[3]),
                gates=rest[4],
                compress=lambda k, v: ((k @ matrix.to(k)).tanh().sum(3), (v @ matrix.to(v)).tanh().mean(3)),
            )
        return attend(
            query, key, value, pattern=self.pattern, query_layout=self.layout, key_layout=self.layout,
            scale=self.scale, backend=backend, branches=branches, **options,
        )  # fmt: skip

    def run(self, backend: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Output and all gradients, in fp64."""
        leaves = [tensor.to(dtype).requires_grad_() for tensor in self.inputs()]
        output = self.attend(leaves, backend)
        assert output.dtype == dtype
        generator = torch.Generator().manual_seed(self.seed + 1)
        output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype))
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return [tensor.double() for tensor in (output.detach(), *gradients)]


@st.composite
def cases(draw: st.DrawFn, patterns: st.SearchStrategy[Routed]) -> Case:
    pattern = draw(patterns)
    heads = draw(st.sampled_from([1, 2, 4])) if isinstance(pattern, Lsh) else None
    return Case(
        pattern=pattern,
        layout=draw(layouts(draw(st.integers(1, 3)), draw(st.integers(1, 40)))),
        heads=(heads, heads) if heads else draw(st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 3), (3, 1)])),
        width=draw(st.sampled_from([3, 4, 8])),
        seed=draw(st.integers(0, 2**16)),
        scale=draw(st.sampled_from([None, 1.0, 0.1])),
    )


def check(case: Case) -> None:
    # Scores are sums of up to 8 products of normal numbers (below 5 each, so 200; 600 over sqrt(D)-long keys of lsh). A weight
    # errs relatively by eps x score x 2, eps = 2^-53: 1.3e-13; gradients multiply it by the keys' 5 and sum over 40 keys, 3
    # rounds and 6 heads: below 1e-10 even if nothing cancels. A wrong pair changes numbers of size 1e-3 and more.
    for name, got, want in zip(
        ("output", "query", "key", "value", *"abcd", "gates", "matrix"),
        case.run("blocked"),
        case.run("reference"),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@SETTINGS
@given(cases(LSH))
def test_lsh_by_tiles(case: Case) -> None:
    check(case)


@SETTINGS
@given(cases(MOBA))
def test_moba_by_tiles(case: Case) -> None:
    check(case)


@SETTINGS
@given(cases(native()))
def test_nsa_by_tiles(case: Case) -> None:
    check(case)


EXAMPLES: list[Routed] = [
    lsh(buckets=4, chunk=4, rounds=2, causal=True),
    lsh(buckets=4, chunk=4, rounds=2, causal=False),
    moba(block=4, top=3),
    nsa(compress=4, stride=2, select=4, top=3, window=5),
]
each = pytest.mark.parametrize("pattern", EXAMPLES, ids=lambda pattern: f"{pattern.name}-{pattern.is_causal}")


def example(pattern: Routed, layout: SequenceLayout, seed: int = 0) -> Case:
    return Case(pattern, layout, (4, 4) if isinstance(pattern, Lsh) else (4, 2), 8, seed, None)


@each
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_a_packed_document_gives_what_it_gives_alone(pattern: Routed, backend: str) -> None:
    """Outputs and gradients. Sums over a longer row are the same numbers in an order of their own: see `check`."""
    counts = [[5, 17, 1], [9, 14]]
    packed = example(pattern, SequenceLayout.packed(counts, 25))
    inputs = packed.inputs()
    leaves = [tensor.requires_grad_() for tensor in inputs]
    output = packed.attend(leaves, backend)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((output * weights).sum(), leaves, allow_unused=True)
    for row, documents in enumerate(counts):
        start = 0
        for count in documents:
            part = slice(start, start + count)
            alone = [t.detach()[row : row + 1, :, part].requires_grad_() for t in inputs[:-1]] + [inputs[-1]]
            case = example(pattern, SequenceLayout.plain_rows(1, count))
            got = case.attend(alone, backend)
            torch.testing.assert_close(got, output[row : row + 1, :, part], rtol=1e-10, atol=1e-10)
            loss = (got * weights[row : row + 1, :, part]).sum()
            for want, mine in zip(
                gradients[:-1], torch.autograd.grad(loss, alone[:-1], allow_unused=True), strict=True
            ):
                assert (want is None) == (mine is None)
                if want is not None:
                    torch.testing.assert_close(mine, want[row : row + 1, :, part], rtol=1e-10, atol=1e-10)
            start += count


@each
def test_packing_never_leaks(pattern: Routed) -> None:
    """Another document's tokens change nothing, bit for bit: no sum has a term of it."""
    case = example(pattern, SequenceLayout.packed([[9, 12]], 24))
    inputs = case.inputs()
    before = case.attend(inputs, "blocked")
    for tensor in inputs[:-1]:
        tensor[:, :, 9:] = torch.randn_like(tensor[:, :, 9:]) * 3
    after = case.attend(inputs, "blocked")
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9:21], after[:, :, 9:21])


@each
def test_padding_gives_zero_and_passes_no_gradient(pattern: Routed) -> None:
    for side in ("right", "left"):
        case = example(pattern, SequenceLayout.from_lengths([0, 11], 16, side))
        leaves = [tensor.requires_grad_() for tensor in case.inputs()]
        output = case.attend(leaves, "blocked")
        padding = case.layout.padding[:, None, :, None]
        assert (output.masked_select(padding) == 0).all()
        output.sum().backward()
        for leaf in leaves[:-1]:
            if leaf.grad is not None:
                assert leaf.grad.isfinite().all()
                assert (leaf.grad.masked_select(padding) == 0).all()


@pytest.mark.parametrize("pattern", [p for p in EXAMPLES if p.is_causal], ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_a_later_token_never_changes_an_earlier_output(pattern: Routed, backend: str) -> None:
    """For every j. A later token moves tokens to other places in their tiles, where the same terms add up in another order.

    The bound: 40 terms a row, of weights that sum to 1 and values below 5, in a tree of any order: 40 x 2^-53 x 5 x 4 = 9e-14.
    """
    length = 24
    for seed in range(3):
        case = example(pattern, SequenceLayout.plain_rows(2, length), seed)
        inputs = case.inputs()
        before = case.attend(inputs, backend)
        for j in range(length):
            changed = [tensor.clone() for tensor in inputs]
            for tensor in changed[:-1]:
                tensor[:, :, j] = torch.randn_like(tensor[:, :, j]) * 3
            after = case.attend(changed, backend)
            torch.testing.assert_close(after[:, :, :j], before[:, :, :j], rtol=0, atol=1e-13)
            assert not torch.allclose(after[:, :, j], before[:, :, j])


@each
def test_every_dtype_is_computed_in_fp32_at_least(pattern: Routed) -> None:
    """bf16 and fp32 inputs: the tiles equal the reference on the same, rounded inputs; only the result is rounded to bf16.

    fp32: 2^-24 x score 40 x 2, twice; bf16: one rounding of the result, 2^-8 of at most 5 and, with nsa's gates, 15.
    """
    case = example(pattern, SequenceLayout.packed([[9, 12], [24]], 24))
    for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 15 * 2**-8)):
        inputs = [tensor.to(dtype) for tensor in case.inputs()]
        got, want = (case.attend(inputs, backend) for backend in ("blocked", "reference"))
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=close)


@each
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_dropout_drops_every_weight_in_training_and_keeps_the_mean(pattern: Routed, backend: str) -> None:
    """Values along axes, so that outputs are weights. A weight w with n shares has a mean of 100 draws within sqrt(2/3 / 100) w = 0.08 w
    of itself; 6 of those, and no weight passes 100 draws unchanged (0.6^100)."""
    length = 20
    for values in (
        (2, 4, 6) if isinstance(pattern, Nsa) else (2,)
    ):  # of the selected, the compressed, the sliding branch
        case = Case(pattern, SequenceLayout.plain_rows(1, length), (2, 2), length, 0, 0.05)
        inputs = case.inputs()
        for other in (2, 4, 6):
            inputs[other] = torch.eye(length, dtype=torch.float64).expand(1, 2, -1, -1) * (other == values)
        inputs[7].sigmoid_()
        inputs[8] = torch.eye(length, dtype=torch.float64)
        plain = case.attend(inputs, backend)
        assert torch.equal(case.attend(inputs, backend, dropout=0.4, training=False), plain)
        torch.manual_seed(0)
        draws = torch.stack([case.attend(inputs, backend, dropout=0.4, training=True) for _ in range(100)])
        assert torch.equal(draws.std(0) > 1e-12, plain > 0)
        assert (draws.mean(0) - plain <= 6 * 0.08 * plain).all()
        assert (plain - draws.mean(0) <= 6 * 0.08 * plain).all()

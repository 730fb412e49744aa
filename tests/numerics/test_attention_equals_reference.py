"""Any pattern x layout x bias x heads on any backend equals the reference, in outputs and in every gradient.

The reference itself is held against the definition, written as loops over single pairs.
Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pattern_cases import PATTERNS, PER_HEAD
from triune.attention import SequenceLayout, plan
from triune.attention.backends import sdpa
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.call import bias_scores
from triune.attention.choice import BACKENDS
from triune.attention.dispatch import attend

torch.set_num_threads(1)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
OTHERS = ["auto", *(name for name in BACKENDS if name not in ("reference", "flex"))]

HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 3), (4, 1), (3, 1)])  # equal, grouped, multi-query


@dataclass
class Case:
    pattern: object
    query_layout: SequenceLayout | None
    key_layout: SequenceLayout | None
    query: Tensor
    key: Tensor
    value: Tensor
    gradient: Tensor
    bias: str
    table: Tensor
    scale: float | None

    def run(self, backend, dtype, **options):
        """Output and gradients (query, key, value, table) in fp64; inputs rounded to `dtype` first."""
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (self.query, self.key, self.value)]
        table = self.table.to(torch.promote_types(dtype, torch.float32), copy=True).requires_grad_()
        output = attend(
            *leaves,
            pattern=self.pattern,
            query_layout=self.query_layout,
            key_layout=self.key_layout,
            bias=self.bias_of(table),
            scale=self.scale,
            backend=backend,
            **options,
        )
        assert output.dtype == dtype
        output.backward(self.gradient.to(dtype))
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in (*leaves, table)]
        return [t.detach().double() for t in (output, *gradients)]

    def bias_of(self, table):
        if self.bias == "none":
            return None
        if self.bias == "alibi":
            return AlibiBias(self.query.shape[1])
        t5 = T5Bias(table, bidirectional=self.bias != "t5 one way", max_distance=6)
        layouts = (self.query_layout, self.key_layout)
        return bias_scores(t5, *layouts) if self.bias == "t5 shared" and None not in layouts else t5


@st.composite
def layouts(draw, batch, length, kinds=("plain", "right", "left", "packed", "prefix", "landmarks", "any")):
    kind = draw(st.sampled_from(kinds))
    if kind == "plain":
        return SequenceLayout.plain_rows(batch, length)
    if kind in ("right", "left"):
        return SequenceLayout.from_lengths([draw(st.integers(0, length)) for _ in range(batch)], length, side=kind)
    if kind == "any":  # nothing is promised: documents in pieces, positions in any order
        numbers = st.lists(st.integers(-1, 2), min_size=length, max_size=length)
        where = st.lists(st.integers(0, length), min_size=length, max_size=length)
        documents = np.array([draw(numbers) for _ in range(batch)])
        return SequenceLayout.from_arrays(documents, np.array([draw(where) for _ in range(batch)]))
    rows = []
    for _ in range(batch):
        cuts = sorted(draw(st.lists(st.integers(0, length), max_size=3)))
        rows.append([b - a for a, b in zip([0, *cuts], cuts, strict=False)])  # what follows the last cut is padding
    packed = SequenceLayout.packed(rows, length)
    if kind == "packed":
        return packed
    marks = packed.positions.numpy() < draw(st.integers(1, 3))
    if kind == "landmarks":  # anywhere, padding too
        marks = np.array([[draw(st.integers(0, 3)) == 0 for _ in range(length)] for _ in range(batch)])
    return SequenceLayout.from_arrays(packed.documents.numpy(), packed.positions.numpy(), **{kind: marks})


@st.composite
def cases(draw):
    batch, (heads, key_heads), width = draw(st.integers(1, 3)), draw(HEADS), draw(st.sampled_from([3, 4, 8]))
    queries, keys = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    bias = draw(st.sampled_from(["none", "none", "alibi", "t5", "t5 one way", "t5 shared"]))
    pattern = draw(st.one_of(PATTERNS, PATTERNS, PER_HEAD))
    assume(key_heads % len(pattern.heads()) == 0)
    shape = draw(st.sampled_from(["self", "self", "cross", "aligned"]))
    if shape == "self":
        keys = queries
        query_layout = key_layout = draw(layouts(batch, queries))
    elif shape == "cross":
        query_layout, key_layout = draw(layouts(batch, queries)), draw(layouts(batch, keys))
    else:
        query_layout = key_layout = None
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        pattern=pattern,
        query_layout=query_layout,
        key_layout=key_layout,
        query=normal(batch, heads, queries, width),
        key=normal(batch, key_heads, keys, width),
        value=normal(batch, key_heads, keys, width),
        gradient=normal(batch, heads, queries, width),
        bias=bias,
        table=normal(8, heads),
        scale=draw(st.sampled_from([None, 1.0, 0.1])),
    )


def resolved(case):
    """The layouts that stand for None: plain rows, the last query at the last key."""
    if case.query_layout is not None:
        return case.query_layout, case.key_layout
    (batch, _, queries, _), keys = case.query.shape, case.key.shape[2]
    where = torch.arange(queries, dtype=torch.int32).expand(batch, queries) + (keys - queries)
    return (
        SequenceLayout(documents=torch.zeros_like(where), positions=where),
        SequenceLayout.plain_rows(batch, keys),
    )


def by_pairs(case):
    """The contract, pair by pair: which pairs are allowed [B, H, T, S], and the output [B, H, T, D] in fp64."""
    q, k = resolved(case)
    batch, heads, queries, width = case.query.shape
    keys, group = case.key.shape[2], heads // case.key.shape[1]
    bias = case.bias_of(case.table.double())
    scores = torch.zeros(1, heads, queries, keys)
    if bias is not None:
        scores = bias if isinstance(bias, Tensor) else bias(q.positions, k.positions)
    scores = scores.expand(batch, heads, queries, keys)
    allowed = np.zeros((batch, heads, queries, keys), dtype=bool)
    output = torch.zeros(batch, heads, queries, width, dtype=torch.float64)
    parts = case.pattern.heads()
    for b in range(batch):
        for t in range(queries):
            for h in range(heads):
                pattern = parts[h * len(parts) // heads]
                for s in range(keys):
                    i, j = q.positions[b, t].item(), k.positions[b, s].item()
                    marked = k.prefix is not None and k.prefix[b, s].item()
                    landmark = any(x.landmarks is not None and x.landmarks[b, n] for x, n in ((q, t), (k, s)))
                    landmark = landmark and (j <= i or not pattern.is_causal)
                    document = q.documents[b, t].item()
                    inside = document >= 0 and document == k.documents[b, s].item()
                    allowed[b, h, t, s] = inside and (pattern.allows(i, j) or marked or landmark)
                seen = np.flatnonzero(allowed[b, h, t])
                scale = width**-0.5 if case.scale is None else case.scale
                logits = [
                    float(case.query[b, h, t] @ case.key[b, h // group, s]) * scale + float(scores[b, h, t, s])
                    for s in seen
                ]
                total = sum(math.exp(x) for x in logits)
                for s, x in zip(seen, logits, strict=True):
                    output[b, h, t] += math.exp(x) / total * case.value[b, h // group, s]
    return allowed, output


def bounds(case, storage, compute):
    """Largest error of output and gradients that rounding explains, with eps of the stored and the accumulating dtype.

    A score is a sum of D products and a bias: it errs by (D + 2) compute |q||k| scale + storage |bias|. A weight exp(s)/sum
    errs relatively by twice that, one rounding to storage and S + 2 additions: `weight`. Then, with every row's weights
    summing to 1: the output errs by max|v| weight and its own rounding; dV sums T rows (of each head of its group) of
    weight x g; dS = P (dP - sum P dP) has |dP| <= m = max over pairs |g . v|, and errs by P m (2 weight + 4 roundings +
    D accumulations), twice for the difference; dQ sums it over keys (sum P = 1) times |k| scale, dK over T and the group
    times |q| scale, the table over all rows of the batch. Each is then rounded once. Doubled for both sides being compared.
    """
    batch, heads, queries, width = case.query.shape
    keys, group = case.key.shape[2], heads // case.key.shape[1]
    scale = width**-0.5 if case.scale is None else case.scale
    q, k, v, g = (float(t.abs().max()) for t in (case.query, case.key, case.value, case.gradient))
    products = width * q * k * scale
    largest = {"none": 0.0, "alibi": 13.0}.get(case.bias, float(case.table.abs().max()))
    score = (width + 2) * compute * products + storage * largest + 4 * compute * (products + largest)
    weight = 2 * score + storage + (keys + 2) * compute
    m = width * g * v
    slope = 2 * m * (2 * weight + 4 * storage + width * compute)
    sums = queries * group
    output = v * (weight + storage)
    d_query = scale * k * (slope + (keys * compute + storage) * m)
    d_key = scale * q * sums * (slope + (sums * compute + storage) * m)
    d_value = sums * g * (weight + storage + sums * compute)
    d_table = batch * queries * (slope + batch * queries * keys * compute * m + storage * m)
    return [2 * bound for bound in (output, d_query, d_key, d_value, d_table)]


def agree(case, backend, dtype):
    assume(not (backend == "blocked" and case.bias == "t5 shared"))  # refused with a reason: test_blocked.py
    compute = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    rounded = Case(
        **{**vars(case), **{n: getattr(case, n).to(dtype).double() for n in ("query", "key", "value", "gradient")}}
    )
    # the oracle reads the same rounded numbers, in fp64 (its bias and the fp32 table below are no rounder)
    rounded.table = case.table.to(torch.promote_types(dtype, torch.float32)).double()
    expected = rounded.run("reference", torch.float64)
    found = rounded.run(backend, dtype)
    names = ("output", "query.grad", "key.grad", "value.grad", "table.grad")
    for name, a, b, bound in zip(names, expected, found, bounds(rounded, torch.finfo(dtype).eps, compute), strict=True):
        assert torch.isfinite(b).all(), name
        assert (a - b).abs().max() <= bound, f"{name}: {(a - b).abs().max():.3g} > {bound:.3g}"


@SETTINGS
@given(cases())
def test_the_reference_is_the_definition(case):
    allowed, output = by_pairs(case)
    found, d_query, d_key, d_value, _ = case.run("reference", torch.float64)
    assert (found - output).abs().max() <= bounds(case, *[torch.finfo(torch.float64).eps] * 2)[0]
    assert torch.isfinite(torch.cat([t.flatten() for t in (found, d_query, d_key, d_value)])).all()
    nothing_where_nothing_is_seen(case, allowed, found, d_query, d_key, d_value)


def nothing_where_nothing_is_seen(case, allowed, output, d_query, d_key, d_value):
    """Exact zeros: of queries that may attend to nothing, and of keys that no query of their group attends to."""
    lost = torch.from_numpy(~allowed.any(3))  # [B, H, T]
    unseen = torch.from_numpy(~allowed.any(2)).unflatten(1, (case.key.shape[1], -1)).all(2)  # [B, K, S]
    for tensor, rows in ((output, lost), (d_query, lost), (d_key, unseen), (d_value, unseen)):
        assert (tensor[rows] == 0).all()


@contextmanager
def tiles_of(size):
    """Tiles so small that these short rows have many, gathered queries and spans with gaps among them; None leaves them."""
    with pytest.MonkeyPatch.context() as patch:
        plan.plain_plan.cache_clear()
        if size is not None:
            for name, value in (("TILES", (size,)), ("GRANULE", size // 2), ("_GAP", 2), ("_WIDE", 1)):
                patch.setattr(plan, name, value)
        yield
    plan.plain_plan.cache_clear()


@pytest.mark.parametrize("size", [2, 4])
@SETTINGS
@given(case=cases())
def test_small_tiles_agree_to_the_last_bits(size, case):
    with tiles_of(size):
        agree(case, "blocked", torch.float64)


@pytest.mark.parametrize("backend", OTHERS)
@SETTINGS
@given(case=cases())
def test_backends_agree_to_the_last_bits(backend, case):
    """In fp64, where a wrong pair stands out by twelve orders of magnitude."""
    agree(case, backend, torch.float64)
    allowed, _ = by_pairs(case)
    nothing_where_nothing_is_seen(case, allowed, *case.run(backend, torch.float64)[:4])


@pytest.mark.parametrize("backend", ["reference", *OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@SETTINGS
@given(case=cases())
def test_backends_agree_in_training_precision(backend, dtype, case):
    agree(case, backend, dtype)


@pytest.mark.parametrize("amx", [True, False])
@SETTINGS
@given(case=cases())
def test_bf16_agrees_whichever_kernel_the_machine_chooses(amx, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "cpu_multiplies_bfloat16", lambda: amx)
        agree(case, "sdpa", torch.bfloat16)


@SETTINGS
@given(case=cases())
def test_a_road_by_promise_equals_the_road_without(case):
    """The same layouts, stripped of what the host knows of them, must give the same: no flag changes a result."""
    assume(case.query_layout is not None)

    def stripped(layout):
        marks = {"prefix": layout.prefix, "landmarks": layout.landmarks}
        return SequenceLayout(documents=layout.documents, positions=layout.positions, **marks)

    query_layout = stripped(case.query_layout)
    key_layout = query_layout if case.key_layout is case.query_layout else stripped(case.key_layout)
    slow = Case(**{**vars(case), "query_layout": query_layout, "key_layout": key_layout})
    limits = bounds(case, *[torch.finfo(torch.float64).eps] * 2)
    for backend in ("sdpa",) if case.bias == "t5 shared" else ("sdpa", "blocked"):
        for a, b, bound in zip(case.run(backend, torch.float64), slow.run(backend, torch.float64), limits, strict=True):
            assert (a - b).abs().max() <= bound

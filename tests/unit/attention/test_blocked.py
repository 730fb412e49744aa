"""The plan of `blocked`: exact, no larger than it needs to be, made once; and its compiled form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pattern_cases import PATTERNS
from triune.attention import SequenceLayout, causal, full, global_tokens, random_blocks, window
from triune.attention import plan as planning
from triune.attention.backends import blocked
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.call import AttentionCall
from triune.attention.choice import choose, order
from triune.attention.dispatch import attend
from triune.attention.plan import plain_plan

torch.set_num_threads(1)


def call(pattern, layout, heads=2, **changes):
    batch, length = layout.shape
    tensor = torch.zeros(batch, heads, length, 8, device=layout.documents.device)
    given = {"bias": None, "scale": 1.0, "dropout": 0.0} | changes
    return AttentionCall(
        query=tensor, key=tensor, value=tensor, pattern=pattern, query_layout=layout, key_layout=layout, **given
    )


def computed(plan, rows, queries, keys):
    """How often a plan computes each allowed pair: [rows, T, S]."""
    times = np.zeros((rows, queries, keys), int)
    for step, refused in zip(plan.steps, plan.refused, strict=True):
        seen = np.ones((len(step.queries), len(step.columns)), bool)
        for (first, last), mask in zip(step.partial, refused, strict=True):
            seen[:, first:last] &= ~mask
        times[step.row][np.ix_(step.queries, step.columns)] += seen
    return times


@pytest.fixture(params=[4, 8])
def small(request, monkeypatch):
    for name, value in (("TILES", (request.param,)), ("GRANULE", 2), ("_GAP", 2), ("_WIDE", 1)):
        monkeypatch.setattr(planning, name, value)
    plain_plan.cache_clear()
    yield
    plain_plan.cache_clear()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pattern=PATTERNS, queries=st.integers(1, 21), keys=st.integers(1, 21), offset=st.integers(0, 5))
def test_a_plan_computes_each_allowed_pair_once(pattern, queries, keys, offset):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TILES", (4,)), ("GRANULE", 2), ("_GAP", 2), ("_WIDE", 1)):
            patch.setattr(planning, name, value)
        plain_plan.cache_clear()
        plan = plain_plan(pattern, queries, keys, offset)
        expected = pattern.materialize(range(offset, offset + queries), range(keys))
        assert (computed(plan, 1, queries, keys)[0] == expected).all()
    plain_plan.cache_clear()


@pytest.mark.parametrize("pattern", [causal(), window(3, 0), window(2, 2) | global_tokens(first=1)], ids=str)
def test_packed_and_padded_rows(small, pattern):
    layout = SequenceLayout.packed([[5, 9, 3], [20], [1, 1, 2]], 21)
    plan = blocked.plan_of(pattern, layout, layout)
    mask = layout.allowed(pattern, layout)
    expected = (mask.mask & ~mask.dead)[:, 0].numpy()
    assert (computed(plan, 3, 21, 21) == expected).all()


def test_full_tiles_pay_no_mask_and_empty_ones_are_left_out():
    plan = plain_plan(window(128, 128), 4096, 4096)
    inner = [step for step in plan.steps if 128 <= step.queries[0] < 3900]
    length = len(inner[0].queries)
    assert all(sum(stop - start for start, stop in step.spans) == length + 256 for step in inner)
    # of the keys beside the tile, those that not all of its queries see; the tile's own keys are seen by all where it is short
    assert all(step.partial == ((0, length), (256, 256 + length)) for step in inner)
    assert all(not step.partial for step in plain_plan(full(), 1000, 1000).steps)


def test_the_cost_falls_with_the_window_and_not_with_the_square_of_the_length():
    narrow, wide = (plain_plan(window(w, w), 8192, 8192).pairs for w in (64, 256))
    assert narrow < 0.6 * wide
    long = plain_plan(window(64, 64), 16384, 16384).pairs
    assert long == pytest.approx(2 * narrow, rel=0.01)
    kept = window(256, 256).kept(8192, 8192)
    assert wide < 1.35 * kept  # a tile of 128 queries computes 640 keys, of which each sees 513


def test_global_queries_do_not_widen_their_tile():
    alone, with_global = window(128, 128), window(128, 128) | global_tokens(first=4)
    extra = plain_plan(with_global, 8192, 8192).pairs - plain_plan(alone, 8192, 8192).pairs
    # four whole rows, and a granule of keys a query
    assert extra <= 4 * 8192 + planning.GRANULE * 8192


def test_tiles_of_a_regular_pattern_share_their_masks():
    refused = plain_plan(window(128, 128), 8192, 8192).refused
    assert len({id(mask) for masks in refused for mask in masks}) <= 12


def test_one_plan_a_batch_and_one_for_all_plain_batches(monkeypatch):
    made = []
    monkeypatch.setattr(blocked, "plan_rows", lambda *a: made.append(1) or planning.plan_rows(*a))
    packed = SequenceLayout.packed([[40, 60]], 128)
    tensor = torch.randn(1, 2, 128, 8)
    for _ in range(3):
        attend(tensor, tensor, tensor, pattern=causal(), query_layout=packed, key_layout=packed, backend="blocked")
    assert len(made) == 1
    rows = [SequenceLayout.plain_rows(2, 128) for _ in range(3)]
    plans = {id(blocked.plan_of(window(9, 0), row, row)) for row in rows}
    assert len(plans) == 1


def test_scores_of_all_pairs_are_refused_with_the_reason():
    layout = SequenceLayout.plain_rows(1, 16)
    reasons = blocked.why_not(call(causal(), layout, bias=torch.zeros(1, 2, 16, 16)))
    assert len(reasons) == 1
    assert "ScoreBias" in reasons[0]


@pytest.mark.parametrize(
    ("pattern", "length", "lengths", "expected"),
    [
        (causal(), 4096, None, "sdpa"),  # the kernel's own triangle
        (full(), 4096, None, "sdpa"),
        (window(4000, 4000), 4096, None, "sdpa"),  # keeps nearly all
        (window(127, 0), 4096, None, "blocked"),
        (window(128, 128) | global_tokens(first=4), 4096, None, "blocked"),
        (window(127, 0), 128, None, "sdpa"),  # too short to gain
        (causal(), 2048, [100] * 20, "blocked"),  # walls between documents
        (causal(), 2048, [2000], "sdpa"),
        (full(), 2048, [100] * 20, "blocked"),  # unlike plain rows of the pattern
        (full(), 2048, [600], "blocked"),  # padding
        (full(), 2048, [2000], "sdpa"),
    ],
)
def test_auto_follows_the_rule(pattern, length, lengths, expected):
    layout = SequenceLayout.packed([lengths], length) if lengths else SequenceLayout.plain_rows(1, length)
    name = choose(call(pattern, layout, heads=6)).__name__
    assert name.rpartition(".")[2] == expected


@pytest.mark.parametrize(
    ("pattern", "length", "lengths", "expected"),
    [
        (causal(), 16_384, None, "sdpa"),  # the kernel's own triangle is quicker than flex on all of it
        (full(), 4096, None, "sdpa"),
        (causal(), 16_384, [8000, 8000], "flex"),  # the dense kernel would read a mask of all pairs
        (full(), 16_384, [16_000], "flex"),
        (window(1023, 0), 8192, None, "flex"),
        (window(1023, 0), 1024, None, "sdpa"),  # starting flex takes longer than all the pairs
    ],
)
def test_a_gpu_has_times_of_its_own(pattern, length, lengths, expected):
    """Decided from shapes and flags alone, so that tensors without data will do for a device."""
    layout = SequenceLayout.packed([lengths], length) if lengths else SequenceLayout.plain_rows(1, length)
    assert order(call(pattern, layout.to("meta"), heads=16))[0] == expected


# ---- torch.compile ----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "plain": lambda: SequenceLayout.plain_rows(2, 70),
    "packed": lambda: SequenceLayout.packed([[30, 25], [60]], 70),
    "marked": lambda: SequenceLayout.from_arrays(
        np.zeros((2, 70), int), np.tile(np.arange(70), (2, 1)), np.arange(70)[None].repeat(2, 0) < 3
    ),
}


def outcome(function, layout, bias, seed=0):
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(2, 4, 70, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    output = function(*leaves, layout, bias)
    output.square().sum().backward()
    return [output, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(
    "pattern", [window(9, 0), window(5, 5) | global_tokens(first=2) | random_blocks(8, 1)], ids=str
)
def test_compiled_it_is_one_graph_and_gives_the_same(kind, pattern):
    def function(query, key, value, layout, bias):
        options = {"query_layout": layout, "key_layout": layout, "bias": bias, "backend": "blocked"}
        return attend(query * 1.0, key, value, pattern=pattern, **options) * 1.0

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    bias = AlibiBias(4) if kind == "plain" else None
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):  # a second batch of other tokens and another layout of the same shape
            layout = LAYOUTS[kind]()
            for a, b in zip(outcome(compiled, layout, bias, seed), outcome(function, layout, bias, seed), strict=True):
                assert torch.equal(a, b)


def test_a_compiled_learned_bias_gets_its_gradient():
    def function(query, key, value, layout, table):
        bias = T5Bias(table, bidirectional=True, max_distance=20)
        return attend(
            query,
            key,
            value,
            pattern=window(9, 9),
            query_layout=layout,
            key_layout=layout,
            bias=bias,
            backend="blocked",
        )

    torch._dynamo.reset()
    grads = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        table = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4).requires_grad_()
        outcome(run, LAYOUTS["plain"](), table)
        grads.append(table.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_compiled_a_bias_over_packed_rows_is_refused():
    layout = LAYOUTS["packed"]()

    def reasons(tensor):
        return tensor, blocked.why_not(call(causal(), layout, bias=AlibiBias(2)))

    torch._dynamo.reset()
    assert "host" in torch.compile(reasons, backend="eager")(torch.zeros(1))[1][0]


def test_compiled_auto_chooses_by_the_rule_without_a_break(monkeypatch):
    calls = []
    original = blocked.forward
    monkeypatch.setattr(blocked, "forward", lambda *a: calls.append(1) or original(*a))

    pattern = window(15, 0)  # a module's own, as in a model

    def function(query, layout):
        return attend(query, query, query, pattern=pattern, query_layout=layout, key_layout=layout)

    torch._dynamo.reset()
    query, layout = torch.randn(1, 2, 1024, 8), SequenceLayout.plain_rows(1, 1024)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, layout), function(query, layout))
    assert len(calls) == 2


@pytest.mark.parametrize("pattern", [window(3, 1), window(1, 0) | global_tokens(indices=[5])], ids=str)
def test_with_dropout_the_backward_pass_drops_the_same_weights(small, pattern):
    leaves = [torch.randn(2, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def function(*leaves):
        torch.manual_seed(3)
        return attend(*leaves, pattern=pattern, dropout=0.4, training=True, backend="blocked")

    assert torch.autograd.gradcheck(function, leaves)  # against differences, at gradcheck's own 1e-5

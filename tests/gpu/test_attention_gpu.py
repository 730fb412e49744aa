"""The attention backends on a CUDA device against the reference: outputs, gradients, programs, dispatch.

Needs torch, numpy and pytest alone, so that it runs on a bare machine: jobs/bench/attention_gpu.sh.
Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

import numpy as np
import pytest
import torch

from triune.attention import SequenceLayout, parse
from triune.attention.backends import flex, reference
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.call import AttentionCall
from triune.attention.choice import BACKENDS, choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PATTERNS = [
    "causal()",
    "full()",
    "window(100, 0)",
    "window(64, 64) | global_tokens(first=4)",
    "dilated(40, 0, 3) & causal()",
    "window(63, 63) | global_tokens(first=2) | random_blocks(64, 2, seed=1)",
    "strided(48)",
    "~causal()",  # the last query of a document sees nothing
]
LAYOUTS = ["plain", "packed", "right", "left", "prefix", "landmarks"]


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32: fp32 means fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def rows_of(kind, length, batch=2):
    if kind == "plain":
        return SequenceLayout.plain_rows(batch, length, "cuda")
    if kind in ("right", "left"):
        return SequenceLayout.from_lengths([length - 37, length // 3], length, kind, "cuda")
    documents = [[length // 2, length // 3], [5, 2 * length // 3]]
    if kind == "packed":
        return SequenceLayout.packed(documents, length, "cuda")
    packed = SequenceLayout.packed(documents, length)
    marks = np.zeros((batch, length), bool)
    marks[:, [0, 3, length // 2 + 5]] = True
    return SequenceLayout.from_arrays(
        packed.documents.numpy(), packed.positions.numpy(), **{kind: marks}, device="cuda"
    )


def make(pattern, queries, keys=None, *, heads=(4, 2), width=64, dtype=torch.float32, bias="none", seed=0):
    """A call whose leaves want gradients, and what its output is weighed with."""
    generator = torch.Generator("cuda").manual_seed(seed)
    keys = queries if keys is None else keys
    batch = queries.shape[0]

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype).requires_grad_()

    query = normal(batch, heads[0], queries.shape[1], width)
    key, value = (normal(batch, heads[1], keys.shape[1], width) for _ in range(2))
    learned = torch.randn(16, heads[0], generator=generator, device="cuda").requires_grad_()
    matrix = torch.randn(1, heads[0], queries.shape[1], keys.shape[1], generator=generator, device="cuda")
    biases = {
        "none": None,
        "alibi": AlibiBias(heads[0]),
        "t5": T5Bias(learned, bidirectional=True, max_distance=64),
        "matrix": matrix.requires_grad_(),
    }
    leaves = [query, key, value, *({"t5": [learned], "matrix": [matrix]}.get(bias, []))]
    call = AttentionCall(
        query=query, key=key, value=value, pattern=parse(pattern), query_layout=queries, key_layout=keys,
        bias=biases[bias], scale=width**-0.5, dropout=0.0,
    )  # fmt: skip
    return call, leaves, torch.randn(query.shape, generator=generator, device="cuda").to(dtype)


def exact(call):
    """The same call in fp64, over the same leaves: gradients flow back through the casts."""
    parts = {name: getattr(call, name) for name in call.__slots__}
    bias = call.bias
    if isinstance(bias, T5Bias):
        bias = T5Bias(bias.table.double(), bidirectional=bias.bidirectional, max_distance=bias.max_distance)
    elif isinstance(bias, torch.Tensor):
        bias = bias.double()
    doubles = {name: parts[name].double() for name in ("query", "key", "value")}
    return AttentionCall(**{**parts, **doubles, "bias": bias})


def agree(call, leaves, weight):
    """Output and gradients by their root mean square error against fp64, relative to their own root mean square.

    Storage (eps e) rounds what a product reads and what it writes: queries, keys and values are the same on both sides, so
    the weights, the output, dP's operands, dS and each gradient, six roundings at most one after the other; dS is a difference
    of two terms, which doubles four of them: 10 e at worst, 8 e for errors that are not all of one sign. Compute (eps c) adds
    up D products for a score and S for a row: (D + S) c, through scores of up to 4 in the exponent: four times that. A lost
    tile or an index off by one errs by 1e-2 or more.
    """
    assert flex.why_not(call) == []
    output = flex.attend(call)
    expected = reference.attend(exact(call))
    assert output.dtype == call.query.dtype
    found = torch.autograd.grad((output.double() * weight.double()).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), leaves)
    e, c = torch.finfo(call.query.dtype).eps, torch.finfo(torch.float32).eps
    bound = 8 * e + 4 * (call.query.shape[-1] + call.key.shape[2]) * c
    for name, a, b in zip(
        ("output", "query", "key", "value", "bias"), (output, *found), (expected, *wanted), strict=False
    ):
        assert torch.isfinite(a).all(), name
        size = b.double().square().mean().sqrt()
        error = (a.double() - b.double()).square().mean().sqrt()
        assert error <= bound * size.clamp_min(1e-3), f"{name}: {error / size:.2e} > {bound:.2e}"
    dead = call.query_layout.allowed(call.pattern, call.key_layout).dead
    assert (output.masked_fill(~dead, 0.0) == 0).all()
    assert (found[0].masked_fill(~dead, 0.0) == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)  # packed, right and left share one program
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_equals_the_reference(pattern, layout):
    agree(*make(pattern, rows_of(layout, 300)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_equals_the_reference_in_training_precision(pattern):
    agree(*make(pattern, rows_of("packed", 300), dtype=torch.bfloat16))


@pytest.mark.parametrize("bias", ["alibi", "t5", "matrix"])
@pytest.mark.parametrize(
    ("layout", "dtype"), [("plain", torch.float32), ("packed", torch.float32), ("packed", torch.bfloat16)], ids=str
)
def test_flex_adds_a_bias_and_gives_its_gradient(layout, dtype, bias):
    agree(*make("window(100, 100)", rows_of(layout, 384), dtype=dtype, bias=bias))


@pytest.mark.parametrize("width", [16, 40, 80, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_flex_takes_head_widths_and_groups(width, heads):
    agree(*make("window(100, 0)", rows_of("packed", 256), width=width, heads=heads, dtype=torch.bfloat16))


@pytest.mark.parametrize("lengths", [(128, 128), (129, 300), (1000, 257), (640, 640)])
def test_flex_takes_every_length(lengths):
    queries, keys = (rows_of("packed", length) for length in lengths)
    agree(*make("window(100, 100)", queries, queries if lengths[0] == lengths[1] else keys))


def test_one_program_serves_every_batch():
    flex._compiled.cache_clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            rows = SequenceLayout.packed([[100 + number, 80], [256 - number]], 256, "cuda")
            agree(*make("window(50, 0)", rows, seed=number))
    assert flex._compiled.cache_info().misses == 2  # the attention, and the mask of its tiles


def test_inside_a_compiled_model_it_is_one_graph_for_every_batch():
    near, past = parse("window(50, 0)"), parse("causal()")

    def layers(call):
        query = call.query
        for pattern in (near, near, past):
            query = query + flex.attend(
                AttentionCall(
                    query=query, key=call.key, value=call.value, pattern=pattern, query_layout=call.query_layout,
                    key_layout=call.key_layout, bias=None, scale=call.scale, dropout=0.0,
                )
            )  # fmt: skip
        return query

    graph = torch.compile(layers, fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            rows = SequenceLayout.packed([[100 + number, 80], [256 - number]], 256, "cuda")
            call, leaves, weight = make("causal()", rows, seed=number)
            results = []
            for run in (graph, layers):
                output = run(call)
                results.append([output, *torch.autograd.grad((output * weight).sum(), leaves)])
            for a, b in zip(*results, strict=True):  # the same kernels, other fusions around them
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


def test_a_mask_of_long_rows_needs_no_matrix_of_pairs():
    """65,536 packed tokens: 4 GiB as booleans, of which at most a few chunks may be there at once."""
    length = 65_536
    rows = SequenceLayout.packed([[length // 2, length // 2]], length, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mask = flex.block_mask(parse("window(1023, 0)"), rows, rows)
    assert torch.cuda.max_memory_allocated() - before < 20 * flex.PAIRS
    plain = SequenceLayout.plain_rows(1, length // 2, "cuda")
    half = flex.block_mask(parse("window(1023, 0)"), plain, plain)
    kept = [int(m.kv_num_blocks.sum() + m.full_kv_num_blocks.sum()) for m in (mask, half)]
    assert kept[0] == 2 * kept[1]


@pytest.mark.parametrize("pattern", ["window(1023, 0)", "window(256, 256) | global_tokens(first=4)"])
def test_auto_takes_flex_for_long_sparse_rows_and_not_for_dense_ones(pattern):
    def taken(text, length):
        rows = SequenceLayout.plain_rows(1, length, "cuda")
        query = torch.zeros(1, 4, length, 64, dtype=torch.bfloat16, device="cuda")
        return choose(
            AttentionCall(
                query=query, key=query, value=query, pattern=parse(text), query_layout=rows, key_layout=rows,
                bias=None, scale=1.0, dropout=0.0,
            )
        )  # fmt: skip

    assert taken(pattern, 16_384) is BACKENDS["flex"]
    assert taken("causal()", 16_384) is BACKENDS["sdpa"]
    assert taken("full()", 4096) is BACKENDS["sdpa"]

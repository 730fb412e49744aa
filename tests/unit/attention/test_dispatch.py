"""`attend` as models meet it: dispatch, refusals, plain rows, decoding, autocast, compilation, checkpoints."""

import subprocess
import sys
import types

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from triune.attention import SequenceLayout, causal, full, window
from triune.attention import choice as module
from triune.attention.backends import reference, sdpa
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.call import AttentionCall, bias_scores
from triune.attention.choice import BACKENDS, choose
from triune.attention.config import AttentionConfig
from triune.attention.dispatch import attend
from triune.errors import UserError

torch.set_num_threads(1)
EPS = torch.finfo(torch.float32).eps


def inputs(batch=2, heads=4, key_heads=2, queries=6, keys=6, width=8, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, heads, queries, width), (batch, key_heads, keys, width), (batch, key_heads, keys, width)
    return [torch.randn(*shape, generator=generator, **options) for shape in shapes]


def call(query, key, value, pattern, layout, *, keys=None, bias=None):
    return AttentionCall(
        query=query, key=key, value=value, pattern=pattern, query_layout=layout, key_layout=keys or layout,
        bias=bias, scale=1.0, dropout=0.0,
    )  # fmt: skip


def test_public_names_work_after_every_module_is_imported():
    code = (
        "import triune.attention.dispatch, triune.attention.bias\n"
        "from triune.attention import attend, causal, full, parse, prefix, window, SequenceLayout\n"
        "assert all(map(callable, (attend, causal, full, parse, prefix, window, SequenceLayout)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_takes_the_first_that_can_and_a_named_one_is_obeyed():
    plain = SequenceLayout.plain_rows(2, 6)
    fits = call(*inputs(), causal(), plain)
    assert choose(fits) is BACKENDS["sdpa"]
    assert choose(fits, "reference") is reference
    query, key, value = inputs()
    mixed = call(query.double(), key, value, causal(), plain)
    assert choose(mixed) is BACKENDS["blocked"]
    with pytest.raises(
        UserError, match=r"attention.backend is 'sdpa', but it can't serve this call:\n  sdpa: .*differ in dtype"
    ):
        choose(mixed, "sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        assert choose(mixed) is sdpa


def test_a_refusal_lists_every_reason(monkeypatch):
    deaf = types.SimpleNamespace(why_not=lambda call: ["no ears", "no eyes"])
    mute = types.SimpleNamespace(why_not=lambda call: ["no mouth"])
    monkeypatch.setattr(module, "BACKENDS", {"deaf": deaf, "mute": mute})
    monkeypatch.setattr(module, "order", lambda call: ("deaf", "mute"))
    with pytest.raises(UserError) as error:
        attend(*inputs(), pattern=full())
    assert str(error.value).splitlines()[1:] == ["  deaf: no ears", "  deaf: no eyes", "  mute: no mouth"]


def test_unknown_backend_names_the_nearest():
    with pytest.raises(UserError, match=r"'spda'.*auto, sdpa, blocked, flex, reference; did you mean 'sdpa'"):
        attend(*inputs(), pattern=full(), backend="spda")


def test_integers_are_refused_by_sdpa_with_the_dtype():
    query, key, value = (t.long() for t in inputs())
    assert "int64" in sdpa.why_not(call(query, key, value, full(), SequenceLayout.plain_rows(2, 6)))[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query": torch.zeros(2, 3, 6, 8)}, "key heads must divide"),
        ({"query": torch.zeros(1, 4, 6, 8)}, "agree in B and D"),
        ({"query": torch.zeros(2, 4, 6, 4)}, "agree in B and D"),
        ({"query": torch.zeros(4, 6, 8)}, r"\[B, H, T, D\]"),
        ({"value": torch.zeros(2, 2, 5, 8)}, r"\[B, K, S, D\]"),
        ({"dropout": 1.0}, "below 1"),
        (
            {"query_layout": SequenceLayout.plain_rows(2, 5), "key_layout": SequenceLayout.plain_rows(2, 6)},
            "query_layout",
        ),
        (
            {"query_layout": SequenceLayout.plain_rows(2, 6), "key_layout": SequenceLayout.plain_rows(1, 6)},
            "key_layout",
        ),
        ({"query_layout": SequenceLayout.from_lengths([3, 6], 6)}, "one layout is None"),
        ({"key_layout": SequenceLayout.from_lengths([3, 6], 6), "pattern": causal()}, "one layout is None"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    query, key, value = inputs()
    arguments = {"query": query, "key": key, "value": value, "pattern": full()} | changes
    with pytest.raises(ValueError, match=words):
        attend(**arguments)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("bias", [None, AlibiBias(4)], ids=["no bias", "alibi"])
@pytest.mark.parametrize("pattern", [causal(), window(2, 0), window(1, 1), full()], ids=str)
def test_without_layouts_the_last_query_stands_at_the_last_key(backend, queries, bias, pattern):
    query, key, value = inputs(queries=7, keys=7)
    whole = attend(query, key, value, pattern=pattern, backend=backend, bias=bias)
    tail = attend(query[:, :, 7 - queries :], key, value, pattern=pattern, backend=backend, bias=bias)
    torch.testing.assert_close(
        tail, whole[:, :, 7 - queries :], rtol=0, atol=64 * EPS
    )  # D + S additions of numbers near one


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
def test_a_key_layout_alone_serves_cross_attention(backend):
    query, key, value = inputs(queries=3, keys=7)
    keys = SequenceLayout.from_lengths([4, 7], 7)
    output = attend(query, key, value, pattern=full(), key_layout=keys, backend=backend)
    alone = attend(query[:1], key[:1, :, :4], value[:1, :, :4], pattern=full(), backend=backend)
    torch.testing.assert_close(output[:1], alone, rtol=0, atol=64 * EPS)


def test_fast_roads_are_taken():
    """What the host knows decides: no mask, the kernel's triangle, one row of keys, one matrix for the batch, all of it."""
    query, key, value = inputs()
    plain, right = SequenceLayout.plain_rows(2, 6), SequenceLayout.from_lengths([3, 6], 6)
    packed = SequenceLayout.packed([[2, 4], [5]], 6)

    def shape(pattern, layout, keys=None, bias=None):
        mask, is_causal, dead = sdpa.road(call(query, key, value, pattern, layout, keys=keys, bias=bias), torch.float32)
        return is_causal, mask if mask is None else tuple(mask.shape), dead if dead is None else tuple(dead.shape)

    assert shape(full(), plain) == (False, None, None)
    assert shape(causal(), plain) == (True, None, None)
    assert shape(causal(), right) == (True, None, (2, 1, 6, 1))
    assert shape(full(), right) == (False, (2, 1, 1, 6), (2, 1, 6, 1))
    assert shape(full(), plain, keys=right) == (False, (2, 1, 1, 6), (2, 1, 6, 1))
    assert shape(full(), right, keys=plain) == (False, None, (2, 1, 6, 1))
    assert shape(window(2, 0), right) == (False, (1, 1, 6, 6), (2, 1, 6, 1))
    assert shape(window(2, 2), plain) == (False, (1, 1, 6, 6), (1, 1, 6, 1))
    assert shape(causal(), packed) == (False, (2, 1, 6, 6), (2, 1, 6, 1))
    assert shape(causal(), right, bias=AlibiBias(4)) == (False, (1, 4, 6, 6), (2, 1, 6, 1))
    assert shape(full(), plain, bias=AlibiBias(4)) == (False, (1, 4, 6, 6), None)


def test_a_token_is_decoded_without_a_mask_and_without_a_choice(monkeypatch):
    query, key, value = inputs(queries=1, keys=9)
    plain = reference_of(query, key, value)
    monkeypatch.setattr(sdpa, "road", lambda *_: pytest.fail("a way was looked for"))
    for pattern in (causal(), full()):
        torch.testing.assert_close(attend(query, key, value, pattern=pattern), plain)


def reference_of(query, key, value):
    """One query that sees every key, by the oracle."""
    return attend(query, key, value, pattern=full(), backend="reference")


def test_a_single_token_that_does_not_see_all_is_still_masked():
    query, key, value = inputs(queries=1, keys=9)
    for options in ({"pattern": window(2, 0)}, {"pattern": causal(), "bias": AlibiBias(query.shape[1])}):
        expected = attend(query, key, value, backend="reference", **options)
        torch.testing.assert_close(attend(query, key, value, **options), expected)
        assert not torch.allclose(expected, reference_of(query, key, value))


def test_layers_share_masks_and_constant_biases(monkeypatch):
    packed = SequenceLayout.packed([[2, 4], [5]], 6)
    attend(*inputs(), pattern=causal(), query_layout=packed, key_layout=packed, bias=AlibiBias(4))
    before = len(packed._memo)
    monkeypatch.setattr(AlibiBias, "__call__", lambda *_: pytest.fail("computed again"))
    attend(*inputs(), pattern=causal(), query_layout=packed, key_layout=packed, bias=AlibiBias(4))
    assert len(packed._memo) == before


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
def test_what_is_remembered_for_one_call_is_not_served_to_another(backend):
    def layouts():
        return SequenceLayout.packed([[2, 4], [5]], 6), SequenceLayout.packed([[3, 3], [2, 1]], 6)

    shared, other = layouts()
    for bias in (None, AlibiBias(4)):
        for pattern in (causal(), window(1, 0), full(), ~causal()):
            for cross in (False, True):
                query_layout, key_layout = layouts()
                fresh = attend(
                    *inputs(),
                    pattern=pattern,
                    query_layout=query_layout,
                    key_layout=key_layout if cross else query_layout,
                    bias=bias,
                    backend=backend,
                )
                again = attend(
                    *inputs(),
                    pattern=pattern,
                    query_layout=shared,
                    key_layout=other if cross else shared,
                    bias=bias,
                    backend=backend,
                )
                assert torch.equal(fresh, again)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "flex"])
@pytest.mark.parametrize("bias", [None, AlibiBias(4)], ids=["no bias", "alibi"])
def test_an_empty_source_gives_zero(backend, bias):
    query, key, value = (t.requires_grad_() for t in inputs(queries=3, keys=6))
    targets, source = SequenceLayout.from_lengths([3, 2], 3), SequenceLayout.from_lengths([0, 4], 6)
    output = attend(
        query, key, value, pattern=full(), query_layout=targets, key_layout=source, bias=bias, backend=backend
    )
    output.sum().backward()
    for tensor in (output, query.grad, key.grad, value.grad):
        assert (tensor[0] == 0).all()
        assert torch.isfinite(tensor).all()
    assert output[1, :, :2].abs().min() > 0
    assert (output[1, :, 2] == 0).all()


def test_a_learned_bias_is_never_remembered():
    table = torch.zeros(8, 4, requires_grad=True)
    packed = SequenceLayout.packed([[2, 4], [5]], 6)
    options = {"pattern": causal(), "query_layout": packed, "key_layout": packed}
    first = attend(*inputs(), bias=T5Bias(table, bidirectional=False, max_distance=9), **options)
    with torch.no_grad():
        table += torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    second = attend(*inputs(), bias=T5Bias(table, bidirectional=False, max_distance=9), **options)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_autocast_gives_its_dtype_and_the_references_numbers(amx, biased, monkeypatch):
    monkeypatch.setattr(sdpa, "cpu_multiplies_bfloat16", lambda: amx)
    query, key, value = inputs()
    bias = AlibiBias(4) if biased else None
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(query, key.bfloat16(), value.bfloat16(), pattern=causal(), bias=bias)
        exact = attend(query.double(), key.double(), value.double(), pattern=causal(), backend="reference")
    assert mixed.dtype == torch.bfloat16
    assert exact.dtype == torch.float64
    expected = attend(query, key, value, pattern=causal(), bias=bias, backend="reference")
    # q, k, v, P, the bias (at most 5 x 0.25) and the output are rounded once each: scores of size |q||k| scale err by 2 eps
    products = float(query.abs().amax() * key.abs().amax()) * 8**0.5
    bound = float(value.abs().max()) * torch.finfo(torch.bfloat16).eps * (2 * (2 * products + 1.25) + 3)
    assert (mixed.float() - expected).abs().max() <= bound


@pytest.mark.parametrize(
    ("backend", "kind", "biased"),
    [
        ("sdpa", "plain", False),
        ("sdpa", "right", True),
        ("sdpa", "packed", False),
        ("sdpa", "packed", True),
        ("reference", "packed", True),
    ],
)
def test_one_graph_under_torch_compile(backend, kind, biased):
    torch._dynamo.reset()
    layout = {
        "plain": SequenceLayout.plain_rows(2, 6),
        "right": SequenceLayout.from_lengths([3, 6], 6),
        "packed": SequenceLayout.packed([[2, 4], [5]], 6),
    }[kind]

    def layers(query, key, value, layout, table):
        bias = T5Bias(table, bidirectional=True, max_distance=9) if biased else None
        shared = None if bias is None else bias_scores(bias, layout)
        for pattern in (causal(), window(2, 0), full()):
            output = attend(
                query, key, value, pattern=pattern, query_layout=layout, key_layout=layout, bias=shared, backend=backend
            )
            query = query + output
        return query

    leaves = [t.requires_grad_() for t in (*inputs(), torch.randn(8, 4))]
    graph = torch.compile(layers, fullgraph=True, backend="aot_eager")
    expected = layers(*leaves[:3], layout, leaves[3])
    found = graph(*leaves[:3], layout, leaves[3])
    atol = 256 * EPS  # three layers of the same operations, fused or decomposed differently
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    pairs = [torch.autograd.grad(y.sum(), leaves, allow_unused=True) for y in (expected, found)]
    for a, b in zip(*pairs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=16 * EPS, atol=64 * atol)


def test_layers_in_activation_checkpoints_share_masks_and_a_bias():
    """What the first pass remembers, the second finds: the recomputed graph must still be the same and reach the table."""
    packed = SequenceLayout.packed([[2, 4], [5]], 6)
    table = torch.randn(8, 4, requires_grad=True)
    query, key, value = (t.requires_grad_() for t in inputs())

    def gradients(wrap):
        shared = bias_scores(T5Bias(table, bidirectional=True, max_distance=9), packed)

        def layer(query):
            options = {"pattern": causal(), "query_layout": packed, "key_layout": packed}
            return query + attend(query, key, value, bias=shared, **options) + attend(query, key, value, **options)

        return torch.autograd.grad(wrap(layer, wrap(layer, query)).sum(), [query, key, value, table])

    plain = gradients(lambda f, x: f(x))
    packed._memo.clear()
    recomputed = gradients(lambda f, x: checkpoint(f, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pattern": "windw(3, 0)"}, "did you mean 'window'"),
        ({"pattern": ["causal()", "window(-1, 0)"]}, "left is -1"),
        ({"pattern": []}, "empty list"),
        ({"dropout": 1.0}, "attention.dropout is 1.0"),
        ({"dropout": -0.1}, "attention.dropout is -0.1"),
        ({"scale": 0.0}, "attention.scale is 0.0"),
    ],
)
def test_a_bad_config_fails_where_it_is_made(fields, words):
    with pytest.raises(UserError, match=words):
        AttentionConfig(**fields)

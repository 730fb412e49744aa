"""FlexAttention as far as a CPU goes: which tiles, which pairs, which programs, and torch's own arithmetic for the rest.

What torch computes on a CPU without Triton is its dense form of the same operator; it runs our mask and our bias functions
in both directions once the refusal of gradients on a CPU is lifted. The kernels themselves: tests/gpu.
Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width.
"""

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as torch_flex

from pattern_cases import PATTERNS
from triune.attention import SequenceLayout, causal, full, prefix, window
from triune.attention.backends import flex, reference
from triune.attention.bias import AlibiBias, T5Bias
from triune.attention.call import AttentionCall

torch.set_num_threads(1)
BENCH = Path(__file__).resolve().parents[3] / "jobs" / "bench"
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
EPS = torch.finfo(torch.float32).eps
BIASES = ["none", "alibi", "t5", "t5 one way", "shared matrix", "matrix a row"]


@pytest.fixture(autouse=True)
def fresh():
    """No program and no mask of another test."""
    torch._dynamo.reset()
    flex._compiled.cache_clear()
    flex._plain.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch):
    """The operator's dense form, called directly."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def traced(monkeypatch):
    """Traced by Dynamo, run by the dense form, gradients allowed; its counter counts what is compiled."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    return counter


def call(query, key, value, pattern, queries, keys=None, bias=None, dropout=0.0):
    return AttentionCall(
        query=query, key=key, value=value, pattern=pattern, query_layout=queries, key_layout=keys or queries,
        bias=bias, scale=0.3, dropout=dropout,
    )  # fmt: skip


def inputs(batch=2, heads=4, key_heads=2, queries=20, keys=20, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries, width), (batch, key_heads, keys, width), (batch, key_heads, keys, width)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def make_bias(kind, batch=2, heads=4, queries=20, keys=20, seed=1):
    """The bias, and the parameter that gradients must reach."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "alibi":
        return AlibiBias(heads), None
    if kind.startswith("t5"):
        table = torch.randn(8, heads, generator=generator).requires_grad_()
        return T5Bias(table, bidirectional=kind == "t5", max_distance=6), table
    if kind == "none":
        return None, None
    rows = batch if kind == "matrix a row" else 1
    scores = torch.randn(rows, heads, queries, keys, generator=generator).requires_grad_()
    return scores, scores


@st.composite
def layouts(draw, batch, length):
    kind = draw(st.sampled_from(["plain", "plain", "right", "left", "packed", "prefix", "landmarks", "any"]))
    if kind == "plain":
        return SequenceLayout.plain_rows(batch, length)
    if kind in ("right", "left"):
        return SequenceLayout.from_lengths([draw(st.integers(0, length)) for _ in range(batch)], length, side=kind)
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "any":
        return SequenceLayout.from_arrays(*(random.integers(low, 3, (batch, length)) for low in (-1, 0)))
    packed = SequenceLayout.packed([np.diff([0, *sorted(random.integers(0, length + 1, 3))])] * batch, length)
    if kind == "packed":
        return packed
    marks = {kind: random.random((batch, length)) < 0.2}
    return SequenceLayout.from_arrays(packed.documents.numpy(), packed.positions.numpy(), **marks)


@st.composite
def pairs_of_layouts(draw, longest):
    batch = draw(st.integers(1, 3))
    queries = draw(layouts(batch, draw(st.integers(1, longest))))
    return queries, queries if draw(st.booleans()) else draw(layouts(batch, draw(st.integers(1, longest))))


def matrix(pattern, queries, keys):
    """Which pairs are allowed [B or 1, T, S], by the layout's own rule."""
    mask, dead = queries.allowed(pattern, keys)
    return (mask & ~dead)[:, 0]


def listed(counts, indices, columns):
    """[..., rows, columns] True at the blocks that a list of indices, with its count, names."""
    table = torch.zeros(*indices.shape[:-1], columns, dtype=torch.bool)
    for place in np.ndindex(*counts.shape):
        named = indices[place][: counts[place]].long()
        assert len(set(named.tolist())) == counts[place]
        table[place][named] = True
    return table


# ---------------------------------------------------------------------------------------------------------------- masks


@SETTINGS
@given(PATTERNS, pairs_of_layouts(40), st.sampled_from([1, 4, 7, 16]), st.sampled_from([1, 200, 2**25]))
def test_tiles_are_empty_partial_or_full_exactly_as_their_pairs(pattern, both, tile, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "PAIRS", pairs)  # how many are looked at at once changes nothing
        mask = flex.block_mask(pattern, *both, tile)
    allowed = matrix(pattern, *both).numpy()
    rows, columns = (-(-length // tile) for length in allowed.shape[1:])
    padded = np.pad(allowed, ((0, 0), (0, rows * tile - allowed.shape[1]), (0, columns * tile - allowed.shape[2])))
    share = padded.reshape(-1, rows, tile, columns, tile).mean((2, 4))
    partial_tiles, full_tiles = (torch.from_numpy(kind)[:, None] for kind in ((share > 0) & (share < 1), share == 1))
    for kind, keys_of, queries_of in (
        (partial_tiles, (mask.kv_num_blocks, mask.kv_indices), (mask.q_num_blocks, mask.q_indices)),
        (full_tiles, (mask.full_kv_num_blocks, mask.full_kv_indices), (mask.full_q_num_blocks, mask.full_q_indices)),
    ):
        assert torch.equal(listed(*keys_of, columns), kind)
        assert torch.equal(listed(*queries_of, rows), kind.mT)
    assert mask.seq_lengths == (both[0].shape[1], both[1].shape[1])
    assert (tile, tile) == mask.BLOCK_SIZE


@SETTINGS
@given(PATTERNS, pairs_of_layouts(24))
def test_the_rule_for_pairs_is_the_layouts(pattern, both):
    rows = 1 if all(layout.plain for layout in both) else both[0].shape[0]
    index = [torch.arange(n, dtype=torch.int32) for n in (rows, both[0].shape[1], both[1].shape[1])]
    found = flex.pair_rule(pattern, *both)(index[0][:, None, None], None, index[1][:, None], index[2])
    expected = matrix(pattern, *both)
    assert torch.equal(found.expand_as(expected), expected)


@pytest.mark.parametrize("kind", ["prefix", "landmarks"])
@pytest.mark.parametrize("pattern", [causal(), window(1, 1), ~causal()], ids=str)
def test_marked_tokens_are_seen_beyond_the_pattern(pattern, kind):
    packed = SequenceLayout.packed([[9, 6], [4, 12]], 16)
    marks = np.zeros((2, 16), bool)
    marks[:, [2, 7, 12]] = True
    rows = SequenceLayout.from_arrays(packed.documents.numpy(), packed.positions.numpy(), **{kind: marks})
    row, query, key = torch.arange(2)[:, None, None], torch.arange(16)[:, None], torch.arange(16)
    found = flex.pair_rule(pattern, rows, rows)(row, None, query, key)
    assert torch.equal(found, matrix(pattern, rows, rows))
    # causal landmarks show nothing that the pattern does not; all others do
    assert (found != matrix(pattern, packed, packed)).any() == (kind == "prefix" or pattern != causal())


def test_plain_rows_of_the_pattern_are_the_patterns_matrix():
    """An odd length: the last tiles are partial, since what lies beyond the row is no pair."""
    rows = SequenceLayout.plain_rows(3, 37)
    mask = flex.block_mask(window(9, 0) | prefix(2), rows, rows, 8)
    pairs = (window(9, 0) | prefix(2)).materialize(slice(37), slice(37))
    assert flex.pair_rule(window(9, 0) | prefix(2), rows, rows)(0, 0, 36, 27)
    kept = {(i // 8, j // 8) for i, j in zip(*np.nonzero(pairs), strict=True)}
    listed_tiles = listed(mask.kv_num_blocks, mask.kv_indices, 5) | listed(
        mask.full_kv_num_blocks, mask.full_kv_indices, 5
    )
    assert {tuple(place) for place in listed_tiles[0, 0].nonzero().tolist()} == kept
    assert int(listed_tiles.sum()) < 25


def test_a_plain_mask_is_kept_by_pattern_and_lengths():
    def made(pattern, length, rows):
        layout = SequenceLayout.plain_rows(rows, length)
        return flex.block_mask(pattern, layout, layout, 8)

    assert made(causal(), 32, 1) is made(window(None, 0), 32, 5)  # another batch, another layout object, the same value
    others = made(causal(), 40, 1), made(full(), 32, 1)
    assert len({id(mask) for mask in (made(causal(), 32, 1), *others)}) == 3
    long, short = SequenceLayout.plain_rows(1, 40), SequenceLayout.plain_rows(1, 32)
    assert flex.block_mask(causal(), short, long, 8).seq_lengths == (32, 40)
    assert flex._plain.cache_info().maxsize  # bounded


def test_another_mask_is_made_once_a_batch_and_pattern():
    first, second = (SequenceLayout.packed([[10, 6], [7]], 16) for _ in range(2))
    mask = flex.block_mask(causal(), first, first, 8)
    assert flex.block_mask(causal(), first, first, 8) is mask  # the next layer
    assert flex.block_mask(full(), first, first, 8) is not mask
    assert flex.block_mask(causal(), first, second, 8) is not mask
    assert flex.block_mask(causal(), second, second, 8) is not mask  # the next batch
    assert flex._plain.cache_info().currsize == 0


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.usefixtures("uncompiled")
@settings(SETTINGS, suppress_health_check=list(settings.default.suppress_health_check))
@given(PATTERNS, pairs_of_layouts(40), st.sampled_from(BIASES), st.sampled_from([(4, 4), (6, 3), (3, 1)]))
def test_the_forward_pass_is_the_references(pattern, both, kind, heads):
    batch, sizes = both[0].shape[0], (both[0].shape[1], both[1].shape[1])
    bias, _ = make_bias(kind, batch, heads[0], *sizes)
    given_call = call(*inputs(batch, *heads, *sizes), pattern, *both, bias=bias)
    with torch.no_grad():
        found = flex._run(
            *(given_call.query, given_call.key, given_call.value),
            flex.score_mod(given_call),
            flex.block_mask(pattern, *both, 8),
            given_call.scale,
        )
        expected = reference.attend(given_call)
    # Scores are below 40 (16 products of normal numbers, times 0.3, and a bias below 25: ALiBi's 40 tokens at slope 0.6); each
    # side's err by the rounding of such a number and 18 operations, weights relatively by twice that, values are below 6.
    assert (found - expected).abs().max() <= 6 * 2 * 2 * (40 + 18) * EPS
    dead = ~matrix(pattern, *both).any(-1).expand(batch, -1)
    assert (found.transpose(1, 2)[dead] == 0).all()


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("layout", ["plain", "packed", "cross", "right", "landmarks"])
@pytest.mark.parametrize("pattern", [window(3, 2), ~causal()], ids=str)
def test_gradients_are_the_references(kind, layout, pattern, traced):
    """Of query, key, value and the learned bias; ~causal() leaves the last query of each document nothing."""
    rows = {
        "plain": SequenceLayout.plain_rows(2, 20),
        "packed": SequenceLayout.packed([[8, 7], [15]], 20),
        "cross": SequenceLayout.packed([[8, 7], [15]], 20),
        "right": SequenceLayout.from_lengths([20, 0], 20),
        "landmarks": SequenceLayout.from_arrays(
            np.zeros((2, 20), int), np.tile(np.arange(20), (2, 1)), landmarks=np.eye(2, 20, k=5, dtype=bool)
        ),
    }[layout]

    keys = SequenceLayout.packed([[3, 11], [20]], 20) if layout == "cross" else rows

    def gradients(attend):
        leaves = [t.requires_grad_() for t in inputs()]
        bias, learned = make_bias(kind)
        output = attend(call(*leaves, pattern, rows, keys, bias=bias))
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
        return torch.autograd.grad((output * weight).sum(), [*leaves, *([] if learned is None else [learned])])

    found, expected = gradients(flex.attend), gradients(reference.attend)
    assert traced.frame_count == 1
    for a, b in zip(found, expected, strict=True):
        # weights err relatively by 2 x 2 x (30 + 18) eps (scores below 30, 18 operations); a gradient is a sum of at most
        # 20 x 2 (rows of a group; for a bias's table x 2 rows) such terms, each at most 4 x 16 x 4 x 0.3 before it
        assert (a - b).abs().max() <= 2 * 2 * 48 * EPS * max(float(b.abs().max()), 4 * 16 * 4 * 0.3)


def test_autocast_gives_its_dtype(uncompiled):
    rows = SequenceLayout.plain_rows(2, 20)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "_compiled", lambda *_: flex._run)
        assert flex.attend(call(*inputs(), causal(), rows)).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("kind", BIASES)
def test_one_program_serves_every_batch(kind, traced):
    """Other documents, other marks, another table: the same program. The number of documents is no shape."""
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for number in range(4):
            rows = SequenceLayout.packed([[3 + number, 7], [5, 2, 8 - number]], 20)
            bias, _ = make_bias(kind, seed=number)
            given_call = call(*inputs(seed=number), window(3, 2), rows, bias=bias)
            found, expected = flex.attend(given_call), reference.attend(given_call)
            assert (found - expected).abs().max() <= 6 * 2 * 2 * (40 + 18) * EPS
    assert traced.frame_count == 1
    assert flex._compiled.cache_info().misses == 1


def test_more_patterns_and_lengths_than_torch_recompiles(traced):
    """Each kind of call has a code object of its own; one alone would fail at the ninth program."""
    assert torch._dynamo.config.recompile_limit == 8
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for number in range(9):
            rows = SequenceLayout.plain_rows(2, 20 + number % 2)
            sizes = {"queries": rows.shape[1], "keys": rows.shape[1]}
            flex.attend(call(*inputs(**sizes), window(number, 0), rows))
    assert traced.frame_count == 9


@pytest.mark.slow
def test_what_decides_about_a_program_is_in_its_key(traced):
    """Calls that differ in anything but numbers get a program each, and none is traced twice."""
    marks = {"landmarks": np.eye(2, 20, dtype=bool)}
    documents, positions = np.zeros((2, 20), int), np.tile(np.arange(20), (2, 1))
    rows = [
        SequenceLayout.plain_rows(2, 20),
        SequenceLayout.packed([[8, 7], [15]], 20),
        SequenceLayout.from_arrays(documents, positions, **marks),
        SequenceLayout.from_arrays(documents, positions, prefix=marks["landmarks"]),
        SequenceLayout.from_arrays(documents, positions[:, ::-1].copy()),
    ]
    plain, cross = rows[0], SequenceLayout.packed([[20], [3, 4]], 20)
    calls = [call(*inputs(), window(3, 2), row, bias=make_bias(kind)[0]) for row in rows for kind in ("none", "t5")]
    calls += [call(*inputs(), window(3, 2), plain, bias=make_bias(kind)[0]) for kind in [*BIASES[3:], "alibi"]]
    calls += [call(*inputs(), window(3, 2), row, cross, bias=AlibiBias(4)) for row in rows[:2]]
    calls += [call(*(t.bfloat16() for t in inputs()), window(3, 2), plain)]
    calls += [call(*inputs(key_heads=4), window(3, 2), plain)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for each in calls:
            flex.attend(each)
        with torch.no_grad():
            flex.attend(calls[0])
    # both kinds of T5 are a table, and share theirs
    assert traced.frame_count == flex._compiled.cache_info().misses == len(calls) - 1 + 1


@pytest.mark.parametrize("plain", [pytest.param(True, marks=pytest.mark.slow), False])
def test_inside_a_compiled_model_it_is_one_graph_for_every_batch(plain, monkeypatch):
    """Three layers, two patterns; the masks are made in the graph, forward and backward."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "tile_counts", None)  # the host counts nothing: a step would wait for it

    def layers(query, key, value, rows, attend):
        for pattern in (window(3, 2), window(3, 2), causal()):
            query = query + attend(call(query, key, value, pattern, rows))
        return query

    graph = torch.compile(layers, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            rows = SequenceLayout.packed([[3 + number, 7], [20]], 20)
            rows = SequenceLayout.plain_rows(2, 20) if plain else rows
            leaves = [t.requires_grad_() for t in inputs(seed=number)]
            pairs = [
                (output, torch.autograd.grad(output.sum(), leaves))
                for output in (graph(*leaves, rows, flex.attend), layers(*leaves, rows, reference.attend))
            ]
            # three layers deep; else as above
            torch.testing.assert_close(pairs[0][0], pairs[1][0], rtol=0, atol=3 * 6 * 4 * (40 + 18) * EPS)
            for a, b in zip(pairs[0][1], pairs[1][1], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=3 * 4 * 48 * EPS * 77)


@pytest.mark.slow
def test_torchs_compiler_takes_the_masks_and_biases():
    """Inductor's kernel for a CPU, forward only: it generates code from the same functions as the one for a GPU."""
    rows = SequenceLayout.packed([[100, 20], [5, 150]], 200)
    bias, _ = make_bias("t5", queries=200, keys=200)
    given_call = call(*inputs(queries=200, keys=200), window(30, 20), rows, bias=bias)
    with torch.no_grad():
        found, expected = flex.attend(given_call), reference.attend(given_call)
    assert (found - expected).abs().max() <= 6 * 2 * 2 * (40 + 18) * EPS
    assert (found[:, :, 160:] == 0).all()


# ------------------------------------------------------------------------------------------------------------- refusals


def reasons(monkeypatch, device="cuda", dtype=torch.float32, triton=True, width=64, queries=256, keys=256, **options):
    monkeypatch.setattr(flex, "has_triton", lambda: triton)
    with FakeTensorMode():
        tensors = [
            torch.empty(2, heads, length, width, dtype=dtype, device=device)
            for heads, length in ((4, queries), (2, keys), (2, keys))
        ]
    rows, columns = SequenceLayout.plain_rows(2, queries), SequenceLayout.plain_rows(2, keys)
    return flex.why_not(call(*tensors, causal(), rows, columns, **options))


def test_it_serves_long_rows_on_a_gpu(monkeypatch):
    assert reasons(monkeypatch) == []
    assert reasons(monkeypatch, dtype=torch.bfloat16, width=80, queries=130, keys=1000) == []
    for kind in BIASES:
        assert reasons(monkeypatch, bias=make_bias(kind, queries=256, keys=256)[0]) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu"}, "no backward on a CPU"),
        ({"device": "xpu"}, "'xpu'; it needs a CUDA device"),
        ({"triton": False}, "Triton, which is not installed"),
        ({"dtype": torch.float64}, "torch.float64, and the kernel wants float32"),
        ({"dropout": 0.1}, "dropout is 0.1, and FlexAttention has none"),
        ({"width": 8}, "head width is 8, and the kernel takes 16 to 256"),
        ({"width": 320}, "head width is 320"),
        ({"queries": 1}, "1 queries and 256 keys are less than a tile of 128"),
        ({"keys": 127}, "256 queries and 127 keys"),
        ({"queries": 130, "bias": AlibiBias(4)}, "NaN with a bias where a length is no multiple of 128"),
        ({"bias": lambda *_: None}, "no bias of kind function"),
    ],
)
def test_what_it_cannot_serve_it_says(options, words, monkeypatch):
    found = reasons(monkeypatch, **options)
    assert len(found) == 1
    assert words in found[0]


def test_a_mixed_call_is_refused_but_under_autocast(monkeypatch):
    monkeypatch.setattr(flex, "has_triton", lambda: True)
    with FakeTensorMode():
        query = torch.empty(1, 2, 128, 16, device="cuda")
    rows = SequenceLayout.plain_rows(1, 128)
    mixed = call(query, query.bfloat16(), query, causal(), rows)
    assert "differ in dtype" in flex.why_not(mixed)[0]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert flex.why_not(mixed) == []


# -------------------------------------------------------------------------------------------------------- a bare machine


def test_attention_needs_torch_and_numpy_only():
    """What the GPU job relies on: a checkout, torch, numpy."""
    code = (
        "import sys\n"
        "for name in ('wandb', 'lightning', 'transformers', 'datasets', 'jsonargparse', 'yaml', 'rich', 'tokenizers',\n"
        "             'safetensors', 'torchmetrics', 'filelock'):\n"
        "    sys.modules[name] = None\n"
        "from triune.attention import attend, causal, window, SequenceLayout, parse\n"
        "import triune.attention.backends.flex\n"
        "import torch\n"
        "q = torch.randn(1, 2, 8, 16)\n"
        "print(tuple(attend(q, q, q, pattern=parse('window(2, 0)')).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(1, 2, 8, 16)", done.stderr


@pytest.fixture
def job(monkeypatch):
    """jobs/bench/attention_gpu.py as a module."""
    spec = importlib.util.spec_from_file_location("attention_gpu", BENCH / "attention_gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look up annotations
    spec.loader.exec_module(module)
    return module


def test_the_gpu_job_predicts_from_the_tiles_that_dense_computes(job):
    """Lengths of 8 tiles, where the tiles can be counted by hand."""
    rows = SequenceLayout.plain_rows(2, 1024)
    assert job.share(full(), rows) == (1.0, 1.0)
    assert job.share(causal(), rows) == (36 / 64, 1.0)
    # a window of 129 keys touches its own tile and the one before: 8 + 7 of the 36 of the triangle
    assert job.share(window(128, 0), rows) == (15 / 64, 15 / 36)
    assert job.share(window(128, 128), rows) == (22 / 64, 22 / 64)
    # two documents of four tiles each: a triangle of 10 tiles a document
    packed = SequenceLayout.packed([[512, 512]] * 3, 1024)
    assert job.share(causal(), packed) == (20 / 64, 20 / 36)


def test_the_gpu_jobs_table_has_a_cell_for_each_heading(job, monkeypatch):
    device = SimpleNamespace(name="A Device", total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(job, "rows_of", lambda *_: None)
    monkeypatch.setattr(job, "share", lambda *_: (0.1, 0.2))
    monkeypatch.setattr(job, "mask_milliseconds", lambda *_: 2.0)
    times = {"flash": job.Timed(10.0, 1.0), "dense": job.Timed(8.4, 1.0), "flex": job.Timed(2.1, 0.5)}
    monkeypatch.setattr(job, "measure", lambda *_: times)
    options = SimpleNamespace(tokens=16_384, heads=2, width=64, repeats=3)
    lines = job.heading(options)

    def cells():
        return [cell.strip() for cell in job.row("causal", 4096, options).split("|")[1:-1]]

    assert len(cells()) == lines[-1].count("|") - 1 == lines[-2].count("|") - 1
    timed = [
        "causal",
        "4 x 4,096",
        "10.00",
        "8.40",
        "2.10",
        "10.00%",
        "2.00",
        "**1.05**",
        "4.0",
        "-",
        "1.00 / 0.50",
        "2.0",
    ]
    assert cells() == timed
    del times["dense"]
    assert cells() == [*timed[:3], "no room", *timed[4:8], "-", "-", "- / 0.50", "2.0"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device, and the job would run")
def test_without_a_gpu_the_job_says_so(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    done = subprocess.run(
        [BENCH / "attention_gpu.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "torch sees no CUDA device here" in done.stderr

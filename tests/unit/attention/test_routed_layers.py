"""Models with routed attention: what they hold, how it starts, and settings that do not fit. And the gathers beneath."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from triune.attention.dispatch import attend
from triune.attention.layout import SequenceLayout
from triune.attention.routed.call import Branches
from triune.attention.routed.documents import documents_of
from triune.attention.routed.gather import take
from triune.attention.routed.lsh import hashes, rotations
from triune.attention.routed.patterns import lsh, moba, nsa
from triune.errors import UserError
from triune.models import cost
from triune.models.checks import check
from triune.models.factory import build, resolve

torch.set_num_threads(1)
TINY: dict[str, Any] = {"vocabulary": 40, "context": 32, "width": 32, "layers": 2, "heads": 4}
LSH = "lsh(buckets=4, chunk=4, causal=True)"
NSA = "nsa(compress=4, stride=2, select=4, top=3, window=3)"


@pytest.mark.parametrize(
    "pattern", [LSH, "moba(block=4, top=2)", NSA, ["causal()", LSH], ["window(3, 0)", NSA]], ids=str
)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [None, 2])
def test_counted_parameters_are_those_of_the_built_model(pattern: Any, norms: bool, bias: bool, heads: Any) -> None:
    heads = None if "lsh" in str(pattern) else heads
    model = build(TINY, attention={"pattern": pattern, "qk_norm": norms}, bias=bias, key_value_heads=heads)
    counted = sorted(weight.shape for weight in cost.weights(model.config))
    assert counted == sorted(tuple(parameter.shape) for parameter in model.parameters())
    matrices = sorted(w.shape for w in cost.weights(model.config) if w.in_block and len(w.shape) == 2)
    assert matrices == sorted(tuple(p.shape) for p in model.stack.blocks.parameters() if p.ndim == 2)


def test_a_shared_query_key_has_one_set_of_rows() -> None:
    layer = build(TINY, attention={"pattern": LSH, "qk_norm": True}).stack.blocks[0].attention
    assert layer.query_key_value.weight.shape == (2 * 32, 32)
    assert layer.key_norm is None


def test_nsa_has_keys_and_values_a_branch() -> None:
    model = build(TINY, attention={"pattern": NSA}, key_value_heads=2)
    layer = model.stack.blocks[0].attention
    assert layer.query_key_value.weight.shape == (32 + 6 * 16, 32)
    cache = model.new_cache(1)
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)
    stored = sum(layer.keys[:, :, :5].numel() + layer.values[:, :, :5].numel() for layer in cache.layers)
    assert 4 * stored == cost.key_value_bytes(model.config, 5, itemsize=4)


def test_every_parameter_is_drawn() -> None:
    """Matrices are random, gates start half open, places in a block alike."""
    torch.manual_seed(0)
    model = build(TINY, attention={"pattern": NSA}, initialization={"kind": "normal", "std": 0.5})
    layer = model.stack.blocks[0].attention
    sparse = layer.native_sparse
    for matrix in (
        *layer.query_key_value.weight.split(32),
        sparse.gate.weight,
        sparse.key.up.weight,
        sparse.value.down.weight,
    ):
        assert 0.4 < matrix.std() < 0.6
    for zero in (sparse.gate.bias, sparse.key.position, sparse.value.position, sparse.key.up.bias):
        assert (zero == 0).all()
    shared = build(TINY, attention={"pattern": LSH}, initialization={"kind": "normal", "std": 0.5})
    assert 0.4 < shared.stack.blocks[0].attention.query_key_value.weight.std() < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": {"pattern": "lsh(buckets=4, chunk=4, causal=False)"}}, "write causal=True"),
        ({"attention": {"pattern": LSH}, "family": "encoder"}, "write causal=False"),
        ({"attention": {"pattern": NSA}, "family": "encoder_decoder"}, "encoder reads both ways"),
        ({"attention": {"pattern": LSH}, "key_value_heads": 2}, "key_value_heads is 2.*set it to model.heads = 4"),
        ({"attention": {"pattern": NSA}, "position": {"kind": "alibi"}}, "position.kind is alibi, a bias"),
        ({"attention": {"pattern": NSA}, "position": {"kind": "t5"}}, "position.kind is t5, a bias"),
        ({"attention": {"pattern": ["causal()", LSH], "backend": "sdpa"}}, "backend is sdpa.*known only once"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(resolve(TINY, **settings))


def test_gates_weigh_branches_and_heads() -> None:
    """A gate of zero silences its branch in its head: with all closed, nothing is left."""
    model = build(TINY, attention={"pattern": NSA}).double()
    layer = model.stack.blocks[0].attention
    inputs = torch.randint(40, (1, 12))
    outputs = []
    for closed in (slice(0, 0), slice(0, 3), slice(0, 12)):  # gates stand by head, then branch
        with torch.no_grad():
            layer.native_sparse.gate.bias.zero_()[closed] = -1e9
            heads: list[Any] = []
            handle = layer.output.register_forward_pre_hook(lambda _, args: heads.append(args[0]))  # noqa: B023
            model(inputs)
            handle.remove()
        outputs.append(heads[0])
    width = layer.head_width
    assert (outputs[2] == 0).all()
    assert (outputs[1][..., :width] == 0).all()
    torch.testing.assert_close(outputs[1][..., width:], outputs[0][..., width:])
    assert outputs[0].abs().min() > 0


# ---- hashing -------------------------------------------------------------------------------------------------------------


def test_rotations_depend_on_the_seed_and_the_sizes_alone() -> None:
    cpu = torch.device("cpu")
    first = rotations(5, 2, 8, 3, 4, cpu)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(rotations(5, 2, 8, 3, 4, cpu), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(rotations(6, 2, 8, 3, 4, cpu), first)
    assert first.shape == (2, 8, 3, 4)


def test_opposite_vectors_fall_into_opposite_buckets_and_rounds_differ() -> None:
    pattern = lsh(buckets=8, chunk=4, causal=True, rounds=3)
    vectors = torch.randn(2, 4, 50, 16)
    buckets = hashes(vectors, pattern)
    assert buckets.shape == (2, 4, 3, 50)
    assert buckets.unique().tolist() == list(range(8))
    assert torch.equal(hashes(-vectors, pattern), (buckets + 4) % 8)
    assert torch.equal(hashes(7.5 * vectors, pattern), buckets)
    assert not torch.equal(buckets[:, :, 0], buckets[:, :, 1])
    assert not torch.equal(hashes(vectors[:, [1, 0, 2, 3]], pattern)[:, [1, 0, 2, 3]], buckets)


def test_alike_tokens_meet_and_others_do_not() -> None:
    """Two groups of tokens around opposite directions: each token attends to the mean value of its own group before it."""
    direction = torch.randn(1, 1, 1, 8, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    query = direction * sign.view(1, 1, -1, 1)
    value = torch.eye(8, dtype=torch.float64).view(1, 1, 8, 8)
    output = attend(query, query, value, pattern=lsh(buckets=4, chunk=8, rounds=2, causal=True))[0, 0]
    for i in range(8):
        before = [j for j in range(i) if sign[j] == sign[i]] or [i]
        want = torch.zeros(8, dtype=torch.float64)
        want[before] = 1 / len(before)
        torch.testing.assert_close(output[i], want)  # equal scores: fp64's default tolerance


def test_moba_sees_the_block_it_asks_for() -> None:
    """Blocks of 2 with keys along axes: the last query names a block and sees it beside its own."""
    key = torch.zeros(1, 1, 10, 8, dtype=torch.float64)
    for block in range(5):
        key[..., 2 * block : 2 * block + 2, block] = 1.0
    value = torch.eye(10, 8, dtype=torch.float64)[None, None]
    for named in range(4):
        query = torch.zeros(1, 1, 10, 8, dtype=torch.float64)
        query[..., 9, named] = 100.0
        output = attend(query, key, value, pattern=moba(block=2, top=2), scale=1.0)[0, 0, 9]
        want = torch.zeros(8, dtype=torch.float64)
        want[[2 * named, 2 * named + 1]] = 0.5  # e^-100 beside it for its own block
        torch.testing.assert_close(output, want)


# ---- gathers --------------------------------------------------------------------------------------------------------------


def test_take_and_its_gradient() -> None:
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, -1, 2, 3, 0, -1])
    back = torch.tensor([[1, -1, 0, 4], [5, -1, 3, -1]])
    taken = take(rows, index, back)
    assert torch.equal(taken[[0, 1, 3, 4, 5]], rows[[2, 0, 2, 3, 0]])
    assert (taken[[2, 6]] == 0).all()
    assert gradcheck(lambda x: take(x, index, back), rows)


def test_documents_of_like_length_share_rows_and_padding_stays_below_half() -> None:
    layout = SequenceLayout.packed([[100, 3, 2, 4, 1, 90], [120, 60, 7]], 200)
    documents = documents_of(layout)
    places = sum(group.layout.documents.numel() for group in documents.queries)
    assert places < 2 * int(layout.real_tokens)
    assert documents_of(layout) is documents
    tokens = torch.arange(400.0).view(2, 1, 200, 1)
    back = documents.scatter([group.gather(tokens) for group in documents.queries], 2)
    assert torch.equal(back, tokens.masked_fill(layout.padding[:, None, :, None], 0.0))


@pytest.mark.parametrize("pattern", [lsh(buckets=4, chunk=4, causal=True), moba(block=4, top=3)], ids=str)
def test_it_compiles_into_one_graph(pattern: Any) -> None:
    layout = SequenceLayout.plain_rows(1, 20)
    query, key, value = (torch.randn(1, 2, 20, 4, requires_grad=True) for _ in range(3))
    key = query if pattern.name == "lsh" else key

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, pattern=pattern, query_layout=layout, key_layout=layout)

    output = torch.compile(run, backend="aot_eager", fullgraph=True)(query, key, value)
    torch.testing.assert_close(output, run(query, key, value))
    (gradient,) = torch.autograd.grad(output.sum(), value)
    (wanted,) = torch.autograd.grad(run(query, key, value).sum(), value)
    torch.testing.assert_close(gradient, wanted)


class _Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor made has."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
        return results


@pytest.mark.parametrize(
    "pattern",
    [
        lsh(buckets=32, chunk=16, rounds=2, causal=True),
        lsh(buckets=32, chunk=16, rounds=2, causal=False),
        moba(block=32, top=3),
        nsa(compress=32, stride=32, select=32, top=3, window=16),
    ],
    ids=str,
)
def test_no_tensor_has_a_number_a_pair(pattern: Any) -> None:
    """Forward and backward of 2,048 tokens: the largest has a tenth of T x T numbers at most; the reference has them all."""
    length = 2048
    query, key, value, *rest = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(7))
    branches = None
    if pattern.name == "nsa":
        branches = Branches(
            compressed=(rest[0], rest[1]),
            window=(rest[2], rest[3]),
            gates=torch.rand(1, 1, length, 3),
            compress=lambda k, v: (k.mean(3), v.mean(3)),
        )
    sizes = {}
    for backend in ("blocked", "reference"):
        with _Largest() as largest:
            attend(
                query,
                query if pattern.name == "lsh" else key,
                value,
                pattern=pattern,
                backend=backend,
                branches=branches,
            ).sum().backward()
        sizes[backend] = largest.numbers
    assert sizes["blocked"] <= length * length / 10
    assert sizes["reference"] >= length * length

"""The chunked loss equals the plain formula, in value and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triune.models import loss as loss_module
from triune.models.cost import chunk_rows
from triune.models.loss import LossOutput, linear_cross_entropy, select

torch.set_num_threads(1)

CASES = settings(deadline=None, max_examples=60, derandomize=True)


def plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LossOutput:
    """The formula of the docstring over all logits."""
    logits = F.linear(hidden, weight, bias)  # [N, V]
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(1, targets[:, None]).squeeze(1)
    uniform = -log_p.mean(-1)
    each = (1 - label_smoothing) * nll + label_smoothing * uniform + z_loss * logits.logsumexp(-1) ** 2
    hits = (logits.argmax(-1) == targets).to(weights.dtype)
    return LossOutput(each @ weights, nll @ weights, hits @ weights, weights.sum())


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    rows, width, vocabulary = (draw(st.integers(1, top)) for top in (23, 17, 41))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kinds = {
        "ones": torch.ones(rows),
        "zeros": torch.zeros(rows),
        "some": (torch.rand(rows, generator=generator) < 0.4).float(),
        "real": torch.rand(rows, generator=generator) * 3,
    }
    return {
        "hidden": torch.randn(rows, width, generator=generator, dtype=torch.float64),
        "weight": torch.randn(vocabulary, width, generator=generator, dtype=torch.float64),
        "bias": torch.randn(vocabulary, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None,
        "targets": torch.randint(vocabulary, (rows,), generator=generator),
        "weights": kinds[draw(st.sampled_from(sorted(kinds)))].double(),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.7, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-4, 0.3])),
        "chunk": draw(st.sampled_from([None, 1, 2, 7, 100])),
    }


def run(problem: dict, function, dtype: torch.dtype) -> tuple[LossOutput, list[Tensor]]:
    """Outputs and the gradients of `total` (times 3, so that the backward scale counts) at the problem's leaves."""
    leaves = {name: problem[name] for name in ("hidden", "weight", "bias")}
    leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in leaves.items() if value is not None}
    rest = {name: problem[name] for name in ("label_smoothing", "z_loss")}
    if function is linear_cross_entropy:
        rest["chunk"] = problem["chunk"]
    output = function(**leaves, targets=problem["targets"], weights=problem["weights"].to(dtype), **rest)
    (3 * output.total).backward()
    return output, [leaf.grad for leaf in leaves.values()]


@contextmanager
def reader(kind: str) -> Iterator[None]:
    """How the logits of a chunk are read: as on a CPU, or by what a GPU compiles."""
    if kind == "cpu":
        yield
        return
    uncompiled = patch.object(loss_module, "_compiled_read", lambda: loss_module._read_fused)
    with patch.object(loss_module, "_fuses", lambda _: True), uncompiled:
        yield


READERS = pytest.mark.parametrize("kind", ["cpu", "fused"])


@READERS
@CASES
@given(problems())
def test_equals_the_plain_formula_in_fp64(kind: str, problem: dict) -> None:
    expected, expected_gradients = run(problem, plain, torch.float64)
    with reader(kind):
        output, gradients = run(problem, linear_cross_entropy, torch.float64)
    # fp64 has 1e-16 of relative error an operation; sums of at most 41 terms of size up to ~50 leave room at 1e-12
    torch.testing.assert_close(tuple(output), tuple(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-12)
    assert not output.nll.requires_grad
    assert not output.correct.requires_grad


@READERS
@CASES
@given(problems())
def test_equals_the_plain_formula_in_fp32(kind: str, problem: dict) -> None:
    expected, expected_gradients = run(problem, plain, torch.float64)
    with reader(kind):
        output, gradients = run(problem, linear_cross_entropy, torch.float32)
    # logits reach 4 sigma * sqrt(17) < 30 with error 30 * eps * sqrt(17) ~ 1.5e-5; z-loss doubles log(Z) ~ 30: 0.3 * 2 * 30 * 1.5e-5 ~ 3e-4
    # a token, times weights of at most 3 and 23 tokens: 2e-2 at the very worst, in fact far less; gradients of one token likewise
    torch.testing.assert_close(output.total.detach().double(), expected.total.detach(), rtol=2e-5, atol=2e-3)
    torch.testing.assert_close(output.nll.double(), expected.nll, rtol=2e-5, atol=1e-3)
    torch.testing.assert_close([g.double() for g in gradients], expected_gradients, rtol=1e-4, atol=2e-3)
    assert output.total.dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_that_of_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 5, dtype=torch.float64), torch.randn(13, 5, dtype=torch.float64)
    targets = torch.randint(13, (9,))
    ours = linear_cross_entropy(hidden, weight, targets, torch.ones(9), label_smoothing=smoothing)
    theirs = F.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(ours.total, theirs, rtol=1e-13, atol=0)


@READERS
def test_all_weights_zero_is_zero_and_never_nan(kind: str) -> None:
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    with reader(kind):
        output = linear_cross_entropy(
            hidden, weight, torch.full((4,), -100), torch.zeros(4), label_smoothing=0.1, z_loss=1.0
        )
    output.total.backward()
    assert [value.item() for value in output] == [0.0, 0.0, 0.0, 0.0]
    assert not hidden.grad.any()
    assert not weight.grad.any()


@READERS
def test_great_logits_stay_finite(kind: str) -> None:
    """A target far below the best has a probability that underflows; its loss must not."""
    hidden = torch.tensor([[1e3]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    with reader(kind):
        output = linear_cross_entropy(hidden, weight, torch.tensor([1]), torch.ones(1))
    output.total.backward()
    assert output.total.item() == 2e3
    torch.testing.assert_close(hidden.grad, torch.tensor([[2.0]]))


def test_select_keeps_the_tokens_that_weigh() -> None:
    hidden, targets = torch.arange(10.0).view(1, 5, 2).requires_grad_(), torch.arange(5)[None]
    weights = torch.tensor([[0.0, 2.0, 0.0, 0.5, 1.0]])
    some, names, weigh = select(hidden, targets, weights)
    assert names.tolist() == [1, 3, 4]
    assert weigh.tolist() == [2.0, 0.5, 1.0]
    some.sum().backward()
    assert hidden.grad.sum(-1).tolist() == [[0.0, 2.0, 0.0, 2.0, 2.0]]
    assert select(hidden, targets, torch.ones(1, 5))[0].shape == (5, 2)


def test_select_by_a_host_count_asks_the_device_nothing() -> None:
    """A meta tensor has no numbers: asking for one raises, so this passes only without a wait."""
    hidden, targets = torch.empty(1, 5, 2, device="meta"), torch.empty(1, 5, dtype=torch.int64, device="meta")
    weights = torch.empty(1, 5, device="meta")
    assert [len(tensor) for tensor in select(hidden, targets, weights, 3)] == [3, 3, 3]
    assert [len(tensor) for tensor in select(hidden, targets, weights, 5)] == [5, 5, 5]
    assert [len(tensor) for tensor in select(hidden, targets, weights)] == [5, 5, 5]
    assert [len(tensor) for tensor in select(hidden, targets, weights, 0)] == [5, 5, 5]  # an unset count drops nothing
    order = torch.tensor([0.0, 2.0, 0.0, 0.5, 1.0]).argsort(descending=True, stable=True)[:3]  # its rule, with numbers
    assert sorted(order.tolist()) == [1, 3, 4]


def test_rows_of_weight_zero_weigh_nothing_where_all_rows_pass() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    targets, weights = torch.tensor([0, 1, -100, 3, 99, 5]), torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    keep = weights > 0
    leaf = hidden.clone().requires_grad_()
    output = linear_cross_entropy(leaf, weight, targets, weights, label_smoothing=0.1, z_loss=0.1)
    output.total.backward()
    expected = plain(hidden[keep], weight, targets[keep], weights[keep].double(), label_smoothing=0.1, z_loss=0.1)
    torch.testing.assert_close(tuple(output), tuple(expected), rtol=1e-12, atol=0)
    assert not leaf.grad[~keep].any()


@pytest.mark.parametrize("tiles", [False, True], ids=["fp32 products", "bf16 products"])
def test_bf16_autocast(monkeypatch: pytest.MonkeyPatch, tiles: bool) -> None:
    monkeypatch.setattr(loss_module, "cpu_multiplies_bfloat16", lambda: tiles)
    torch.manual_seed(2)
    hidden, weight, bias = torch.randn(50, 32), torch.randn(77, 32) * 0.1, torch.randn(77)
    targets, weights = torch.randint(77, (50,)), torch.ones(50)
    problem = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": targets,
        "weights": weights,
        "label_smoothing": 0.1,
        "z_loss": 1e-4,
        "chunk": 16,
    }
    expected, expected_gradients = run(problem, plain, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = run(problem, linear_cross_entropy, torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    if not tiles:  # no product in bf16: the tolerance is that of fp32
        torch.testing.assert_close(output.total.detach().double(), expected.total.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close([g.double() for g in gradients], expected_gradients, rtol=1e-4, atol=1e-5)
        return
    # bf16 keeps 8 bits (eps 2^-8 rounding to 2^-9): operands give |logit| 3 * 2^-8 ~ 0.012 and the stored logit 2^-9 * 4 ~ 0.008 of error
    # a token; independent over 50 tokens: the sum is off by less than 50 * 0.02
    torch.testing.assert_close(output.total.detach().double(), expected.total.detach(), rtol=0, atol=1.0)
    # gradient of a logit: p (at most 1) off by 0.02 relative, and 2^-9 of rounding; a gradient adds up to 77 (hidden) or 50 (vocabulary) of
    # them; relative to the tensor's norm the errors are independent: 3 %
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert float((got.double() - want).norm() / want.norm()) < 0.03
    assert float((gradients[1].double() - expected_gradients[1]).abs().max()) > 1e-5  # bf16 was in fact used


def test_vocabulary_gradient_is_not_rounded_at_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 chunks that each add the same: a bf16 sum would stop growing at 256 times its addend."""
    monkeypatch.setattr(loss_module, "cpu_multiplies_bfloat16", lambda: True)
    hidden, weight = torch.ones(512, 1), torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(
            hidden, weight, torch.zeros(512, dtype=torch.int64), torch.ones(512), chunk=1
        ).total.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-256.0], [256.0]]))


def test_a_tie_is_a_miss() -> None:
    output = linear_cross_entropy(torch.ones(3, 1), torch.zeros(5, 1), torch.tensor([0, 1, 4]), torch.ones(3))
    assert float(output.correct) == 0.0


def test_without_gradients_no_gradient_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module._Gradients, "add", lambda *_: pytest.fail("gradient work in evaluation"))
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        quiet = linear_cross_entropy(hidden, weight, targets, torch.ones(6))
    with torch.inference_mode():
        linear_cross_entropy(hidden, weight, targets, torch.ones(6))
    monkeypatch.undo()
    torch.testing.assert_close(quiet.total, linear_cross_entropy(hidden, weight, targets, torch.ones(6)).total)
    assert not quiet.total.requires_grad


def test_a_frozen_vocabulary_costs_no_gradient() -> None:
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    output = linear_cross_entropy(hidden, weight, torch.zeros(6, dtype=torch.int64), torch.ones(6))
    assert output.total.grad_fn.gradients[1] is None
    output.total.backward()
    assert weight.grad is None


def test_second_backward_says_why() -> None:
    hidden = torch.randn(2, 3, requires_grad=True)
    total = linear_cross_entropy(hidden, torch.randn(4, 3), torch.tensor([0, 1]), torch.ones(2)).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward twice"):
        total.backward()


def test_leading_dimensions() -> None:
    torch.manual_seed(3)
    hidden, weight, targets, weights = (
        torch.randn(2, 3, 4),
        torch.randn(9, 4),
        torch.randint(9, (2, 3)),
        torch.rand(2, 3),
    )
    flat = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), weights.flatten())
    torch.testing.assert_close(tuple(linear_cross_entropy(hidden, weight, targets, weights)), tuple(flat))


@pytest.mark.parametrize(
    ("rows", "vocabulary", "device", "dtype", "expected"),
    [
        (2048, 8192, "cpu", torch.float32, 256),
        (300, 8192, "cpu", torch.float32, 150),  # two even chunks, not 256 + 44
        (2048, 8192, "cpu", torch.bfloat16, 1024),
        (2048, 256_000, "cpu", torch.float32, 64),  # 65 rows are 64 MiB: 32 chunks of 64
        (16_384, 128_256, "cuda", torch.bfloat16, 1024),  # 1,046 rows are 512 MiB: 16 chunks
        (0, 100, "cpu", torch.float32, 1),
    ],
)
def test_chunk_rows(rows: int, vocabulary: int, device: str, dtype: torch.dtype, expected: int) -> None:
    assert chunk_rows(rows, vocabulary, device=device, itemsize=dtype.itemsize) == expected

"""The reversible stack against the same recurrence in plain autograd, and chunked feed-forward against whole rows.

Rounding of the way back. With u = 2^-53 (fp64) or 2^-24 (fp32), x = fl(fl(x + f) - f') where f' is the branch at a recomputed
stream. The two sums round by at most u (|y| + |x|), and f' differs from f by J e for an error e of the stream that it reads:
so the errors of the streams obey  e_target <- e_target + |J| e_source + u (|y| + |x|)  from the last branch to the first.
`test_rounding_of_the_way_back` holds the errors against this recurrence, with the branches' true Jacobians J. The gradients
are those of a function near by: their relative error is this error times a condition number; 1e3 (weights as initialized times
4) covers every case with a factor of 10 to spare, so fp64: 12 branches x 4u x 1e3 = 5e-12, fp32: 3e-3.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models import cost, reversible
from triune.models.factory import build, resolve
from triune.models.stack import Stack

TINY: dict[str, Any] = {"vocabulary": 40, "width": 32, "layers": 3, "heads": 4, "context": 64, "reversible": True}
FAMILIES = ["encoder", "decoder", "encoder_decoder"]
every_family = pytest.mark.parametrize("family", FAMILIES)
GRADIENT = {torch.float64: 5e-12, torch.float32: 3e-3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model_of(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    return build({**TINY, "family": family, "initialization": {"kind": "normal", "std": 0.08}}, **settings).to(dtype)


def batch_of(family: str) -> dict[str, Any]:
    batch: dict[str, Any] = {
        "inputs": torch.randint(0, 40, (2, 12)),
        "layout": SequenceLayout.packed([[5, 6], [12]], 12),
    }
    if family == "encoder_decoder":
        batch |= {"source": torch.randint(0, 40, (2, 9)), "source_layout": SequenceLayout.packed([[4, 4], [9]], 9)}
    return batch


def plain_run(branches: list[reversible.Branch], hidden: Tensor) -> Tensor:
    """The recurrence as the paper writes it, two branches or three a block, by autograd alone."""
    one = two = hidden
    for branch in branches:
        one = one + branch.function(two)
        one, two = two, one
    return (one + two) / 2


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """plainly(f): f() with the plain recurrence in place of the reversible one."""

    def call(function: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(reversible, "run", plain_run)
            return function()

    return call


def step(model: Any, batch: dict[str, Any], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states and every gradient of one step, from one seed."""
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
        hidden = model(**batch)
    hidden.double().square().mul(torch.linspace(0.5, 1.5, hidden.shape[-1])).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor's error within `tolerance` of the largest gradient of the model."""
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((found[name] - gradient).abs().max())
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "t5": {"position": {"kind": "t5"}},
    "alibi, sandwich": {"position": {"kind": "alibi"}, "norm.placement": "sandwich", "norm.kind": "rms"},
    "dropout": {"dropout": 0.3, "attention.dropout": 0.2, "feed_forward.dropout": 0.2, "stochastic_depth": 0.3},
    "chunked": {"feed_forward": {"kind": "swiglu", "chunk": 5, "dropout": 0.2}},
    "grouped, normed": {"key_value_heads": 2, "attention.qk_norm": True, "bias": False, "norm.skip_first": True},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_plain_recurrence(family: str, variant: str, dtype: torch.dtype, plainly: Any) -> None:
    """Outputs bit for bit, with the same dropout; gradients of everything, the shared bias, memory and embeddings included."""
    model, batch = model_of(family, dtype, **VARIANTS[variant]).train(), batch_of(family)
    hidden, gradients = step(model, batch)
    plain_hidden, plain_gradients = plainly(lambda: step(model, batch))
    assert torch.equal(hidden, plain_hidden)
    assert set(gradients) == {name for name, _ in model.named_parameters() if not name.startswith("head.")}
    assert_close(gradients, plain_gradients, GRADIENT[dtype])


@every_family
def test_the_two_streams_are_told_apart(family: str) -> None:
    """By hand: y1 = x1 + f(x2), y2 = x2 + g(y1), and with cross-attention the third on the first stream again."""
    model, batch = model_of(family, layers=1).eval(), batch_of(family)
    stack = model.decoder if family == "encoder_decoder" else model.stack
    seen: dict[str, Any] = {}
    stack.register_forward_pre_hook(
        lambda _, given, options: seen.update(given=given, options=options), with_kwargs=True
    )
    with torch.no_grad():
        got = model(**batch)
        hidden, layout = seen["given"]
        memory, across = seen["options"].get("memory"), seen["options"].get("memory_layout")
        around, crossing = stack._surroundings(layout, across, None)
        block = stack.blocks[0]
        y1 = hidden + block.attention(block.attention_residual.norm_before(hidden), around[0])
        y2 = hidden
        if memory is not None:
            y2 = y2 + block.cross_attention(block.cross_residual.norm_before(y1), crossing, memory=memory)
            y1 = y1 + block.feed_forward(block.feed_forward_residual.norm_before(y2))
        else:
            y2 = y2 + block.feed_forward(block.feed_forward_residual.norm_before(y1))
        assert torch.equal(got, stack.norm((y1 + y2) / 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rounding_of_the_way_back(dtype: torch.dtype) -> None:
    """The streams that the last node of the way back holds, against the embedding that went in, and the docstring's bound."""
    unit = torch.finfo(dtype).eps / 2
    mixed = [torch.randn(12, 12, dtype=dtype) / 12**0.5 for _ in range(12)]
    branches = [reversible.Branch(function=partial(_mix, weight=weight), inputs=()) for weight in mixed]
    hidden = torch.randn(1, 1, 12, dtype=dtype, requires_grad=True)
    walk = reversible._Walk(branches, dtype)
    steps = [(hidden.detach(), hidden.detach())]
    for branch in branches:
        one, two = steps[-1]
        steps.append((two, one + branch.function(two)))
    bound = {True: torch.zeros(12, dtype=dtype), False: torch.zeros(12, dtype=dtype)}  # of the target, of the source
    for index in reversed(range(12)):
        source, result = steps[index + 1]
        target = steps[index][0]
        slope = torch.autograd.functional.jacobian(branches[index].function, source).view(12, 12).abs()
        grown = bound[True] + slope @ bound[False] + unit * (result + 0).abs().view(12) + unit * target.abs().view(12)
        bound = {True: bound[False], False: grown}
    held: list[Tensor] = []
    watched = [*branches]
    watched[0] = reversible.Branch(function=partial(_mix, weight=mixed[0], seen=held), inputs=())
    walk.branches = watched
    reversible._recomputed(walk, [hidden, hidden]).sum().backward()
    assert len(held) == 2  # once on the way there, once on the way back
    error = (held[1].detach() - hidden.detach()).abs().view(12)
    assert (error <= 1.01 * bound[True] + 1.01 * bound[False]).all()
    assert float(error.max()) > 0
    assert walk.streams == []


def _mix(x: Tensor, weight: Tensor, seen: list[Tensor] | None = None) -> Tensor:
    if seen is not None:
        seen.append(x)
    return torch.tanh(x @ weight)


def test_streams_are_wide_under_autocast_and_in_bf16(plainly: Any) -> None:
    """bf16 branches on fp32 streams. A stream recomputed to 2^-24 reads as the same bf16 number but where it lies at the edge
    between two: then a branch moves by 2^-8 of one number of many. 2 % of the largest gradient covers that."""
    model, batch = model_of("decoder").train(), batch_of("decoder")
    hidden, gradients = step(model, batch, autocast=True)
    plain_hidden, plain_gradients = plainly(lambda: step(model, batch, autocast=True))
    assert hidden.dtype == torch.float32
    assert torch.equal(hidden, plain_hidden)
    assert_close(gradients, plain_gradients, 0.02)
    model.bfloat16()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        hidden = model.stack(model.embedding(batch["inputs"]), batch["layout"])
    assert hidden.dtype == torch.bfloat16
    assert sum(t.dtype == torch.float32 and t.shape == hidden.shape for t in kept) == 2  # the streams


def test_autocast_of_the_forward_pass_holds_in_the_backward_pass() -> None:
    """backward() runs outside of autocast, as trainers call it: the branches must round as they did, or streams drift."""
    seen: list[tuple[torch.dtype, bool]] = []
    weight = nn.Parameter(torch.randn(4, 4))

    def function(x: Tensor) -> Tensor:
        out = torch.mm(x[0], weight)[None]
        seen.append((out.dtype, torch.is_autocast_cache_enabled()))
        return out

    branches = [reversible.Branch(function=function, inputs=(weight,))] * 2
    with torch.autocast("cpu", torch.bfloat16):
        out = reversible.run(branches, torch.randn(1, 3, 4))
        out.sum().backward()
    assert weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        out = reversible.run(branches, torch.randn(1, 3, 4))
    out.sum().backward()
    assert seen == [(torch.bfloat16, False)] * 8  # and no cast of a weight stays behind


@every_family
def test_a_rule_of_a_learned_bias_gets_its_gradient(family: str, plainly: Any) -> None:
    """Where the scores are not made once and handed on, each layer reads the table itself."""
    model, batch = model_of(family, torch.float64, position={"kind": "t5"}).train(), batch_of(family)
    for stack in (module for module in model.modules() if isinstance(module, Stack)):
        stack._bias = lambda queries, keys, *, tiled, stack=stack: stack.relative.rule()
    _, gradients = step(model, batch)
    _, expected = plainly(lambda: step(model, batch))
    assert sum("relative" in name for name in gradients) == (2 if family == "encoder_decoder" else 1)
    assert_close(gradients, expected, GRADIENT[torch.float64])


class Kept:
    """A tensor that autograd saved; the live bytes of distinct storages are counted while it is."""

    live: dict[int, int]
    peak: int

    def __init__(self, tensor: Tensor, left_out: set[int]) -> None:
        self.tensor = tensor.detach()  # an output of the node that saves it would hold its own graph
        place = tensor.untyped_storage().data_ptr()
        if place in left_out:
            return
        entry = Kept.live.setdefault(place, [0, tensor.untyped_storage().nbytes()])
        entry[0] += 1
        Kept.peak = max(Kept.peak, sum(size for _, size in Kept.live.values()))
        weakref.finalize(self, Kept.free, place)

    @staticmethod
    def free(place: int) -> None:
        Kept.live[place][0] -= 1
        if Kept.live[place][0] == 0:
            del Kept.live[place]


def peak(model: Any, batch: dict[str, Any]) -> int:
    """Most bytes that autograd keeps at a time in a step, forward and backward, without parameters."""
    Kept.live, Kept.peak = {}, 0
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: Kept(t, weights), lambda kept: kept.tensor):
        model(**batch).sum().backward()
    return Kept.peak


@pytest.mark.parametrize("settings", [{}, {"feed_forward.chunk": 8}, {"dropout": 0.1}], ids=str)
@every_family
def test_memory_is_flat_in_depth(family: str, settings: dict[str, Any]) -> None:
    """12 layers keep at most 1.5 times what 2 do, at the peak of forward and backward; an ordinary stack keeps 5 times."""
    batch = {"inputs": torch.randint(0, 40, (2, 48))}
    more = {"source_length": 40} if family == "encoder_decoder" else {}
    if more:
        batch["source"] = torch.randint(0, 40, (2, 40))
    found, said = {}, {}
    for flat in (True, False):
        for layers in (2, 12):
            model = model_of(family, layers=layers, reversible=flat, **settings).train()
            streams = 2 * 2 * 48 * 32 * 4 if flat else 0  # handed down on the way back, beside what autograd keeps
            found[flat, layers] = peak(model, batch) + streams
            said[flat, layers] = cost.memory(model.config, batch=2, length=48, **more).parts["activations"]
    assert found[True, 12] <= 1.5 * found[True, 2]
    assert found[False, 12] > 4 * found[False, 2]
    assert said[True, 12] == said[True, 2]
    assert said[True, 2] / found[True, 2] == pytest.approx(
        1, abs=0.12
    )  # as test_cost_closed_form.py, and whole bytes a token


def test_a_chunked_network_keeps_a_chunk() -> None:
    """Each layer keeps no inner activation; the closed form counts one chunk's, for the backward pass."""
    batch = {"inputs": torch.randint(0, 40, (2, 48))}
    whole, chunked = (model_of("decoder", layers=6, reversible=False, **{"feed_forward.chunk": c}) for c in (None, 8))
    inner = 2 * 48 * 128 * 4  # B x T x F numbers, twice: before and after the activation
    assert peak(whole, batch) - peak(chunked, batch) > 6 * 2 * inner * 0.9 - 2 * inner
    said = [cost.memory(m.config, batch=2, length=48).parts["activations"] for m in (whole, chunked)]
    assert said[0] - said[1] == pytest.approx(6 * 2 * inner - 2 * inner * 8 / 48, abs=2 * 48)  # whole bytes a token
    assert said[1] / peak(chunked, batch) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@every_family
def test_chunks_change_neither_outputs_nor_gradients(family: str, chunk: int, kind: str) -> None:
    """fp64; products of fewer rows and sums of weight gradients over chunks round anew: 64 terms x 1.1e-16 x 100 in depth."""
    settings = {"reversible": False, "feed_forward": {"kind": kind}}
    whole = model_of(family, torch.float64, **settings)
    chunked = model_of(family, torch.float64, **settings, **{"feed_forward.chunk": chunk})
    chunked.load_state_dict(whole.state_dict())
    batch = batch_of(family)
    (hidden, gradients), (plain, expected) = step(chunked, batch), step(whole, batch)
    torch.testing.assert_close(hidden, plain, rtol=1e-12, atol=1e-12)
    assert_close(gradients, expected, 1e-12)
    chunked.eval()
    with torch.no_grad():
        torch.testing.assert_close(chunked(**batch), plain, rtol=1e-12, atol=1e-12)


def test_chunks_meet_the_same_dropout_again() -> None:
    """Recomputed chunks must draw the masks of the forward pass: the gradient equals the one without recomputation."""
    model = model_of("decoder", torch.float64, reversible=False, feed_forward={"chunk": 5, "dropout": 0.5}).train()
    batch = batch_of("decoder")
    hidden, gradients = step(model, batch)
    for block in model.stack.blocks:
        feed_forward = block.feed_forward
        feed_forward.forward = lambda x, f=feed_forward: torch.cat([f._positions(c) for c in x.split(5, dim=1)], dim=1)
    plain, expected = step(model, batch)
    assert torch.equal(hidden, plain)
    assert_close(gradients, expected, 1e-12)


def test_no_gradient_and_evaluation_take_the_plain_way(plainly: Any) -> None:
    model, batch = model_of("decoder", dropout=0.5).eval(), batch_of("decoder")
    with torch.no_grad():
        quiet = model(**batch)
    assert not quiet.requires_grad
    assert torch.equal(quiet, model(**batch))  # with nodes
    assert torch.equal(quiet, plainly(lambda: model(**batch)))


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_cached_decoding_equals_one_pass(family: str) -> None:
    """2 layers, fp32, sums ordered anew: 1e-4 as in test_models_cache.py."""
    model = model_of(family).eval()
    inputs = torch.randint(0, 40, (2, 10))
    more = {"source": torch.randint(0, 40, (2, 7))} if family == "encoder_decoder" else {}
    with torch.no_grad():
        full, cache = model(inputs, **more), model.new_cache(2)
        got = [model(inputs[:, :4], cache=cache, **more)]
        got += [model(inputs[:, i : i + 1], cache=cache) for i in range(4, 10)]
    torch.testing.assert_close(torch.cat(got, dim=1), full, rtol=1e-4, atol=1e-4)


def test_gradients_accumulate_and_can_be_asked_for() -> None:
    model, batch = model_of("decoder", torch.float64).train(), batch_of("decoder")
    _, once = step(model, batch)
    model.zero_grad()
    for _ in range(2):
        model(**batch).square().mul(torch.linspace(0.5, 1.5, 32)).sum().backward()
    assert_close({n: p.grad / 2 for n, p in model.named_parameters() if p.grad is not None}, once, 1e-12)
    weight = model.stack.blocks[1].feed_forward.up.weight
    loss = model(**batch).square().mul(torch.linspace(0.5, 1.5, 32)).sum()
    (asked,) = torch.autograd.grad(loss, [weight], retain_graph=True)
    (again,) = torch.autograd.grad(loss, [weight])
    assert torch.equal(asked, again)
    assert_close({"weight": asked}, {"weight": once["stack.blocks.1.feed_forward.up.weight"]}, 1e-12)


@pytest.mark.parametrize("trained", ["blocks.2", "blocks.0.attention.output", "blocks.1.feed_forward"])
def test_frozen_parts_get_nothing_and_stop_nothing(trained: str, plainly: Any) -> None:
    """As in fine-tuning: embeddings frozen, so that the stack's input asks for no gradient, and most blocks with them."""
    model, batch = model_of("decoder", torch.float64).train(), batch_of("decoder")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    _, gradients = step(model, batch)
    _, expected = plainly(lambda: step(model, batch))
    assert gradients
    assert_close(gradients, expected, GRADIENT[torch.float64])


def test_the_random_state_goes_on_as_without(plainly: Any) -> None:
    """Recomputing must not use up random numbers: what is drawn after a step does not depend on how it was computed."""
    model, batch = model_of("decoder", dropout=0.3).train(), batch_of("decoder")

    def after() -> Tensor:
        step(model, batch)
        return torch.rand(3)

    assert torch.equal(after(), plainly(after))


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_hooks_of_ddp_fire_once_a_parameter(family: str, unused: bool, process_group: None) -> None:
    """With a shared bias, and with DDP looking through the graph for unused parameters (the head's): all reduced, none twice."""
    model, batch = model_of(family, torch.float64, position={"kind": "t5"}).train(), batch_of(family)
    _, expected = step(model, batch)
    for parameter in model.head.parameters():
        parameter.requires_grad_(unused or parameter is model.embedding.weight)
    reduced: list[int] = []

    def count(_, bucket):  # annotated, DDP would compare the text of the annotation with its type
        reduced.extend(parameter.numel() for parameter in bucket.parameters())
        return torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])

    wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
    wrapped.register_comm_hook(None, count)
    for _ in range(2):  # the second step fails where the first left a parameter out
        model.zero_grad()
        model_step = step(wrapped, batch)[1]
    assert_close({name.removeprefix("module."): g for name, g in model_step.items()}, expected, 1e-12)
    assert len(reduced) == 2 * sum(parameter.requires_grad for parameter in model.parameters())


def test_parameters_are_those_of_an_ordinary_stack() -> None:
    one, two = build(TINY), build(TINY, reversible=False)
    assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in two.named_parameters()}
    still = build(TINY, **{"norm.final": False})
    for parameter in (p for n, p in still.named_parameters() if "output" in n or "down" in n):
        nn.init.zeros_(parameter)
    stack, x = still.stack, torch.randn(2, 5, 32)
    assert isinstance(stack, Stack)
    assert torch.equal(stack(x, SequenceLayout.plain_rows(2, 5)), x)  # branches of nothing: the identity


def test_compiled_it_breaks_the_graph_and_no_more() -> None:
    torch._dynamo.reset()
    model, batch = model_of("decoder", layers=1, norm={"kind": "rms"}), batch_of("decoder")
    hidden, gradients = step(model, batch)
    compiled = torch.compile(model, dynamic=False, backend="aot_eager")
    got, found = step(compiled, batch)
    torch.testing.assert_close(got, hidden, rtol=1e-4, atol=1e-4)
    assert_close({name.removeprefix("_orig_mod."): g for name, g in found.items()}, gradients, 1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_checkpointing": True}, "model.activation_checkpointing are both true"),
        ({"norm.placement": "post"}, "model.norm.placement: post"),
        ({"feed_forward.chunk": 0}, "model.feed_forward.chunk is 0"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(resolve(TINY), **settings)

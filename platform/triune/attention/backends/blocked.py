"""Tiles in plain PyTorch: the cost falls with the pairs that a pattern keeps, forward and backward, on any device.

For each tile of queries only the keys that one of them sees are read (plan.py); tiles in which every pair is allowed pay no
mask (steps.py).
Legend: B batch, T query length, S key length, H heads, K key/value heads, D head width, N distances.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from triune.attention.backends.steps import Settings, backward, forward
from triune.attention.call import AttentionCall
from triune.attention.expression import parse
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.attention.plan import AnyRow, ContiguousRow, Plan, Row, Tokens, best_tile, plain_plan, plan_rows


def why_not(call: AttentionCall) -> list[str]:
    """Reasons why this backend can't serve the call; empty where it can."""
    reasons = []
    if not call.query.is_floating_point():
        reasons.append(f"its inputs are {call.query.dtype}, and tiles are products of floating-point numbers")
    if isinstance(call.bias, Tensor):
        reasons.append("its bias is given as scores of all pairs, [.., T, S]; hand it the ScoreBias that makes them")
    if (
        call.bias is not None
        and torch.compiler.is_compiling()
        and not (call.query_layout.plain and call.key_layout.plain)
    ):
        reasons.append(
            "a bias over padded or packed rows needs their positions on the host, which torch.compile doesn't have"
        )
    return reasons


def attend(call: AttentionCall) -> Tensor:
    """[B, H, T, D] in the query's dtype, or in autocast's where that is on."""
    device = call.query.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast and call.query.dtype != torch.float64 else call.query.dtype
    inner = torch.float32 if device == "cpu" and dtype in (torch.bfloat16, torch.float16) else dtype
    query, key, value = call.query.to(inner), call.key.to(inner), call.value.to(inner)
    seed = torch.randint(2**62, (1,)) if call.dropout else torch.zeros(1, dtype=torch.int64)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        if torch.compiler.is_compiling():
            output = _compiled(call, query, key, value, seed, inner)
        else:
            plan = plan_of(call.pattern, call.query_layout, call.key_layout)
            relative, zero = _relative(call, plan, inner)
            settings = Settings(call.scale, call.dropout, int(seed), zero)
            output = _Blocked.apply(query, key, value, relative, plan, settings)
    return output.to(dtype)


# ---- plan and bias ----------------------------------------------------------------------------------------------------


def plan_of(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout) -> Plan:
    """The steps of a call, made once for a pattern and shape (plain rows) or batch (others)."""
    if queries.plain and keys.plain:
        return plain_plan(pattern, queries.shape[1], keys.shape[1])
    return queries.remember(("plan", pattern), keys, lambda: _layout_plan(pattern, queries, keys))


def _layout_plan(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout) -> Plan:
    pairs = None
    if not _regular(queries, keys):
        mask = queries.allowed(pattern, keys)
        pairs = (mask.mask & ~mask.dead)[:, 0].cpu().numpy()
    return _plan(pattern, _host(queries.documents, queries.positions), _host(keys.documents, keys.positions), pairs)


def _regular(queries: SequenceLayout, keys: SequenceLayout) -> bool:
    """Whether the pattern alone decides inside a document, and documents stand together."""
    marked = any(marks is not None for layout in (queries, keys) for marks in (layout.prefix, layout.landmarks))
    return queries.contiguous and keys.contiguous and not marked


def _host(documents: Tensor, positions: Tensor) -> Tokens:
    """[B, T] each, on the host: waits for the device where the layout lies on one."""
    return Tokens(documents.cpu().numpy(), positions.cpu().numpy().astype(np.int64))


def _plan(pattern: Pattern, queries: Tokens, keys: Tokens, pairs: np.ndarray | None) -> Plan:
    length, tile = queries.documents.shape[1], best_tile(pattern, queries.documents.shape[1], keys.documents.shape[1])

    def row(index: int) -> Row:
        tokens = [Tokens(side.documents[index], side.positions[index]) for side in (queries, keys)]
        if pairs is None:
            return ContiguousRow(pattern, *tokens)
        return AnyRow(pairs[min(index, len(pairs) - 1)], *tokens)

    return plan_rows(map(row, range(len(queries.documents))), length, tile)


def _relative(call: AttentionCall, plan: Plan, dtype: torch.dtype) -> tuple[Tensor | None, int]:
    """The bias by distance [H, N], and the column of distance 0."""
    if call.bias is None or not plan.rows:
        return None, 0
    assert not isinstance(call.bias, Tensor)
    far = int(max(side.positions.max(initial=0) for row in plan.rows for side in (row.queries, row.columns)))
    distance = torch.arange(-far, far + 1, device=call.query.device)
    return call.bias.by_distance(distance).to(dtype), far


# ---- the two ways to the kernel --------------------------------------------------------------------------------------


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, relative: Tensor | None, plan: Plan, settings: Settings
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, relative)
        ctx.plan, ctx.settings = plan, settings
        return forward(query, key, value, relative, plan, settings)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, relative = ctx.saved_tensors
        found = backward(gradients[0], query, key, value, relative, ctx.plan, ctx.settings)
        return (*found, None, None)


# ---- torch.compile ----------------------------------------------------------------------------------------------------
# To the compiler the whole pass is one opaque operator, so that a graph neither breaks nor unrolls the steps. Plans of rows
# that are not plain are made inside it, from the layouts' tensors, each time it runs.


def _compiled(
    call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, seed: Tensor, dtype: torch.dtype
) -> Tensor:
    queries, keys = call.query_layout, call.key_layout
    tokens: list[Tensor] = []
    allowed = relative = None
    if not (queries.plain and keys.plain):
        tokens = [queries.documents, queries.positions, keys.documents, keys.positions]
        if not _regular(queries, keys):
            mask = queries.allowed(call.pattern, keys)
            allowed = (mask.mask & ~mask.dead)[:, 0]
    zero = query.shape[2] - 1
    if call.bias is not None:
        assert not isinstance(call.bias, Tensor)
        relative = call.bias.by_distance(torch.arange(-zero, key.shape[2], device=query.device)).to(dtype)
    settings = (str(call.pattern), zero, call.scale, call.dropout)
    return _operator(query, key, value, relative, tokens, allowed, seed, *settings)


@torch.library.custom_op("triune::blocked_attention", mutates_args=())
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor | None,
    tokens: list[Tensor],
    allowed: Tensor | None,
    seed: Tensor,
    pattern: str,
    zero: int,
    scale: float,
    dropout: float,
) -> Tensor:
    plan = _plan_of_tensors(query, key, tokens, allowed, pattern)
    return forward(query, key, value, relative, plan, Settings(scale, dropout, int(seed), zero))


@torch.library.custom_op("triune::blocked_attention_backward", mutates_args=())
def _operator_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: Tensor | None,
    tokens: list[Tensor],
    allowed: Tensor | None,
    seed: Tensor,
    pattern: str,
    zero: int,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan = _plan_of_tensors(query, key, tokens, allowed, pattern)
    settings = Settings(scale, dropout, int(seed), zero)
    *found, to_relative = backward(gradient, query, key, value, relative, plan, settings)
    return found[0], found[1], found[2], query.new_empty(0) if to_relative is None else to_relative


@_operator.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_operator_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, relative: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    shapes = [tensor.shape for tensor in (query, key, value)] + [(0,) if relative is None else relative.shape]
    return tuple(query.new_empty(shape) for shape in shapes)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, relative, tokens, allowed, seed, *settings = inputs
    ctx.save_for_backward(query, key, value, relative, allowed, seed, *tokens)
    ctx.settings = settings


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    query, key, value, relative, allowed, seed, *tokens = ctx.saved_tensors
    *found, to_relative = _operator_backward(
        gradient, query, key, value, relative, tokens, allowed, seed, *ctx.settings
    )
    return (*found, None if relative is None else to_relative, [None] * len(tokens), *[None] * 6)


_operator.register_autograd(_differentiate, setup_context=_keep_inputs)


def _plan_of_tensors(query: Tensor, key: Tensor, tokens: list[Tensor], allowed: Tensor | None, pattern: str) -> Plan:
    static = cast(Pattern, parse(pattern))
    if not tokens:
        return plain_plan(static, query.shape[2], key.shape[2])
    queries, keys = _host(*tokens[:2]), _host(*tokens[2:])
    return _plan(static, queries, keys, None if allowed is None else allowed.cpu().numpy())

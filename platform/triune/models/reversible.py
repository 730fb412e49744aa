"""Reversible residual streams: activations are recomputed from the outputs, so that memory is flat in depth.

Gomez et al. 2017; Kitaev et al. 2020, section 3. Two streams carry the hidden states, and each branch (attention,
cross-attention, feed-forward, norms and dropout included) adds to one stream a function of the other, in turns:

    y1 = x1 + f(x2),  y2 = x2 + g(y1), ...      undone by      x2 = y2 - g(y1),  x1 = y1 - f(x2)

Both streams start as the embedding, and their mean leaves. Any number of branches is reversible, so that a decoder with
cross-attention needs no other rule: its block has three branches, and the next block starts on the other stream.

Why a node of the autograd graph for each branch, not one for the stack: the gradients of a branch's parameters leave as soon
as it is done (DDP sends them while the branches below are recomputed, and no second copy of all gradients waits), frozen
parts end the walk early, and parameters are ordinary inputs of a node, so that hooks, accumulation and torch.autograd.grad
work. What one node recomputes, the node below needs: it is handed down on a `_Walk`, not saved.

Legend: B batch, T length, M model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A function [B, T, M] -> [B, T, M] of one stream, and every tensor beside it that a gradient should reach."""

    function: Callable[[Tensor], Tensor]
    inputs: tuple[Tensor, ...] = ()  # parameters, an encoder's memory, shared scores


def run(branches: Sequence[Branch], hidden: Tensor) -> Tensor:
    """The mean of the two streams after all branches, [B, T, M] in the dtype of `hidden`.

    Streams are fp32 or wider: undoing an addition costs the rounding of a sum, which in bf16 would be 2^-8 of the stream each.
    Where no gradient is asked for, no node is made. No second derivatives.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    streams = [hidden.to(wide), hidden.to(wide)]
    walk = _Walk(branches, hidden.dtype)
    if not torch.is_grad_enabled():
        for index in range(len(branches)):
            target, source = _turn(index)
            streams[target] = streams[target] + walk.branch(index, streams[source])
        return ((streams[0] + streams[1]) / 2).to(hidden.dtype)
    return _recomputed(walk, streams).to(hidden.dtype)


@torch.compiler.disable  # a walk is a side effect, which no graph can hold
def _recomputed(walk: _Walk, streams: list[Tensor]) -> Tensor:
    for index, branch in enumerate(walk.branches):
        target, source = _turn(index)
        streams[target] = _Add.apply(walk, index, streams[target], streams[source], *branch.inputs)
    return _Mean.apply(walk, *streams)


def _turn(index: int) -> tuple[int, int]:
    """The stream that a branch adds to, and the one that it reads."""
    return index % 2, 1 - index % 2


class _Walk:
    """One forward pass: its branches and, on the way back, the streams as they were before the branches undone so far."""

    def __init__(self, branches: Sequence[Branch], dtype: torch.dtype) -> None:
        self.branches = branches
        self.dtype = dtype  # in which the branches read
        self.streams: list[Tensor] = []

    def branch(self, index: int, source: Tensor) -> Tensor:
        """What a branch adds, in the dtype of the streams."""
        return self.branches[index].function(source.to(self.dtype)).to(source.dtype)


class _Draws:
    """The states of the random generators that a branch found, to be found again."""

    def __init__(self, tensor: Tensor) -> None:
        self.cpu = torch.get_rng_state()
        self.kind = tensor.device.type
        self.devices, self.states = get_device_states(tensor)

    def differ(self, tensor: Tensor) -> bool:
        """Whether numbers have been drawn since."""
        _, states = get_device_states(tensor)
        same = all(torch.equal(old, new) for old, new in zip(self.states, states, strict=True))
        return not (same and torch.equal(self.cpu, torch.get_rng_state()))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers inside, and leave the generators as they were."""
        kind = {} if self.kind == "cpu" else {"device_type": self.kind}
        with torch.random.fork_rng(self.devices, **kind):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states, **kind)
            yield


class _Add(torch.autograd.Function):
    """target + branch(source), without anything saved."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, index: int, target: Tensor, source: Tensor, *inputs: Tensor) -> Tensor:
        device = source.device.type
        ctx.walk, ctx.index = walk, index
        ctx.autocast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        draws = _Draws(source)
        output = target + _branch(ctx, source)[1].detach()
        # a state is 5 kB on a CPU: kept only where dropout, stochastic depth or a random router used it
        ctx.draws = draws if draws.differ(source) else None
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        walk, index = ctx.walk, ctx.index
        to, of = _turn(index)
        with nullcontext() if ctx.draws is None else ctx.draws.again():
            source, added = _branch(ctx, walk.streams[of])
        walk.streams[to] = walk.streams[to] - added.detach()
        candidates = (source, *walk.branches[index].inputs)
        wanted = ctx.needs_input_grad[3:]
        chosen = [tensor for tensor, needed in zip(candidates, wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(added, chosen, gradients[0], allow_unused=True) if chosen else ())
        if index == 0:
            walk.streams = []
        return None, None, gradients[0], *(next(found) if needed else None for needed in wanted)


def _branch(ctx: Any, source: Tensor) -> tuple[Tensor, Tensor]:
    """A branch's input and output, with the graph between them, in the autocast of the forward pass.

    The forward pass builds that graph too and drops it: kernels (and with them rounding and dropout masks) depend on whether a
    gradient is asked for. Autocast's cache of weights stays off: it would keep the casts of every branch, and their graphs,
    until the caller's autocast ends.
    """
    device, enabled, dtype = ctx.autocast
    source = source.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
        return source, ctx.walk.branch(ctx.index, source)


class _Mean(torch.autograd.Function):
    """(first + second) / 2; on the way back, the first node: it keeps the streams from which all others are recomputed."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, first: Tensor, second: Tensor) -> Tensor:
        ctx.walk = walk
        ctx.save_for_backward(first, second)
        return (first + second) / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        ctx.walk.streams = list(ctx.saved_tensors)
        half = gradients[0] / 2
        return None, half, half

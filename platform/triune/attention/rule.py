"""The rule by which `auto` chooses between a dense kernel and one that skips tiles.

Times are in those of one pair of one head in torch's dense kernel on the device, forward and backward, rounded from
a few runs at head width 64. CPU: two threads; row g of jobs/bench/attention_cost.py checks the choices. GPU: an H100, bf16
(jobs/bench/attention_gpu.py).
Legend: T query length, S key length, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from triune.attention.backends import blocked, sdpa
from triune.attention.call import AttentionCall
from triune.attention.expression import parse
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.attention.plan import plain_plan


@dataclass(frozen=True)
class Times:
    """Of a device."""

    triangle: float  # a pair in the kernel that knows no mask, only a triangle, of which half is skipped
    masked: float  # a pair in a kernel that reads a mask of all pairs
    unfused: float  # a pair where a learned bias or dropout leaves only a slower kernel
    tile: float  # a pair in the backend that skips tiles
    step: float  # each of its tiles, whatever its size
    start: float  # each of its calls, whatever its size


TIMES = {
    "cpu": Times(triangle=0.6, masked=1.0, unfused=1.5, tile=1.6, step=75_000, start=0),
    # flex starts its kernels from Python: 0.45 ms more than the dense kernel's 0.2
    "cuda": Times(triangle=0.55, masked=1.9, unfused=1.9, tile=1.5, step=0, start=2.5e8),
}
#: rows of fewer pairs than this are left to the dense kernel: making a plan for each batch would cost more than it saves
LEAST = 256 * 256


def prefers_tiles(pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout, *, heads: int, dense: float) -> bool:
    """Whether skipping tiles takes less time than the dense kernel.

    Padding and packing count too, where the host can read them without waiting: on a CPU outside torch.compile.

    Args:
        pattern: which position may attend to which.
        queries: where the queries belong.
        keys: where the keys belong.
        heads: H.
        dense: time of a pair in the dense kernel.
    """
    (rows, length), width = queries.shape, keys.shape[1]
    if length * width < LEAST:
        return False
    times = _times(queries.documents)
    pairs, steps = _plain_cost(str(pattern), length, width)
    pairs, steps = rows * pairs, rows * steps
    host = queries.documents.device.type == "cpu" and not torch.compiler.is_compiling()
    host = host and queries.contiguous and keys.contiguous
    if host and not (queries.plain and keys.plain):
        plan = blocked.plan_of(pattern, queries, keys)
        pairs, steps = plan.pairs, len(plan.steps)
    tiled = times.tile * heads * pairs + times.step * steps + times.start
    return tiled < dense * heads * rows * length * width


def dense_time(call: AttentionCall) -> float:
    """Of a pair in `sdpa` for the call."""
    times = _times(call.query)
    learned = call.bias is not None and (isinstance(call.bias, Tensor) or not call.bias.constant)
    if call.dropout or learned:
        return times.unfused
    if sdpa.is_triangle(call):
        return times.triangle
    return times.masked if sdpa.is_masked(call) else 1.0


def unfused_time(tensor: Tensor) -> float:
    """Of a pair in `sdpa` under a learned bias, on the device of `tensor`."""
    return _times(tensor).unfused


def _times(tensor: Tensor) -> Times:
    return TIMES["cpu" if tensor.device.type == "cpu" else "cuda"]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plain_cost(pattern: str, queries: int, keys: int) -> tuple[int, int]:
    """Pairs of a head that tiles compute in a plain row, and their number. The pattern is text: dynamo hands on no objects."""
    return _counted(pattern, queries, keys)


@lru_cache(maxsize=256)
def _counted(pattern: str, queries: int, keys: int) -> tuple[int, int]:
    plan = plain_plan(parse(pattern), queries, keys, max(keys - queries, 0))
    return plan.pairs, len(plan.steps)

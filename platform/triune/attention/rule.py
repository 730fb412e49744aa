"""The rule by which `auto` chooses between a dense kernel and one that skips tiles.

Times are in those of one pair of one head in torch's dense CPU kernel, forward and backward: rounded from
a few runs on two threads at head width 64. Row g of jobs/bench/attention_cost.py checks the choices.
Legend: T query length, S key length, H heads.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from triune.attention.backends import blocked, sdpa
from triune.attention.call import AttentionCall
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.attention.plan import plain_plan

#: a pair in the kernels that know no mask, only a triangle, of which half is skipped
CAUSAL = 0.6
#: a pair in torch's math kernel, which a learned bias or dropout falls back to
UNFUSED = 1.5
#: a pair in `blocked`, and what each of its steps costs whatever its size
TILE = 1.6
STEP = 75_000
#: rows of fewer pairs than this are left to the dense kernel: making a plan for each batch would cost more than it saves
LEAST = 256 * 256
#: on a GPU, the share of the dense kernel's pairs below which flex is taken: an assumption until jobs/bench/attention_gpu.sh has run
GPU_SHARE = 0.8


def prefers_tiles(
    pattern: Pattern, queries: SequenceLayout, keys: SequenceLayout, *, heads: int, dense: float = 1.0
) -> bool:
    """Whether skipping tiles takes less time than the dense kernel.

    Padding and packing count too, where the host can read them without waiting: on a CPU outside torch.compile.

    Args:
        pattern: which position may attend to which.
        queries: where the queries belong.
        keys: where the keys belong.
        heads: H.
        dense: time of a pair in the dense kernel: `CAUSAL`, 1 or `UNFUSED`.
    """
    (rows, length), width = queries.shape, keys.shape[1]
    if length * width < LEAST:
        return False
    pairs, steps = _plain_cost(pattern, length, width)
    if queries.documents.device.type != "cpu":
        return pairs < GPU_SHARE * length * width * (0.5 if pattern.is_causal else 1.0)
    pairs, steps = rows * pairs, rows * steps
    host = not torch.compiler.is_compiling() and queries.contiguous and keys.contiguous
    if host and not (queries.plain and keys.plain):
        plan = blocked.plan_of(pattern, queries, keys)
        pairs, steps = plan.pairs, len(plan.steps)
    return TILE * heads * pairs + STEP * steps < dense * heads * rows * length * width


def dense_time(call: AttentionCall) -> float:
    """Of a pair in `sdpa` for the call."""
    learned = call.bias is not None and (isinstance(call.bias, Tensor) or not call.bias.constant)
    if call.dropout or learned:
        return UNFUSED
    return CAUSAL if sdpa.is_triangle(call) else 1.0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plain_cost(pattern: Pattern, queries: int, keys: int) -> tuple[int, int]:
    """Pairs of a head that tiles compute in a plain row, and their number."""
    return _counted(pattern, queries, keys)


@lru_cache(maxsize=256)
def _counted(pattern: Pattern, queries: int, keys: int) -> tuple[int, int]:
    plan = plain_plan(pattern, queries, keys, max(keys - queries, 0))
    return plan.pairs, len(plan.steps)

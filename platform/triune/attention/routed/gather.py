"""Rows taken by index, where the way back is known too: no scattered additions, in any order, in the backward pass.

Legend: P rows to take from, M rows taken, W width of a row, A most places that one row goes to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take(rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """rows[index], [P, W] -> [M, W]; -1 gives a row of zeros.

    Its gradient sums, for each row, the rows that `back` names: a gather as well, which is several times quicker than the
    scattered addition of torch's own indexing on a CPU and adds in one order on a GPU.

    Args:
        rows: [P, W].
        index: [M] int64, the row that goes to each place; -1 for none.
        back: [A, P] int64, the places that each row goes to, padded with -1. Places that it leaves out pass no gradient.
    """
    taken: Tensor = _Take.apply(rows, index, back)
    return taken


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _rows(rows, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        total = _rows(gradients[0], back[0])
        for places in back[1:]:
            total += _rows(gradients[0], places)
        return total, None, None


def _rows(rows: Tensor, index: Tensor) -> Tensor:
    return rows.index_select(0, index.clamp_min(0)).masked_fill_((index < 0).unsqueeze(-1), 0.0)

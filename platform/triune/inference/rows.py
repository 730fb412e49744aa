"""Lists of ids as a padded batch, and a model that answers without learning. Legend: B batch, T length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError


def padded(
    rows: Sequence[Sequence[int]], *, what: str, pad: int, side: str, device: torch.device
) -> tuple[Tensor, SequenceLayout]:
    """Ids [B, T] int64 and their layout, padded on `side`; `what` names the rows in errors.

    Raises UserError where there are no rows or one is empty.
    """
    lengths = [len(row) for row in rows]
    if not lengths or min(lengths) == 0:
        where = f"number {lengths.index(0)} is empty" if lengths else "there are none"
        raise UserError(f"{what}: {where}, but each must hold at least one token (for example the bos token)")
    length = max(lengths)
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else length - len(row)
        ids[index, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids.to(device), SequenceLayout.from_lengths(lengths, length, side=side, device=device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, the mode given back at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def answering(model: nn.Module) -> Iterator[torch.device]:
    """Dropout off and no gradients, the mode given back at the end; the device of the model."""
    with evaluating(model), torch.no_grad():
        yield next(model.parameters()).device

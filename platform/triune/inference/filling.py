"""Filling the masked tokens of a text. Legend: B batch, T length, M model width, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triune.errors import UserError
from triune.inference.rows import answering, padded
from triune.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A masked token and what the model would put there, best first.

    Args:
        position: place in the row.
        ids: candidates.
        probabilities: of each candidate.
    """

    position: int
    ids: list[int]
    probabilities: list[float]


def fill(
    model: Encoder, rows: Sequence[Sequence[int]], *, mask: int, pad: int = 0, candidates: int = 1
) -> list[list[Blank]]:
    """The blanks of each row, in order. Each is filled from the unmasked tokens alone, all in one pass.

    Args:
        model: an encoder trained on masked language modelling.
        rows: ids with `mask` in the places to fill.
        mask: id of the mask token.
        pad: any id of the vocabulary, for the room beside short rows; it is never attended to.
        candidates: how many a blank.

    Raises UserError where the model is no encoder or a row is empty.
    """
    if not isinstance(model, Encoder):
        raise UserError(f"an {type(model).__name__} fills no masks: use generate, or an encoder")
    if candidates < 1:
        raise UserError(f"candidates is {candidates}, but it must be at least 1")
    with answering(model) as device:
        inputs, layout = padded(rows, what="rows", pad=pad, side="right", device=device)  # [B, T]
        masked = (inputs == mask) & (layout.documents >= 0)  # [B, T]; `pad` may be `mask`
        scores = model.head.logits(model(inputs, layout)[masked]).float()  # [masks, V]
        best = scores.softmax(dim=-1).topk(min(candidates, scores.shape[-1]), dim=-1)
        blanks: list[list[Blank]] = [[] for _ in rows]
        places = torch.nonzero(masked).tolist()
        for (row, position), ids, probabilities in zip(
            places, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            blanks[row].append(Blank(position=position, ids=ids, probabilities=probabilities))
        return blanks


def filled(rows: Sequence[Sequence[int]], blanks: Sequence[Sequence[Blank]]) -> list[list[int]]:
    """The rows with the best candidate in each blank."""
    result = [list(row) for row in rows]
    for row, places in zip(result, blanks, strict=True):
        for blank in places:
            row[blank.position] = blank.ids[0]
    return result

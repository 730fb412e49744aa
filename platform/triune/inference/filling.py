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
    model: Encoder,
    rows: Sequence[Sequence[int]],
    *,
    mask: int,
    pad: int = 0,
    candidates: int = 1,
    one_by_one: bool = False,
) -> list[list[Blank]]:
    """The blanks of each row, in order.

    Args:
        model: an encoder trained on masked language modelling.
        rows: ids with `mask` in the places to fill.
        mask: id of the mask token.
        pad: any id of the vocabulary, for the room beside short rows; it is never attended to.
        candidates: how many a blank.
        one_by_one: fill the blank of each row that the model is surest of, then read the row again with it, as often as there are
            blanks (Ghazvininejad et al. 2019 mask and predict in rounds; here each round fills one). Otherwise each blank is filled
            from the unmasked tokens alone, all in one pass.

    Raises UserError where the model is no encoder or a row is empty.
    """
    if not isinstance(model, Encoder):
        raise UserError(f"an {type(model).__name__} fills no masks: use generate, or an encoder")
    if candidates < 1:
        raise UserError(f"candidates is {candidates}, but it must be at least 1")
    if not one_by_one:
        return _at_once(model, rows, mask=mask, pad=pad, candidates=candidates)
    found: list[list[Blank]] = [[] for _ in rows]
    while any(mask in row for row in rows):
        blanks = _at_once(model, rows, mask=mask, pad=pad, candidates=candidates, but=mask)
        surest = [max(row, key=lambda blank: blank.probabilities[0], default=None) for row in blanks]
        rows = filled(rows, [[] if blank is None else [blank] for blank in surest])
        for row, blank in zip(found, surest, strict=True):
            row += [] if blank is None else [blank]
    return [sorted(row, key=lambda blank: blank.position) for row in found]


def _at_once(
    model: Encoder, rows: Sequence[Sequence[int]], *, mask: int, pad: int, candidates: int, but: int | None = None
) -> list[list[Blank]]:
    """See `fill`; the token `but` is no candidate."""
    with answering(model) as device:
        inputs, layout = padded(rows, what="rows", pad=pad, side="right", device=device)  # [B, T]
        masked = (inputs == mask) & (layout.documents >= 0)  # [B, T]; `pad` may be `mask`
        scores = model.head.logits(model(inputs, layout)[masked]).float()  # [masks, V]
        if but is not None:
            scores[:, but] = -torch.inf
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


def fillings(blanks: Sequence[Blank], count: int) -> list[tuple[list[int], float]]:
    """The `count` likeliest ways to fill all blanks of a row, which are taken to be independent: an id for each, and the probability.

    Exact as long as each blank brings `count` candidates.
    """
    ways: list[tuple[list[int], float]] = [([], 1.0)]
    for blank in blanks:
        longer = [
            ([*ids, token], probability * likelihood)
            for ids, probability in ways
            for token, likelihood in zip(blank.ids, blank.probabilities, strict=True)
        ]
        ways = sorted(longer, key=lambda way: -way[1])[:count]
    return ways

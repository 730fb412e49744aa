"""Spans that an encoder-decoder restores: sentinels in a text, and what the model writes for each (Raffel et al. 2020, 3.1.4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def spans_of(answer: Sequence[int], sentinels: Collection[int], ends: Collection[int]) -> dict[int, list[int]]:
    """Sentinel -> the ids after it in an `answer`, up to the next sentinel or the first of `ends`; the first time counts."""
    spans: dict[int, list[int]] = {}
    span: list[int] = []  # what comes before the first sentinel belongs to none
    for token in answer:
        if token in ends:
            break
        if token in sentinels:
            span = spans.setdefault(token, []) if token not in spans else []
        else:
            span.append(token)
    return spans


def restored(
    source: Sequence[int], answer: Sequence[int], sentinels: Collection[int], ends: Collection[int]
) -> list[int]:
    """`source` with the span that `answer` holds in place of each sentinel; a sentinel without one stays."""
    spans = spans_of(answer, sentinels, ends)
    return [token for place in source for token in (spans.get(place, [place]) if place in sentinels else [place])]

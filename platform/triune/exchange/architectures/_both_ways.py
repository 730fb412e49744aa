"""Patterns of encoders, which see both ways: windows as wide to the left as to the right, and lists with one pattern a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from triune.attention.patterns import Any_, Band, Pattern
from triune.attention.routed.patterns import Routed

T = TypeVar("T")


def cycle(layers: Sequence[T]) -> list[T]:
    """The shortest beginning of a list that, repeated to its length, is the list."""
    count = len(layers)
    return next(
        (list(layers[:size]) for size in range(1, count) if all(layers[i] == layers[i % size] for i in range(count))),
        list(layers),
    )


def sides(patterns: Sequence[Pattern | Routed]) -> Iterator[int | None]:
    """How far each layer's window reaches, to the further side where they differ; None where there is no window, or no end to it."""
    for pattern in patterns:
        parts = pattern.parts if isinstance(pattern, Any_) else (pattern,)
        bands = [(part.left, part.right) for part in parts if isinstance(part, Band)]
        ends = [max(left, right) for left, right in bands if left is not None and right is not None]
        yield ends[0] if ends else None

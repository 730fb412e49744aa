"""The pattern algebra: which query may attend to which key, as a value. Imports no torch.

Indices are positions inside a document; padding, packing and prefix marks are the layout's (layout.py).

    >>> str(window(127, 0) & ~prefix(4) | causal())
    'window(127, 0) & ~prefix(4) | causal()'
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from triune.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class Reach(NamedTuple):
    """Bounds on key index minus query index over the pairs that a pattern allows; `low > high` where it allows none."""

    low: float
    high: float

    def hull(self, other: Reach) -> Reach:
        if self.low > self.high:
            return other
        if other.low > other.high:
            return self
        return Reach(min(self.low, other.low), max(self.high, other.high))

    def meet(self, other: Reach) -> Reach:
        return Reach(max(self.low, other.low), min(self.high, other.high))


class Retained(NamedTuple):
    """Keys, of those not after the query, that this or a later query can see: positions < `first`, and the `last` newest.

    The query's own key is the newest; `last` None is every key. A bound: nothing else is ever seen, all of it need not be.
    """

    first: int
    last: int | None

    def hull(self, other: Retained) -> Retained:
        """What either keeps."""
        last = None if self.last is None or other.last is None else max(self.last, other.last)
        return Retained(max(self.first, other.first), last)

    def meet(self, other: Retained) -> Retained:
        """What both keep, or a little more: of three sound bounds the one with the fewest keys."""
        known = [bound.last for bound in (self, other) if bound.last is not None]
        both = Retained(max(self.first, other.first), min(known)) if known else self
        return min(self, other, both, key=lambda bound: math.inf if bound.last is None else bound.first + bound.last)


EVERYWHERE = Reach(-math.inf, math.inf)
NOWHERE = Reach(math.inf, -math.inf)
_EDGES = 2**20  # edges that `kept_rows` holds at once


class Pattern(ABC):
    """Which query may attend to which key. Immutable and hashable; combine with `&`, `|` and `~`.

    A new pattern is a frozen dataclass with the four abstract methods (and `retained` where `reach` does not bound it), one
    function that makes it, and its name in `expression.KNOWN`.

    Attributes:
        is_causal: no query ever sees a key after itself. Sound: True is proven, False may be an unproven True.
        is_full: every query sees every key. Sound likewise.
        relative: `allows` looks at key index minus query index only. Sound likewise.
    """

    is_causal: bool
    is_full: bool
    relative: bool = False

    def __post_init__(self) -> None:
        refused = self.reach(complement=True)
        object.__setattr__(self, "is_causal", self.reach().high <= 0)
        object.__setattr__(self, "is_full", refused.low > refused.high)

    @abstractmethod
    def allows(self, query_index: Any, key_index: Any) -> Any:
        """True where the query may attend to the key: a boolean of the broadcast shape.

        Made of arithmetic, comparisons and `& | ^` only, so that integers, NumPy arrays, torch tensors and
        FlexAttention's tracer (`mask_mod=lambda b, h, q, k: pattern.allows(q, k)`) all pass through it.
        Indices are signed integers.
        """

    @abstractmethod
    def edges(self, query_index: np.ndarray) -> list[Any]:
        """Key indices, [T] or one for all queries, at which `allows` may change value along the keys; `kept` counts with them.

        Later queries of `query_index` [T] have no fewer edges.
        """

    @abstractmethod
    def reach(self, *, complement: bool = False) -> Reach:
        """Bounds on key minus query over the allowed (with `complement`, the refused) pairs. Never too tight; may be loose."""

    def retained(self, *, complement: bool = False) -> Retained:
        """Past keys that a cache must keep for the queries to come (with `complement`, of the refused pairs)."""
        low = self.reach(complement=complement).low
        return Retained(0, None if low == -math.inf else max(1 - int(min(low, 1)), 0))

    def heads(self) -> tuple[Pattern, ...]:
        """One pattern a group of heads: head h of H uses part h * n // H. Itself, but for `per_head`."""
        return (self,)

    @abstractmethod
    def __str__(self) -> str:
        """The expression that `parse` reads back to an equal value."""

    def __and__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Pattern):
            return NotImplemented
        return _by_head(lambda a, b: All(_flatten(All, a, b)), self, other)

    def __or__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Pattern):
            return NotImplemented
        return _by_head(lambda a, b: Any_(_flatten(Any_, a, b)), self, other)

    def __invert__(self) -> Pattern:
        return Not(self)

    def kept(self, queries: int, keys: int, offset: int | None = None) -> int:
        """Pairs allowed between queries at positions offset..offset+queries-1 and keys at positions 0..keys-1, see `kept_rows`."""
        return int(self.kept_rows(queries, keys, offset).sum())

    def kept_rows(self, queries: int, keys: int, offset: int | None = None) -> np.ndarray:
        """Keys that each query may attend to, [queries] int64.

        offset None aligns the last query with the last key (keys - queries; 0 for a square). Time grows with queries x `edges`,
        in a `relative` pattern with queries + keys, never with queries x keys; memory is bounded.
        """
        import numpy as np

        query = np.arange(queries, dtype=np.int32) + np.int32(keys - queries if offset is None else offset)  # [T]
        if self.relative and queries:
            distances = np.arange(-query[-1], keys - query[0])
            sums = np.cumsum([0, *self.allows(0, distances)])
            return sums[keys - query + query[-1]] - sums[query[-1] - query]
        most = len(self.edges(query[-1:])) + 2
        return np.concatenate([self._count(part, keys) for part in np.array_split(query, 1 + queries * most // _EDGES)])

    def _count(self, query: np.ndarray, keys: int) -> np.ndarray:
        import numpy as np

        edges = [np.broadcast_to(np.asarray(edge, np.int32), query.shape) for edge in (0, *self.edges(query), keys)]
        borders = np.sort(np.clip(np.stack(edges), 0, keys), axis=0)  # [edges, T]
        starts, lengths = borders[:-1], np.diff(borders, axis=0)
        return (lengths * self.allows(query, starts)).sum(axis=0, dtype=np.int64)

    def materialize(self, queries: slice | range, keys: slice | range) -> np.ndarray:
        """The boolean matrix [queries, keys] of any block of the pattern; rows and columns are positions."""
        import numpy as np

        rows, columns = (np.arange(s.start or 0, s.stop, s.step or 1) for s in (queries, keys))
        return np.asarray(self.allows(rows[:, None], columns[None, :]))


@dataclass(frozen=True)
class Band(Pattern):
    """Keys in [query - left, query + right]; None is no limit on that side."""

    left: int | None
    right: int | None
    relative = True

    def allows(self, query_index: Any, key_index: Any) -> Any:
        distance = key_index - query_index
        if self.left is None:
            return distance == distance if self.right is None else distance <= self.right
        if self.right is None:
            return distance >= -self.left
        return (distance >= -self.left) & (distance <= self.right)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        first = [] if self.left is None else [query_index - self.left]
        return first if self.right is None else [*first, query_index + self.right + 1]

    def reach(self, *, complement: bool = False) -> Reach:
        low = -math.inf if self.left is None else -self.left
        high = math.inf if self.right is None else self.right
        if not complement:
            return Reach(low, high)
        before = NOWHERE if self.left is None else Reach(-math.inf, low - 1)
        after = NOWHERE if self.right is None else Reach(high + 1, math.inf)
        return before.hull(after)

    def __str__(self) -> str:
        if self.left is None and self.right in (None, 0):
            return "full()" if self.right is None else "causal()"
        return f"window({self.left}, {self.right})"


@dataclass(frozen=True)
class Prefix(Pattern):
    """The first `length` keys, for every query."""

    length: int

    def allows(self, query_index: Any, key_index: Any) -> Any:
        return (key_index < self.length) & (query_index == query_index)  # the second term only broadcasts

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [self.length]

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE if complement else Reach(-math.inf, self.length - 1)

    def retained(self, *, complement: bool = False) -> Retained:
        return Retained(0, None) if complement else Retained(self.length, 0)

    def __str__(self) -> str:
        return f"prefix({self.length})"


@dataclass(frozen=True)
class Not(Pattern):
    """What `inner` refuses."""

    inner: Pattern

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    def allows(self, query_index: Any, key_index: Any) -> Any:
        return self.inner.allows(query_index, key_index) ^ True  # ~ would turn Python's True into -2

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return self.inner.edges(query_index)

    def reach(self, *, complement: bool = False) -> Reach:
        return self.inner.reach(complement=not complement)

    def retained(self, *, complement: bool = False) -> Retained:
        return self.inner.retained(complement=not complement)

    def __invert__(self) -> Pattern:
        return self.inner

    def __str__(self) -> str:
        return f"~({self.inner})" if isinstance(self.inner, All | Any_) else f"~{self.inner}"


@dataclass(frozen=True)
class _Combined(Pattern):
    parts: tuple[Pattern, ...]

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return all(part.relative for part in self.parts)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [edge for part in self.parts for edge in part.edges(query_index)]

    def _reach(self, *, union: bool, complement: bool) -> Reach:
        reaches = [part.reach(complement=complement) for part in self.parts]
        return functools.reduce(Reach.hull if union else Reach.meet, reaches)

    def _retained(self, *, union: bool, complement: bool) -> Retained:
        bounds = [part.retained(complement=complement) for part in self.parts]
        return functools.reduce(Retained.hull if union else Retained.meet, bounds)


class All(_Combined):
    """What every part allows (`&`)."""

    def allows(self, query_index: Any, key_index: Any) -> Any:
        result = self.parts[0].allows(query_index, key_index)
        for part in self.parts[1:]:
            result = result & part.allows(query_index, key_index)
        return result

    def reach(self, *, complement: bool = False) -> Reach:
        return self._reach(union=complement, complement=complement)  # De Morgan: ~(a & b) = ~a | ~b

    def retained(self, *, complement: bool = False) -> Retained:
        return self._retained(union=complement, complement=complement)

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, Any_) else str(part) for part in self.parts)


class Any_(_Combined):  # noqa: N801 (`Any` is typing's)
    """What at least one part allows (`|`)."""

    def allows(self, query_index: Any, key_index: Any) -> Any:
        result = self.parts[0].allows(query_index, key_index)
        for part in self.parts[1:]:
            result = result | part.allows(query_index, key_index)
        return result

    def reach(self, *, complement: bool = False) -> Reach:
        return self._reach(union=not complement, complement=complement)

    def retained(self, *, complement: bool = False) -> Retained:
        return self._retained(union=not complement, complement=complement)

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


@dataclass(frozen=True)
class PerHead(Pattern):
    """Another pattern for each group of heads. Only at the top of an expression: `& | ~` go into the parts."""

    parts: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_causal", all(part.is_causal for part in self.parts))
        object.__setattr__(self, "is_full", all(part.is_full for part in self.parts))

    def heads(self) -> tuple[Pattern, ...]:
        return self.parts

    def allows(self, query_index: Any, key_index: Any) -> Any:
        raise TypeError(f"{self} differs from head to head: ask each of heads()")

    def edges(self, query_index: np.ndarray) -> list[Any]:
        raise TypeError(f"{self} differs from head to head: ask each of heads()")

    def reach(self, *, complement: bool = False) -> Reach:
        return functools.reduce(Reach.hull, [part.reach(complement=complement) for part in self.parts])

    def retained(self, *, complement: bool = False) -> Retained:
        return functools.reduce(Retained.hull, [part.retained(complement=complement) for part in self.parts])

    def __invert__(self) -> Pattern:
        return PerHead(tuple(~part for part in self.parts))

    def __str__(self) -> str:
        return f"per_head({', '.join(map(str, self.parts))})"


def _by_head(combine: Callable[[Pattern, Pattern], Pattern], a: Pattern, b: Pattern) -> Pattern:
    """The combination of each head's patterns."""
    left, right = a.heads(), b.heads()
    count = math.lcm(len(left), len(right))
    parts = [combine(left[i * len(left) // count], right[i * len(right) // count]) for i in range(count)]
    return parts[0] if count == 1 else PerHead(tuple(parts))


def _flatten(kind: type[_Combined], *patterns: Pattern) -> tuple[Pattern, ...]:
    """The parts of an associative combination, so that `(a & b) & c` equals `a & (b & c)`."""
    return tuple(part for p in patterns for part in (p.parts if isinstance(p, kind) else (p,)))


def full() -> Pattern:
    """Every query sees every key."""
    return Band(None, None)


def causal() -> Pattern:
    """A query sees itself and every key before it: the same value as `window(None, 0)`."""
    return Band(None, 0)


def window(left: int | float | None, right: int | float | None) -> Pattern:
    """A query at position i sees the keys at i - left .. i + right: itself, `left` before and `right` after.

    This is the one meaning of a window: it keeps left + right + 1 keys (fewer at the ends of a document). A model card's
    "sliding window of w tokens, itself included" (Mistral) is `window(w - 1, 0)`; Longformer's "window of w" is `window(w // 2, w // 2)`.
    None or infinity leaves a side unlimited. UserError for a side that is negative or no whole number.
    """
    return Band(_side("left", left), _side("right", right))


def prefix(length: int) -> Pattern:
    """Every query sees the first `length` keys of its document: `causal() | prefix(32)` is a prefix language model.

    UserError for a length below 1. A prefix that differs from row to row is a mark in the layout, not a pattern.
    """
    return Prefix(whole("prefix(length)", "length", length, least=1))


def whole(call: str, name: str, value: Any, *, least: int, instead: str = "") -> int:
    """`value`, where it is a whole number of at least `least`; else UserError, which ends in `instead`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{call}: {name} is {value!r}, but it must be a whole number of at least {least}{instead}.")
    return value


def _side(name: str, value: int | float | None) -> int | None:
    if value is None or value == math.inf:
        return None
    return whole("window(left, right)", name, value, least=0, instead=", or None for no limit")

"""The pattern algebra: which query may attend to which key, as a value. Imports no torch.

Indices are positions inside a document; padding, packing and prefix marks are the layout's (layout.py).

    >>> str(window(127, 0) & ~prefix(4) | causal())
    'window(127, 0) & ~prefix(4) | causal()'
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from triune.errors import UserError, nearest

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


EVERYWHERE = Reach(-math.inf, math.inf)
NOWHERE = Reach(math.inf, -math.inf)


class Pattern(ABC):
    """Which query may attend to which key. Immutable and hashable; combine with `&`, `|` and `~`.

    A new pattern is a frozen dataclass with the four methods below, one function that makes it, and its name in `KNOWN`.

    Attributes:
        is_causal: no query ever sees a key after itself. Sound: True is proven, False may be an unproven True.
        is_full: every query sees every key. Sound likewise.
    """

    is_causal: bool
    is_full: bool

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
        """Key indices, a query (or one for all), at which `allows` may change value along the keys; `kept` counts with them."""

    @abstractmethod
    def reach(self, *, complement: bool = False) -> Reach:
        """Bounds on key minus query over the allowed (with `complement`, the refused) pairs. Never too tight; may be loose."""

    @abstractmethod
    def __str__(self) -> str:
        """The expression that `parse` reads back to an equal value."""

    def __and__(self, other: Pattern) -> Pattern:
        return All(_flatten(All, self, other)) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        return Any_(_flatten(Any_, self, other)) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        return Not(self)

    def kept(self, queries: int, keys: int, offset: int | None = None) -> int:
        """Pairs allowed between queries at positions offset..offset+queries-1 and keys at positions 0..keys-1.

        offset None aligns the last query with the last key (keys - queries; 0 for a square).
        Counts row by row between `edges`: time and memory in queries, not in queries x keys.
        """
        import numpy as np

        query = np.arange(queries, dtype=np.int64) + (keys - queries if offset is None else offset)  # [T]
        edges = [np.clip(np.broadcast_to(edge, query.shape), 0, keys) for edge in (0, *self.edges(query), keys)]
        borders = np.sort(np.stack(edges), axis=0)  # [edges, T]
        starts, lengths = borders[:-1], np.diff(borders, axis=0)
        return int((lengths * self.allows(query, starts)).sum())

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

    def __str__(self) -> str:
        return f"prefix({self.length})"


@dataclass(frozen=True)
class Not(Pattern):
    """What `inner` refuses."""

    inner: Pattern

    def allows(self, query_index: Any, key_index: Any) -> Any:
        return self.inner.allows(query_index, key_index) ^ True  # ~ would turn Python's True into -2

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return self.inner.edges(query_index)

    def reach(self, *, complement: bool = False) -> Reach:
        return self.inner.reach(complement=not complement)

    def __invert__(self) -> Pattern:
        return self.inner

    def __str__(self) -> str:
        return f"~({self.inner})" if isinstance(self.inner, All | Any_) else f"~{self.inner}"


@dataclass(frozen=True)
class _Combined(Pattern):
    parts: tuple[Pattern, ...]

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [edge for part in self.parts for edge in part.edges(query_index)]

    def _reach(self, *, union: bool, complement: bool) -> Reach:
        reaches = [part.reach(complement=complement) for part in self.parts]
        total = reaches[0]
        for reach in reaches[1:]:
            total = total.hull(reach) if union else total.meet(reach)
        return total


class All(_Combined):
    """What every part allows (`&`)."""

    def allows(self, query_index: Any, key_index: Any) -> Any:
        result = self.parts[0].allows(query_index, key_index)
        for part in self.parts[1:]:
            result = result & part.allows(query_index, key_index)
        return result

    def reach(self, *, complement: bool = False) -> Reach:
        return self._reach(union=complement, complement=complement)  # De Morgan: ~(a & b) = ~a | ~b

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

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


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
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UserError(f"prefix(length): length is {length!r}, but it must be a whole number of at least 1.")
    return Prefix(length)


def _side(name: str, value: int | float | None) -> int | None:
    if value is None or value == math.inf:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(
            f"window(left, right): {name} is {value!r}, but it must be a whole number of at least 0, or None for no limit."
        )
    return value


KNOWN: dict[str, tuple[Callable[..., Pattern], tuple[str, ...]]] = {
    "full": (full, ()),
    "causal": (causal, ()),
    "window": (window, ("left", "right")),
    "prefix": (prefix, ("length",)),
}


def parse(text: str) -> Pattern:
    """Read a pattern expression such as "window(128, 0) | prefix(4)": names of `KNOWN`, numbers, `& | ~` and parentheses.

    Reads the syntax tree and evaluates nothing. UserError quotes the expression, what is wrong and the nearest known name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"Attention pattern {text!r} is no expression: write, for example, {_EXAMPLE}.") from error
    return _read(tree, text)


_EXAMPLE = '"window(128, 0) | prefix(4)"'


def _read(node: ast.expr, text: str) -> Pattern:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _read(left, text) & _read(right, text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _read(left, text) | _read(right, text)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_read(operand, text)
        case ast.Call(func=ast.Name(id=name)):
            return _read_call(name, node, text)
        case ast.Name(id=name) if name in KNOWN:
            raise UserError(f"Attention pattern {text!r}: {name} lacks its parentheses; write {_signature(name)}.")
        case ast.Name(id=name):
            raise UserError(f"Attention pattern {text!r}: unknown pattern {name!r}{_hint(name)}")
    raise UserError(
        f"Attention pattern {text!r}: {ast.unparse(node)!r} is not allowed; combine {', '.join(KNOWN)} with & | ~, as in {_EXAMPLE}."
    )


def _read_call(name: str, node: ast.Call, text: str) -> Pattern:
    if name not in KNOWN:
        raise UserError(f"Attention pattern {text!r}: unknown pattern {name!r}{_hint(name)}")
    make, parameters = KNOWN[name]
    given = [keyword.arg for keyword in node.keywords]
    names = [*parameters[: len(node.args)], *given]
    if len(node.args) + len(given) != len(parameters) or set(names) != set(parameters):
        raise UserError(f"Attention pattern {text!r}: {ast.unparse(node)} does not fit {_signature(name)}.")
    values = [_number(argument, text) for argument in (*node.args, *(keyword.value for keyword in node.keywords))]
    try:
        return make(**dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"Attention pattern {text!r}: {error}") from None


def _number(node: ast.expr, text: str) -> int | float | None:
    match node:
        case ast.Constant(value=int() | float() | None as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id="inf"):
            return math.inf
    raise UserError(f"Attention pattern {text!r}: {ast.unparse(node)!r} is no number; give a whole number or None.")


def _signature(name: str) -> str:
    return f"{name}({', '.join(KNOWN[name][1])})"


def _hint(name: str) -> str:
    return nearest(name, KNOWN) or f"; known are {', '.join(map(_signature, KNOWN))}"

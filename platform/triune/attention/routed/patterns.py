"""Routed patterns: which keys a query sees depends on what the tokens hold, not on where they stand. Imports no torch.

A routed pattern is a value like a static one (hashable, printable, read back from its own text), but it can't be joined
with others by `& | ~`: its pairs are known only once the tokens are. docs/routed-attention.md has the equations.

    >>> str(lsh(buckets=16, chunk=32, causal=True))
    'lsh(buckets=16, chunk=32, rounds=1, causal=True, seed=0)'
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn

from triune.attention.patterns import Retained
from triune.errors import UserError

#: names of backends that serve routed patterns; "auto" is "blocked"
SERVED = ("auto", "blocked", "reference")


class Routed(ABC):
    """A pattern whose pairs are chosen by content. Immutable and hashable; `Lsh`, `Moba` and `Nsa`.

    Attributes:
        is_causal: no query ever sees, or is routed by, a key after itself.
        is_full: every query sees every key: never.
    """

    is_causal: bool
    is_full: ClassVar[bool] = False
    name: ClassVar[str]

    @abstractmethod
    def counts(self, position: int, keys: int) -> int:
        """Pairs that the query at `position` of a row of `keys` tokens scores at most."""

    def kept(self, queries: int, keys: int, offset: int | None = None) -> int:
        """Pairs scored at most by queries at offset..offset+queries-1 of a row of `keys` tokens; a pair met twice is two.

        offset None aligns the last query with the last key, as in `Pattern.kept`. How many pairs the tokens really give
        depends on what they hold (`Moba`: none less; `Lsh`: fewer where buckets are smaller than a chunk).
        """
        first = keys - queries if offset is None else offset
        return sum(self.counts(position, keys) for position in range(first, first + queries))

    def heads(self) -> tuple[Routed, ...]:
        """The patterns of groups of heads: one, for all."""
        return (self,)

    def retained(self) -> Retained:
        """Which keys later queries may still see: all of them."""
        return Retained(first=0, last=None)

    def __str__(self) -> str:
        """The expression that `parse` reads back to an equal value."""
        values = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self) if field.init)  # type: ignore[arg-type]
        return f"{self.name}({values})"

    def _alone(self, *_: Any) -> NoReturn:
        raise UserError(
            f"{self} can't be combined with & | ~: its pairs depend on the tokens. Give it alone, or a list of patterns, one a layer."
        )

    __and__ = __or__ = __rand__ = __ror__ = __invert__ = _alone


@dataclass(frozen=True)
class Lsh(Routed):
    """Reformer's locality-sensitive hashing: a query sees tokens that hash as it does (Kitaev et al. 2020, section 2)."""

    buckets: int
    chunk: int
    rounds: int
    causal: bool
    seed: int
    name: ClassVar[str] = "lsh"

    @property
    def is_causal(self) -> bool:  # type: ignore[override]
        """No query ever sees, or is routed by, a key after itself."""
        return self.causal

    def counts(self, position: int, keys: int) -> int:
        """At most a chunk of earlier tokens a round; both ways, its own chunk and the one before."""
        if self.causal:
            return self.rounds * max(min(position, self.chunk), 1)
        return self.rounds * min(2 * self.chunk, keys)


@dataclass(frozen=True)
class Moba(Routed):
    """Mixture of block attention: a query sees its own block and the best past ones by their mean key (Lu et al. 2025, 2.2)."""

    block: int
    top: int
    is_causal: ClassVar[bool] = True  # type: ignore[misc]
    name: ClassVar[str] = "moba"

    def counts(self, position: int, keys: int) -> int:
        """The own block up to the query, and whole past blocks."""
        before, inside = divmod(position, self.block)
        return inside + 1 + min(self.top - 1, before) * self.block


@dataclass(frozen=True)
class Nsa(Routed):
    """Native sparse attention: compressed, selected and windowed keys, gated (Yuan et al. 2025, section 3)."""

    compress: int
    stride: int
    select: int
    top: int
    window: int
    is_causal: ClassVar[bool] = True  # type: ignore[misc]
    name: ClassVar[str] = "nsa"

    def counts(self, position: int, keys: int) -> int:
        """Compressed blocks that have ended, selected blocks, and the window."""
        ended = max((position + 1 - self.compress) // self.stride + 1, 0)
        before, inside = divmod(position, self.select)
        return ended + inside + 1 + min(self.top - 1, before) * self.select + min(position + 1, self.window)


def lsh(*, buckets: int, chunk: int, causal: bool, rounds: int = 1, seed: int = 0) -> Lsh:
    """Attention among tokens that share a hash bucket, with one vector as query and key (Reformer; Kitaev et al. 2020).

    Args:
        buckets: hash values, an even number: half of them are directions, half their opposites. The paper uses about
            2 x length / chunk.
        chunk: tokens of a chunk. Both ways, a query sees its own chunk of the sorted tokens and the one before; causal, the
            `chunk` nearest earlier tokens of its bucket.
        causal: only tokens before the query (docs/routed-attention.md says how this differs from the paper).
        rounds: hashes with fresh rotations, whose attention is combined; a pair met in several counts several times.
        seed: of the rotations; give the layers of a list seeds of their own.

    UserError for a value out of its range.
    """
    _at_least("lsh", "buckets", buckets, 2)
    if buckets % 2:
        raise UserError(
            f"lsh(...): buckets is {buckets}, but it must be even, because each random direction gives two: use {buckets + 1}."
        )
    _at_least("lsh", "chunk", chunk, 1)
    _at_least("lsh", "rounds", rounds, 1)
    if not isinstance(causal, bool):
        raise UserError(f"lsh(...): causal is {causal!r}, but it must be True or False.")
    _at_least("lsh", "seed", seed, 0)
    return Lsh(buckets=buckets, chunk=chunk, rounds=rounds, causal=causal, seed=seed)


def moba(*, block: int, top: int) -> Moba:
    """Causal attention to the query's own block and the best whole blocks before it (MoBA; Lu et al. 2025, section 2.2).

    Args:
        block: tokens of a block.
        top: blocks a query sees, its own included: 1 is block-local attention.

    UserError for a value below 1.
    """
    _at_least("moba", "block", block, 1)
    _at_least("moba", "top", top, 1)
    return Moba(block=block, top=top)


def nsa(*, compress: int, stride: int, select: int, top: int, window: int) -> Nsa:
    """Causal attention to compressed, selected and nearby keys, mixed by learned gates (NSA; Yuan et al. 2025, section 3).

    Args:
        compress: tokens that are compressed into one key and value (the paper's l: 32).
        stride: tokens from one compressed block to the next (d: 16); a divisor of `compress` and of `select`.
        select: tokens of a selectable block (l': 64), at least `compress`.
        top: selected blocks a query sees (n: 16): the first block, its own and the one before always, so at least 3.
        window: keys of the sliding branch, the query's own included (w: 512): `window(w - 1, 0)`.

    UserError for values out of their ranges.
    """
    for name, value, least in (
        ("compress", compress, 1),
        ("stride", stride, 1),
        ("select", select, 1),
        ("top", top, 3),
        ("window", window, 1),
    ):
        _at_least("nsa", name, value, least)
    for message in _nsa_misfits(compress, stride, select):
        raise UserError(message)
    return Nsa(compress=compress, stride=stride, select=select, top=top, window=window)


def _nsa_misfits(compress: int, stride: int, select: int) -> Iterator[str]:
    for name, value in (("compress", compress), ("select", select)):
        if value % stride:
            yield f"nsa(...): stride is {stride}, but it must divide {name} = {value} (Yuan et al. 2025, eq. 9)."
    if compress > select:
        yield f"nsa(...): compress is {compress}, but it must be at most select = {select} (Yuan et al. 2025, eq. 9)."


def _at_least(pattern: str, name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{pattern}(...): {name} is {value!r}, but it must be a whole number of at least {least}.")

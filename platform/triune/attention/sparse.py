"""Sparse patterns of the literature, each an atom of the algebra of patterns.py. Imports no torch.

What they mean, with their equations, stands in docs/patterns.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triune.attention.patterns import EVERYWHERE, Pattern, PerHead, Reach, Retained, whole, window
from triune.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Dilated(Pattern):
    """Every `step`-th key, `left` before the query and `right` after."""

    left: int
    right: int
    step: int
    relative = True

    def allows(self, query_index: Any, key_index: Any) -> Any:
        distance = key_index - query_index
        near = (distance >= -self.left * self.step) & (distance <= self.right * self.step)
        return near & (distance % self.step == 0)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        seen = [query_index + number * self.step for number in range(-self.left, self.right + 1)]
        return [*seen, *(key + 1 for key in seen)]

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE if complement else Reach(-self.left * self.step, self.right * self.step)

    def __str__(self) -> str:
        return f"dilated({self.left}, {self.right}, {self.step})"


@dataclass(frozen=True)
class BlockLocal(Pattern):
    """The keys of the query's own block of `size` positions, of `before` blocks before it and `after` blocks after it."""

    size: int
    before: int
    after: int

    def allows(self, query_index: Any, key_index: Any) -> Any:
        distance = key_index // self.size - query_index // self.size
        return (distance >= -self.before) & (distance <= self.after)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        own = query_index // self.size
        return [(own - self.before) * self.size, (own + self.after + 1) * self.size]

    def reach(self, *, complement: bool = False) -> Reach:
        inside = self.size - 1  # the farthest that two positions of a block stand apart
        return EVERYWHERE if complement else Reach(-self.before * self.size - inside, self.after * self.size + inside)

    def __str__(self) -> str:
        around = f", {self.before}, {self.after}" if self.before or self.after else ""
        return f"block_local({self.size}{around})"


@dataclass(frozen=True)
class _Past(Pattern):
    """Of the keys not after the query."""

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE if complement else Reach(-math.inf, 0)


@dataclass(frozen=True)
class Sinks(_Past):
    """The `first` keys, as far as they are not after the query."""

    first: int

    def allows(self, query_index: Any, key_index: Any) -> Any:
        return (key_index < self.first) & (key_index <= query_index)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [self.first, query_index + 1]

    def retained(self, *, complement: bool = False) -> Retained:
        return Retained(0, None) if complement else Retained(self.first, 0)

    def __str__(self) -> str:
        return f"sinks({self.first})"


@dataclass(frozen=True)
class Strided(_Past):
    """The last `stride` keys before the query, and every `stride`-th before those."""

    stride: int
    relative = True

    def allows(self, query_index: Any, key_index: Any) -> Any:
        distance = query_index - key_index
        return (distance >= 0) & ((distance <= self.stride) | (distance % self.stride == 0))

    def edges(self, query_index: np.ndarray) -> list[Any]:
        back = range(self.stride, max(int(query_index.max(initial=0)), 0) + 1, self.stride)
        seen = [query_index - distance for distance in back]
        return [query_index + 1, query_index - self.stride, *seen, *(key + 1 for key in seen)]

    def __str__(self) -> str:
        return f"strided({self.stride})"


@dataclass(frozen=True)
class Fixed(_Past):
    """The query's own block of `stride` positions, and the last `summary` positions of every block before it."""

    stride: int
    summary: int

    def allows(self, query_index: Any, key_index: Any) -> Any:
        own = query_index // self.stride == key_index // self.stride
        return (key_index <= query_index) & (own | (key_index % self.stride >= self.stride - self.summary))

    def edges(self, query_index: np.ndarray) -> list[Any]:
        ends = range(self.stride, max(int(query_index.max(initial=0)), 0) + self.stride, self.stride)
        return [query_index + 1, query_index // self.stride * self.stride, *ends, *(end - self.summary for end in ends)]

    def __str__(self) -> str:
        return f"fixed({self.stride}, {self.summary})"


@dataclass(frozen=True)
class GlobalTokens(Pattern):
    """Positions in one of the runs [start, stop): every query sees them, and they see every key."""

    runs: tuple[tuple[int, int], ...]

    def allows(self, query_index: Any, key_index: Any) -> Any:
        return _inside(self.runs, query_index) | _inside(self.runs, key_index)

    def edges(self, query_index: np.ndarray) -> list[Any]:
        return [edge for run in self.runs for edge in run]

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE

    def retained(self, *, complement: bool = False) -> Retained:
        return (
            Retained(0, None) if complement else Retained(self.runs[-1][1], 0)
        )  # a global query stands before that, too

    def __str__(self) -> str:
        if len(self.runs) == 1 and self.runs[0][0] == 0:
            return f"global_tokens(first={self.runs[0][1]})"
        return f"global_tokens(indices={[index for run in self.runs for index in range(*run)]})"


def _inside(runs: tuple[tuple[int, int], ...], index: Any) -> Any:
    found = (index >= runs[0][0]) & (index < runs[0][1])
    for start, stop in runs[1:]:
        found = found | ((index >= start) & (index < stop))
    return found


#: Numbers of blocks are below this, so that their products with multipliers below 2^11 fit 32 bits everywhere.
_BLOCKS = 2**20


@dataclass(frozen=True)
class RandomBlocks(Pattern):
    """`count` key blocks for each query block, drawn without replacement by a hash of the query block and `seed`."""

    block: int
    count: int
    seed: int
    among: int

    def allows(self, query_index: Any, key_index: Any) -> Any:
        drawn = self._drawn(query_index // self.block)
        key_block = key_index // self.block
        found = (key_block == drawn[0][0]) & drawn[0][1]
        for block, exists in drawn[1:]:
            found = found | ((key_block == block) & exists)
        return found

    def _drawn(self, query_block: Any) -> list[tuple[Any, Any]]:
        """Each drawn block, and whether it exists, of every query block.

        The blocks to draw from are 0..span, where span + 1 is a power of two. Draw number n is query_block ^ permuted(n): a permutation
        of 0..span that keeps 0 in place, so that draws differ from one another and from the query's own block. Its steps are
        products with odd numbers and xor with the own high bits, both one to one on the bits of span.
        """
        own = query_block & (_BLOCKS - 1)
        span = own | (self.among - 1)
        for bits in (1, 2, 4, 8, 16):
            span = span | (span // 2**bits)  # every bit below the highest
        mixed = own
        for factor, plus in _constants(self.seed):
            mixed = (mixed * factor + plus) & (_BLOCKS - 1)
            mixed = mixed ^ (mixed // 2**9)
        factors = [(mixed & 1023) * 2 + 1, (mixed // 1024) * 2 + 1, (mixed // 32 & 1023) * 2 + 1]
        drawn = []
        for number in range(1, self.count + 1):
            place = number & span
            for factor, bits in zip(factors, (3, 2, 4), strict=True):
                place = (place * factor) & span
                place = place ^ (place // 2**bits)
            drawn.append((own ^ place, number <= span))
        return drawn

    def edges(self, query_index: np.ndarray) -> list[Any]:
        starts = [block * self.block for block, _ in self._drawn(query_index // self.block)]
        return [*starts, *(start + self.block for start in starts)]

    def reach(self, *, complement: bool = False) -> Reach:
        return EVERYWHERE

    def __str__(self) -> str:
        among = "" if self.among == 1 else f", among={self.among}"
        return f"random_blocks({self.block}, {self.count}, seed={self.seed}{among})"


def _constants(seed: int) -> list[tuple[int, int]]:
    """Odd factors below 2^11 and summands below 2^20 for three rounds of mixing: fixed for ever, by SplitMix64 (Steele et al. 2014)."""
    found = []
    for number in range(1, 4):
        word = (seed + number * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
        found.append((word % 2**11 | 1025, word // 2**11 % 2**20))
    return found


def dilated(left: int, right: int, step: int) -> Pattern:
    """A window with gaps (Beltagy et al. 2020, 3.1): the keys i - left * step, ..., i - step, i, i + step, ..., i + right * step.

    It keeps left + right + 1 keys; step 1 is `window(left, right)`. UserError for a negative side or a step below 1.
    """
    call = "dilated(left, right, step)"
    left, right = (whole(call, name, side, least=0) for name, side in (("left", left), ("right", right)))
    return window(left, right) if whole(call, "step", step, least=1) == 1 else Dilated(left, right, step)


def block_local(size: int, before: int = 0, after: int = 0) -> Pattern:
    """Keys j of the query's own block of `size` positions and of its neighbours: -before <= j // size - i // size <= after.

    Alone it is the diagonal of blockwise attention (Qiu et al. 2020, 3.1); `block_local(64, 1, 1)` is BigBird's window of three
    blocks (Zaheer et al. 2020, 2), `block_local(128, 1) & causal()` Reformer's local attention. UserError for a size below 1
    or negative numbers of blocks.
    """
    call = "block_local(size, before, after)"
    around = [whole(call, name, number, least=0) for name, number in (("before", before), ("after", after))]
    return BlockLocal(whole(call, "size", size, least=1), *around)


def sinks(first: int) -> Pattern:
    """The `first` keys of the document, never one after the query: `window(1020, 0) | sinks(4)` is StreamingLLM (Xiao et al. 2024, 3.2).

    Positions are those of the document; StreamingLLM numbers the keys in its cache instead. UserError for fewer than 1.
    """
    return Sinks(whole("sinks(first)", "first", first, least=1))


def strided(stride: int) -> Pattern:
    """Both heads of the strided Sparse Transformer in one (Child et al. 2019, 4.3 and 5.1): 0 <= i - j <= stride, or (i - j) mod stride = 0.

    Causal. UserError for a stride below 1.
    """
    return Strided(whole("strided(stride)", "stride", stride, least=1))


def fixed(stride: int, summary: int) -> Pattern:
    """Both heads of the fixed Sparse Transformer in one (Child et al. 2019, 4.3 and 5.1), for j <= i: j in the block of i, or
    j mod stride in stride - summary .. stride - 1.

    `summary` is the paper's c. UserError for a stride or summary below 1, or a summary beyond the stride.
    """
    call = "fixed(stride, summary)"
    if whole(call, "summary", summary, least=1) > whole(call, "stride", stride, least=1):
        raise UserError(f"{call}: summary is {summary}, but it must be at most stride = {stride}.")
    return Fixed(stride, summary)


def global_tokens(first: int | None = None, indices: Sequence[int] | None = None) -> Pattern:
    """Tokens that every query sees and that see every key (Longformer: Beltagy et al. 2020, 3.1): i or j is one of them.

    Args:
        first: the first so many positions of the document.
        indices: or these positions.

    `& causal()` where no query may see a later key. Tokens that differ from row to row are the layout's landmarks.
    UserError for none or both of the two, or a position that is negative or no whole number.
    """
    call = "global_tokens(first) or global_tokens(indices=[...])"
    if (first is None) == (indices is None) or indices == []:
        raise UserError(f"{call}: give first, a number of tokens, or indices, a list with at least one position.")
    if indices is None:
        return GlobalTokens(((0, whole(call, "first", first, least=1)),))
    if not isinstance(indices, Sequence):
        raise UserError(f"{call}: indices is {indices!r}, but it must be a list of positions.")
    runs: list[tuple[int, int]] = []
    for index in sorted({whole(call, "one of indices", index, least=0) for index in indices}):
        start = runs.pop()[0] if runs and runs[-1][1] == index else index
        runs.append((start, index + 1))
    return GlobalTokens(tuple(runs))


def random_blocks(block: int, count: int, seed: int = 0, among: int = 1) -> Pattern:
    """Each block of queries sees `count` random blocks of keys, never its own (BigBird: Zaheer et al. 2020, 2).

    Query block b draws, without replacement, from the first n blocks of its document, n being the smallest power of two above
    b and at least `among`; where n - 1 is less than `count` it sees them all. So the draw depends on position and seed alone:
    the same in a row of any length, packed or cached. What lies beyond the document's end, or after a query of a decoder
    (`& causal()`), is lost. BigBird's code draws from the whole row instead, and spares the window and the global blocks: an
    encoder comes closest with `among = context / block`, with which every block may see every other.

    Args:
        block: positions of a block. Documents have at most 2^20 blocks.
        count: blocks drawn for each block of queries.
        seed: of the draw. Give each layer its own, as BigBird does.
        among: a power of two.

    UserError for a value out of its range.
    """
    call = "random_blocks(block, count, seed, among)"
    whole(call, "block", block, least=1)
    whole(call, "count", count, least=1)
    whole(call, "seed", seed, least=0)
    if whole(call, "among", among, least=1) & (among - 1) or among > _BLOCKS:
        raise UserError(f"{call}: among is {among}, but it must be a power of two, at most 2^20.")
    return RandomBlocks(block, count, seed, among)


def per_head(*patterns: Pattern) -> Pattern:
    """Head h of H uses pattern h * n // H of these n: `per_head(window(64, 0), window(512, 0))` gives each half of the heads its own.

    `& | ~` with others go into each part. UserError for fewer than two, for one inside another and for what is no static pattern.
    """
    if len(patterns) < 2:
        raise UserError(f"per_head(pattern, pattern, ...) has {len(patterns)} patterns, but it needs at least 2.")
    for part in patterns:
        if not isinstance(part, Pattern) or len(part.heads()) > 1:
            kind = "another per_head" if isinstance(part, Pattern) else "no static pattern"
            raise UserError(f"per_head(pattern, pattern, ...): {part} is {kind}, which it can't hold.")
    return PerHead(patterns)

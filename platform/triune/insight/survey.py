"""Counts of a pattern at one length: kept pairs, tiles full, partial and skipped, cost against dense. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from triune.attention.patterns import Pattern
from triune.attention.tile_counts import tile_counts
from triune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: Most tiles that are counted; 4,096 a side.
MOST_TILES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A static pattern over a square of `length` queries and keys.

    Attributes:
        length: queries, and keys.
        tile: queries, and keys, of a tile; the last row and column of tiles may be smaller.
        cell: queries, and keys, of a cell of `cells`; divides `tile` or is a multiple of it.
        cells: kept pairs of each cell, int64 [ceil(length / cell)] * 2.
        kept: pairs that the pattern allows.
        full, partial, skipped: tiles in which all, some and none of the pairs are kept.
        computed: pairs in the tiles that are not skipped: what a kernel over tiles computes.
        fewest, most: keys that a query sees.
        blind: queries that see no key.
        causal: whether the pattern is causal.
    """

    length: int
    tile: int
    cell: int
    cells: np.ndarray = field(repr=False, compare=False)
    kept: int
    full: int
    partial: int
    skipped: int
    computed: int
    fewest: int
    most: int
    blind: int
    causal: bool

    @property
    def pairs(self) -> int:
        """Pairs that dense attention computes."""
        return self.length**2

    @property
    def causal_pairs(self) -> int:
        """Pairs that dense causal attention keeps."""
        return self.length * (self.length + 1) // 2

    @property
    def shows_all(self) -> bool:
        """Whether the length is too short for the pattern to leave out anything (that a causal one could keep)."""
        return self.kept == (self.causal_pairs if self.causal else self.pairs)


def default_tile(length: int) -> int:
    """128, at short lengths a power of two that leaves about eight to sixteen tiles a side."""
    return min(128, 1 << max(length.bit_length() - 4, 0))


def survey(pattern: Pattern, length: int, tile: int, most_cells: int) -> Survey:
    """Count `pattern`, with at most about `most_cells` cells a side.

    Raises UserError for a length or tile below 1 and for more than `MOST_TILES` tiles.
    """
    check_sizes(length, tile)
    cell = _cell(length, tile, most_cells)
    counts = tile_counts(pattern, length, length, min(cell, tile))
    tiles = fold(counts, max(tile // cell, 1))
    sizes = areas(length, tile)
    rows = pattern.kept_rows(length, length)
    return Survey(
        length=length,
        tile=tile,
        cell=cell,
        cells=fold(counts, max(cell // tile, 1)),
        kept=int(counts.sum()),
        full=int((tiles == sizes).sum()),
        partial=int(((tiles > 0) & (tiles < sizes)).sum()),
        skipped=int((tiles == 0).sum()),
        computed=int(sizes[tiles > 0].sum()),
        fewest=int(rows.min()),
        most=int(rows.max()),
        blind=int((rows == 0).sum()),
        causal=pattern.is_causal,
    )


def check_sizes(length: int, tile: int) -> None:
    """Raise UserError for a length or tile below 1 and for more than `MOST_TILES` tiles."""
    for name, value in (("length", length), ("tile", tile)):
        if value < 1:
            raise UserError(f"--{name} is {value}, but it must be at least 1.")
    if (-(-length // tile)) ** 2 > MOST_TILES:
        side = round(MOST_TILES**0.5)
        raise UserError(
            f"--length {length} makes {-(-length // tile):,} tiles of {tile} a side, more than the {side:,} that are counted: "
            f"use --tile {-(-length // side)} or more, or a length of at most {side * tile}."
        )


def areas(length: int, tile: int) -> np.ndarray:
    """Pairs in each tile: int64 [ceil(length / tile)] * 2."""
    import numpy as np

    sides = np.minimum(tile, length - np.arange(0, length, tile))
    return np.outer(sides, sides)


def fold(counts: np.ndarray, factor: int) -> np.ndarray:
    """Sums of `factor` x `factor` blocks; those at the ends may be smaller."""
    import numpy as np

    for axis in (0, 1):
        counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], factor), axis=axis)
    return counts


def _cell(length: int, tile: int, most: int) -> int:
    """The smallest cell, a divisor or a multiple of `tile`, that makes at most `most` cells a side."""
    least = -(-length // most)
    if least > tile:
        return tile * -(-least // tile)
    return next(divisor for divisor in range(least, tile + 1) if tile % divisor == 0)

"""How many pairs of a pattern fall into each tile of the query-key matrix. Imports no torch, and numpy only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from triune.attention.patterns import Pattern

#: Edges held at once: some tens of megabytes with what is made of them.
_EDGES = 1 << 18


def tile_counts(pattern: Pattern, queries: int, keys: int, tile: int, offset: int | None = None) -> np.ndarray:
    """Kept pairs in each tile of `tile` queries x `tile` keys: int64 [ceil(queries / tile), ceil(keys / tile)], exact.

    Queries stand at positions offset..offset+queries-1, keys at 0..keys-1; offset None aligns the last query with the last
    key, as in `Pattern.kept`, whose value is the sum. Tiles at the ends are smaller where `tile` does not divide the length.
    Time grows with queries x edges of the pattern, in a `relative` one with queries + keys + tiles, never with queries x keys.
    `pattern` is that of one head.
    """
    import numpy as np

    first = keys - queries if offset is None else offset
    if pattern.relative:
        return _by_distance(pattern, queries, keys, tile, first)
    position = np.arange(first, first + queries, dtype=np.int64)  # [T]
    most = sum(np.size(edge) for edge in pattern.edges(position[-1:])) + 2  # edges never grow fewer along the row
    step = max(_EDGES // (most * tile), 1) * tile
    bands = [_band(pattern, position[start : start + step], keys, tile) for start in range(0, queries, step)]
    return np.concatenate(bands)


def _by_distance(pattern: Pattern, queries: int, keys: int, tile: int, first: int) -> np.ndarray:
    """The counts where `allows` depends on key minus query alone."""
    import numpy as np

    low = 1 - first - queries
    allowed = pattern.allows(0, np.arange(low, keys - first))
    below = np.cumsum(allowed, dtype=np.int64)  # kept distances up to each
    # at x - low: the sum over y < x of the kept distances below y
    total = np.concatenate([[0, 0], np.cumsum(below)])
    tops, lefts = (np.append(np.arange(0, length, tile), length) for length in (queries, keys))
    corners = total[lefts[None, :] - (tops[:, None] + first) + 1 - low]
    return corners[:-1, 1:] - corners[1:, 1:] - corners[:-1, :-1] + corners[1:, :-1]


def _band(pattern: Pattern, position: np.ndarray, keys: int, tile: int) -> np.ndarray:
    """The rows of tiles that belong to queries at `position` [T]; the first of them begins a tile."""
    import numpy as np

    rows, columns = -(-len(position) // tile), -(-keys // tile)
    borders, signs = _borders(pattern, position, keys)  # [T, E] each
    turns = signs != 0
    cell, inside = np.divmod(borders, tile)
    cell += (np.arange(len(position)) // tile * (columns + 1))[:, None]
    cell, inside, signs = cell[turns], inside[turns], signs[turns]

    def total(weights: np.ndarray) -> np.ndarray:  # in float64: exact, since a band is far below 2**53 pairs
        return np.bincount(cell, weights, rows * (columns + 1)).astype(np.int64).reshape(rows, columns + 1)

    # up to key x lie all tiles before x's own, hence a sum from the right, and a part of its own
    before = np.cumsum(total(signs)[:, ::-1], axis=1)[:, ::-1]
    return tile * before[:, 1:] + total(signs * inside)[:, :columns]


def _borders(pattern: Pattern, position: np.ndarray, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys [T, E] at which runs of kept keys may end or begin, and signs: 1 where one ends, -1 where one begins, else 0."""
    import numpy as np

    edges = [np.atleast_2d(edge) for edge in (0, *pattern.edges(position), keys)]
    borders = np.concatenate([np.broadcast_to(edge, (edge.shape[0], position.size)) for edge in edges]).T
    borders = np.sort(np.clip(borders, 0, keys, order="C"), axis=1)
    kept = np.zeros((position.size, borders.shape[1] + 1), dtype=np.int8)  # before, between and after the borders
    kept[:, 1:-1] = pattern.allows(position[:, None], borders[:, :-1])
    return borders, kept[:, :-1] - kept[:, 1:]  # a run between equal borders is empty: it adds and subtracts the same

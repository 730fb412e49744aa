"""The order of an endless stream of rows, as a pure function of (seed, epoch): position -> (epoch, row).

Nothing is drawn in turn and nothing is stored, so that any position is as cheap as the first and a resume needs
only the position. Only integer arithmetic is used: the order is the same on every machine and NumPy version.

Legend: n positions asked for, R rows of the source.
"""

from __future__ import annotations

import numpy as np

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_ROUNDS = 8

#: rows sorted by length together, and rows of like length that stay together (`Order` with lengths)
POOL = 2048
CHUNK = 32


def _mix(words: np.ndarray) -> np.ndarray:
    """[...] uint64 -> [...] uint64: splitmix64's finaliser (Steele et al. 2014; Stafford's variant 13), a bijection."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _key(seed: int, labels: np.ndarray) -> np.ndarray:
    """[...] int64 labels -> [...] uint64 keys of that seed."""
    key = _mix(np.array([seed & _WORD], np.uint64) + np.uint64(_GOLDEN))
    return _mix(key + (labels.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def derive(seed: int, label: int) -> int:
    """A seed for part `label` of what `seed` seeds, in 0..2^64 - 1; other labels give unrelated seeds."""
    return int(_key(seed, np.array([label]))[0])


def permute(index: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """[n] numbers in 0..size-1 -> [n] their images under the permutation that each one's key [n] picks.

    A Feistel network on pairs (x, y) with x < ceil(sqrt(size)) and y < ceil(size / x's range), adding hashes in turn
    (Black & Rogaway 2002, generalised Feistel); an image outside 0..size-1 is sent through again (cycle walking).
    """
    wide = max(1, int(np.ceil(np.sqrt(size))))
    tall = -(-size // wide)
    wide_, tall_ = np.array([wide], np.uint64), np.array([tall], np.uint64)

    def once(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        x: np.ndarray = values // tall_
        y: np.ndarray = values % tall_
        for turn in range(1, _ROUNDS + 1, 2):
            x = (x + _mix(keys + np.uint64(turn) + y * np.uint64(_GOLDEN)) % wide_) % wide_
            y = (y + _mix(keys + np.uint64(turn + 1) + x * np.uint64(_GOLDEN)) % tall_) % tall_
        return x * tall_ + y

    values = once(index.astype(np.uint64), keys)
    outside = np.flatnonzero(values >= size)
    while len(outside):
        values[outside] = once(values[outside], keys[outside])
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


class Order:
    """Positions in the endless stream of one source's rows: each epoch is R positions long and another permutation.

    With `lengths`, rows of like length come together. Each `POOL` rows of the shuffled epoch are sorted by length,
    cut into chunks of `CHUNK`, and the chunks shuffled. Both sizes are fixed, so that the order depends on no batch
    size, rank or worker count, and a resume with others of these goes on exactly.

    Args:
        size: R, at least 1.
        seed: seed of the order.
        lengths: [R] length of each row; None shuffles rows one by one.
    """

    def __init__(self, size: int, seed: int, lengths: np.ndarray | None = None) -> None:
        if size < 1:
            raise ValueError(f"an order needs at least one row, got {size}")
        self.size = size
        self.seed = seed
        self.lengths = lengths
        self._pool: tuple[tuple[int, int], np.ndarray] | None = None  # the last pool used, and its rows in order

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n] int64 positions from 0 -> their epochs [n] and rows [n], int64."""
        epochs, index = np.divmod(positions, self.size)
        if self.lengths is None:
            return epochs, self._shuffled(epochs, index)
        rows = np.empty_like(index)
        pools, which = np.unique(np.stack([epochs, index // POOL]), axis=1, return_inverse=True)
        for number, (epoch, pool) in enumerate(pools.T.tolist()):
            here = which.reshape(-1) == number
            rows[here] = self._bucketed(epoch, pool)[index[here] - pool * POOL]
        return epochs, rows

    def _shuffled(self, epochs: np.ndarray, index: np.ndarray) -> np.ndarray:
        return permute(index, _key(self.seed, epochs), self.size)

    def _bucketed(self, epoch: int, pool: int) -> np.ndarray:
        """Rows of one pool in the order of the stream, [at most POOL] int64."""
        if self._pool is None or self._pool[0] != (epoch, pool):
            assert self.lengths is not None
            index = np.arange(pool * POOL, min((pool + 1) * POOL, self.size))
            rows = self._shuffled(np.full_like(index, epoch), index)
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            chunk = np.arange(len(rows)) // CHUNK
            lot = _key(derive(self.seed, epoch), pool * POOL + chunk)  # one random number for each chunk
            self._pool = (epoch, pool), rows[np.argsort(lot, kind="stable")]
        return self._pool[1]

"""One independent random stream for each (seed, epoch, row)."""

from __future__ import annotations

import numpy as np

_WORD = (1 << 64) - 1


def generator(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The random stream of one row: equal arguments give equal draws, other arguments an independent stream.

    Philox4x64-10 (Salmon et al. 2011) keyed by (seed, epoch), its 256-bit counter started at row * 2^128, so that the
    streams of two rows cannot overlap. Each argument counts modulo 2^64. Takes about 10 us.

    NumPy promises that Philox's raw bits never change, on any version or platform, but does not promise it of
    the methods of `Generator` (NEP 19). The objectives therefore draw with `random()` alone, the plainest of them
    (the top 53 bits of each word), and a test pins its first values.
    """
    key = np.array([seed & _WORD, epoch & _WORD], np.uint64)
    counter = np.array([0, 0, row & _WORD, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))

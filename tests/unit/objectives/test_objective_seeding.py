"""The stream of a row: pinned, reproducible, independent of its neighbours."""

from __future__ import annotations

import numpy as np

from triune.objectives.seeding import generator


def philox(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox4x64-10, written out from Salmon et al. 2011, 3.3."""
    word = 2**64
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x0, word)
        high1, low1 = divmod(0xCA5A826395121157 * x2, word)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % word, (k1 + 0xBB67AE8584CAA73B) % word
    return [x0, x1, x2, x3]


def test_the_draws_are_the_published_generators():
    """Another NumPy that drew otherwise would change the corruption of every run that resumes."""
    blocks = [philox([block, 0, 3, 0], [1, 2]) for block in (1, 2)]  # NumPy counts up before each block
    expected = [(word >> 11) * 2.0**-53 for block in blocks for word in block]
    assert generator(1, 2, 3).random(8).tolist() == expected


def test_equal_arguments_give_equal_draws():
    first = generator(7, 1, 10**12).random(1000)
    assert np.array_equal(first, generator(7, 1, 10**12).random(1000))


def test_seed_epoch_and_row_each_give_another_stream():
    keys = [(s, e, r) for s in (0, 1, 2**63) for e in (0, 1, 2) for r in (0, 1, 2, 2**40)]
    draws = np.array([generator(*key).random(256) for key in keys])
    assert (
        len(np.unique(draws)) == draws.size
    )  # two of 53-bit draws agree with probability 36 * 256 squared / 2^54: 5e-9
    # correlation of two independent streams of n draws has standard deviation 1 / sqrt(n); 630 pairs, bound at 5.5
    correlation = np.corrcoef(draws)[np.triu_indices(len(keys), 1)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(256)


def test_negative_arguments_are_streams_of_their_own():
    assert generator(-1, 0, -1).random() not in {generator(1, 0, 1).random(), generator(0, 0, 0).random()}

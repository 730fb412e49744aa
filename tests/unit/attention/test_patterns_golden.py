"""Golden matrices: what each pattern means, drawn."""

import numpy as np
import pytest

from triune.attention import (
    block_local,
    causal,
    dilated,
    fixed,
    full,
    global_tokens,
    per_head,
    prefix,
    random_blocks,
    sinks,
    strided,
    window,
)


def picture(pattern, queries, keys):
    rows = pattern.materialize(slice(queries), slice(keys))
    return ["".join("#" if seen else "." for seen in row) for row in rows]


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        (full(), ["#####"] * 4),
        (causal(), ["#....", "##...", "###..", "####."]),
        (window(1, 0), ["#....", "##...", ".##..", "..##."]),
        (window(0, 2), ["###..", ".###.", "..###", "...##"]),
        (window(1, 1), ["##...", "###..", ".###.", "..###"]),
        (window(None, 1), ["##...", "###..", "####.", "#####"]),
        (window(1, None), ["#####", "#####", ".####", "..###"]),
        (window(0, 0), ["#....", ".#...", "..#..", "...#."]),
        (prefix(2), ["##..."] * 4),
        (causal() | prefix(2), ["##...", "##...", "###..", "####."]),
        (window(1, 1) & causal(), ["#....", "##...", ".##..", "..##."]),
        (~causal(), [".####", "..###", "...##", "....#"]),
        (causal() & ~window(1, 1), [".....", ".....", "#....", "##..."]),
    ],
    ids=str,
)
def test_golden_matrices(pattern, rows):
    assert picture(pattern, 4, 5) == rows


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 2), (2, 5)])
def test_a_window_keeps_left_plus_right_plus_one_keys(left, right):
    row = window(left, right).materialize(range(50, 51), range(100))[0]
    assert row.sum() == left + right + 1
    assert np.flatnonzero(row)[[0, -1]].tolist() == [50 - left, 50 + right]


def test_materialize_is_any_block_of_the_whole():
    pattern = window(3, 1) | prefix(2)
    whole = pattern.materialize(range(20), range(30))
    assert (pattern.materialize(slice(5, 13), slice(4, 29)) == whole[5:13, 4:29]).all()


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        (dilated(2, 0, 2), ["#.......", ".#......", "#.#.....", ".#.#....", "#.#.#...", ".#.#.#.."]),
        (dilated(1, 1, 3), ["#..#....", ".#..#...", "..#..#..", "#..#..#.", ".#..#..#", "..#..#.."]),
        (block_local(3), ["###.....", "###.....", "###.....", "...###..", "...###..", "...###.."]),
        (block_local(2, 1), ["##......", "##......", "####....", "####....", "..####..", "..####.."]),
        (block_local(2, 1, 1), ["####....", "####....", "######..", "######..", "..######", "..######"]),
        # Child et al. 2019, 4.3 with l = 2: i - l .. i, and every j with (i - j) mod l = 0
        (strided(2), ["#.......", "##......", "###.....", ".###....", "#.###...", ".#.###.."]),
        (strided(3), ["#.......", "##......", "###.....", "####....", ".####...", "..####..", "#..####."]),
        # l = 3, c = 1: the own block, and j with j mod 3 = 2
        (fixed(3, 1), ["#.......", "##......", "###.....", "..##....", "..###...", "..####..", "..#..##."]),
        (fixed(3, 2), ["#.......", "##......", "###.....", ".###....", ".####...", ".#####..", ".##.###."]),
        (global_tokens(first=1), ["########", "#.......", "#......."]),
        (global_tokens(indices=[1, 4]), [".#..#...", "########", ".#..#...", ".#..#...", "########"]),
        (global_tokens(first=2) & causal(), ["#.......", "##......", "##......", "##......"]),
        (sinks(2), ["#.......", "##......", "##......", "##......"]),
        # StreamingLLM: two sinks and the last three keys
        (window(2, 0) | sinks(2), ["#.....", "##....", "###...", "####..", "#####.", "##.###"]),
        # Longformer
        (window(1, 1) | global_tokens(first=1), ["######", "###...", "####..", "#.###.", "#..###", "#...##"]),
        (
            (window(1, 1) | global_tokens(indices=[2])) & causal(),
            ["#.....", "##....", "###...", "..##..", "..###.", "..#.##"],
        ),
    ],
    ids=str,
)
def test_golden_matrices_of_the_literature(pattern, rows):
    assert picture(pattern, len(rows), len(rows[0])) == rows


@pytest.mark.parametrize(
    ("pattern", "kept"), [(strided(128), 126_528), (fixed(128, 8), 94_720), (window(255, 0) | sinks(4), 232_570)]
)
def test_pairs_counted_by_loops(pattern, kept):
    """1,024 positions, counted here with the papers' words and Python's loops."""
    n = 1024
    meaning = {
        "strided(128)": lambda i, j: i - j <= 128 or (i - j) % 128 == 0,
        "fixed(128, 8)": lambda i, j: i // 128 == j // 128 or j % 128 >= 120,
    }.get(str(pattern), lambda i, j: i - j < 256 or j < 4)
    assert sum(meaning(i, j) for i in range(n) for j in range(i + 1)) == kept == pattern.kept(n, n)


def test_heads_take_their_part():
    pattern = per_head(window(1, 0), causal())
    assert [str(part) for part in pattern.heads()] == ["window(1, 0)", "causal()"]
    assert pattern & prefix(1) == per_head(window(1, 0) & prefix(1), causal() & prefix(1))
    assert prefix(1) | pattern == per_head(prefix(1) | window(1, 0), prefix(1) | causal())
    assert ~pattern == per_head(~window(1, 0), ~causal())
    three = per_head(full(), causal(), block_local(2))
    a, b = window(1, 0), causal()
    # 6 heads: h * 2 // 6 is 0 0 0 1 1 1, h * 3 // 6 is 0 0 1 1 2 2
    expected = [a & full(), a & full(), a & causal(), b & causal(), b & block_local(2), b & block_local(2)]
    assert (pattern & three).heads() == tuple(expected)
    assert causal().heads() == (causal(),)
    assert pattern.is_causal
    assert not three.is_causal
    with pytest.raises(TypeError, match="differs from head to head"):
        pattern.kept(4, 4)
    with pytest.raises(TypeError, match="differs from head to head"):
        pattern.allows(1, 1)


def test_global_tokens_have_one_value_however_written():
    assert global_tokens(first=3) == global_tokens(indices=[2, 0, 1, 1]) == global_tokens(3)
    assert str(global_tokens(indices=[0, 1])) == "global_tokens(first=2)"
    assert str(global_tokens(indices=[7, 0])) == "global_tokens(indices=[0, 7])"
    assert dilated(3, 1, 1) == window(3, 1)


# ---- random blocks ----------------------------------------------------------------------------------------------------


def chosen(pattern, blocks):
    """[blocks, blocks] of a pattern with blocks of one position."""
    return pattern.materialize(range(blocks), range(blocks))


@pytest.mark.parametrize("seed", [0, 1, 7, 12345])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_random_blocks_are_exactly_count_where_enough_exist(seed, count):
    own = np.eye(64, dtype=bool)
    everywhere = chosen(random_blocks(1, count, seed, among=64), 64)
    assert (everywhere.sum(axis=1) == count).all()
    assert not (everywhere & own).any()
    growing = chosen(random_blocks(1, count, seed), 64)
    reach = np.array([1 << int(block).bit_length() for block in range(64)])  # the power of two above the block
    assert (growing.sum(axis=1) == np.minimum(count, reach - 1)).all()
    assert not (growing & (np.arange(64) >= reach[:, None])).any()
    assert not (growing & own).any()


@pytest.mark.parametrize("bits", range(2, 20))
def test_random_blocks_are_exactly_count_far_along_the_row(bits):
    first = 2**bits  # the first block of those that draw from 2^(bits + 1)
    for block in (first, 2 * first - 1):
        assert random_blocks(1, 3, 5).kept(1, 2 * first, offset=block) == 3
        assert not random_blocks(1, 3, 5).allows(block, block)


def test_random_blocks_are_whole_blocks_and_the_same_in_any_row():
    small = chosen(random_blocks(1, 3, 5), 32)
    assert (
        random_blocks(4, 3, 5).materialize(range(128), range(128)) == small.repeat(4, axis=0).repeat(4, axis=1)
    ).all()
    long = random_blocks(4, 3, 5).materialize(range(4096), range(4096))
    assert (long[:128, :128] == small.repeat(4, axis=0).repeat(4, axis=1)).all()
    assert (chosen(random_blocks(1, 3, 5), 32) != chosen(random_blocks(1, 3, 6), 32)).any()


DRAWN = [
    [6, 12, 14],
    [0, 3, 9],
    [0, 8, 10],
    [2, 6, 7],
    [2, 7, 11],
    [0, 8, 10],
    [0, 8, 14],
    [1, 9, 15],
    [10, 12, 13],
    [1, 7, 15],
    [2, 6, 14],
    [5, 12, 14],
    [0, 4, 7],
    [2, 3, 6],
    [12, 13, 15],
    [4, 6, 13],
]


def test_random_blocks_stay_as_they_are():
    """A model trained with a draw needs the same draw for ever: these are the first ever drawn."""
    drawn = [np.flatnonzero(row).tolist() for row in chosen(random_blocks(1, 3, 7, among=16), 16)]
    assert drawn == DRAWN


@pytest.mark.parametrize("number", [0, 1, 2])
def test_random_blocks_are_spread_evenly(number):
    """Over 2,000 seeds each of the 63 other blocks is drawn 2,000 x 3 / 63 = 95.2 times by a block.

    Draws without replacement have a variance below n p (1 - p) = 2,000 x 1/21 x 20/21 = 90.7, so a standard deviation of 9.5; of
    63 x 3 numbers the farthest lies within 5 of them but with probability 63 x 3 x 6e-7 = 1e-4; the seeds are fixed.
    The chi-squared sum has mean 63 x 20/21 = 60 and, as 62 degrees of freedom, a deviation of about 11: 5 more are 115.
    """
    row = (5, 31, 60)[number]
    counts = np.zeros(64)
    for seed in range(2000):
        counts += random_blocks(1, 3, seed, among=64).materialize(range(row, row + 1), range(64))[0]
    others = np.delete(counts, row)
    expected = 2000 * 3 / 63
    assert np.abs(others - expected).max() < 5 * 9.5
    assert ((others - expected) ** 2 / expected).sum() < 115


def test_neighbouring_rows_draw_independently():
    """Two blocks share 3 x 3 / 62 = 0.145 of their draws on average (each draws from 62 others besides the two).

    2,000 seeds x 8 pairs of rows: a sum of 16,000 near-Poisson numbers, standard error sqrt(0.145 / 16,000) = 0.003.
    """
    shared = []
    for seed in range(2000):
        drawn = chosen(random_blocks(1, 3, seed, among=64), 64)[:9]
        shared.append((drawn[1:] & drawn[:-1]).sum() / 8)
    assert abs(np.mean(shared) - 3 * 3 / 62 * (61 / 62)) < 5 * 0.003

"""The pattern algebra: golden matrices, the meaning of a window, text and back, counts, causality."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from triune.attention import causal, full, parse, prefix, window
from triune.errors import UserError

side = st.one_of(st.none(), st.integers(0, 6))
atoms = st.one_of(
    st.builds(window, side, side), st.builds(prefix, st.integers(1, 6)), st.just(causal()), st.just(full())
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=5,
)
cases = settings(max_examples=60, deadline=None, derandomize=True)


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


@cases
@given(patterns)
def test_text_and_back(pattern):
    assert parse(str(pattern)) == pattern
    assert hash(parse(str(pattern))) == hash(pattern)


def test_parse_reads_what_people_write():
    assert parse(" window(left=4, right=0)|prefix(2) ") == window(4, 0) | prefix(2)
    assert parse("window(None, inf)") == full()
    assert parse("window(None, 0)") == causal() == window(math.inf, 0)
    assert parse("~(causal() | prefix(2)) & full()") == ~(causal() | prefix(2)) & full()
    assert (causal() & full()) & window(1, 1) == causal() & (full() & window(1, 1))
    assert ~~causal() == causal()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("windw(3, 0)", ["'windw'", "did you mean 'window'?"]),
        ("casual", ["'casual'", "did you mean 'causal'?"]),
        ("causal", ["causal()"]),
        ("window(3)", ["window(3)", "window(left, right)"]),
        ("window(3, 0, 1)", ["window(left, right)"]),
        ("window(3, 0, left=2)", ["window(left, right)"]),
        ("window(left=3, wide=0)", ["window(left, right)"]),
        ("window(-1, 0)", ["left is -1", "at least 0"]),
        ("window(2, -3)", ["right is -3", "at least 0"]),
        ("window(1.5, 0)", ["left is 1.5", "whole number"]),
        ("window(True, 0)", ["'True'"]),
        ("prefix(0)", ["length is 0", "at least 1"]),
        ("prefix('a')", ["is no number"]),
        ("causal() + full()", ["'causal() + full()'", "& | ~"]),
        ("__import__('os').system('true')", ["not allowed"]),
        ("causal() &", ["no expression"]),
        ("", ["no expression"]),
        ("xyzzy()", ["'xyzzy'", "known are", "window(left, right)"]),
    ],
)
def test_errors_say_what_to_write(text, words):
    with pytest.raises(UserError) as error:
        parse(text)
    assert all(word in str(error.value) for word in [*words, repr(text)]), str(error.value)


@pytest.mark.parametrize(
    "make", [lambda: window(-2, -1), lambda: window("3", 0), lambda: prefix(-1), lambda: prefix(2.0)]
)
def test_bad_values_in_python(make):
    with pytest.raises(UserError, match="must be a whole number"):
        make()


@cases
@given(patterns, st.integers(1, 9), st.integers(1, 9))
def test_one_predicate_for_integers_numpy_torch_and_the_flex_tracer(pattern, queries, keys):
    expected = pattern.materialize(range(queries), range(keys))
    assert expected.dtype == bool
    assert expected.shape == (queries, keys)
    assert [[pattern.allows(q, k) for k in range(keys)] for q in range(queries)] == expected.tolist()
    q, k = torch.arange(queries, dtype=torch.int32), torch.arange(keys, dtype=torch.int32)
    plain = pattern.allows(q[:, None], k[None, :])
    assert plain.dtype == torch.bool
    assert np.array_equal(plain.numpy(), expected)
    mapped = torch.vmap(torch.vmap(pattern.allows, in_dims=(None, 0)), in_dims=(0, None))(q, k)
    assert np.array_equal(mapped.numpy(), expected)
    flex = create_mask(lambda b, h, i, j: pattern.allows(i, j), 1, 1, queries, keys, device="cpu")
    assert np.array_equal(flex[0, 0].numpy(), expected)


@cases
@given(patterns, st.integers(1, 12), st.integers(1, 12), st.one_of(st.none(), st.integers(-6, 12)))
def test_kept_counts_the_pairs(pattern, queries, keys, offset):
    start = keys - queries if offset is None else offset
    assert pattern.kept(queries, keys, offset) == pattern.materialize(range(start, start + queries), range(keys)).sum()


def test_kept_is_exact_and_quick_at_length():
    n = 131_072
    start = time.perf_counter()
    assert full().kept(n, n) == n * n
    assert causal().kept(n, n) == n * (n + 1) // 2
    assert window(1023, 0).kept(n, n) == 1024 * n - 1023 * 1024 // 2
    assert (window(256, 256) & causal() | prefix(64)).kept(n, n) > 257 * (n - 300)
    assert time.perf_counter() - start < 2.0  # milliseconds in fact; n x n would be 17 billion pairs


@cases
@given(patterns)
def test_reach_and_causality_never_claim_too_much(pattern):
    n = 24
    seen = pattern.materialize(range(n), range(n))
    distance = np.arange(n)[None, :] - np.arange(n)[:, None]
    low, high = pattern.reach()
    assert ((distance[seen] >= low) & (distance[seen] <= high)).all()
    low, high = pattern.reach(complement=True)
    assert ((distance[~seen] >= low) & (distance[~seen] <= high)).all()
    assert not (pattern.is_causal and (seen & (distance > 0)).any())
    assert not (pattern.is_full and not seen.all())


def test_causality_is_found_where_it_matters():
    causals = [
        causal(),
        window(3, 0),
        window(3, 3) & causal(),
        window(2, 0) | causal(),
        ~~causal(),
        causal() & prefix(2),
    ]
    assert all(p.is_causal for p in causals)
    assert not any(
        p.is_causal for p in [full(), window(3, 1), prefix(2), causal() | prefix(2), ~window(2, 2), ~causal()]
    )
    assert (~window(0, None)).is_causal  # strictly before
    assert all(p.is_full for p in [full(), causal() | ~causal(), full() | prefix(1), ~(causal() & ~causal())])
    assert not any(p.is_full for p in [causal(), window(9, 9), prefix(3)])
    assert tuple(window(5, 2).reach()) == (-5, 2)


def test_patterns_need_no_torch():
    code = "import sys, triune.attention as a; a.window(3, 0).kept(9, 9); import triune.attention.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

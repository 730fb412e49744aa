"""Pairs in each tile, against the matrix itself; quick at lengths at which no matrix fits."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pattern_cases import PATTERNS
from triune.attention import causal, full, global_tokens, per_head, prefix, strided, window
from triune.attention import tile_counts as module
from triune.attention.tile_counts import tile_counts

cases = settings(max_examples=60, deadline=None, derandomize=True)


def by_hand(pattern, queries, keys, tile, offset=None):
    start = keys - queries if offset is None else offset
    seen = pattern.materialize(range(start, start + queries), range(keys))
    rows, columns = range(0, queries, tile), range(0, keys, tile)
    return np.array([[seen[q : q + tile, k : k + tile].sum() for k in columns] for q in rows])


@cases
@given(PATTERNS, st.integers(1, 25), st.integers(1, 25), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 20)))
def test_counts_the_pairs_of_each_tile(pattern, queries, keys, tile, offset):
    if offset is None and queries > keys:
        queries, keys = keys, queries
    found = tile_counts(pattern, queries, keys, tile, offset)
    assert found.dtype == np.int64
    assert np.array_equal(found, by_hand(pattern, queries, keys, tile, offset))


@cases
@given(PATTERNS, st.integers(1, 40), st.integers(1, 4))
def test_counting_in_bands_changes_nothing(pattern, length, tile):
    whole = tile_counts(pattern, length, length, tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EDGES", 8)
        assert np.array_equal(tile_counts(pattern, length, length, tile), whole)


def test_golden_counts():
    assert tile_counts(causal(), 5, 5, 2).tolist() == [[3, 0, 0], [4, 3, 0], [2, 2, 1]]
    assert tile_counts(window(1, 0) | prefix(1), 5, 5, 2).tolist() == [[3, 0, 0], [3, 3, 0], [1, 1, 1]]
    assert tile_counts(causal(), 2, 5, 2).tolist() == [[4, 4, 1]]
    assert tile_counts(causal(), 2, 5, 2, offset=0).tolist() == [[3, 0, 0]]


def test_a_pattern_by_head_is_refused():
    with pytest.raises(TypeError, match="heads"):
        tile_counts(per_head(causal(), full()), 4, 4, 2)


def test_exact_and_quick_at_length():
    n = 65_536
    start = time.process_time()
    for pattern in (window(256, 256) | global_tokens(first=4), strided(128), causal(), full()):
        counts = tile_counts(pattern, n, n, 128)
        assert counts.shape == (512, 512)
        assert counts.sum() == pattern.kept(n, n)
    assert time.process_time() - start < 5.0  # a fifth of a second in fact; n x n would be 4 billion pairs


def test_needs_no_torch():
    code = (
        "import sys; from triune.attention.patterns import causal; from triune.attention.tile_counts import tile_counts; "
        "tile_counts(causal(), 9, 9, 4); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

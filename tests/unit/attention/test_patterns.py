"""The pattern algebra over every pattern: one predicate everywhere, counts, causality, what a cache must keep."""

import time
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

import triune.attention.patterns as patterns
from pattern_cases import ATOMS, PATTERNS, PER_HEAD
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

cases = settings(max_examples=60, deadline=None, derandomize=True)


@cases
@given(PATTERNS, st.integers(1, 9), st.integers(1, 9))
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


LONG = st.integers(0, 2**21 - 1)  # random_blocks hashes numbers of blocks below 2^20


@cases
@given(ATOMS, st.lists(LONG, min_size=1, max_size=4), st.lists(LONG, min_size=1, max_size=4))
def test_one_predicate_in_32_and_64_bits_far_along_the_row(pattern, queries, keys):
    if getattr(pattern, "block", 2) == 1:
        pattern = random_blocks(2, pattern.count, pattern.seed)
    expected = [[pattern.allows(q, k) for k in keys] for q in queries]
    for make in (np.asarray, torch.tensor):
        for bits in ("int32", "int64"):
            kind = getattr(np if make is np.asarray else torch, bits)
            q, k = make(queries, dtype=kind), make(keys, dtype=kind)
            assert pattern.allows(q[:, None], k[None, :]).tolist() == expected


def test_random_blocks_far_along_the_row_see_their_draw():
    """The test above seldom meets a drawn block: here each key is one."""
    for seed in range(50):
        pattern = random_blocks(64, 3, seed, among=2**20)
        query = np.array([(2**20 - 1 - 7 * seed) * 64], dtype=np.int32)
        found = sorted({int(block[0]) for block, _ in pattern._drawn(query // 64)})
        assert len(found) == 3
        assert sorted({block for block, _ in pattern._drawn(int(query[0]) // 64)}) == found
        assert sorted({block.item() for block, _ in pattern._drawn(torch.from_numpy(query) // 64)}) == found
        assert 0 <= found[0] <= found[-1] < 2**20
        assert all(pattern.allows(int(query[0]), 64 * block + 63) for block in found)
        assert pattern.kept(1, 2**26, int(query[0])) == 3 * 64


@cases
@given(PATTERNS, st.integers(0, 12), st.integers(1, 12), st.one_of(st.none(), st.integers(-6, 12)))
def test_kept_counts_the_pairs(pattern, queries, keys, offset):
    start = keys - queries if offset is None else offset
    rows = pattern.materialize(range(start, start + queries), range(keys)).sum(axis=1)
    assert pattern.kept(queries, keys, offset) == rows.sum()
    assert pattern.kept_rows(queries, keys, offset).tolist() == rows.tolist()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(PATTERNS)
def test_kept_counts_in_pieces(pattern):
    expected = pattern.materialize(range(3, 40), range(50)).sum(axis=1)
    with mock.patch.object(patterns, "_EDGES", 16):
        assert pattern.kept_rows(37, 50, 3).tolist() == expected.tolist()


def test_kept_is_exact_and_quick_at_length():
    n = 131_072
    start = time.perf_counter()
    assert full().kept(n, n) == n * n
    assert causal().kept(n, n) == n * (n + 1) // 2
    assert window(1023, 0).kept(n, n) == 1024 * n - 1023 * 1024 // 2
    assert (window(256, 256) & causal() | prefix(64)).kept(n, n) > 257 * (n - 300)
    assert strided(1024).kept(n, n) == sum(min(i + 1, 1025) + max(i // 1024 - 1, 0) for i in range(n))
    assert dilated(256, 256, 8).kept(n, n) == 513 * n - 2 * sum(8 * i for i in range(1, 257))
    assert block_local(64).kept(n, n) == 64 * n
    assert (global_tokens(first=4) | random_blocks(64, 3)).kept(n, n) < 200 * n + 4 * n
    assert time.perf_counter() - start < 10.0  # half a second in fact; n x n would be 17 billion pairs


@cases
@given(PATTERNS, st.booleans())
def test_what_a_cache_may_forget_is_never_seen_again(pattern, causally):
    """Each query sees, of the keys not after it, none beyond the bound; a bound of one query holds for all later ones."""
    pattern = pattern & causal() if causally else pattern
    n = 30
    first, last = pattern.retained()
    query, key = np.arange(n)[:, None], np.arange(n)[None, :]
    forgotten = (key <= query) & (key >= first) & (query - key >= (n if last is None else last))
    assert not (pattern.materialize(range(n), range(n)) & forgotten).any()


def test_a_cache_keeps_no_more_than_it_must():
    bounds = {
        causal(): (0, None),
        full(): (0, None),
        window(1023, 0): (0, 1024),
        window(7, 3): (0, 8),
        window(0, 0): (0, 1),
        window(1020, 0) | sinks(4): (4, 1021),
        (window(1020, 0) | prefix(4)) & causal(): (4, 1021),
        (window(256, 256) | global_tokens(first=2)) & causal(): (2, 257),
        (window(8, 0) | global_tokens(indices=[0, 40])) & causal(): (41, 9),
        dilated(3, 0, 4): (0, 13),
        block_local(64) & causal(): (0, 64),
        block_local(128, 1) & causal(): (0, 256),
        window(3, 0) | window(9, 0): (0, 10),
        window(3, 0) & window(9, 0): (0, 4),
        causal() & window(9, 2): (0, 10),
        ~(~window(5, 0)): (0, 6),
        ~(~window(5, 0) | ~causal()): (0, 6),
        window(9, 0) & ~window(2, 0): (0, 10),
        ~causal(): (0, 0),
        ~window(5, 0): (0, None),
        strided(4): (0, None),
        fixed(4, 1): (0, None),
        prefix(3) & window(1, 0): (0, 2),
    }
    assert {str(pattern): tuple(pattern.retained()) for pattern in bounds} == {str(p): b for p, b in bounds.items()}
    assert tuple(per_head(window(3, 0), window(9, 0) | sinks(2)).retained()) == (2, 10)
    assert per_head(window(3, 0), causal()).retained().last is None


@cases
@given(PER_HEAD)
def test_what_differs_by_head_bounds_each_head(pattern):
    parts = pattern.heads()
    low, high = pattern.reach()
    assert all(
        low <= part.reach().low and part.reach().high <= high for part in parts if part.reach().low <= part.reach().high
    )
    assert pattern.is_causal == all(part.is_causal for part in parts)
    assert pattern.is_full == all(part.is_full for part in parts)
    first, last = pattern.retained()
    assert all(part.retained().first <= first or last is None for part in parts)
    assert last is None or all(part.retained().last <= last for part in parts)


@cases
@given(PATTERNS)
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
    if pattern.relative:
        assert all(len(set(np.diagonal(seen, d).tolist())) == 1 for d in range(1 - n, n))


def test_causality_is_found_where_it_matters():
    causals = [
        causal(),
        window(3, 0),
        window(3, 3) & causal(),
        window(2, 0) | causal(),
        ~~causal(),
        causal() & prefix(2),
        strided(3),
        fixed(4, 1),
        sinks(2),
        window(3, 0) | sinks(2),
        dilated(3, 0, 2),
        block_local(4) & causal(),
        (window(3, 3) | global_tokens(first=1) | random_blocks(2, 2)) & causal(),
    ]
    assert all(p.is_causal for p in causals)
    sees_ahead = [full(), window(3, 1), prefix(2), causal() | prefix(2), ~window(2, 2), ~causal(), dilated(0, 1, 3)]
    sees_ahead += [block_local(2), global_tokens(first=1), causal() | random_blocks(1, 1), ~strided(2), ~sinks(1)]
    assert not any(p.is_causal for p in sees_ahead)
    assert (~window(0, None)).is_causal  # strictly before
    assert all(p.is_full for p in [full(), causal() | ~causal(), full() | prefix(1), ~(causal() & ~causal())])
    assert not any(p.is_full for p in [causal(), window(9, 9), prefix(3)])
    assert tuple(window(5, 2).reach()) == (-5, 2)

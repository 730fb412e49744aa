"""Routed patterns as values: their text, their limits, what they cost, and where they have no meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triune.attention.dispatch import attend
from triune.attention.expression import parse
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import causal
from triune.attention.routed.patterns import Routed, lsh, moba, nsa
from triune.errors import UserError

LSH = lsh(buckets=8, chunk=4, causal=True, rounds=2, seed=3)
BOTH = lsh(buckets=8, chunk=4, causal=False)
MOBA = moba(block=4, top=3)
NSA = nsa(compress=4, stride=2, select=6, top=3, window=5)
ALL = [LSH, BOTH, MOBA, NSA]
each = pytest.mark.parametrize("pattern", ALL, ids=str)


@each
def test_it_is_a_value(pattern: Routed) -> None:
    assert parse(str(pattern)) == pattern
    assert hash(parse(str(pattern))) == hash(pattern)
    assert pattern.heads() == (pattern,)
    assert not pattern.is_full
    assert pattern.retained().last is None


def test_the_text_says_every_setting() -> None:
    assert str(LSH) == "lsh(buckets=8, chunk=4, rounds=2, causal=True, seed=3)"
    assert str(MOBA) == "moba(block=4, top=3)"
    assert str(NSA) == "nsa(compress=4, stride=2, select=6, top=3, window=5)"
    assert parse("lsh(buckets=8, chunk=4, causal=False)") == BOTH
    assert len({LSH, BOTH, MOBA, NSA, lsh(buckets=8, chunk=4, causal=True, rounds=2, seed=4)}) == 5


def test_which_are_causal() -> None:
    assert [pattern.is_causal for pattern in ALL] == [True, False, True, True]


@each
def test_it_stands_alone(pattern: Routed) -> None:
    for combine in (
        lambda: pattern & causal(),
        lambda: causal() | pattern,
        lambda: pattern | pattern,
        lambda: ~pattern,
    ):
        with pytest.raises(UserError, match="can't be combined"):
            combine()
    with pytest.raises(UserError, match="can't be combined"):
        parse(f"{pattern} & causal()")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lsh(buckets=7, chunk=4, causal=True)", "buckets is 7, but it must be even.*use 8"),
        ("lsh(buckets=0, chunk=4, causal=True)", "buckets is 0, but it must be a whole number of at least 2"),
        ("lsh(buckets=8, chunk=0, causal=True)", "chunk is 0, .* at least 1"),
        ("lsh(buckets=8, chunk=4, rounds=0, causal=True)", "rounds is 0, .* at least 1"),
        ("lsh(buckets=8, chunk=4, causal=1)", "causal is 1, but it must be True or False"),
        ("lsh(buckets=8, chunk=4, causal=True, seed=-1)", "seed is -1, .* at least 0"),
        ("lsh(buckets=8.0, chunk=4, causal=True)", "buckets is 8.0, but it must be a whole number"),
        ("moba(block=0, top=1)", "block is 0, .* at least 1"),
        ("moba(block=4, top=0)", "top is 0, .* at least 1"),
        ("moba(block=True, top=1)", "block is True, but it must be a whole number"),
        ("nsa(compress=4, stride=2, select=6, top=2, window=5)", "top is 2, .* at least 3"),
        ("nsa(compress=4, stride=3, select=6, top=3, window=5)", "stride is 3, but it must divide compress = 4"),
        ("nsa(compress=4, stride=4, select=6, top=3, window=5)", "stride is 4, but it must divide select = 6"),
        ("nsa(compress=8, stride=2, select=6, top=3, window=5)", "compress is 8, but it must be at most select = 6"),
        ("nsa(compress=4, stride=2, select=6, top=3, window=0)", "window is 0, .* at least 1"),
    ],
)
def test_a_value_out_of_range_names_itself_and_its_limit(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


def test_kept_counts_the_pairs_of_the_definition() -> None:
    # 10 tokens in blocks 0123 4567 89: own block 1..4, 1..4, 1..2; past blocks 0, 4, 8 keys
    assert moba(block=4, top=3).kept(10, 10) == (10 + 10 + 3) + 4 * 4 + 2 * 8
    assert moba(block=4, top=1).kept(10, 10) == 10 + 10 + 3
    assert moba(block=4, top=2).kept(1, 10) == 2 + 4
    assert moba(block=4, top=2).kept(2, 10, offset=3) == 4 + 5
    # 4 nearest earlier tokens a round, itself where there is none
    assert LSH.kept(6, 6) == 2 * (1 + 1 + 2 + 3 + 4 + 4)
    assert BOTH.kept(6, 6) == 6 * 6
    assert BOTH.kept(20, 20) == 20 * 8
    # position 9 of nsa: compressed blocks that end at 3, 5, 7, 9; own block 6..9 and one before; window 5
    assert NSA.kept(1, 10) == 4 + (4 + 6) + 5


# ---- calls that can't be served ------------------------------------------------------------------------------------------


def tensors(heads: int = 2, keys: int = 2, length: int = 8, total: int | None = None) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shape = (1, keys, total or length, 4)
    return torch.randn(1, heads, length, 4), torch.randn(shape), torch.randn(shape)


def refused(message: str, query: Any, key: Any, value: Any, **options: Any) -> None:
    layout = SequenceLayout.plain_rows(1, query.shape[2])
    options = {"pattern": MOBA, "query_layout": layout, "key_layout": layout} | options
    with pytest.raises(UserError, match=message):
        attend(query, key, value, **options)


def test_kernels_with_masks_say_why_they_cannot() -> None:
    refused("backend is 'sdpa', but it can't serve moba.*differ from head to head", *tensors(), backend="sdpa")
    refused("backend is 'flex', but it can't serve moba.*before the tokens are known", *tensors(), backend="flex")
    refused("backend is 'blokced'.*did you mean 'blocked'", *tensors(), backend="blokced")


def test_cross_attention_has_no_meaning() -> None:
    query, key, value = tensors(total=5)
    refused("means nothing in cross-attention: 8 queries stand beside 5 keys", query, key, value,
            query_layout=None, key_layout=None)  # fmt: skip
    query, key, value = tensors(length=3, total=9)
    layouts = {"query_layout": SequenceLayout.plain_rows(1, 3), "key_layout": SequenceLayout.plain_rows(1, 9)}
    refused("queries that are the last tokens of a document of the keys", query, key, value, **layouts)


def test_marks_and_biases_are_refused() -> None:
    marks = torch.zeros(1, 8, dtype=torch.bool)
    marks[:, 0] = True
    rows = SequenceLayout.packed([[8]], 8)
    for name in ("prefix", "landmarks"):
        layout = SequenceLayout(documents=rows.documents, positions=rows.positions, **{name: marks})
        refused(f"knows no {name}", *tensors(), query_layout=layout, key_layout=layout)
    refused("takes no bias", *tensors(), bias=torch.zeros(1, 2, 8, 8))


def test_positions_with_gaps_are_refused() -> None:
    layout = SequenceLayout(documents=torch.zeros(1, 8, dtype=torch.int32), positions=torch.arange(8)[None] * 2)
    refused("positions 0, 1, 2", *tensors(), query_layout=layout, key_layout=layout)


def test_lsh_wants_one_vector_as_query_and_key() -> None:
    query, key, value = tensors()
    refused("give the same tensor as both", query, key, value, pattern=LSH)
    query, key, value = tensors(heads=2, keys=1)
    refused("as many key heads as query heads, not 1 and 2", query, key, value, pattern=LSH)


def test_lsh_both_ways_has_no_cache() -> None:
    _, key, value = tensors()
    query = key[:, :, -1:]
    refused(
        "can't decode with a cache.*causal=True", query, key, value, pattern=BOTH, query_layout=None, key_layout=None
    )
    attend(query, key, value, pattern=LSH)


def test_branches_belong_to_nsa_alone() -> None:
    refused("nsa.*needs branches", *tensors(), pattern=NSA)
    refused("moba.*takes no branches", *tensors(), branches=object())

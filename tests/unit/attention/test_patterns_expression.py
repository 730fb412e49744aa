"""Patterns as text: text and back, what people write, and errors that say what to write."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pattern_cases import PATTERNS, PER_HEAD
from triune.attention import (
    block_local,
    causal,
    dilated,
    fixed,
    full,
    global_tokens,
    parse,
    per_head,
    prefix,
    random_blocks,
    sinks,
    strided,
    window,
)
from triune.attention.expression import KNOWN
from triune.attention.routed.patterns import Routed, lsh, moba, nsa
from triune.errors import UserError

cases = settings(max_examples=60, deadline=None, derandomize=True)


@cases
@given(st.one_of(PATTERNS, PER_HEAD))
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


def test_parse_reads_named_and_default_and_list_arguments():
    assert parse("global_tokens(indices=[0, 5])") == global_tokens(indices=[0, 5])
    assert parse("global_tokens(first=4)") == parse("global_tokens(4)") == global_tokens(first=4)
    assert parse("random_blocks(64, 3, seed=7)") == random_blocks(64, 3, 7)
    assert parse("random_blocks(64, 3)") == random_blocks(64, 3, 0, 1)
    assert parse("per_head(window(3, 0), causal() & ~prefix(2))") == per_head(window(3, 0), causal() & ~prefix(2))
    assert parse("per_head(causal(), full()) & window(2, 2)") == per_head(
        causal() & window(2, 2), full() & window(2, 2)
    )
    longformer = parse("window(256, 256) | global_tokens(first=1)")
    assert longformer == window(256, 256) | global_tokens(first=1)


@pytest.mark.parametrize(
    "pattern",
    [
        lsh(buckets=4, chunk=8, causal=True, rounds=2),
        moba(block=8, top=3),
        nsa(compress=4, stride=2, select=8, top=3, window=8),
    ],
    ids=str,
)
def test_routed_patterns_are_read_and_stand_alone(pattern):
    assert parse(str(pattern)) == pattern
    assert isinstance(pattern, Routed)
    for text in (f"{pattern} & causal()", f"causal() | {pattern}", f"~{pattern}", f"per_head({pattern}, causal())"):
        with pytest.raises(UserError) as error:
            parse(text)
        assert repr(text) in str(error.value)
        assert str(pattern) in str(error.value)


def test_every_public_pattern_is_known():
    assert set(KNOWN) == {
        *("full", "causal", "window", "prefix", "dilated", "block_local", "sinks", "strided", "fixed"),
        *("global_tokens", "random_blocks", "per_head", "lsh", "moba", "nsa"),
    }


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
        ("window(True, 0)", ["left is True", "whole number"]),
        ("window([1], 0)", ["left is [1]", "whole number"]),
        ("window(causal(), 0)", ["left is", "whole number"]),
        ("window(3, 0) | prefix(nan)", ["'nan' is no value"]),
        ("window(*[1, 2])", ["window(*[1, 2])", "window(left, right)"]),
        ("window(left=1, left=2, right=0)", ["window(left, right)"]),
        ("window(**{})", ["window(left, right)"]),
        ("prefix(0)", ["length is 0", "at least 1"]),
        ("prefix('a')", ["'a'", "is no value"]),
        ("dilated(2, 2, 0)", ["step is 0", "at least 1"]),
        ("dilated(-2, 2, 1)", ["left is -2", "at least 0"]),
        ("dilated(2, None, 2)", ["right is None", "at least 0"]),
        ("block_local(0)", ["size is 0", "at least 1"]),
        ("block_local(4, -1)", ["before is -1", "at least 0"]),
        ("strided(-4)", ["stride is -4", "at least 1"]),
        ("fixed(8, 9)", ["summary is 9", "at most stride = 8"]),
        ("fixed(8, 0)", ["summary is 0", "at least 1"]),
        ("fixed(0, 1)", ["stride is 0", "at least 1"]),
        ("fixed(8)", ["fixed(8)", "fixed(stride, summary)"]),
        ("sinks(0)", ["first is 0", "at least 1"]),
        ("global_tokens()", ["give first", "or indices"]),
        ("global_tokens(first=2, indices=[5])", ["give first", "or indices"]),
        ("global_tokens(first=0)", ["first is 0", "at least 1"]),
        ("global_tokens(indices=[])", ["at least one position"]),
        ("global_tokens(indices=[3, -1])", ["-1", "at least 0"]),
        ("global_tokens(indices=3)", ["indices is 3", "list of positions"]),
        ("random_blocks(0, 3)", ["block is 0", "at least 1"]),
        ("random_blocks(64, 0)", ["count is 0", "at least 1"]),
        ("random_blocks(64, 3, seed=-1)", ["seed is -1", "at least 0"]),
        ("random_blocks(64, 3, among=48)", ["among is 48", "power of two"]),
        ("random_blocks(64, 3, sed=1)", ["random_blocks(block, count, seed=0, among=1)"]),
        ("per_head(causal())", ["1 patterns", "at least 2"]),
        ("per_head(causal(), 3)", ["3 is no static pattern"]),
        ("per_head(causal(), per_head(full(), causal()))", ["another per_head"]),
        ("lsh(buckets=3, chunk=8, causal=True)", ["buckets is 3", "even"]),
        ("causal() + full()", ["'causal() + full()'", "& | ~"]),
        ("__import__('os').system('true')", ["not allowed"]),
        ("causal() &", ["no expression"]),
        ("", ["no expression"]),
        ("3", ["'3' is not allowed"]),
        ("causal() & 3", ["'3' is not allowed"]),
        ("xyzzy()", ["'xyzzy'", "known are", "window(left, right)"]),
    ],
)
def test_errors_say_what_to_write(text, words):
    with pytest.raises(UserError) as error:
        parse(text)
    assert all(word in str(error.value) for word in [*words, repr(text)]), str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: window(-2, -1), lambda: window("3", 0), lambda: prefix(-1), lambda: prefix(2.0)),
        *(lambda: dilated(1, 1, 2.0), lambda: block_local(True), lambda: strided(0), lambda: fixed(4, -1)),
        *(lambda: sinks(-4), lambda: global_tokens(indices=[1.5]), lambda: random_blocks(2, 3.0)),
    ],
)
def test_bad_values_in_python(make):
    with pytest.raises(UserError, match="must be a whole number"):
        make()


def test_no_operators_with_what_is_no_pattern():
    for combine in (lambda: causal() & 3, lambda: causal() | None, lambda: per_head(causal(), full()) & 3):
        with pytest.raises(TypeError):
            combine()


def test_patterns_need_no_torch():
    code = "import sys, triune.attention as a; a.window(3, 0).kept(9, 9); import triune.attention.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Text comes in whole characters, never a stop text's beginning, and adds up to what all ids say."""

from __future__ import annotations

import codecs
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import PROMPTS, make

from triune.inference import generate, stream
from triune.inference.filling import Blank, fill, fillings
from triune.inference.spans import restored, spans_of
from triune.inference.text import Spelling, Stops, cut


def spelled(ids: Any) -> str:
    """A byte an id, as byte-level tokenizers spell them."""
    return bytes(ids).decode("utf-8", errors="replace")


TEXTS = st.text(alphabet="abé漢🙂.", max_size=12)
STOPS = st.lists(st.text(alphabet="abé漢.", min_size=1, max_size=3), max_size=3)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(TEXTS, STOPS, TEXTS)
def test_pieces_add_up_and_are_never_taken_back(text: str, stop: list[str], before: str) -> None:
    spelling = Spelling(spelled, stop, before=before.encode())
    given_so_far = ""
    expected = cut(text, stop)
    for byte in text.encode():
        piece = spelling.push(byte)
        given_so_far += piece
        assert "\ufffd" not in piece
        assert expected.startswith(given_so_far)
    assert given_so_far + spelling.rest() == expected
    assert spelling.stopped == (expected != text)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(TEXTS, STOPS)
def test_text_is_held_back_no_longer_than_it_must(text: str, stop: list[str]) -> None:
    """What is held back is the beginning of a stop text, or of a character."""
    spelling, shown, read = Spelling(spelled, stop), "", codecs.getincrementaldecoder("utf-8")()
    whole = ""
    for byte in text.encode():
        shown += spelling.push(byte)
        whole += read.decode(bytes([byte]))
        held = cut(whole, stop)[len(shown) :]
        assert spelling.stopped or not held or any(one.startswith(held) for one in stop)


def test_a_stop_in_the_middle_of_a_token() -> None:
    pieces = ["Hel", "lo. W", "orld"]
    spelling = Spelling(lambda ids: "".join(pieces[i] for i in ids), stop=["o. "])
    assert [spelling.push(i) for i in range(3)] == ["Hel", "l", ""]
    assert spelling.stopped
    assert spelling.rest() == ""
    assert Stops(spelling.decode, ["o. "])([0, 1])
    assert not Stops(spelling.decode, ["o. "])([0])


def test_text_before_the_row_tells_whether_a_space_comes_first() -> None:
    words = ["a", "b"]
    spelling = Spelling(lambda ids: " ".join(words[i] for i in ids), before=[0])
    assert spelling.push(1) == " b"
    assert not Stops(spelling.decode, ["a"], before=[0])([1])  # what stood before counts for nothing
    assert Stops(spelling.decode, [" b"], before=[0])([1])


def test_rows_stop_one_by_one() -> None:
    model = make("decoder")
    free = generate(model, PROMPTS, max_new_tokens=12)
    stop = free[2][3:5]

    def ending(row: list[int]) -> bool:
        return row[-2:] == stop

    written = generate(model, PROMPTS, max_new_tokens=12, ending=ending)
    assert written == [row[: until(row, stop)] for row in free]
    assert len({len(row) for row in written}) > 1
    assert all(len(row) >= 8 for row in generate(model, PROMPTS, max_new_tokens=12, ending=ending, min_new_tokens=8))


def until(row: list[int], stop: list[int]) -> int:
    return next((end for end in range(2, len(row) + 1) if row[end - 2 : end] == stop), len(row))


def test_streaming_gives_what_generate_gives_and_leaves_the_modes_alone() -> None:
    model = make("decoder").train()
    expected = generate(model, PROMPTS, max_new_tokens=7, temperature=1.5, seed=3)
    rows: list[list[int]] = [[] for _ in PROMPTS]
    for step in stream(model, PROMPTS, max_new_tokens=7, temperature=1.5, seed=3):
        assert torch.is_grad_enabled()
        for row, token in zip(rows, step, strict=True):
            row.append(token)
    assert rows == expected
    assert model.training
    half = stream(model, PROMPTS, max_new_tokens=7)
    next(half)
    half.close()
    assert model.training


@pytest.mark.parametrize("several", [(7, 9), [9, 7], {7, 9}])
def test_any_of_several_ends_ends_a_row(several: Any) -> None:
    model = make("decoder")
    free = generate(model, PROMPTS, max_new_tokens=12)
    ends = (free[0][3], free[1][6])
    expected = [row[: min((row.index(e) + 1 for e in ends if e in row), default=12)] for row in free]
    assert generate(model, PROMPTS, max_new_tokens=12, eos=type(several)(ends)) == expected


# ---- spans and masks --------------------------------------------------------------------------------------------------


def test_spans_go_back_into_the_text() -> None:
    sentinels, ends = (90, 91, 92), (1,)
    assert spans_of([5, 90, 6, 7, 91, 90, 8, 1, 92, 9], sentinels, ends) == {90: [6, 7], 91: []}
    assert restored([2, 90, 3, 91, 92, 1], [90, 6, 7, 91, 1], sentinels, ends) == [2, 6, 7, 3, 92, 1]


def test_one_by_one_reads_again_with_what_it_filled() -> None:
    model, mask = make("encoder"), 49
    row = [1, mask, 3, mask, mask, 6]
    found = fill(model, [row, [4, 5]], mask=mask, one_by_one=True)
    assert found[1] == []
    read = list(row)
    for _ in range(3):
        blanks = fill(model, [read], mask=mask, candidates=2)[0]
        tops = [(max(p for i, p in zip(b.ids, b.probabilities, strict=True) if i != mask), b) for b in blanks]
        _, surest = max(tops, key=lambda found: found[0])
        read[surest.position] = next(i for i in surest.ids if i != mask)
    assert [blank.position for blank in found[0]] == [1, 3, 4]
    assert [blank.ids[0] for blank in found[0]] == [read[1], read[3], read[4]]


def test_the_likeliest_fillings_together() -> None:
    blanks = [
        Blank(position=0, ids=[1, 2], probabilities=[0.6, 0.4]),
        Blank(position=1, ids=[3, 4], probabilities=[0.9, 0.1]),
    ]
    assert [ids for ids, _ in fillings(blanks, 3)] == [[1, 3], [2, 3], [1, 4]]
    assert [round(p, 6) for _, p in fillings(blanks, 4)] == [0.54, 0.36, 0.06, 0.04]

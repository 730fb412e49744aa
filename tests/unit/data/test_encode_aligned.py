"""Which characters each token stands for, with tokenizers of each make."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triune.data.tokenizers as under_test
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer

SENTENCES = [
    "the quick brown fox isn't lazy",
    "Ödön's café  naïve Zürich",
    "👩‍👩‍👧 🎬 smile🎬 ok",
    "東京 は 日本 の 首都",
    " leading\tand\ntrailing  ",
    "e\u0301te\u0301 ﬁne",
]
KINDS = [("byte_bpe", {}), ("wordpiece", {}), ("wordpiece", {"lowercase": True}), ("unigram", {})]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, [kind[0], *kind[1]])))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    kind, options = request.param
    size: Any = 90 if kind == "unigram" else 400
    return train_tokenizer(TokenizerConfig(kind=kind, vocabulary=size, sentinels=0, **options), SENTENCES * 20)


def check(tokenizer: Tokenizer, text: str) -> None:
    """Same ids; spans without blanks around them, in order; each word is covered by the tokens that touch it."""
    ((ids, offsets),) = tokenizer.encode_aligned([text])
    assert ids.dtype == tokenizer.dtype
    assert offsets.shape == (len(ids), 2)
    np.testing.assert_array_equal(ids, tokenizer.encode_batch([text])[0])
    for start, end in offsets:
        assert 0 <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    covered = {place for start, end in offsets for place in range(start, end)}
    for word in re.finditer(r"\S+", text):
        mine = [(start, end) for start, end in offsets if start < word.end() and end > word.start()]
        assert {place for start, end in mine for place in range(start, end)} <= set(range(*word.span())), word
        assert covered >= set(range(*word.span())), word


@pytest.mark.parametrize("text", [*SENTENCES, "", " ", "the", "the the", "x" * 150])
def test_tokens_cover_their_words_and_no_blanks(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, text)


@given(words=st.lists(st.text(st.characters(categories=["L", "N", "Sm", "Po"]), min_size=1), min_size=1))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_words_of_any_script(words: list[str]) -> None:
    check(_BYTES, " ".join(words))


_BYTES = train_tokenizer(TokenizerConfig(vocabulary=300, sentinels=0), SENTENCES)  # type: ignore[arg-type]


def test_the_blank_before_a_word_is_not_its_own() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=270, sentinels=0), ["the the the the fox"] * 50)  # type: ignore[arg-type]
    ((ids, offsets),) = tokenizer.encode_aligned(["the the"])
    assert tokenizer.decode(ids[-1:]) == " the"
    assert offsets[-1].tolist() == [4, 7]


def test_bytes_of_one_character_each_stand_for_all_of_it() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=270, sentinels=0), ["abc"])  # type: ignore[arg-type]
    ((_, offsets),) = tokenizer.encode_aligned(["a🎬 b"])
    assert offsets.tolist() == [[0, 1], *[[1, 2]] * 4, [3, 3], [3, 4]]


def test_texts_in_pieces_count_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(SENTENCES[:4] * 3)
    whole = _BYTES.encode_aligned([text, "the"])
    monkeypatch.setattr(under_test, "_PIECE", 20)
    for (ids, offsets), (expected, places) in zip(_BYTES.encode_aligned([text, "the"]), whole, strict=True):
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(offsets, places)


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        ("ab c", [[0, 3], [3, 4]], [[0, 2], [3, 4]]),  # a token that takes the blank behind a word
        ("e\u0301x", [[0, 1], [1, 2], [2, 3]], [[0, 1], [1, 2], [2, 3]]),  # an accent with a token of its own
        ("e\u0301x", [[0, 1], [2, 3]], [[0, 2], [2, 3]]),  # and one without
    ],
)
def test_ends_of_spans(text: str, offsets: list[list[int]], expected: list[list[int]]) -> None:
    assert under_test._spans(np.array(offsets), text).tolist() == expected

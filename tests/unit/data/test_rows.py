"""Rows over a corpus: the right tokens, where a piece begins and ends, no document read before it is asked for."""

import numpy as np
import pytest
from stream_fakes import MemoryCorpus, Shown

from triune.data.config import RowsConfig
from triune.data.rows import Rows
from triune.errors import UserError

LENGTHS = [3, 0, 20, 1, 7, 2]


@pytest.mark.parametrize("kind", ["packed", "single"])
def test_rows_hold_the_documents_token_by_token(kind):
    corpus = MemoryCorpus(LENGTHS)
    rows = Rows.of(corpus, Shown(8), RowsConfig(kind=kind))
    assert corpus.read == 0
    segments = [segment for i in range(len(rows)) for segment in rows[i]]
    assert sorted(int(token) for segment in segments for token in segment.ids) == list(range(sum(LENGTHS)))
    assert all(sum(len(segment.ids) + 1 for segment in rows[i]) <= 8 for i in range(len(rows)))
    firsts = set(np.cumsum([0, *LENGTHS[:-1]])[[0, 2, 3, 4, 5]].tolist())
    lasts = {first + length - 1 for first, length in zip(sorted(firsts), [3, 20, 1, 7, 2], strict=True)}
    for segment in segments:
        assert segment.starts == (segment.ids[0] in firsts)
        assert segment.ends == (segment.ids[-1] in lasts)
        assert segment.split is None
    assert rows.bucketed == (kind == "single")


def test_a_row_reads_only_its_documents():
    corpus = MemoryCorpus([7] * 1000)
    assert len(Rows.of(corpus, Shown(8), RowsConfig())[500]) == corpus.read == 1


def test_pairs_carry_their_split():
    rows = Rows.of(MemoryCorpus([3, 5], splits=[1, 4]), Shown(8), RowsConfig(kind="single"))
    assert [(len(segment.ids), segment.split) for i in range(2) for segment in rows[i]] == [(3, 1), (5, 4)]


@pytest.mark.parametrize("option", ["length", "multiple_of"])
def test_a_row_has_room(option):
    with pytest.raises(UserError, match=rf"data\.rows\.{option}: 0 must be 1 or more"):
        RowsConfig(**{option: 0})


def test_rows_outside_are_refused():
    rows = Rows.of(MemoryCorpus([3]), Shown(8), RowsConfig())
    for row in (1, -1):
        with pytest.raises(IndexError, match=f"row {row} of 1"):
            rows[row]


def test_the_fingerprint_follows_tokens_and_rows():
    def fingerprint(lengths=LENGTHS, context=8, kind="packed", number=0):
        return Rows.of(MemoryCorpus(lengths, number=number), Shown(context), RowsConfig(kind=kind)).fingerprint

    assert fingerprint() == fingerprint()
    others = [fingerprint([*LENGTHS, 1]), fingerprint(context=9), fingerprint(kind="single"), fingerprint(number=1)]
    assert len({fingerprint(), *others}) == 5
    # the same segments in the same order, two in one row or each in its own
    assert fingerprint([3, 3]) != fingerprint([3, 3], context=4)
    # documents of one row each are the same rows either way, but come in another order
    assert fingerprint([7, 7]) != fingerprint([7, 7], kind="single")

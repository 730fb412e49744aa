"""One tiny example of each objective, worked out by hand for scripted draws."""

from __future__ import annotations

import numpy as np
from objective_cases import Scripted

from triune.objectives.batch import Example, Segment, Vocabulary
from triune.objectives.build import build
from triune.objectives.config import (
    CausalObjective,
    DenoisingObjective,
    FillInTheMiddleObjective,
    MaskedObjective,
    PrefixObjective,
    SpanCorruptionObjective,
    TranslationObjective,
)

# 0 pad, 1 bos, 2 eos, 3 mask, 4-6 sentinels, 7 prefix, 8 middle, 9 suffix; text is 10..19; 11 and 13 end a sentence
VOCABULARY = Vocabulary(
    size=20,
    pad=0,
    bos=1,
    eos=2,
    mask=3,
    sentinels=(4, 5, 6),
    fim_prefix=7,
    fim_middle=8,
    fim_suffix=9,
    special=frozenset(range(10)),
    continues_word=np.isin(np.arange(20), [11, 14]),
    ends_sentence=np.isin(np.arange(20), [11, 13]),
)


def example(config, segments, *draws) -> Example:
    script = Scripted(*draws)
    row = build(config, VOCABULARY, 64)(segments, script)
    assert not script.draws, "draws left over"
    for name, dtype in {"inputs": np.int64, "targets": np.int64, "weights": np.float32, "documents": np.int32}.items():
        assert getattr(row, name).dtype == dtype, name
    assert row.positions.dtype == np.int32
    return row


def same(row: Example, **expected) -> None:
    for name, values in expected.items():
        assert getattr(row, name).tolist() == values, name


def ids(*values: int) -> Segment:
    return Segment(np.array(values, np.uint16))


def test_masked():
    row = example(
        MaskedObjective(rate=0.5),
        [ids(10, 11, 12, 13)],
        [0.3, 0.1, 0.4, 0.2],  # order 1 3 0 2: the budget of 2 takes tokens 1 and 3
        [0.9] * 4,
        [0.0, 0.5, 0.0, 0.85],  # token 1 masked, token 3 replaced
        [0.0, 0.0, 0.0, 0.75],  # by the ordinary id number 7
    )
    same(
        row,
        inputs=[1, 10, 3, 12, 17, 2],
        targets=[1, 10, 11, 12, 13, 2],
        weights=[0, 0, 1, 0, 1, 0],
        documents=[0] * 6,
        positions=[0, 1, 2, 3, 4, 5],
    )


def test_masked_whole_words_of_two_documents():
    row = example(
        MaskedObjective(rate=0.5, whole_word=True),
        [ids(10, 11, 12), ids(13, 14)],  # words (10 11) (12) | (13 14)
        [0.1, 0.2, 0.3],
        [0.7, 0.7, 0.4],  # room 1.5 for size 2: 0.7 * 2 < 1.5 taken; no room; room 1 for size 2: 0.4 * 2 < 1 taken
        [0.95, 0.0, 0.0, 0.0, 0.0],  # token 10 is predicted but kept
        [0.0] * 5,
    )
    same(
        row,
        inputs=[1, 10, 3, 12, 2, 1, 3, 3, 2],
        targets=[1, 10, 11, 12, 2, 1, 13, 14, 2],
        weights=[0, 1, 1, 0, 0, 0, 1, 1, 0],
        documents=[0] * 5 + [1] * 4,
        positions=[0, 1, 2, 3, 4, 0, 1, 2, 3],
    )


def test_masked_spans_share_one_draw():
    row = example(
        MaskedObjective(rate=0.5, mean_span=2.0),
        [ids(10, 11, 12, 13)],
        [0.2, 0.1, 0.0, 0.0],  # keys of the two spans: the second first
        [0.9, 0.6, 0.4, 0.6],  # a border before token 2 (0.4 < 1/2): spans (10 11) (12 13)
        [0.5] * 4,
        [0.9, 0.1, 0.85, 0.1],  # the draw of span 1 is the second: masked, both tokens
        [0.0] * 4,
    )
    same(row, inputs=[1, 10, 11, 3, 3, 2], targets=[1, 10, 11, 12, 13, 2], weights=[0, 0, 0, 1, 1, 0])


def test_masked_predicts_at_least_one_token_and_never_a_special_one():
    row = example(
        MaskedObjective(rate=0.1),
        [ids(2, 10, 6, 11)],
        [0.1, 0.2],
        [0.9, 0.9],  # budget 0.2: neither
        0.4,  # one of the two ordinary tokens: the first
        [0.0] * 4,
        [0.0] * 4,
    )
    same(row, inputs=[1, 2, 3, 6, 11, 2], targets=[1, 2, 10, 6, 11, 2], weights=[0, 0, 1, 0, 0, 0])


def test_masked_words_and_spans_end_with_their_document_and_at_special_tokens():
    """14 and 11 go on a word that is not there: the pieces count as words of their own."""
    row = example(
        MaskedObjective(rate=0.5, whole_word=True, mean_span=9.0),
        [ids(10), ids(14, 12), ids(13, 5, 11)],
        [0.9, 0.1, 0.2, 0.4, 0.0],  # spans (10) | (14 12) | (13) (11)
        [0.9] * 5,  # no border of its own
        [0.6, 0.9, 0.9, 0.9, 0.9],  # budgets 0.5, 1, 1: not 10, first 14, first 13 (its key 0.2)
        [0.0] * 6,
        [0.0] * 6,
    )
    same(row, weights=[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])


def test_causal():
    first, second = Segment(np.array([10, 11]), True, False), Segment(np.array([12]), False, True)
    same(
        example(CausalObjective(), [first, second]),
        inputs=[1, 10, 11, 1, 12],
        targets=[10, 11, 2, 12, 2],
        weights=[1, 1, 0, 1, 1],
        documents=[0, 0, 0, 1, 1],
        positions=[0, 1, 2, 0, 1],
    )


def test_prefix():
    row = example(PrefixObjective(minimum=0.25, maximum=0.75), [ids(10, 11, 12, 13), ids(14)], [0.5, 0.99])
    same(
        row,
        inputs=[1, 10, 11, 12, 13, 1, 14],  # 1 + floor(0.5 * 3) = 2 ids in the first prefix, none in the second
        targets=[10, 11, 12, 13, 2, 14, 2],
        weights=[0, 0, 1, 1, 1, 1, 1],
        prefix=[True, True, True, False, False, True, False],
    )


def test_fill_in_the_middle():
    text = ids(10, 11, 12, 13)  # cuts int(0.6 * 5) = 3 and int(0.25 * 5) = 1: P 10, M 11 12, S 13
    piece = Segment(text.ids, True, False)  # its middle ends here all the same
    whole = Segment(np.array([14]), True, False)
    draws = [[0.0, 0.9, 0.6, 0.25], [0.4, 0.1, 0.6, 0.25], [0.5, 0.0, 0.0, 0.0]]
    row = example(FillInTheMiddleObjective(rate=0.5, suffix_first=0.5), [text, piece, whole], draws)
    same(
        row,
        targets=[7, 10, 9, 13, 8, 11, 12, 2, 7, 9, 13, 8, 10, 11, 12, 2, 14, 2],
        inputs=[1, 7, 10, 9, 13, 8, 11, 12, 1, 7, 9, 13, 8, 10, 11, 12, 1, 14],
        weights=[1] * 17 + [0],
        documents=[0] * 8 + [1] * 8 + [2] * 2,
    )


def test_span_corruption():
    row = example(
        SpanCorruptionObjective(rate=0.5, mean_span=1.5),
        [ids(10, 11, 12, 13, 14, 15), ids(16)],
        # cuts: text 3 = 1 + 2 (before the second token), spans 3 = 2 + 1 (before the third); the last document is one span
        [0.0, 0.1, 0.2, 0.0, 0.9, 0.3, 0.0],
    )
    same(
        row,
        source=[10, 4, 13, 14, 5, 2, 4, 2],
        source_documents=[0] * 6 + [1] * 2,
        source_positions=[0, 1, 2, 3, 4, 5, 0, 1],
        targets=[4, 11, 12, 5, 15, 2, 4, 16, 2],
        inputs=[1, 4, 11, 12, 5, 15, 1, 4, 16],
        weights=[1] * 9,
        documents=[0] * 6 + [1] * 3,
        positions=[0, 1, 2, 3, 4, 5, 0, 1, 2],
    )


def test_denoising():
    row = example(
        DenoisingObjective(infill_rate=0.4, rotate=0.5, delete_rate=0.25),
        [ids(10, 11, 12, 13, 14)],
        [0.0, 0.1, 0.4],  # shuffled; rotated, at 0.4
        [0.9, 0.1, 0.5, 0.0, 0.0],  # sentences (10 11) (12 13) (14) to 12 13 14 10 11
        0.0,  # 2 of 5 tokens hidden
        [0.01, 0.3] + [0.9] * 7,  # Poisson(3): below 0.0498 is 0, from 0.199 to 0.423 is 2
        [0.9, 0.3],  # of 3 tokens left: the empty span before number 1, the other at the end: 12 M 13 14 M
        [0.5, 0.1, 0.2, 0.9, 0.1],  # 13 deleted; masks stay: 12 M 14 M, rotated by int(0.4 * 4)
    )
    same(
        row,
        source=[1, 3, 14, 3, 12, 2],
        targets=[10, 11, 12, 13, 14, 2],
        inputs=[1, 10, 11, 12, 13, 14],
        weights=[1] * 6,
    )


def test_translation():
    row = example(TranslationObjective(), [Segment(np.array([10, 11, 12]), split=2), Segment(np.array([13]), split=1)])
    same(
        row,
        source=[10, 11, 2, 13, 2],
        source_documents=[0, 0, 0, 1, 1],
        targets=[12, 2, 2],
        inputs=[1, 12, 1],
        documents=[0, 0, 1],
        weights=[1, 1, 1],
    )

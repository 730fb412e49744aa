"""What the objectives do on average, within five standard errors (two-sided 6e-7; the seeds are fixed)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from objective_cases import EOS, FIRST, MASK, MID, PRE, SENTINELS, SIZE, SUF, VOCABULARY, document
from test_objective_spans import chi_square

from triune.objectives.batch import Segment
from triune.objectives.build import build
from triune.objectives.config import (
    DenoisingObjective,
    FillInTheMiddleObjective,
    MaskedObjective,
    PrefixObjective,
    SpanCorruptionObjective,
)
from triune.objectives.seeding import generator

Z = 5.0
ORDINARY = SIZE - FIRST


def examples(config, n: int, count: int, ids: np.ndarray | None = None):
    objective = build(config, VOCABULARY, 10 * n + 100)
    for row in range(count):
        text = document(n, row) if ids is None else ids
        yield text.astype(int), objective([Segment(text)], generator(11, 0, row))


def near(count: float, trials: float, share: float) -> bool:
    """A binomial count within Z standard deviations."""
    return abs(count - trials * share) < Z * math.sqrt(trials * share * (1 - share))


def mean_near(values, expected: float) -> bool:
    values = np.asarray(values, float)
    return abs(values.mean() - expected) < Z * values.std() / math.sqrt(len(values))


def test_masked_rate_places_and_replacements():
    chosen = np.zeros(37)
    counts, masked, kept, replaced, put = [], 0, 0, 0, []
    for text, row in examples(MaskedObjective(rate=0.15), 37, 2000):
        where = row.weights[1:-1] > 0
        chosen += where
        counts.append(int(where.sum()))
        now, was = row.inputs[1:-1][where], text[where]
        masked += int((now == MASK).sum())
        kept += int((now == was).sum())
        replaced += int(((now != MASK) & (now != was)).sum())
        put += list(now[(now != MASK) & (now != was)])
        assert np.array_equal(row.inputs[1:-1][~where], text[~where])
    assert set(counts) == {5, 6}  # 0.15 * 37 = 5.55
    assert near(counts.count(6), 2000, 0.55)
    assert all(near(place, 2000, 0.15) for place in chosen)
    total = sum(counts)
    assert near(masked, total, 0.8)
    # a random token is the same as before once in `ORDINARY`
    assert near(replaced, total, 0.1 * (1 - 1 / ORDINARY))
    assert near(kept, total, 0.1 + 0.1 / ORDINARY)
    assert min(put) >= FIRST  # never special
    uniform = np.bincount(put, minlength=SIZE)[FIRST:]
    assert chi_square(uniform, np.full(ORDINARY, len(put) / ORDINARY)) < Z


def test_random_tokens_reach_every_ordinary_id_and_no_other():
    config = MaskedObjective(rate=0.9, mask_share=0.0, random_share=1.0)
    put = np.concatenate([row.inputs[1:-1][row.weights[1:-1] > 0] for _, row in examples(config, 200, 20)])
    assert np.array_equal(np.unique(put), np.arange(FIRST, SIZE))


@pytest.mark.parametrize("mean_span", [None, 4.0])
def test_whole_words_are_never_split_and_the_rate_holds(mean_span):
    config = MaskedObjective(rate=0.3, whole_word=True, mean_span=mean_span)
    counts = []
    for text, row in examples(config, 50, 1500):
        where = row.weights[1:-1] > 0
        counts.append(where.sum())
        continues = VOCABULARY.continues_word[text][1:]
        assert np.array_equal(where[1:][continues], where[:-1][continues])
    assert mean_near(counts, 0.3 * 50)


@pytest.mark.parametrize(("rate", "mean_span", "whole_word"), [(0.15, 3.8, False), (0.4, 2.0, False), (0.2, 6.0, True)])
def test_masked_spans_have_their_mean_length_and_one_fate(rate, mean_span, whole_word):
    """Spans are geometric; a run of chosen tokens is several spans where neighbours are chosen, each with chance `rate`:
    its mean is mean_span / (1 - rate). (Up to 1 / spans, some 0.1%, below the standard error of some 1%.)"""
    config = MaskedObjective(rate=rate, mean_span=mean_span, whole_word=whole_word)
    runs, counts = [], []
    for _, row in examples(config, 8000, 8):
        where = row.weights[1:-1] > 0
        counts.append(where.sum())
        edges = np.flatnonzero(np.diff(np.concatenate([[0], where, [0]])))
        runs += list(edges[1::2] - edges[::2])
    assert mean_near(runs, mean_span / (1 - rate))
    # a word goes on with chance 1 / 3: one of 20 tokens in 64,000 has chance 64,000 / 3^20 = 2e-5
    assert all(abs(count - rate * 8000) < (20 if whole_word else 1e-9) for count in counts)


def test_spans_are_masked_or_kept_as_a_whole():
    config = MaskedObjective(rate=0.05, mean_span=5.0, mask_share=0.5, random_share=0.0)
    fates, units = 0, 0
    for text, row in examples(config, 4000, 10):
        where = row.weights[1:-1] > 0
        masked = row.inputs[1:-1] == MASK
        edges = np.flatnonzero(np.diff(np.concatenate([[0], where, [0]])))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            fates += int(0 < masked[start:end].sum() < end - start)
            units += 1
        assert np.array_equal(row.inputs[1:-1][~masked], text[~masked])
    # only runs of two or more spans (0.05 of all) may be mixed, and half of those are; single draws a token would mix 0.6
    assert fates < 0.06 * units


def test_prefix_lengths_are_uniform_between_their_bounds():
    lengths = []
    for text, row in examples(PrefixObjective(minimum=0.1, maximum=0.9), 40, 3300):
        length = int(row.prefix.sum()) - 1
        assert row.prefix[: length + 1].all()
        assert np.array_equal(np.flatnonzero(row.weights), np.arange(length, len(text) + 1))
        lengths.append(length)
    counts = np.bincount(lengths, minlength=37)
    assert counts[:4].sum() == 0
    assert len(counts) == 37
    assert chi_square(counts[4:], np.full(33, 100.0)) < Z


def test_prefix_of_a_whole_document_leaves_a_token():
    for _, row in examples(PrefixObjective(minimum=1.0, maximum=1.0), 6, 5):
        assert row.weights.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_fill_in_the_middle_shares_and_cuts():
    n, rows = 12, 4000
    rearranged = suffix_first = 0
    cuts = np.zeros((n + 1, n + 1))
    for text, row in examples(FillInTheMiddleObjective(rate=0.6, suffix_first=0.25), n, rows):
        tokens = list(row.targets)
        if PRE not in tokens:
            assert tokens == [*text, EOS]
            continue
        rearranged += 1
        assert row.weights.all()
        suffix, middle = tokens.index(SUF), tokens.index(MID)
        length = middle - suffix - 1
        if suffix > 1:
            cuts[suffix - 1, n - length] += 1
        else:
            suffix_first += 1  # or an empty prefix, read the same way
    assert near(rearranged, rows, 0.6)
    # both cuts uniform over n + 1 places: the prefix is empty with 1 - (n / (n + 1))^2
    empty = 1 - (n / (n + 1)) ** 2
    assert near(suffix_first, rearranged, 0.25 + 0.75 * empty)
    places = [(one, two) for one in range(1, n + 1) for two in range(one, n + 1)]
    counts = np.array([cuts[place] for place in places])
    share = np.array([1.0 if one == two else 2.0 for one, two in places])
    assert counts.sum() == cuts.sum()
    assert chi_square(counts, share / share.sum() * counts.sum()) < Z


@pytest.mark.parametrize(
    ("n", "rate", "mean_span", "noise", "spans"),
    [
        (100, 0.15, 3.0, 15, 5),
        (64, 0.15, 3.0, 10, 3),
        (1, 0.15, 3.0, 1, 1),
        (2, 0.15, 3.0, 1, 1),
        (10, 0.5, 1.0, 5, 5),
        (10, 0.9, 3.0, 9, 1),
    ],
)
def test_span_corruption_counts_are_fixed(n, rate, mean_span, noise, spans):
    for text, row in examples(SpanCorruptionObjective(rate=rate, mean_span=mean_span), n, 20):
        for tokens in (row.source, row.targets):
            assert [token for token in tokens if token in SENTINELS] == list(SENTINELS[:spans])
        assert len(row.targets) == noise + spans + 1
        assert len(row.source) == n - noise + spans + 1
        if n > 1:
            assert row.source[0] == text[0]  # T5: a text starts uncorrupted and ends in a span
        assert row.source[-2] in SENTINELS


def test_span_corruption_partitions_are_uniform():
    """10 tokens, half in spans, 3 spans: 6 ways to cut the spans, 6 to cut the text, all 36 equally likely."""
    ways: dict[tuple[int, ...], int] = {}
    for _, row in examples(SpanCorruptionObjective(rate=0.5, mean_span=1.7), 10, 3600, np.arange(FIRST, FIRST + 10)):
        places = tuple(np.flatnonzero(np.isin(row.source, SENTINELS))) + tuple(
            np.flatnonzero(np.isin(row.targets, SENTINELS))
        )
        ways[places] = ways.get(places, 0) + 1
    assert len(ways) == 36
    assert chi_square(np.array(list(ways.values())), np.full(36, 100.0)) < Z


def test_denoising_infills_its_rate_in_poisson_spans():
    """Ids in order, so that the gap at each mask tells the span's length (adjacent masks are counted together)."""
    n = 4000
    vocabulary = VOCABULARY.__class__(**{**vars(VOCABULARY), "size": n + FIRST})
    config = DenoisingObjective(infill_rate=0.3, mean_span=3.0, permute_sentences=0.0)
    objective = build(config, vocabulary, n + 10)
    masks, hidden, single = 0, 0, []
    for row in range(20):
        source = objective([Segment(np.arange(n) + FIRST)], generator(13, 0, row)).source[1:-1]
        places = np.flatnonzero(source == MASK)
        masks += len(places)
        hidden += n - (len(source) - len(places))
        lone = [p for p in places if 0 < p < len(source) - 1 and source[p - 1] != MASK != source[p + 1]]
        single += [source[p + 1] - source[p - 1] - 1 for p in lone]
    assert hidden == 20 * 0.3 * n
    # by Wald, spans drawn until they reach t = 1,200: (t + overshoot) / 3, overshoot E[X(X-1)] / 2E[X] = 1.5; variance 3t / 3^3
    assert abs(masks - 20 * 400.5) < Z * math.sqrt(20 * 1200 / 9)
    counts = np.bincount(single, minlength=9)
    probability = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(9)])
    counts, expected = (
        np.append(counts[:9], counts[9:].sum()),
        np.append(probability, 1 - probability.sum()) * len(single),
    )
    assert chi_square(counts, expected) < Z
    assert counts[0] > 0  # a mask where nothing is missing


def test_denoising_rate_is_exact_on_short_documents():
    config = DenoisingObjective(infill_rate=0.3, permute_sentences=0.0)
    hidden = [7 - (row.source[1:-1] != MASK).sum() for _, row in examples(config, 7, 2000)]
    assert set(hidden) == {2, 3}
    assert near(hidden.count(3), 2000, 0.1)


def test_denoising_permutes_sentences_uniformly():
    text = np.array([25, 26, 32, 27, 40, 28, 29, 30, 48])  # 32, 40 and 48 end sentences
    pieces = [(25, 26, 32), (27, 40), (28, 29, 30, 48)]
    ways = {sum(order, ()): 0 for order in itertools.permutations(pieces)}
    for _, row in examples(DenoisingObjective(infill_rate=0.0, permute_sentences=0.5), len(text), 2400, text):
        ways[tuple(row.source[1:-1])] += 1
    expected = np.full(6, 200.0)  # 1,200 shuffled evenly, the others as they were
    expected[0] += 1200
    assert chi_square(np.array(list(ways.values())), expected) < Z


def test_denoising_rotates_and_deletes():
    text = np.arange(FIRST, FIRST + 20)
    config = DenoisingObjective(infill_rate=0.0, permute_sentences=0.0, rotate=0.5)
    offsets = []
    for _, row in examples(config, 20, 4000, text):
        source = row.source[1:-1]
        offsets.append(int(source[0]) - FIRST)
        assert np.array_equal(source, np.roll(text, -offsets[-1]))
    expected = np.full(20, 100.0)  # a rotation by 0 is one of the 20
    expected[0] += 2000
    assert chi_square(np.bincount(offsets, minlength=20), expected) < Z

    config = DenoisingObjective(infill_rate=0.0, permute_sentences=0.0, delete_rate=0.2)
    left = np.zeros(20)
    for _, row in examples(config, 20, 2000, text):
        left += np.isin(text, row.source)
        assert (np.diff(row.source[1:-1]) > 0).all()
    assert all(near(count, 2000, 0.8) for count in left)


def test_denoising_deletes_no_mask():
    config = DenoisingObjective(infill_rate=0.5, permute_sentences=0.0)
    deleting = DenoisingObjective(infill_rate=0.5, permute_sentences=0.0, delete_rate=0.5)
    for (_, plain), (_, cut) in zip(examples(config, 60, 20), examples(deleting, 60, 20), strict=True):
        assert (plain.source == MASK).sum() == (cut.source == MASK).sum()
        assert len(cut.source) < len(plain.source)

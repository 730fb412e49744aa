"""BLEU, chrF, ROUGE and exact match against the packages that define them and against torchmetrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchmetrics.text import CHRFScore, ROUGEScore, SacreBLEUScore

from triune.objectives.measures import Measure, ratio
from triune.objectives.text_measures import bleu, chrf, exact_match, longest_common_subsequence, rouge, words

#: what sacrebleu 2.5.1 (nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp; nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no), over 100, and
#: rouge-score 0.1.2 without stemming say of these texts
GOLDEN = json.loads((Path(__file__).parent / "text_measures.json").read_text(encoding="utf-8"))

ROUNDING = 1e-12  # fp64, other order of sums and products
SINGLE = 2e-6  # torchmetrics computes in fp32
WORDS = st.sampled_from(["the", "a", "cat", "sat", "on", "it", ".", ",", "3.5", "no-one", "e.g."])
TEXTS = st.lists(WORDS, max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), min_size=1, max_size=6)


def sides(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [text for text, _ in pairs], [reference for _, reference in pairs]


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_those_of_sacrebleu_and_rouge_score(name):
    case = GOLDEN[name]
    written, references = case["written"], case["references"]
    measures = [bleu(written, references), chrf(written, references), *rouge(written, references)]
    assert [measure.name for measure in measures] == ["BLEU", "chrF", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    for measure in measures:
        assert measure.value == pytest.approx(case[measure.name], abs=ROUNDING), measure.name


@given(PAIRS)
@settings(max_examples=20, deadline=None)  # torchmetrics takes long
def test_bleu_is_torchmetrics_where_every_order_has_a_match(pairs):
    written, references = sides(pairs)
    measure = bleu(written, references)
    expected = float(SacreBLEUScore()(written, [[one] for one in references]))
    matched = measure.statistics.sum(0)[::3]
    if matched.all():
        assert measure.value == pytest.approx(expected, abs=SINGLE)
    else:  # torchmetrics does not smooth
        assert expected == 0


@given(PAIRS)
@settings(max_examples=20, deadline=None)  # torchmetrics takes long
def test_chrf_counts_what_torchmetrics_counts(pairs):
    """torchmetrics takes the mean of each order's F (chrF++.py, sacrebleu's eps_smoothing), sacrebleu by itself the F of means.
    It leaves out the reference of a text without any match, and counts n-grams longer than the reference, which sacrebleu does not: so all
    begin with the same six letters here."""
    written, references = sides([(f"surely {text}", f"surely {reference}") for text, reference in pairs])
    matched, ours, theirs = chrf(written, references).statistics.sum(0).reshape(6, 3).T
    precision, recall = ratio(matched, ours), ratio(matched, theirs)
    each = ratio(5 * precision * recall, 4 * precision + recall)
    expected = float(CHRFScore(n_word_order=0)(written, [[one] for one in references]))
    assert each.mean() == pytest.approx(expected, abs=SINGLE)


@given(PAIRS)
@settings(max_examples=20, deadline=None)  # torchmetrics takes long
def test_rouge_is_torchmetrics(pairs):
    written, references = sides(pairs)
    expected = ROUGEScore(rouge_keys=("rouge1", "rouge2", "rougeL"))(written, references)
    values = [float(expected[f"rouge{name}_fmeasure"]) for name in ("1", "2", "L")]
    assert [measure.value for measure in rouge(written, references)] == pytest.approx(values, abs=SINGLE)


@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abc"), max_size=70))
@settings(max_examples=30, deadline=None)
def test_the_longest_common_subsequence_is_that_of_the_table(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(first, second) == table[-1, -1]


@pytest.mark.parametrize("measure", [bleu, chrf, lambda *texts: rouge(*texts)[1], exact_match])
def test_statistics_of_parts_add_up_to_the_whole(measure):
    """So that resampling texts resamples the metric."""
    case = GOLDEN["forty drawn"]
    both = measure(case["written"], case["references"])
    halves = [measure(case["written"][part], case["references"][part]) for part in (slice(0, 15), slice(15, None))]
    assert np.array_equal(np.concatenate([half.statistics for half in halves]), both.statistics)
    low, high = both.interval(resamples=200)
    assert 0 <= low <= both.value <= high <= 1
    sums = np.stack([half.statistics.sum(0) for half in halves])  # the bootstrap combines many sums at once
    assert both.combine(sums).tolist() == [half.value for half in halves]


@pytest.mark.parametrize("measure", [bleu, chrf, lambda *texts: rouge(*texts)[0], exact_match])
def test_no_text_counts_as_nothing(measure):
    none: Measure = measure([], [])
    assert none.value == 0


@example("The  cat\n", " The cat")
@given(st.text("ab \n\t", max_size=8), st.text("ab \n\t", max_size=8))
def test_a_match_is_exact_but_for_white_space(text, reference):
    assert exact_match([text], [reference]).value == float(text.split() == reference.split())
    assert exact_match(["The cat"], ["the cat"]).value == 0


def test_words_are_those_of_mteval():
    assert words('He said: "3,000.5 &amp; e-mail, 2-3."') == [
        *("He", "said", ":", '"', "3,000.5", "&", "e-mail", ",", "2", "-", "3", ".", '"')
    ]

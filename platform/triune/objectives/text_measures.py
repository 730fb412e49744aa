"""How near written texts come to their references: BLEU, chrF, ROUGE and exact match, from counts of each text.

Every value is a share, from 0 to 1. BLEU and chrF are sacrebleu's with its own settings, ROUGE is rouge-score's without stemming;
tests hold them against torchmetrics, and against numbers that those two packages gave.

Legend: N texts, K statistics of a text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from triune.objectives.measures import Measure, mean, ratio

_WORDS = 4  # longest n-gram of BLEU
_CHARACTERS = 6  # longest n-gram of chrF
_RECALL = 4  # beta squared: chrF2 weighs recall twice as much as precision
_PUNCTUATION = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
_NO_ROUGE_WORD = re.compile(r"[^a-z0-9]+")


def bleu(written: Sequence[str], references: Sequence[str]) -> Measure:
    """BLEU of the corpus (Papineni et al. 2002), one reference a text, in sacrebleu's setting (Post 2018): words as 13a cuts
    them, case counts; an order of n-grams without a match counts as 1/2, 1/4, ... matches."""
    rows = [
        _matches(words(text), words(reference), _WORDS) for text, reference in zip(written, references, strict=True)
    ]
    return Measure(name="BLEU", statistics=_table(rows, 3 * _WORDS), combine=_bleu)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """[..., 12] matches, n-grams written and n-grams of the references of orders 1 to 4 -> [...]."""
    matched, written, wanted = np.moveaxis(sums.reshape(*sums.shape[:-1], _WORDS, 3).astype(np.float64), -1, 0)
    missed = (matched == 0) & (written > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, -1), matched)
    precision = ratio(smoothed, written)
    with np.errstate(divide="ignore"):
        mean_log = np.log(precision).mean(-1)
    shortness = np.minimum(0.0, 1.0 - ratio(wanted[..., 0], written[..., 0]))
    return np.where((matched.sum(-1) > 0), np.exp(mean_log + shortness), 0.0)


def chrf(written: Sequence[str], references: Sequence[str]) -> Measure:
    """chrF2 of the corpus (Popović 2015), in sacrebleu's setting: n-grams of 1 to 6 characters, white space left out; the F of
    mean precision and mean recall over the orders that both sides have."""
    rows = [
        _matches("".join(text.split()), "".join(reference.split()), _CHARACTERS)
        for text, reference in zip(written, references, strict=True)
    ]
    statistics = _table(rows, 3 * _CHARACTERS)
    written_counts, wanted = statistics[:, 1::3], statistics[:, 2::3]
    written_counts[wanted == 0] = 0  # n-grams that have nothing to match do not count
    return Measure(name="chrF", statistics=statistics, combine=_chrf)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """[..., 18] matches, n-grams written and n-grams of the references of orders 1 to 6 -> [...]."""
    matched, written, wanted = np.moveaxis(sums.reshape(*sums.shape[:-1], _CHARACTERS, 3), -1, 0)
    both = (written > 0) & (wanted > 0)
    orders = both.sum(-1)
    precision = ratio((ratio(matched, written) * both).sum(-1), orders)
    recall = ratio((ratio(matched, wanted) * both).sum(-1), orders)
    return ratio((1 + _RECALL) * precision * recall, _RECALL * precision + recall)


def rouge(written: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): means over texts of F1 of words, of pairs of words and of the longest common
    subsequence. Words are of the letters a to z and digits, in lower case: for other alphabets it says nothing."""
    scores = [
        _rouge(_rouge_words(text), _rouge_words(reference)) for text, reference in zip(written, references, strict=True)
    ]
    columns = np.array(scores, np.float64).reshape(-1, 3).T
    return [mean(name, column) for name, column in zip(("ROUGE-1", "ROUGE-2", "ROUGE-L"), columns, strict=True)]


def _rouge(written: list[str], wanted: list[str]) -> list[float]:
    counts = _matches(written, wanted, 2)
    common = longest_common_subsequence(written, wanted)
    return [_f1(*counts[:3]), _f1(*counts[3:]), _f1(common, len(written), len(wanted))]


def _f1(matched: int, written: int, wanted: int) -> float:
    return 2 * matched / (written + wanted) if matched else 0.0


def exact_match(written: Sequence[str], references: Sequence[str]) -> Measure:
    """Share of the texts that equal their reference but for white space at the ends and its kind and amount between words."""
    hits = [text.split() == reference.split() for text, reference in zip(written, references, strict=True)]
    return mean("exact match", np.array(hits, np.float64))


def words(text: str) -> list[str]:
    """The words of a text as mteval-v13a, and sacrebleu's 13a, cut them for BLEU: punctuation stands alone, but for periods and
    commas inside numbers."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _PUNCTUATION:
        text = pattern.sub(replacement, text)
    return text.split()


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, with a row of the table of the usual algorithm in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << place
    whole = (1 << len(first)) - 1
    row = whole
    for item in second:
        found = row & places.get(item, 0)
        row = ((row + found) | (row - found)) & whole
    return len(first) - row.bit_count()


def _rouge_words(text: str) -> list[str]:
    return _NO_ROUGE_WORD.sub(" ", text.lower()).split()


def _matches(written: Sequence[str], wanted: Sequence[str], longest: int) -> list[int]:
    """Matches, n-grams written and n-grams of the reference, of each order from 1 to `longest`, one order after the other."""
    counts: list[int] = []
    for order in range(1, longest + 1):
        ours, theirs = _ngrams(written, order), _ngrams(wanted, order)
        counts += [(ours & theirs).total(), ours.total(), theirs.total()]
    return counts


def _ngrams(items: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))


def _table(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, width)

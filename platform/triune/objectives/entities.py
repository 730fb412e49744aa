"""Entities in sequences of tags, and F1 over them, as conlleval and seqeval (in its default mode) count them.

A tag is a prefix and a type ("B-LOC"), or O outside of entities. Any of IOB1, IOB2, IOBES and BILOU is read by the same rules:
B and S (U) begin an entity; I and E (L) go on with one of the same type, and begin one where there is none to go on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from triune.objectives.class_measures import f1
from triune.objectives.measures import Measure, ratio

_TAG = re.compile(r"O|[BIESLU](-.*)?")
_SAME = {"L": "E", "U": "S"}  # BILOU's names of IOBES' prefixes

#: type, first word, last word
Entity = tuple[str, int, int]


def has_entities(labels: Iterable[str]) -> bool:
    """Whether tags mark entities (parts of speech don't): all have a prefix or are O, and some begin or are inside of one."""
    labels = list(labels)
    return all(map(_TAG.fullmatch, labels)) and any(label[0] in "BI" and label[1:2] in ("", "-") for label in labels)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a text, in order."""
    found = []
    before, type_before, first = "O", "", 0
    for number, tag in enumerate([*tags, "O"]):
        prefix, kind = _SAME.get(tag[0], tag[0]), tag[2:]
        apart = kind != type_before
        if before != "O" and (before in "ES" or prefix in "BSO" or apart):
            found.append((type_before, first, number - 1))
        if prefix != "O" and (prefix in "BS" or before in "ESO" or apart):
            first = number
        before, type_before = prefix, kind
    return found


def entity_measures(truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> list[Measure]:
    """F1, precision and recall of entities over all texts (micro): one is found where type, first and last word agree."""
    statistics = np.array([_counts(*pair) for pair in zip(truth, given, strict=True)], np.float64).reshape(-1, 3)
    return [
        Measure(name="entity F1", statistics=statistics, combine=f1),
        Measure(name="entity precision", statistics=statistics, combine=lambda sums: ratio(sums[..., 0], sums[..., 2])),
        Measure(name="entity recall", statistics=statistics, combine=lambda sums: ratio(sums[..., 0], sums[..., 1])),
    ]


def word_accuracy(truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> Measure:
    """The share of words with the right tag; resampled by text."""
    hits = [(sum(map(str.__eq__, right, found)), len(right)) for right, found in zip(truth, given, strict=True)]
    return Measure(
        name="accuracy",
        statistics=np.array(hits, np.float64).reshape(-1, 2),
        combine=lambda sums: ratio(sums[..., 0], sums[..., 1]),
    )


def _counts(truth: Sequence[str], given: Sequence[str]) -> tuple[int, int, int]:
    """Entities found rightly, there, found."""
    there, found = set(entities(truth)), set(entities(given))
    return len(there & found), len(there), len(found)

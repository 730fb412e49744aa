"""Accuracy, F1 and Matthews correlation of classes, as torchmetrics and scikit-learn define them.

Legend: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.objectives.measures import Measure, mean, ratio


def single_label_measures(truth: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> list[Measure]:
    """Accuracy, macro F1 (over the classes that are there or are given) and Matthews correlation (Gorodkin 2004, R_K).

    Args:
        truth: the class of each example; one that is none of `labels` is a class of its own, never given.
        given: the predicted one.
        labels: the classes.
    """
    there, found = _table([[label] for label in truth], [[label] for label in given], labels)
    statistics = np.concatenate([there & found, there, found], 1).astype(np.float64)  # [N, 3C]
    return [
        mean("accuracy", (there & found).any(1)),
        Measure(name="macro F1", statistics=statistics, combine=_macro_f1_of_seen),
        Measure(name="Matthews correlation", statistics=statistics, combine=_matthews),
    ]


def multi_label_measures(
    truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]], labels: Sequence[str]
) -> list[Measure]:
    """F1 over all yes-or-no answers (micro), the mean of the classes' (macro), and the share of examples without a wrong one.

    Args:
        truth: the classes of each example.
        given: the predicted ones.
        labels: the classes.
    """
    there, found = _table(truth, given, labels)
    statistics = np.concatenate([there & found, there, found], 1).astype(np.float64)  # [N, 3C]
    totals = statistics.reshape(len(statistics), 3, -1).sum(2)  # [N, 3]
    return [
        Measure(name="micro F1", statistics=totals, combine=f1),
        Measure(name="macro F1", statistics=statistics, combine=_macro_f1),
        mean("exact match", (there == found).all(1)),
    ]


def f1(sums: np.ndarray) -> np.ndarray:
    """[..., 3] how many are found rightly, are there, are found -> [...] harmonic mean of precision and recall."""
    return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _table(
    truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """[N, C] bool each: which classes are there, and which are given; the unknown ones of `truth` stand last."""
    unknown = {label for line in truth for label in line} - set(labels)
    number = {label: column for column, label in enumerate([*labels, *sorted(unknown)])}
    tables = []
    for side in (truth, given):
        table = np.zeros((len(truth), len(number)), bool)
        for row, line in zip(table, side, strict=True):
            row[[number[label] for label in line]] = True
        tables.append(table)
    return tables[0], tables[1]


def _split(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, there, found = np.split(sums, 3, -1)
    return right, there, found


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """[..., 3C] -> [...]: of all classes; one that is neither there nor given has F1 0."""
    return f1(np.stack(_split(sums), -1)).mean(-1)


def _macro_f1_of_seen(sums: np.ndarray) -> np.ndarray:
    """[..., 3C] -> [...]: of the classes that are there or given."""
    right, there, found = _split(sums)
    each = ratio(2 * right, there + found)  # [..., C]
    return ratio(each.sum(-1), (there + found > 0).sum(-1))


def _matthews(sums: np.ndarray) -> np.ndarray:
    """[..., 3C] -> [...]: 0 where all examples are of one class, or all answers."""
    right, there, found = _split(sums)
    count = there.sum(-1)
    above = right.sum(-1) * count - (there * found).sum(-1)
    return ratio(above, np.sqrt((count**2 - (there**2).sum(-1)) * (count**2 - (found**2).sum(-1))))

"""The classes of a task: their order, the weight of each in training, and what a person should know of their balance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from triune.errors import UserError, nearest

ClassWeights = Literal["none", "balanced"] | Mapping[str, float]

#: weight of an example whose class the model does not know: its scores are asked for, and its loss counts for nothing
UNKNOWN_WEIGHT = 1e-9

_RARE = 5  # examples; a class with fewer is named in `balance`
_NAMED = 6  # classes that `balance` names at most


def class_names(configured: Sequence[str] | None, found: Iterable[str], *, least: int, what: str) -> list[str]:
    """The classes that the config names, else those found, sorted (whole numbers by size).

    Args:
        configured: `objective.labels`.
        found: the labels of the training data, repeated as they come.
        least: classes without which there is nothing to learn.
        what: "label" or "tag", for messages.

    Raises UserError for fewer than `least` classes and for a configured class that stands twice.
    """
    if configured is None:
        names = list(dict.fromkeys(found))
        numbers = all(name.lstrip("-").isdecimal() for name in names)
        names.sort(key=(lambda name: (int(name), name)) if numbers else None)
        if len(names) < least:
            only = f"every example has the {what} {names[0]!r}" if names else f"no example has a {what}"
            raise UserError(
                f"data.train: {only}, so that there is nothing to tell apart; "
                f"it takes {least} classes or more (is the column the right one?)"
            )
        return names
    twice = next((name for name in configured if list(configured).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"objective.labels: {twice!r} stands there twice; name each class once")
    if len(configured) < least:
        raise UserError(f"objective.labels: {list(configured)} has fewer than {least} classes; name them all")
    return list(configured)


def unknown_class(where: str, label: str, labels: Sequence[str], what: str) -> UserError:
    """What is said of a training label that is none of the classes."""
    return UserError(
        f"{where}: the {what} {label!r} is none of the {len(labels)} classes{nearest(label, labels)}; correct the row, or add it to "
        f"objective.labels (null takes those of the training data). The classes are {_listed(labels)}"
    )


def check_weights(setting: ClassWeights, labels: Sequence[str]) -> None:
    """UserError for weights of unknown classes, and for those that are not above 0."""
    if isinstance(setting, str):
        return
    for name, weight in setting.items():
        if name not in labels:
            raise UserError(
                f"objective.class_weights: {name!r} is none of the classes{nearest(name, labels)}; they are {_listed(labels)}"
            )
        if not 0 < weight < math.inf:
            raise UserError(
                f"objective.class_weights: {name} is {weight}, but a weight lies above 0 and is finite; "
                "to leave a class out, take its rows out"
            )


def weights_of(setting: ClassWeights, counts: Mapping[str, int]) -> dict[str, float]:
    """Weight of an example of each class of `counts`: N / (C n) for `balanced`, as scikit-learn has it, of N examples in C
    classes of which n are of the class, so that the mean over examples is 1; by hand 1 where none is given."""
    if setting == "balanced":
        return {label: sum(counts.values()) / (len(counts) * count) for label, count in counts.items()}
    by_hand = {} if isinstance(setting, str) else setting
    return {label: by_hand.get(label, 1.0) for label in counts}


def balance(labels: Sequence[str], counts: Mapping[str, int], *, total: int, unit: str, what: str = "class") -> str:
    """ "3 classes, 1,200 examples: act 52.0%, person 40.0%, food 8.0%", and a second line where some are rare.

    Args:
        labels: the classes.
        counts: examples of each.
        total: examples, of which each is 100%.
        unit: "examples", "words".
        what: of what there are so many: "class", "tag".
    """
    ordered = sorted(labels, key=lambda label: -counts.get(label, 0))
    shares = [f"{label} {_percent(counts.get(label, 0) / max(1, total))}" for label in ordered]
    if len(shares) > _NAMED:
        shares = [*shares[: _NAMED - 1], f"… {shares[-1]}"]
    text = f"{_count(len(labels), what)}, {total:,} {unit}: {', '.join(shares)}"
    rare = [f"{label} ({counts.get(label, 0)})" for label in ordered if counts.get(label, 0) < _RARE]
    if not rare:
        return text
    return f"{text}\nfewer than {_RARE} {unit} of {_listed(rare)}: don't expect these to be learned"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def _percent(share: float) -> str:
    """One digit behind the point, two below 1%, so that a rare class is not "0.0%"."""
    return f"{share:.2%}" if 0 < share < 0.01 else f"{share:.1%}"


def _listed(names: Sequence[str], most: int = 30) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

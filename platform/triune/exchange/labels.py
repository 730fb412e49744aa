"""Names of classes: as `config.json` of theirs has them (`id2label`), and as ours has them, a list in the order of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triune.errors import UserError
from triune.exchange.architecture import Settings

_SHOWN = 5  # names in a message


def read_labels(settings: Settings, default: int = 2) -> tuple[int, list[str] | None]:
    """(number of classes, their names in the order of the scores, or None where nobody named them: LABEL_0, LABEL_1, ...).

    Raises UserError where `id2label` has holes or gives a name twice, or `num_labels` says otherwise.
    """
    table = settings.section("id2label").values
    if not table:
        count = settings.whole("num_labels", default)
        if count < 1:
            raise settings.refusal("num_labels", count, "a head with scores has one class at least")
        return count, None
    missing = [str(number) for number in range(len(table)) if str(number) not in table]
    if missing:
        raise settings.refusal(
            "id2label",
            _shown([*table]),
            f"its {len(table)} keys must be 0 to {len(table) - 1}: {_shown(missing)} is missing",
        )
    count = settings.whole("num_labels", len(table))
    if count != len(table):
        raise settings.refusal("num_labels", count, f"id2label names {len(table)} classes")
    names = [str(table[str(number)]) for number in range(len(table))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise settings.refusal("id2label", _shown(names), f"{_shown(twice)} stands for two classes")
    return count, None if names == unnamed(count) else names


def unnamed(count: int) -> list[str]:
    """What theirs calls classes that nobody named."""
    return [f"LABEL_{number}" for number in range(count)]


def write_labels(names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a `config.json`."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def check_labels(names: Sequence[str] | None, count: int) -> None:
    """UserError where names are not those of a head of `count` scores."""
    if names is None:
        return
    if len(names) != count:
        raise UserError(
            f"labels: {len(names)} names ({_shown(names)}), but model.head.labels is {count}: give one a score, in the order of the scores"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(f"labels: {_shown(twice)} stands for two classes; each needs a name of its own")


def _shown(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")

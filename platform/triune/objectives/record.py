"""What a supervised task reads: named fields of a record, whatever file it came from. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FieldKind = Literal["text", "label", "labels", "number", "words", "tags", "answers", "messages"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column that a task reads.

    Args:
        name: what the task calls it; `columns` of a source maps it to the file's own name.
        kind: what its values are; see `Record`.
        meaning: in a few words, for messages.
        optional: whether a file may lack it.
    """

    name: str
    kind: FieldKind
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Answer:
    """A span of a context that answers a question: its text, and where it starts, in characters."""

    text: str
    start: int


@dataclass(frozen=True)
class Message:
    """A turn of a conversation; `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """One labelled example as read.

    Args:
        where: "train.csv:17", for complaints.
        fields: field name -> value by the field's kind: text and label are str, labels a list of str, number a float, words and
            tags lists of str, answers a list of `Answer` (empty where there is none), messages a list of `Message`. An optional
            field that the file lacks is not there.
        key: what decides whether the record is held out; None is the fields themselves.
    """

    where: str
    fields: Mapping[str, Any]
    key: str | None = None

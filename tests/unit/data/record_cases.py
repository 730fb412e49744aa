"""Fields of tasks like those in `objectives/`, and how a file written in a test is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from triune.data.config import SourceConfig
from triune.data.records import read_records
from triune.errors import UserError
from triune.objectives.record import Field, Record

TEXT = Field(name="text", kind="text", meaning="what is classified")
TARGET = Field(name="target", kind="text", meaning="its translation")
LABEL = Field(name="label", kind="label", meaning="its class")
LABELS = Field(name="labels", kind="labels", meaning="its classes")
SCORE = Field(name="score", kind="number", meaning="how alike the texts are")
WORDS = Field(name="words", kind="words", meaning="the words of a sentence")
TAGS = Field(name="tags", kind="tags", meaning="a tag for each word")
MESSAGES = Field(name="messages", kind="messages", meaning="a conversation")
CONTEXT = Field(name="context", kind="text", meaning="what the answer stands in")
QUESTION = Field(name="question", kind="text", meaning="what is asked")
ANSWERS = Field(name="answers", kind="answers", meaning="spans of the context")
ANSWERING = (CONTEXT, QUESTION, ANSWERS)


def records(source: SourceConfig | Path, fields: Sequence[Field], **options: Any) -> list[Record]:
    source = source if isinstance(source, SourceConfig) else SourceConfig(path=str(source), **options)
    return list(read_records(source, fields))


def values(source: SourceConfig | Path, *fields: Field, **options: Any) -> list[Any]:
    """What each record holds: the value of a single field, else the values by name."""
    read = [dict(record.fields) for record in records(source, fields, **options)]
    return [row[fields[0].name] for row in read] if len(fields) == 1 else read


def complaint(source: SourceConfig | Path, *fields: Field, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        records(source, fields, **options)
    return str(raised.value)

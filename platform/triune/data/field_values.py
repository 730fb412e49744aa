"""Cells of a table as the values of a task's fields: checked and converted by the kind of the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from triune.objectives.record import Answer, Message

#: spellings of roles seen in the wild (OpenAI, ShareGPT, OpenAssistant, ...) -> ours
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
}


class UnfitError(Exception):
    """A value that its field does not take; the message says what was expected."""


def convert(kind: str, value: Any) -> Any:
    """`value` as a field of `kind` holds it (see `Record`). Raises UnfitError."""
    return _CONVERTERS[kind](value)


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: null, or nothing but white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any) -> str:
    if not isinstance(value, str) or is_blank(value):
        raise UnfitError("expected a text that is not blank")
    return value


def _label(value: Any) -> str:
    """Whole numbers that came as 1.0 (a column of numbers with a gap becomes one of floats in pandas) are written 1."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or is_blank(value):
        raise UnfitError("expected the name or the number of a class")
    return value.strip()


def _labels(value: Any) -> list[str]:
    if is_blank(value):
        return []
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.split("|")
    value = _unpacked(value)
    if not isinstance(value, list):
        raise UnfitError("expected a list of classes (JSON in a cell), or a text such as 'a|b'")
    try:
        return list(dict.fromkeys(_label(item) for item in value))
    except UnfitError:
        raise UnfitError("expected a list of classes, or a text such as 'a|b', with none of them blank") from None


def _number(value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and "_" not in value:
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise UnfitError("expected a finite number such as 3.5")
    return number


def _tokens(value: Any) -> list[str]:
    if isinstance(value, str):
        value = _unpacked(value) if value.lstrip().startswith(('["', "['")) else value.split()
    if not isinstance(value, list) or not value:
        raise UnfitError(
            "expected a list (JSON in a cell) or a text with blanks between its words, and at least one word"
        )
    for number, item in enumerate(value, 1):
        if is_blank(item) or not isinstance(item, str | int):
            raise UnfitError(f"expected a list of words, and number {number} is {item!r}")
    return [str(item).strip() for item in value]


def _answers(value: Any) -> list[Answer]:
    """From [{text, answer_start}, ...] as SQuAD has it, or {text: [...], answer_start: [...]} as `datasets` does."""
    value = [] if is_blank(value) else _unpacked(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        starts = value.get("answer_start", value.get("start"))
        if not isinstance(starts, list) or len(starts) != len(value["text"]):
            raise UnfitError(f"expected as many starts as texts; {_ANSWERS}")
        value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise UnfitError(_ANSWERS)
    return [_answer(item) for item in value]


_ANSWERS = "expected answers such as [{'text': 'Denver', 'answer_start': 17}], or [] where there is none"


def _answer(item: Any) -> Answer:
    text = item.get("text") if isinstance(item, Mapping) else None
    start = item.get("answer_start", item.get("start")) if isinstance(item, Mapping) else None
    if (
        not isinstance(text, str)
        or is_blank(text)
        or not isinstance(start, int)
        or isinstance(start, bool)
        or start < 0
    ):
        raise UnfitError(_ANSWERS)
    return Answer(text, start)


def _messages(value: Any) -> list[Message]:
    """From [{role, content}, ...] as OpenAI's chats have it, or [{from, value}, ...] as ShareGPT's do."""
    value = _unpacked(value)
    if not isinstance(value, list) or not value:
        raise UnfitError(_MESSAGES)
    return [_message(item, number) for number, item in enumerate(value, 1)]


_MESSAGES = "expected messages such as [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Hi'}]"


def _message(item: Any, number: int) -> Message:
    pairs = (("role", "content"), ("from", "value"), ("role", "text"))
    keys = next((pair for pair in pairs if isinstance(item, Mapping) and all(key in item for key in pair)), None)
    if keys is None:
        raise UnfitError(f"{_MESSAGES}; message {number} is {item!r}")
    role, text = (item[key] for key in keys)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise UnfitError(f"message {number} has the {keys[0]} {role!r}; known: {', '.join(ROLES)}")
    if not isinstance(text, str) or is_blank(text):
        raise UnfitError(f"message {number} says {text!r}; expected a text that is not blank")
    return Message(known, text)


def _unpacked(value: Any) -> Any:
    """A list or an object that a cell of csv or tsv spells in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


_CONVERTERS = {
    "text": _text,
    "label": _label,
    "labels": _labels,
    "number": _number,
    "words": _tokens,
    "tags": _tokens,
    "answers": _answers,
    "messages": _messages,
}

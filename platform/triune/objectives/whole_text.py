"""What classification and regression share: a text or a pair as one framed row, and the head that reads one vector of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triune.errors import UserError
from triune.objectives.record import Field, Record
from triune.objectives.task import Task
from triune.objectives.text import Framed

TEXT = Field(name="text", kind="text", meaning="the text")
PAIR = Field(name="pair", kind="text", meaning="a second text, read with the first", optional=True)


def framed_texts(task: Task, records: Sequence[Record]) -> list[Framed]:
    """Each record's text, or pair, with the special tokens around it, cut to the context.

    Raises UserError for a text in which the tokenizer finds nothing.
    """
    frame = task.text.frame(task.family)
    texts = task.text.encode_batch([record.fields["text"] for record in records])
    seconds = iter(task.text.encode_batch([record.fields["pair"] for record in records if _is_pair(record)]))
    framed = []
    for record, ids in zip(records, texts, strict=True):
        second = next(seconds) if _is_pair(record) else None
        for name, part in (("text", ids), ("pair", second)):
            if part is not None and not len(part):
                raise UserError(
                    f"{record.where}: the tokenizer finds nothing to read in the {name} {record.fields[name]!r}; "
                    "take the row out, or write it out"
                )
        framed.append(frame(ids, second, length=task.context))
    return framed


def check_room(task: Task) -> None:
    """UserError where the context has no room for a token of each text beside the special tokens."""
    room = task.text.frame(task.family).room(task.context, pair=True)
    if room < 2:
        raise UserError(
            f"data.rows.length: a row of {task.context} tokens has no room for two texts beside the special tokens; "
            "make it longer (null is model.context)"
        )


def whole_text_head(task: Task, *, labels: int, problem: str) -> dict[str, Any]:
    """The head as the field has it, so that it can be exported: dense and tanh before the scores (BERT's pooler, BART's
    classifier), or from a decoder the scores alone, without bias (GPT-2's and Llama's)."""
    decoder = task.family == "decoder"
    return {
        "kind": "classes",
        "labels": labels,
        "problem": problem,
        "pool": task.pool(),
        "transform": not decoder,
        "activation": "tanh",
        "bias": not decoder,
    }


def cut_note(task: Task, records: Sequence[Record]) -> str:
    """How many texts the context has no room for, or nothing."""
    frame = task.text.frame(task.family)
    # a token stands for at least a byte of text, so that a short one needs no encoding
    long = [r for r in records if sum(map(len, _bytes(r))) + 2 > frame.room(task.context, pair=_is_pair(r))]
    lengths = {name: task.text.encode_batch([r.fields.get(name) or "" for r in long]) for name in ("text", "pair")}
    cut = sum(
        len(text) + len(second) > frame.room(task.context, pair=_is_pair(record))
        for record, text, second in zip(long, lengths["text"], lengths["pair"], strict=True)
    )
    where = f"texts beyond the context of {task.context} tokens, cut there"
    return f"{where}: {cut:,} of {len(records):,}" if cut else ""


def _bytes(record: Record) -> list[bytes]:
    return [record.fields[name].encode() for name in ("text", "pair") if record.fields.get(name) is not None]


def _is_pair(record: Record) -> bool:
    return record.fields.get("pair") is not None

"""Labelled examples for a task, from any source: columns mapped to fields, values checked, some records held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from triune.data.config import DataConfig, SourceConfig
from triune.data.field_values import UnfitError, convert, is_blank
from triune.data.holdout import hash_of, threshold_of
from triune.data.record_files import Table, tables
from triune.data.sources import describe
from triune.errors import UserError, nearest
from triune.objectives.record import Field, Record

_SHOWN = 160  # characters of a value or a row in a complaint
_TURNS = {"system": "system", "prompt": "user", "response": "assistant"}  # columns that make messages -> role


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Labelled data, split.

    Args:
        train: the records of each training source.
        validation: the held-out records, or those of the validation sources.
        fingerprint: digest of all records; it changes with any of them and not with where they lie.
    """

    train: list[list[Record]]
    validation: list[Record]
    fingerprint: str


def read_records(source: SourceConfig, fields: Sequence[Field]) -> Iterator[Record]:
    """The records of `source`, sorted by file and in file order, with what a task calls `fields`.

    Raises UserError for a column that is not there (with those that are) and for the first row whose values don't fit
    (with file, line and value).
    """
    _check_columns(source, fields)
    for table in tables(source, fields):
        reader = _Reader(source, fields, table)
        for where, row in table.read(reader.wanted):
            yield reader.record(where, row)


def read_supervised(config: DataConfig, fields: Sequence[Field]) -> Supervised:
    """The records of `config`'s sources; without `data.validation`, `validation_share` of each training source is held out.

    What decides is a hash of the record's `key` (else of its fields) and `data.seed`, as for a document in pretraining:
    a conversation or a pair of texts that pretraining held out is held out here.
    Raises UserError as `read_records` does, and for sources that hold nothing or can't be split.
    """
    if not config.train:
        raise UserError("data.train: no source is given; add one, for example data.train=mine.csv")
    share = 0.0 if config.validation else config.validation_share
    parts = [_split(_some_records(source, fields), config.seed, share) for source in config.train]
    train = [kept for kept, _ in parts]
    validation = [record for _, held in parts for record in held]
    if share > 0 and not validation:
        raise UserError(
            f"data.validation_share: {share} of {describe(config.train[0])} cannot be held out, because all its records "
            "are alike; name data.validation, or set the share to 0"
        )
    for source in config.validation:
        validation += _some_records(source, fields)
    return Supervised(train=train, validation=validation, fingerprint=_fingerprint([*train, validation]))


def split_key(record: Record) -> str:
    """The text that decides on which side of the split `record` falls: its key, else its fields one after the other,
    which for one text or a pair of texts is what `data/prepare.py` goes by."""
    if record.key is not None:
        return record.key
    return "\0".join(value if isinstance(value, str) else _json(value) for value in record.fields.values())


def _some_records(source: SourceConfig, fields: Sequence[Field]) -> list[Record]:
    records = list(read_records(source, fields))
    if not records:
        raise UserError(
            f"data source '{describe(source)}': no records (no rows below a header, or nothing but blank lines)"
        )
    return records


def _split(records: list[Record], seed: int, share: float) -> tuple[list[Record], list[Record]]:
    """(kept, held out)."""
    hashes = [hash_of(split_key(record), seed) for record in records]
    threshold = threshold_of(min(hashes), max(hashes), share)
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record, number in zip(records, hashes, strict=True):
        sides[number < threshold].append(record)
    return sides


def _fingerprint(parts: list[list[Record]]) -> str:
    digest = hashlib.sha256()
    for records in parts:
        for record in records:
            digest.update(_json([record.key, dict(record.fields)]).encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


#: a value of a record as text, always the same
_json = json.JSONEncoder(default=vars, ensure_ascii=False, sort_keys=True).encode


def _check_columns(source: SourceConfig, fields: Sequence[Field]) -> None:
    known = [field.name for field in fields]
    known += list(_TURNS) if any(field.kind == "messages" for field in fields) else []
    for name in source.columns:
        if name not in known:
            raise UserError(
                f"data source columns: '{name}' is no field of this task{nearest(name, known)}; its fields are "
                f"{', '.join(f'{field.name} ({field.meaning})' for field in fields)}"
            )


class _Reader:
    """Reads the fields of a task out of the rows of one table."""

    def __init__(self, source: SourceConfig, fields: Sequence[Field], table: Table) -> None:
        self.mapped = {name: str(column) for name, column in source.columns.items()}
        if source.column != "text":
            self.mapped.setdefault("text", source.column)
        if source.target_column is not None:
            self.mapped.setdefault("target", source.target_column)
        self.fields, self.table = fields, table
        self.lists = [field for field in fields if field.kind in ("words", "tags")]
        self.answers = [field.name for field in fields if field.kind == "answers"]
        self.columns = {
            field.name: self.mapped.get(field.name, table.usual.get(field.kind, field.name)) for field in fields
        }
        self.turns = {name: self.mapped.get(name, name) for name in _TURNS}

    @property
    def wanted(self) -> list[str]:
        """Every column that a field may be read from."""
        turns = self.turns.values() if any(field.kind == "messages" for field in self.fields) else ()
        return list(dict.fromkeys([*self.columns.values(), *turns, *([self.table.key] if self.table.key else [])]))

    def record(self, where: str, row: Any) -> Record:
        needed = [field.name for field in self.fields if not field.optional]
        if isinstance(row, str) and len(needed) == 1:  # a line of jsonl that is one bare text
            row = {self.columns[needed[0]]: row}
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with columns, found {type(row).__name__}: {_shown(row)}")
        values: dict[str, Any] = {}
        for field in self.fields:
            found, cell = self.cell(field, where, row)
            if found and not (field.optional and is_blank(cell)):
                values[field.name] = self.value(field, cell, where)
        if self.lists:
            self.check_lengths(values, row, where)
        if self.answers:
            self.check_answers(values, where)
        return Record(where, values, self.key(values, row))

    def cell(self, field: Field, where: str, row: Mapping[str, Any]) -> tuple[bool, Any]:
        """(whether the row has the field's column, what it holds); UserError where it must have it and has not."""
        column = self.columns[field.name]
        found, value = _reach(row, column)
        if not found and field.kind == "messages" and field.name not in self.mapped:
            found, value = self.messages(row)
        if found or (field.optional and field.name not in self.mapped):
            return found, value
        known = [str(name) for name in self.table.columns or row]
        pair = " or {prompt: <column>, response: <column>}" if field.kind == "messages" else ""
        raise UserError(
            f"{where}: no column '{column}' among {', '.join(known) or 'none'}{nearest(column, known)}{_separators(known)}\n"
            f"  it should hold {field.name}: {field.meaning}; say where that is with columns: {{{field.name}: <column>}}{pair}\n"
            f"  the row: {_shown(dict(row))}"
        )

    def messages(self, row: Mapping[str, Any]) -> tuple[bool, Any]:
        """The columns prompt and response (and system, where there is one) as messages."""
        cells = {name: _reach(row, column) for name, column in self.turns.items()}
        if not (cells["prompt"][0] and cells["response"][0]):
            return False, None
        if is_blank(cells["system"][1]):
            del cells["system"]
        return True, [{"role": _TURNS[name], "content": value} for name, (_, value) in cells.items()]

    def value(self, field: Field, cell: Any, where: str) -> Any:
        try:
            return convert(field.kind, cell)
        except UnfitError as error:
            column = self.columns[field.name]
            called = "" if column == field.name else f" ({field.name})"
            raise UserError(f"{where}: column '{column}'{called} holds {_shown(cell)}; {error}") from error

    def check_lengths(self, values: Mapping[str, Any], row: Mapping[str, Any], where: str) -> None:
        """Every word has one tag of each kind."""
        for first, second in pairwise(field for field in self.lists if field.name in values):
            if len(values[first.name]) != len(values[second.name]):
                raise UserError(
                    f"{where}: {len(values[first.name])} {first.name} and {len(values[second.name])} {second.name}, which "
                    f"belong together one by one: {_shown(values[first.name])} and {_shown(values[second.name])}"
                )
            one, other = (_resolved(row, self.columns[field.name]) for field in (first, second))
            if one == other:
                raise UserError(
                    f"{where}: {first.name} and {second.name} are both column '{one}' of {', '.join(row)}; say which column holds "
                    f"them with columns: {{{first.name}: <column>, {second.name}: <column>}}"
                )

    def check_answers(self, values: Mapping[str, Any], where: str) -> None:
        """Every answer stands in the context where it says."""
        context: Any = values.get("context")
        answers = [answer for name in self.answers for answer in values.get(name, ())]
        for answer in answers if isinstance(context, str) else ():
            if not context.startswith(answer.text, answer.start):
                place = context.find(answer.text)
                found = context[answer.start : answer.start + len(answer.text)]
                raise UserError(
                    f"{where}: the answer {_shown(answer.text)} is not at character {answer.start} of the context, which has "
                    f"{_shown(found)} there; " + (f"it stands at {place}" if place >= 0 else "it stands nowhere in it")
                )

    def key(self, values: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
        """A context with its answers goes to one side of the split with all its questions."""
        if self.table.key is not None:
            return str(row[self.table.key])
        return values.get("context") if self.answers else None


def _resolved(row: Mapping[str, Any], column: str) -> str:
    """The column of numbered ones that a number below 0 counts from the last; any other as it is."""
    if column in row or "0" not in row or not (column.startswith("-") and column[1:].isdecimal()):
        return column
    return str(len(row) - int(column[1:]))


def _reach(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """(whether there is `column` in `row`, its value); a dotted column reaches into objects."""
    column = _resolved(row, column)
    if column in row:
        return True, row[column]
    head, _, tail = column.partition(".")
    inner = row.get(head)
    return _reach(inner, tail) if tail and isinstance(inner, Mapping) else (False, None)


def _separators(known: Sequence[str]) -> str:
    """A hint where a header is one column that looks like several."""
    if len(known) == 1 and any(separator in known[0] for separator in ",;\t|"):
        return "; this header is a single column: columns stand apart by commas in csv and by tabs in tsv"
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

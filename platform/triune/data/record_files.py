"""Tables of labelled data: files, datasets and packages as rows of columns, before a task's fields are read out of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from triune.data.config import SourceConfig
from triune.data.corpora import package_key, package_rows
from triune.data.readers import (
    FORMATS,
    file_format,
    head_of,
    parquet_columns,
    read_lines,
    read_parallel,
    read_parquet,
    read_text,
)
from triune.data.sources import describe, files_of, load_huggingface, parallel_files
from triune.errors import UserError
from triune.objectives.record import Field

Rows = Iterator[tuple[str, Any]]  # where a row stands ("train.csv:17") and the row: an object, column -> value


@dataclass(frozen=True, kw_only=True)
class Table:
    """One file of rows, or a dataset or a package.

    Args:
        read: the columns that are wanted -> the rows; a reader may leave out other columns.
        columns: every column, where that is known before a row is read.
        usual: kind of a field -> the column it is read from unless the source maps it; other fields go by their own name.
        key: the column that decides which rows are held out.
    """

    read: Callable[[Sequence[str]], Rows]
    columns: Sequence[str] = ()
    usual: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None


def tables(source: SourceConfig, fields: Sequence[Field]) -> Iterator[Table]:
    """The tables of `source`, sorted by file. UserError for files that are not there or of no known kind."""
    if source.huggingface is not None:
        yield _dataset(source)
    elif source.package is not None:
        rows = ((f"{source.package}: item {number}", row) for number, row in enumerate(package_rows(source), 1))
        yield Table(read=lambda wanted: rows, key=package_key(source.package))
    elif source.target_path is not None:
        yield Table(read=lambda wanted: _parallel(*parallel_files(source)), columns=("text", "target"))
    else:
        has_tags = any(wanted.kind in ("words", "tags") for wanted in fields)
        for path in files_of(str(source.path), (*FORMATS, *_ANNOTATED)):
            suffix = str(file_format(path, (*FORMATS, *_ANNOTATED)))
            yield _file(path, ".conll" if suffix == ".txt" and has_tags else suffix, source.document)


def _file(path: Path, suffix: str, document: str) -> Table:
    if suffix in _ANNOTATED:
        read, usual = _ANNOTATED[suffix]
        return Table(read=lambda wanted: read(path), usual=usual)
    if suffix == ".txt":
        return Table(read=lambda wanted: _txt(path, document), columns=("text",))
    if suffix == ".parquet":
        known = parquet_columns(path)
        return Table(read=lambda wanted: read_parquet(path, _heads(wanted, known)), columns=known)
    reader = FORMATS[suffix]
    assert reader is not None
    rows = partial(reader, path)
    return Table(read=lambda wanted: _questions(rows(list(wanted))) if suffix == ".json" else rows(list(wanted)))


def _heads(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The columns of a table to read; all where it has none that is wanted, so that a complaint can show a row."""
    heads = dict.fromkeys(head_of(column, known) for column in wanted)
    return [head for head in heads if head is not None] or list(known)


def _txt(path: Path, document: str) -> Rows:
    for number, text in enumerate(read_text(path, document), 1):
        if text and not text.isspace():
            yield (f"{path}:{number}" if document == "line" else f"{path}: {document} {number}"), {"text": text}


def _parallel(path: Path, target: Path) -> Rows:
    for where, text, translation in read_parallel(path, target):
        if text.strip() or translation.strip():  # blank on both sides says nothing; on one it is a mistake
            yield where, {"text": text, "target": translation}


def _dataset(source: SourceConfig) -> Table:
    """The rows of a Hugging Face dataset, with the names of classes in place of their numbers."""
    dataset = load_huggingface(source)

    def rows(wanted: Sequence[str]) -> Rows:
        names = _heads(wanted, dataset.column_names)
        for number, row in enumerate(dataset.select_columns(names)):
            where = f"{describe(source)}: row {number}"
            yield where, {name: _named(row[name], dataset.features[name]) for name in names}

    return Table(read=rows, columns=dataset.column_names)


def _named(value: Any, feature: Any) -> Any:
    """`value` with the numbers of ClassLabel features, however deep, replaced by their names; -1, for no label, by None."""
    if isinstance(value, Mapping):
        inside = feature if isinstance(feature, Mapping) else getattr(feature, "feature", {})
        return {name: _named(item, inside.get(name)) for name, item in value.items()}
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_named(item, inner) for item in value]
    names = getattr(feature, "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _questions(rows: Rows) -> Rows:
    """The questions of a file in SQuAD's shape (v1.1 and v2.0: Rajpurkar et al. 2016, 2018); any other rows as they are."""
    for where, row in rows:
        articles = row.get("data") if isinstance(row, Mapping) else None
        if not isinstance(articles, list) or not any(
            isinstance(item, Mapping) and "paragraphs" in item for item in articles
        ):
            yield where, row
            continue
        path = where.rpartition(": ")[0]
        for number, article in enumerate(articles):
            yield from _article(article, path, f"data.{number}")


def _article(article: Any, path: str, place: str) -> Rows:
    for number, paragraph in enumerate(_part(article, "paragraphs", path, place)):
        inside = f"{place}.paragraphs.{number}"
        context = _part(paragraph, "context", path, inside)
        for position, asked in enumerate(_part(paragraph, "qas", path, inside)):
            deep = f"{inside}.qas.{position}"
            name = str(asked.get("id", deep)) if isinstance(asked, Mapping) else deep
            impossible = isinstance(asked, Mapping) and asked.get("is_impossible", False)
            yield (
                f"{path}: question {name}",
                {
                    "id": name,
                    "title": article.get("title"),
                    "context": context,
                    "question": _part(asked, "question", path, deep),
                    "answers": [] if impossible else _part(asked, "answers", path, deep),
                },
            )


def _part(holder: Any, key: str, path: str, place: str) -> Any:
    if isinstance(holder, Mapping) and key in holder:
        return holder[key]
    found = f"an object with {', '.join(map(str, holder))}" if isinstance(holder, Mapping) else type(holder).__name__
    raise UserError(f"{path}: {place} is {found}; SQuAD's format has '{key}' there")


def _conll(path: Path) -> Rows:
    """The sentences of a file with a word a line and a blank line between sentences: columns "0", "1", ... of lists.

    Columns stand apart by a tab, or else by blanks. Before the first word of a sentence a line that starts with "#" is a
    comment, unless it has a tab: "#" and "#hashtag" are words too. -DOCSTART- begins a document and is no word.
    """
    sentence: list[list[str]] = []
    start = 0
    for number, line in enumerate(read_lines(path), 1):
        line = line.rstrip("\n")
        is_comment = line.startswith("#") and "\t" not in line and not sentence
        if not line.strip() or line.startswith("-DOCSTART-") or is_comment:
            if sentence:
                yield f"{path}:{start}", _columns(sentence)
            sentence = []
            continue
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))
        if not sentence:
            start = number
        elif len(cells) != len(sentence[0]):
            raise UserError(
                f"{path}:{number}: {_count(len(cells), 'column')} in '{line}' where the line before has {len(sentence[0])}; "
                "every word of a sentence needs the same columns, and sentences a blank line between them"
            )
        sentence.append(cells)
    if sentence:
        yield f"{path}:{start}", _columns(sentence)


def _columns(sentence: list[list[str]]) -> dict[str, list[str]]:
    return {str(number): list(column) for number, column in enumerate(zip(*sentence, strict=True))}


_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def _conllu(path: Path) -> Rows:
    """The sentences of a CoNLL-U file (universaldependencies.org/format.html): its ten columns, lower case, and the
    comments "# key = value". Ranges of words written as one (1-2) and empty nodes (8.1) are no words and are left out."""
    words: list[list[str]] = []
    notes: dict[str, str] = {}
    start = 0
    for number, line in enumerate(read_lines(path), 1):
        line = line.rstrip("\n")
        if not line.strip():
            if words:
                yield f"{path}:{start}", notes | _sentence(words)
            words, notes = [], {}
        elif line.startswith("#"):
            key, sign, value = line[1:].partition("=")
            notes |= {key.strip(): value.strip()} if sign else {}
        else:
            cells = _node(line, f"{path}:{number}")
            if cells[0].isdecimal():
                start = start if words else number
                if int(cells[0]) != len(words) + 1:
                    raise UserError(
                        f"{path}:{number}: word {cells[0]} where word {len(words) + 1} of the sentence was expected"
                    )
                words.append(cells)
    if words:
        yield f"{path}:{start}", notes | _sentence(words)


def _node(line: str, where: str) -> list[str]:
    cells = line.split("\t")
    if len(cells) != len(_CONLLU):
        raise UserError(f"{where}: {_count(len(cells), 'column')} in '{line}'; CoNLL-U has ten, with tabs between them")
    if not re.fullmatch(r"[0-9]+([-.][0-9]+)?", cells[0]):
        raise UserError(f"{where}: ID '{cells[0]}' is no number, range (1-2) or empty node (8.1)")
    return cells


def _sentence(words: list[list[str]]) -> dict[str, list[str]]:
    return {name: list(column) for name, column in zip(_CONLLU, zip(*words, strict=True), strict=True)}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_LINES = (_conll, {"words": "0", "tags": "-1"})
#: suffix -> reader of its sentences, and the columns that hold words and tags unless the source says otherwise
_ANNOTATED: dict[str, tuple[Callable[[Path], Rows], dict[str, str]]] = {
    ".conll": _LINES,
    ".bio": _LINES,
    ".iob": _LINES,
    ".conllu": (_conllu, {"words": "form", "tags": "upos"}),
}

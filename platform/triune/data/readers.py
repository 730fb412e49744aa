"""Rows and texts out of one local file, whatever its format and compression. Every complaint names file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from triune.errors import UserError, nearest

_HEAD = 8192  # bytes looked at before a file is believed to be text
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def _open_zstd(path: Path) -> BinaryIO:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{path}: reading .zst needs pyarrow: pip install pyarrow, or recompress with gzip") from error
    return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))


def _open_with(module: Any) -> Callable[[Path], BinaryIO]:
    return lambda path: cast(BinaryIO, module.open(path, "rb"))


_OPENERS = {".gz": _open_with(gzip), ".bz2": _open_with(bz2), ".xz": _open_with(lzma), ".zst": _open_zstd}


def file_format(path: Path, known: Collection[str] | None = None) -> str | None:
    """The suffix that decides how `path` is read (".jsonl" for a.jsonl.gz), or None where it is not `known` (by default: `FORMATS`)."""
    known = FORMATS if known is None else known
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None  # parquet compresses inside; a compressed one cannot be read piecewise
    return suffixes[-1] if suffixes and suffixes[-1] in known else None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of `path`; a damaged compression becomes a UserError with the file's name."""
    compression = path.suffix.lower()
    opener = _OPENERS.get(compression)
    try:
        with open(path, "rb") if opener is None else opener(path) as stream:
            yield stream
    except UnicodeDecodeError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path}: damaged {compression} file ({error}); compress it again") from error
    except OSError as error:
        if opener is not None and error.errno is None:  # bz2 and pyarrow report damage as a bare OSError
            raise UserError(f"{path}: damaged {compression} file ({error}); compress it again") from error
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _decoded(path: Path, line: bytes, number: int, offset: int) -> str:
    """Line `number` (from 1), which starts at byte `offset` of the decompressed file, as text."""
    if b"\0" in line:
        place = offset + line.index(b"\0")
        raise UserError(f"{path}:{number}: NUL at byte {place}: this is a binary file or UTF-16, not UTF-8 text")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise UserError(
            f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x} at offset {place}; "
            f"convert it, for example: iconv -f latin1 -t utf-8"
        ) from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends as "\\n", without a byte order mark.

    Raises UserError for an empty, a binary (NUL bytes) or a non-UTF-8 file, with line and byte offset.
    """
    with _opened(path) as stream:
        # a peek first: the first "line" of a binary file may be the whole file
        head = stream.read(_HEAD)
        if not head:
            raise UserError(f"{path}: empty file")
        if b"\0" in head:
            _decoded(path, head, head[: head.index(b"\0")].count(b"\n") + 1, 0)
        offset, number = 0, 0
        rest = io.BytesIO(head)
        while True:
            line = rest.readline()
            if not line.endswith(b"\n"):
                line += stream.readline()
            if not line:
                return
            number += 1
            text = _decoded(path, line, number, offset)
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            yield text[:-2] + "\n" if text.endswith("\r\n") else text


def lookup(row: Any, column: str, where: str) -> Any:
    """`row[column]`; a dotted column ("translation.en") reaches into nested objects. UserError names the nearest column."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with the column '{column}', found {type(row).__name__}")
    if column in row:
        return row[column]
    head, _, tail = column.partition(".")
    if tail and isinstance(row.get(head), dict):
        return lookup(row[head], tail, where)
    known = [str(key) for key in row]
    raise UserError(f"{where}: no column '{column}' among {', '.join(known) or 'none'}{nearest(column, known)}")


def text_of(value: Any, column: str, where: str) -> str:
    """A cell as text: null is empty, anything else that is no string is refused."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: column '{column}' holds {type(value).__name__}, not text")
    return value


def _jsonl(path: Path, columns: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: malformed JSON: {error.msg} at column {error.colno}") from error


def _json(path: Path, columns: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads("".join(read_lines(path)))
    except json.JSONDecodeError as error:
        hint = "; one object a line is .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}:{error.lineno}: malformed JSON: {error.msg} at column {error.colno}{hint}") from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield f"{path}: item {number}", row


def _separated(path: Path, columns: list[str], **dialect: Any) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB a field is shorter than documents are
    reader = csv.reader(read_lines(path), strict=True, **dialect)
    try:
        header = next(reader, [])
        for column in columns:
            if header.count(column) > 1:
                raise UserError(
                    f"{path}:1: {header.count(column)} columns are called '{column}'; give each a name of its own"
                )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if row and len(row) != len(header):
                raise UserError(f"{where}: {len(row)} fields where the header has {len(header)}")
            if row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: malformed row: {error}") from error


def _csv(path: Path, columns: list[str]) -> Iterator[tuple[str, Any]]:
    return _separated(path, columns)


def _tsv(path: Path, columns: list[str]) -> Iterator[tuple[str, Any]]:
    """Tab-separated values as IANA registers them: no quoting, so a quotation mark is a character like any other."""
    return _separated(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


def _parquet(path: Path, columns: list[str]) -> Iterator[tuple[str, Any]]:
    known = parquet_columns(path)
    for column in columns:
        if head_of(column, known) is None:
            raise UserError(f"{path}: no column '{column}' among {', '.join(known)}{nearest(column, known)}")
    yield from read_parquet(path, [str(head_of(column, known)) for column in columns])


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a parquet file."""
    with _parquet_file(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) pairs of a parquet file; only the columns `names` are read, all of which it has."""
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def head_of(column: str, known: Collection[str]) -> str | None:
    """The column of a table that holds `column`: itself, or ("translation.en") the object around it; None where there is none."""
    return next((name for name in (column, column.partition(".")[0]) if name in known), None)


#: how the rows of each format are read: path and wanted columns -> (where, row) pairs; txt has no rows
FORMATS: dict[str, Callable[[Path, list[str]], Iterator[tuple[str, Any]]] | None] = {
    ".txt": None,
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
COMPRESSIONS = tuple(_OPENERS)


def read_text(path: Path, document: str) -> Iterator[str]:
    """Documents of a txt file: the whole "file", each "paragraph" (blank lines between) or each "line"."""
    lines = read_lines(path)
    if document == "file":
        yield "".join(lines)
    elif document == "line":
        for line in lines:
            yield line.rstrip("\n")
    else:
        paragraph: list[str] = []
        for line in lines:
            if line.isspace():
                yield "".join(paragraph).rstrip("\n")
                paragraph = []
            else:
                paragraph.append(line)
        yield "".join(paragraph).rstrip("\n")


def read_parallel(path: Path, target: Path) -> Iterator[tuple[str, str, str]]:
    """(where, text, text of the other file) for each line of two parallel text files; a UserError where one has more lines."""
    lines = [0, 0]
    for text, other in zip_longest(read_lines(path), read_lines(target)):
        lines = [lines[0] + (text is not None), lines[1] + (other is not None)]
        if text is not None and other is not None:
            yield f"{path}:{lines[0]}", text.rstrip("\n"), other.rstrip("\n")
    if lines[0] != lines[1]:
        raise UserError(
            f"{path} has {lines[0]:,} lines and {target} has {lines[1]:,}; line n of one must be the translation of line n "
            "of the other, so both need as many lines"
        )


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """The texts of `columns` in each row of a file with columns; a bare JSON string is the row's only column."""
    reader = FORMATS[str(file_format(path))]
    assert reader is not None
    for where, row in reader(path, columns):
        if isinstance(row, str) and len(columns) == 1:
            yield (row,)
        else:
            yield tuple(text_of(lookup(row, column, where), column, where) for column in columns)

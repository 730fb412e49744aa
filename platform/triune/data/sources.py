"""Documents out of local files, Hugging Face datasets and corpus packages, in an order that never changes."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triune.data.config import SourceConfig
from triune.data.corpora import package_identity, package_rows
from triune.data.readers import (
    COMPRESSIONS,
    FORMATS,
    file_format,
    head_of,
    lookup,
    read_parallel,
    read_rows,
    read_text,
    text_of,
)
from triune.errors import UserError, nearest


@dataclass(frozen=True)
class Document:
    """One text, or a pair of texts (translation)."""

    text: str
    target: str | None = None


def documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of `source`, sorted by file and in file order; texts that are blank (or half a blank pair) are left out.

    Raises UserError with file and line for whatever cannot be read.
    """
    columns = [source.column] if source.target_column is None else [source.column, source.target_column]
    for texts in _texts(source, columns):
        if all(text and not text.isspace() for text in texts):
            yield Document(*texts)


def describe(source: SourceConfig) -> str:
    """The source in a word, for messages."""
    return str(source.path or source.huggingface or source.package)


def identity(source: SourceConfig) -> dict[str, Any]:
    """What the documents of `source` depend on, for a cache key: files by path, size and time of change (ns),
    packages by version, Hugging Face datasets by name (or the files of their local directory)."""
    settings = asdict(source)
    for name in ("weight", "columns"):
        del settings[name]
    for name in ("target_path", "examples", "seed"):  # younger than the first caches: left out where they say nothing
        if settings[name] == getattr(SourceConfig, name):
            del settings[name]
    if source.target_path is not None:
        return settings | {"files": [_stamp(path) for path in parallel_files(source)]}
    if source.path is not None:
        return settings | {"files": [_stamp(path) for path in files_of(source.path)]}
    if source.package is not None:
        return settings | {"package": package_identity(source.package)}
    folder = Path(str(source.huggingface))
    local = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return settings | {"files": [_stamp(path) for path in local]}


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _texts(source: SourceConfig, columns: list[str]) -> Iterator[tuple[str, ...]]:
    if source.huggingface is not None:
        yield from _huggingface(source, columns)
    elif source.package is not None:
        for row in package_rows(source):
            yield tuple(text_of(lookup(row, column, describe(source)), column, describe(source)) for column in columns)
    elif source.target_path is not None:
        yield from ((text, target) for _, text, target in read_parallel(*parallel_files(source)))
    else:
        for path in files_of(str(source.path)):
            if file_format(path) != ".txt":
                yield from read_rows(path, columns)
            elif source.target_column is not None:
                raise UserError(f"{path}: target_column {source.target_column!r} needs columns; a txt file has none")
            else:
                yield from ((text,) for text in read_text(path, source.document))


def files_of(pattern: str, known: Collection[str] = tuple(FORMATS)) -> list[Path]:
    """The files that a path, a glob or a directory (searched recursively, `known` suffixes only) names, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not _hidden(file, path)]
        files = sorted(file for file in found if file_format(file, known))
        if not files:
            raise UserError(f"data source path: no file under the directory '{pattern}' ends in {_suffixes(known)}")
        return files
    files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        if glob.has_magic(pattern):
            raise UserError(f"data source path: no file matches '{pattern}'")
        raise _missing(path)
    for file in files:
        if file_format(file, known) is None:
            last = file.suffixes[-2:-1] if file.suffix in COMPRESSIONS else file.suffixes[-1:]
            hint = nearest("".join(last), known)
            raise UserError(f"{file}: unknown kind of file{hint}; known suffixes: {_suffixes(known)}")
    return files


def parallel_files(source: SourceConfig) -> tuple[Path, Path]:
    """`path` and `target_path` of a pair of parallel text files, whatever their suffixes; UserError where one is not there."""
    first, second = (Path(str(name)).expanduser() for name in (source.path, source.target_path))
    for path in (first, second):
        if not path.is_file():
            raise _missing(path)
        if file_format(path, [suffix for suffix, reader in FORMATS.items() if reader is not None]):
            raise UserError(
                f"{path}: target_path pairs two plain text files line by line, and this one has columns; "
                "name its columns with column and target_column instead"
            )
    return first, second


def _missing(path: Path) -> UserError:
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"data source path: there is no file '{path}'{nearest(path.name, beside)}")


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _suffixes(known: Collection[str]) -> str:
    return f"{', '.join(known)} (all but .parquet also with {', '.join(COMPRESSIONS)})"


def _huggingface(source: SourceConfig, columns: list[str]) -> Iterator[tuple[str, ...]]:
    dataset = load_huggingface(source)
    known = dataset.column_names
    for column in columns:
        if head_of(column, known) is None:
            raise UserError(
                f"huggingface dataset '{source.huggingface}': no column '{column}' among {', '.join(known)}{nearest(column, known)}"
            )
    for number, row in enumerate(
        dataset.select_columns(list(dict.fromkeys(str(head_of(column, known)) for column in columns)))
    ):
        where = f"{source.huggingface}: row {number}"
        yield tuple(text_of(lookup(row, column, where), column, where) for column in columns)


def load_huggingface(source: SourceConfig) -> Any:
    """The split of a dataset that was saved to disk, or that `datasets.load_dataset` finds in a directory or on the hub."""
    import datasets

    name = str(source.huggingface)
    saved = any((Path(name) / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    try:
        loaded = (
            datasets.load_from_disk(name) if saved else datasets.load_dataset(name, source.subset, split=source.split)
        )
    except Exception as error:  # the hub client raises dozens of classes, from HTTP errors to its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data source huggingface: '{name}'{f' ({source.subset})' if source.subset else ''} cannot be loaded: {reason}\n"
            "Check the name and the subset. Without a network, save the dataset elsewhere with "
            "Dataset.save_to_disk(DIRECTORY), copy the directory here and give it as `huggingface: DIRECTORY`."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if source.split not in loaded:
        raise UserError(
            f"data source split: '{source.split}' is not in '{name}', which has {', '.join(loaded)}{nearest(source.split, loaded)}"
        )
    return loaded[source.split]

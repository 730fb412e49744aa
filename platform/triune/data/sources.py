"""Documents out of local files, Hugging Face datasets and corpus packages, in an order that never changes."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triune.data.config import SourceConfig
from triune.data.corpora import package_identity, read_package
from triune.data.readers import COMPRESSIONS, FORMATS, file_format, lookup, read_rows, read_text, text_of
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
    del settings["weight"]
    if source.path is not None:
        return settings | {"files": [_stamp(path) for path in _files(source.path)]}
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
        yield from ((text,) for text in read_package(source.package))
    else:
        for path in _files(str(source.path)):
            if file_format(path) != ".txt":
                yield from read_rows(path, columns)
            elif source.target_column is not None:
                raise UserError(f"{path}: target_column {source.target_column!r} needs columns; a txt file has none")
            else:
                yield from ((text,) for text in read_text(path, source.document))


def _files(pattern: str) -> list[Path]:
    """The files that a path, a glob or a directory (searched recursively, known suffixes only) names, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not _hidden(file, path)]
        files = sorted(file for file in found if file_format(file))
        if not files:
            raise UserError(f"data source path: no file under the directory '{pattern}' ends in {_suffixes()}")
        return files
    files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        if glob.has_magic(pattern):
            raise UserError(f"data source path: no file matches '{pattern}'")
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"data source path: there is no file '{pattern}'{nearest(path.name, beside)}")
    for file in files:
        if file_format(file) is None:
            last = file.suffixes[-2:-1] if file.suffix in COMPRESSIONS else file.suffixes[-1:]
            hint = nearest("".join(last), FORMATS)
            raise UserError(f"{file}: unknown kind of file{hint}; known suffixes: {_suffixes()}")
    return files


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _suffixes() -> str:
    return f"{', '.join(FORMATS)} (the first five also with {', '.join(COMPRESSIONS)})"


def _huggingface(source: SourceConfig, columns: list[str]) -> Iterator[tuple[str, ...]]:
    dataset = _load_huggingface(source)
    names = [column if column in dataset.column_names else column.partition(".")[0] for column in columns]
    for column, name in zip(columns, names, strict=True):
        if name not in dataset.column_names:
            known = dataset.column_names
            raise UserError(
                f"huggingface dataset '{source.huggingface}': no column '{column}' among {', '.join(known)}{nearest(column, known)}"
            )
    for number, row in enumerate(dataset.select_columns(list(dict.fromkeys(names)))):
        where = f"{source.huggingface}: row {number}"
        yield tuple(text_of(lookup(row, column, where), column, where) for column in columns)


def _load_huggingface(source: SourceConfig) -> Any:
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

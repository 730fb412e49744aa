"""The examples of docs/objectives.md print what the page shows."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "objectives.md"


def test_the_page_shows_what_the_code_prints():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0
    assert len(PAGE.read_text().splitlines()) < 120

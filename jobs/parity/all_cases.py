"""Every registered case: `cases/<model_type>.py` holds those of an architecture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from triune.exchange.proof import Case

CASES = Path(__file__).with_name("cases")


def all_cases() -> dict[str, list[Case]]:
    """model_type -> cases, in alphabetical order."""
    return {file.stem.replace("__", "-"): _cases(file) for file in sorted(CASES.glob("[a-z]*.py"))}


def _cases(file: Path) -> list[Case]:
    spec = importlib.util.spec_from_file_location(f"parity_cases_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[Case] = module.CASES
    return found

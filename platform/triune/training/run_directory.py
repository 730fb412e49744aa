"""The run directory: where a run keeps what it is, what it wrote and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunDirectory:
    """`runs/<stage>/<name>/`: `experiment.yaml`, `checkpoints/`, `model/`, `report.json`, logs and the W&B id."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved tree the run was started with."""
        return self.path / "experiment.yaml"

    @property
    def conversion(self) -> Path:
        """What became of each tensor of the weights that the run started from."""
        return self.path / "init.txt"

    @property
    def before(self) -> Path:
        """How the weights that fine-tuning started from did on its validation records."""
        return self.path / "before.json"

    @property
    def checkpoints(self) -> Path:
        """`step-…` directories, `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Final weights, config and tokenizer."""
        return self.path / "model"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, from the start, so that checkpoints of an unfinished run can be read."""
        return self.path / "tokenizer"

    @property
    def started(self) -> bool:
        """Whether a run was ever started here."""
        return self.experiment.exists()

    def report(self) -> dict[str, Any] | None:
        """What the finished run reported, or None."""
        file = self.path / "report.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def withdraw_report(self) -> None:
        """What was reported no longer holds: the run goes on."""
        (self.path / "report.json").unlink(missing_ok=True)

    def write_report(self, report: dict[str, Any]) -> None:
        """Keep the final figures; their presence says that the run reached its last step."""
        write_atomically(self.path / "report.json", json.dumps(report, indent=2) + "\n")

    def fresh(self) -> RunDirectory:
        """The first of `<name>-2`, `<name>-3`, … that does not exist: RESTART never deletes."""
        number = 2
        while (candidate := self.path.with_name(f"{self.path.name}-{number}")).exists():
            number += 1
        return RunDirectory(candidate)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)

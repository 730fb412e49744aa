"""`metrics.csv` in the run directory: the whole history of the run, through every kill and continuation.

One row a step, steps strictly rising, columns in the order of the metrics table. Each row reaches the operating system as it is
logged, so that a killed process loses none. Lightning's own CSVLogger deletes an existing file, hence this one.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triune.tracking.metrics import NAMES

FILE = "metrics.csv"


class CsvLog(Logger):
    """Lightning logger over `<directory>/metrics.csv`; rank 0 only.

    What is logged twice at one step shares its row. A step below the last one rewinds: rows from it on are dropped, because the
    run went back to a checkpoint and is about to write them again.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(directory) / FILE
        self._columns: list[str] | None = None  # None until the file has been looked at
        self._last: dict[str, str] = {}  # the last row, as text
        self._offset = 0  # where the last row starts

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved experiment stands in `experiment.yaml` beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write `metrics` (numbers; a tensor is read, which waits for its device) into the row of `step`, or of the last one."""
        self._open()
        last = self._last_step
        step = last if step is None and last is not None else step or 0
        values = {name: _text(value) for name, value in metrics.items()}
        if last is not None and step < last:
            self.rewind(step - 1)
            last = self._last_step
        new = [name for name in values if name not in self._header]
        if new:
            self._rewrite(self.rows(), [*self._header, *new])
        row = {**(self._last if step == last else {}), "step": str(step), **values}
        self._write(row, fresh=step != last)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after `step`."""
        self._open()
        if self._last_step is not None and self._last_step > step:
            self._rewrite((row for row in self.rows() if int(row["step"]) <= step), self._header)

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows of the file, as text by column, in order; a row cut short by a kill is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            for row in reader:
                if (row.get("step") or "").isdigit() and None not in row.values():
                    yield row

    @property
    def _header(self) -> list[str]:
        assert self._columns is not None
        return self._columns

    @property
    def _last_step(self) -> int | None:
        return int(self._last["step"]) if self._last else None

    def _open(self) -> None:
        """Look at what an earlier process left, once: mend a torn last line, add columns that are new since."""
        if self._columns is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(self.rows())
        known = list(rows[0]) if rows else []
        columns = (
            known if set(NAMES) <= set(known) else ["step", *NAMES, *(c for c in known if c not in ("step", *NAMES))]
        )
        self._rewrite(rows, columns)

    def _rewrite(self, rows: Any, columns: list[str]) -> None:
        """Replace the file, whole, by `rows` under `columns`."""
        temporary = self.path.with_name(f".{FILE}.new")
        last: dict[str, str] = {}
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(_line(columns))
            offset = file.tell()
            for row in rows:
                offset, last = file.tell(), row
                file.write(_line([row.get(name) or "" for name in columns]))
        os.replace(temporary, self.path)
        self._columns, self._last, self._offset = columns, last, offset

    def _write(self, row: dict[str, str], *, fresh: bool) -> None:
        with self.path.open("r+b") as file:
            offset = file.seek(0, os.SEEK_END) if fresh else file.seek(self._offset)
            file.write(_line([row.get(name) or "" for name in self._header]).encode())
            file.truncate()
        self._last, self._offset = row, offset


def _text(value: Any) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()

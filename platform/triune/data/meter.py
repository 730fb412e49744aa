"""Progress of the preparation on standard error: a bar with MB/s and tokens/s on a terminal, nothing elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_EVERY = 0.1  # seconds between two updates of the bar


def say(text: str) -> None:
    """Print to standard error as it is: no markup, no wrapping."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


class Meter:
    """One bar after the other: `begin` a stage, `advance` it by bytes (and tokens)."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("", rate="", visible=False)

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str, total: int | None) -> None:
        """A new bar for `total` bytes (None: not known)."""
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(stage, total=total, rate="")
        self._started = self._drawn = time.monotonic()
        self._bytes = self._tokens = 0

    def advance(self, size: int, tokens: int = 0) -> None:
        """`size` more bytes of text, and the tokens that they became, are done."""
        self._bytes += size
        self._tokens += tokens
        now = time.monotonic()
        if now - self._drawn < _EVERY:
            return
        self._drawn = now
        seconds = now - self._started
        rate = f"{self._bytes / seconds / 1e6:.1f} MB/s"
        if self._tokens:
            rate += f", {self._tokens / seconds:,.0f} tokens/s"
        self._progress.update(self._task, completed=self._bytes, rate=rate)

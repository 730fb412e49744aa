"""Tokens per second and model FLOPs utilisation, by the host's clock. Imports no torch.

MFU here is PaLM's (Chowdhery et al. 2022, appendix B): the FLOPs that the model needs for the forward and backward pass of the
tokens it was trained on (recomputed activations do not count), over the dense peak of all devices in the same time.

A device works behind the host's back, so the host's clock is right only where the host has just waited for it. The loss is read
at a log line and nowhere else: `mark` is called right after it, and nothing here waits for a device itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Speed of training over a window.

    Args:
        tokens_per_second: over all devices.
        mfu: share of the peak, or None where the peak or the model's cost is not known.
    """

    tokens_per_second: float
    mfu: float | None


class Throughput:
    """Counts tokens and training time of a run.

    Call `count` after each optimizer step, `mark` at each log line, `pause` and `resume` around validation and checkpoints.
    The first step of a process is not in the window: it compiles, allocates and fills caches.

    Args:
        flops_per_token: training FLOPs per token (forward and backward), or None.
        peak_flops: dense peak of all devices together in FLOP/s, or None.
        window: seconds of training that a rate looks back on; at least one stretch between two marks, however long.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        window: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._window = window
        self._clock = clock
        self._earlier_tokens, self._earlier_seconds = 0, 0.0  # of the processes before this one
        self._tokens, self._seconds = 0, 0.0  # of this process, without the stretch that is running
        self._since: float | None = None  # start of the stretch that is running
        self._marks: deque[tuple[float, int]] = deque()  # (seconds, tokens)

    def start(self) -> None:
        """Training begins."""
        self._since = self._clock()

    def pause(self) -> None:
        """Training halts: validation, a checkpoint. Pausing twice is pausing once."""
        self._seconds, self._since = self._active(), None

    def resume(self) -> None:
        """Training goes on."""
        if self._since is None:
            self._since = self._clock()

    @property
    def running(self) -> bool:
        """Whether the clock of training runs."""
        return self._since is not None

    def count(self, tokens: int) -> None:
        """One optimizer step over `tokens` tokens (all devices) has been launched."""
        self._tokens += tokens
        if not self._marks:
            self._marks.append((self._active(), self._tokens))

    def mark(self) -> Rate | None:
        """The rate over the window that ends here; None before the second step. Call it where the device has caught up."""
        if not self._marks or self._tokens == self._marks[-1][1]:
            return self._rate()
        self._marks.append((self._active(), self._tokens))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[1][0] >= self._window:
            self._marks.popleft()
        return self._rate()

    @property
    def tokens(self) -> int:
        """Tokens trained on, over all continuations of the run."""
        return self._earlier_tokens + self._tokens

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all continuations of the run."""
        return self._earlier_seconds + self._active()

    @property
    def overall(self) -> Rate | None:
        """The rate over the whole run, first steps included; None before the first."""
        return self._as_rate(self.tokens, self.seconds)

    def state_dict(self) -> dict[str, float]:
        """Tokens and seconds so far, for the checkpoint."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's tokens and seconds."""
        self._earlier_tokens, self._earlier_seconds = int(state["tokens"]), float(state["seconds"])

    def _active(self) -> float:
        return self._seconds + (0.0 if self._since is None else self._clock() - self._since)

    def _rate(self) -> Rate | None:
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return self._as_rate(after - before, end - start)

    def _as_rate(self, tokens: int, seconds: float) -> Rate | None:
        if tokens <= 0 or seconds <= 0:
            return None
        speed = tokens / seconds
        if self._flops_per_token is None or not self._peak_flops:
            return Rate(tokens_per_second=speed, mfu=None)
        return Rate(tokens_per_second=speed, mfu=speed * self._flops_per_token / self._peak_flops)

"""How jobs/bench/attention_cost.py measures: passes of several cases in turns, and peaks of memory in processes of their own.

    python jobs/bench/attention_measure.py --contender bert --arguments '{"length": 1024}'

prints the peak of one case as JSON. Both numbers are the kernel's (VmRSS and VmHWM of /proc), since torch counts no memory on a
CPU: Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from attention_peers import CONTENDERS, Case, Work
from loss_memory import resident

from triune.errors import UserError

#: shortest time of a measurement: quicker passes are repeated and averaged
_LEAST_SECONDS = 0.05
_WARM_LENGTH = 768


@dataclass(frozen=True)
class Target:
    """What the issue asks of a figure."""

    bound: float
    least: bool  # at least the bound; else at most

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound

    def __str__(self) -> str:
        return f"{'at least' if self.least else 'at most'} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(bound, True)


def at_most(bound: float) -> Target:
    return Target(bound, False)


@dataclass(frozen=True)
class Finding:
    """One line of the verdict. `figure` None: it could not be measured, and `note` says why."""

    row: str
    what: str
    figure: float | None
    target: Target | None = None
    unit: str = "times"
    spread: tuple[float, float] | None = None
    note: str = ""

    def line(self) -> str:
        figure = "not measured" if self.figure is None else f"{self.figure:.2f} {self.unit}"
        if self.spread is not None:
            figure += f" ({self.spread[0]:.2f}-{self.spread[1]:.2f})"
        verdict = ""
        if self.target is not None:
            verdict = "?" if self.figure is None else "met" if self.target.met(self.figure) else "**not met**"
        target = "" if self.target is None else f"{self.target} {self.unit}"
        return f"| {self.row} | {self.what} | {target} | {figure} | {verdict} | {self.note} |"


@dataclass
class Times:
    """Seconds of each case's passes, in turns."""

    seconds: dict[Case, list[float]]
    refused: dict[Case, str] = field(default_factory=dict)

    def ratio(self, row: str, what: str, over: Case, under: Case, target: Target | None, note: str = "") -> Finding:
        """How many times longer `over` takes than `under`."""
        missing = [f"{case.label}: {self.refused[case]}" for case in (over, under) if case in self.refused]
        if missing:
            return Finding(row, what, None, target, note="; ".join(missing))
        first, second = self.seconds[over], self.seconds[under]
        ratios = sorted(a / b for a, b in zip(first, second, strict=True))
        quarter = len(ratios) // 4
        figure = statistics.median(first) / statistics.median(second)
        return Finding(row, what, figure, target, spread=(ratios[quarter], ratios[-1 - quarter]), note=note)


@dataclass(frozen=True)
class Memory:
    """Peak MiB of one case, or why there is none."""

    above: float = math.nan
    whole: float = math.nan
    refused: str = ""


def share(row: str, what: str, over: Memory, under: Memory, target: Target | None, note: str = "") -> Finding:
    """The ratio of two peaks above the start."""
    refused = over.refused or under.refused
    return Finding(row, what, None if refused else over.above / under.above, target, note=refused or note)


class Bench:
    """Measures, and keeps every figure for the tables."""

    def __init__(self, repeats: int, threads: int, limit: int, quick: bool) -> None:
        self.repeats, self.threads, self.limit, self.quick = repeats, threads, limit, quick
        self.timed: list[str] = []
        self.weighed: list[str] = []

    def length(self, tokens: int) -> int:
        """An eighth where only the script itself is tried out."""
        return tokens // 8 if self.quick else tokens

    def times(self, row: str, cases: Sequence[Case]) -> Times:
        """One warm-up each, then `repeats` rounds; the order turns around from round to round."""
        works, found = {}, Times({})
        for case in cases:
            try:
                works[case] = case.make()
                works[case].step()
            except (UserError, RuntimeError, MemoryError, ValueError) as error:
                found.refused[case] = f"does not run: {_short(error)}"
                works.pop(case, None)
        passes = {case: max(1, math.ceil(_LEAST_SECONDS / _seconds(work, 1))) for case, work in works.items()}
        found.seconds = {case: [] for case in works}
        for turn in range(self.repeats):
            for case in list(works)[:: 1 if turn % 2 else -1]:
                found.seconds[case].append(_seconds(works[case], passes[case]))
        for case in cases:
            self.timed.append(_time_line(row, case.label, found.seconds.get(case), found.refused.get(case, "")))
            print(self.timed[-1], flush=True)
        return found

    def memory(self, row: str, case: Case) -> Memory:
        """Peak of one pass in a fresh process that may take no more than the limit."""
        asked = {"contender": case.contender, "arguments": json.dumps(dict(case.arguments)), "limit": str(self.limit)}
        options = [text for name, value in asked.items() for text in (f"--{name}", value)]
        command = [sys.executable, __file__, *options, "--threads", str(self.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            memory = Memory(refused=f"does not run within {self.limit / 2**30:.0f} GiB: {_short(last)}")
        else:
            memory = Memory(**json.loads(done.stdout.strip().splitlines()[-1]))
        figures = f"{memory.above:,.0f} | {memory.whole:,.0f} |" if not memory.refused else f"{memory.refused} | |"
        self.weighed.append(f"| {row} | {case.label} | {figures}")
        print(self.weighed[-1], flush=True)
        return memory


def _short(error: object) -> str:
    return str(error).strip().splitlines()[0][:120].replace("|", "/") if str(error).strip() else type(error).__name__


def _seconds(work: Work, passes: int) -> float:
    """Mean seconds of forward and backward, gradients dropped before each."""
    total = 0.0
    for _ in range(passes):
        work.forget()
        start = time.perf_counter()
        work.step()
        total += time.perf_counter() - start
    return total / passes


def _time_line(row: str, label: str, seconds: list[float] | None, refused: str) -> str:
    if seconds is None:
        return f"| {row} | {label} | {refused} | | |"
    middle, least, most = (1e3 * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"| {row} | {label} | {middle:,.1f} | {least:,.1f} | {most:,.1f} |"


def measure(contender: str, arguments: dict[str, Any], limit: int) -> Memory:
    """Peak of two passes in this process."""
    case = Case(contender, contender, tuple(arguments.items()))
    work = case.make()
    if arguments["length"] > _WARM_LENGTH:
        CONTENDERS["bert"](length=_WARM_LENGTH).step()  # threads and the libraries' own buffers
    work.touch()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    used = int(resident("VmData") * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
    before = resident("VmRSS")
    for _ in range(2):
        work.step()
    peak = resident("VmHWM")
    return Memory(above=peak - before, whole=peak)


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=list(CONTENDERS), required=True)
    parser.add_argument("--arguments", type=json.loads, required=True)
    parser.add_argument("--limit", type=int, default=12 * 2**30, help="bytes beyond those in use when the passes begin")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(asdict(measure(options.contender, options.arguments, options.limit))))


if __name__ == "__main__":
    main()

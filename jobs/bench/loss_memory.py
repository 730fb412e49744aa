"""Peak memory and time of the vocabulary loss: plain, chunked (triune) and torch's linear_cross_entropy.

    python jobs/bench/loss_memory.py --threads 2 --out jobs/bench/results/<machine>-loss-memory.md

Each measurement is a process of its own, since a process never gives all of its memory back; the variants take turns, so that
a busy minute falls on all of them. Memory is the peak of the resident set above that before the first forward pass (inputs and
weights made). Times are medians of forward and backward passes after a first one that is not counted; that of the CPU, over all
threads, also holds on a machine that others use (with more than one thread it counts their waiting for each other).
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from triune.models.loss import linear_cross_entropy

ROWS, WIDTH = 2048, 384
VOCABULARIES = (8192, 50304)
PRECISIONS = ("fp32", "bf16-mixed")


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, targets, torch.ones(len(targets))).total


def of_torch(**options: object) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's op; it ignores autocast, so under it the operands are cast as autocast would."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            hidden, weight = hidden.bfloat16(), weight.bfloat16()
        chosen = torch.nn.LinearCrossEntropyOptions(**options) if options else None
        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=chosen)

    return loss


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "triune, chunked": chunked,
    "torch": of_torch(),
    "torch, chunked": of_torch(chunking_method="auto"),
    "torch, chunks of 256": of_torch(chunking_method=None, batch_chunk_size=256),
}


def measure(variant: str, vocabulary: int, precision: str, repeats: int) -> dict[str, float]:
    """Peak MiB above the start and median seconds, in this process."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH).mul_(0.05).requires_grad_()
    targets = torch.randint(vocabulary, (ROWS,))
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the libraries' own buffers
    before = resident("VmRSS")
    seconds, cpu = [], []
    for _ in range(repeats + 1):
        hidden.grad = weight.grad = None
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = VARIANTS[variant](hidden, weight, targets)
        (loss / ROWS).backward()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return {
        "mebibytes": resident("VmHWM") - before,
        "seconds": statistics.median(seconds[1:]),
        "cpu": statistics.median(cpu[1:]),
    }


def resident(line: str) -> float:
    """MiB of the resident set now (VmRSS) or at its peak (VmHWM); unlike getrusage's, this peak is not the parent's. Linux only."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def in_a_process(variant: str, vocabulary: int, precision: str, repeats: int, threads: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    asked = json.dumps({"variant": variant, "vocabulary": vocabulary, "precision": precision, "repeats": repeats})
    command = [sys.executable, __file__, "--measure", asked, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(results: dict[tuple[int, str, str], list[dict[str, float]]]) -> str:
    """Markdown: medians over the rounds, and CPU time as a multiple of triune's."""
    lines = [
        "| V | precision | variant | peak, MiB | wall, ms | CPU, ms | CPU, times triune's |",
        "|---|---|---|---|---|---|---|",
    ]
    middle = {
        case: {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
        for case, rounds in results.items()
    }
    for (vocabulary, precision, variant), found in middle.items():
        ratio = found["cpu"] / middle[vocabulary, precision, "triune, chunked"]["cpu"]
        lines.append(
            f"| {vocabulary:,} | {precision} | {variant} | {found['mebibytes']:,.0f} | {found['seconds'] * 1e3:,.0f} "
            f"| {found['cpu'] * 1e3:,.0f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all variants and print the table; with --out also write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="processes a variant")
    parser.add_argument("--repeats", type=int, default=3, help="passes that count in each process")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(**arguments.measure)))
        return
    variants = [name for name in VARIANTS if not name.startswith("torch") or hasattr(F, "linear_cross_entropy")]
    cases = [(v, precision, name) for v in VOCABULARIES for precision in PRECISIONS for name in variants]
    results: dict[tuple[int, str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for vocabulary, precision, name in cases:
            found = in_a_process(name, vocabulary, precision, arguments.repeats, arguments.threads)
            results[vocabulary, precision, name].append(found)
    tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
    text = (
        f"# Memory and time of the vocabulary loss\n\nN = {ROWS}, M = {WIDTH}; torch {torch.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, AMX {'yes' if tiles else 'no'}, "
        f"{arguments.threads} threads; medians of {arguments.rounds} processes of {arguments.repeats} passes.\n\n"
        f"{table(results)}\n"
    )
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()

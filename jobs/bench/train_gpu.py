"""Training steps of five models on one GPU: tokens a second, MFU, and memory beside what `models/cost.py` predicts.

    jobs/bench/train_gpu.sh                                       # on a bare machine: a checkout, torch >= 2.11, CUDA
    python jobs/bench/train_gpu.py --models gpt2-small --steps 20

Presets of `configs/model/` with the vocabulary rounded up to 64, random tokens in full rows, bf16 autocast over fp32 weights,
fused AdamW, clipping at norm 1, no dropout, the chunked loss of `models/loss.py`; the model through torch.compile as
`run.compile` does it. A raw loop: no Lightning, no loader, no logging. MFU: exact FLOPs of the pattern's pairs
(`models/cost.py`) over the manufacturer's dense bf16 peak. Median of steps after warm-up.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from triune.models import cost
from triune.models.config import ModelConfig
from triune.models.factory import build, resolve
from triune.tracking.peaks import known

PRESETS = Path(__file__).parents[2] / "configs/model"


@dataclass(frozen=True)
class Case:
    """One preset at one shape: rows of a step, tokens a row, source tokens a row, share of positions predicted."""

    preset: str
    batch: int
    length: int
    source: int | None = None
    predicted: float = 1.0


CASES = {
    "gpt2-small": Case("gpt2-small", 32, 1024),
    "gpt2-medium": Case("gpt2-medium", 16, 1024),
    "llama-1b": Case("llama-1b", 4, 2048),
    "bert-large": Case("bert-large", 32, 512, predicted=0.15),
    "t5-1.1-large": Case("t5-1.1-large", 16, 512, source=512),
}


class Step:
    """One optimizer step over the same random batch."""

    def __init__(self, config: ModelConfig, case: Case, *, compiled: bool) -> None:
        with torch.device("cuda"):
            self.model = build(config).train()
        self.forward = torch.compile(self.model.forward, dynamic=False) if compiled else self.model.forward
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        vocabulary = config.vocabulary or 0
        shape = (case.batch, case.length)
        self.inputs, self.targets = (torch.randint(0, vocabulary, shape, device="cuda") for _ in range(2))
        self.source = None
        if case.source:
            self.source = torch.randint(0, vocabulary, (case.batch, case.source), device="cuda")
        self.predicted = round(case.batch * case.length * case.predicted)
        order = torch.randperm(case.batch * case.length, device="cuda")
        self.weights = (order < self.predicted).float().view(shape)

    def __call__(self) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            hidden = self.forward(self.inputs, source=self.source)
            output = self.model.head.loss(hidden, self.targets, self.weights, selected=self.predicted)
        (output.total / self.predicted).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return output.total


def milliseconds(step: Step, steps: int, warmup: int) -> float:
    """Median of a step."""
    times = []
    for index in range(-warmup, steps):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if index == -1:
            torch.cuda.reset_peak_memory_stats()
        if index >= 0:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def row(case: Case, options: argparse.Namespace) -> str:
    """One line of the table."""
    config = resolve(PRESETS / f"{case.preset}.yaml", context=case.length, dropout=0.0, **{"attention.dropout": 0.0})
    config = resolve(config, vocabulary=-(-(config.vocabulary or 0) // 64) * 64)  # as a tokenizer's is rounded up
    torch.manual_seed(0)
    step = Step(config, case, compiled=options.compile)
    time = milliseconds(step, options.steps, options.warmup)
    peak = torch.cuda.max_memory_allocated() / 2**30
    flops = cost.flops(config, case.length, source_length=case.source, predicted_share=case.predicted)
    rate = case.batch * flops.training / time * 1e3
    ceiling = known(torch.cuda.get_device_name(0), "bf16")
    memory = cost.memory(
        config,
        batch=case.batch,
        length=case.length,
        source_length=case.source,
        predicted_share=case.predicted,
        precision="bf16-mixed",
        device="cuda",
    )
    predicted = memory.total / 2**30
    tokens = case.batch * flops.tokens
    return (
        f"| {case.preset} | {cost.parameters(config).total / 1e6:,.0f}M | {case.batch} x "
        f"{f'{case.source} + ' if case.source else ''}{case.length} | {time:.1f} | {tokens / time * 1e3:,.0f} | {rate / 1e12:.0f} | "
        f"{f'**{100 * rate / ceiling:.1f}%**' if ceiling else '-'} | {peak:.1f} | {predicted:.1f} ({predicted / peak:.2f}) |"
    )


def heading(options: argparse.Namespace) -> list[str]:
    """Where, with what and how, and the table's head."""
    device = torch.cuda.get_device_properties(0)
    return [
        "# Training on one GPU",
        "",
        f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}. bf16-mixed, fused "
        f"AdamW, clipping, chunked loss, no dropout, {'torch.compile' if options.compile else 'eager'}; raw loop, random tokens in full rows; median of "
        f"{options.steps} steps after {options.warmup}. MFU: exact FLOPs of the kept pairs over the dense bf16 peak of the data sheet.",
        "",
        "| model | parameters | rows x tokens | step, ms | tokens/s | TFLOP/s | MFU | peak memory, GiB | predicted (of measured) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    """Print the table, and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="default: results/<device>-training.md beside this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("train_gpu.py: torch sees no CUDA device here, and this job is about one")
    torch.set_float32_matmul_precision("high")
    lines = heading(options)
    print("\n".join(lines), flush=True)
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    out = options.out or Path(__file__).parent / "results" / f"{device}-training.md"
    command = f"Command: `{shlex.join(['jobs/bench/train_gpu.sh', *sys.argv[1:]])}`"
    for name in options.models:
        try:
            lines.append(row(CASES[name], options))
        except torch.OutOfMemoryError as error:
            lines.append(f"| {name} | out of memory: {str(error).split('.')[0]} |" + " |" * 7)
        torch.cuda.empty_cache()
        torch._dynamo.reset()
        print(lines[-1], flush=True)
        out.write_text("\n".join([*lines, "", command, ""]))
    print(f"written: {out}")


if __name__ == "__main__":
    main()

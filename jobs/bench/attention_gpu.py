"""FlexAttention beside dense flash attention on a GPU: does the time fall with the tiles that a pattern keeps?

    jobs/bench/attention_gpu.sh                                           # tests, then this, on a bare machine
    python jobs/bench/attention_gpu.py --lengths 4096 32768 --repeats 20

Forward and backward of the attention alone, bf16, plain rows. Dense is torch's flash kernel: with its causal triangle where
the pattern is causal, on all pairs otherwise. Prediction: dense x (tiles that the pattern keeps / tiles that dense keeps), both
counted from BlockMasks of 128 x 128. The aim is a measured time within 1.10 of it. Medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from triune.attention import SequenceLayout, causal, full, parse
from triune.attention.backends import blocked, flex
from triune.attention.call import AttentionCall
from triune.attention.patterns import Pattern

PATTERNS = {
    "full": "full()",
    "causal": "causal()",
    "window 1,024, causal": "window(1023, 0)",
    "window 256 each side, 4 global": "window(256, 256) | global_tokens(first=4)",
    "BigBird": "window(192, 192) | global_tokens(first=128) | random_blocks(128, 3, seed=0)",
}
LENGTHS = [4096, 8192, 16_384, 32_768, 65_536, 131_072]
AIM = 1.10
#: a repeat beyond this many seconds is enough of them: blocked at great lengths
ENOUGH = 20.0


@dataclass(frozen=True)
class Timed:
    """Median milliseconds of one forward and backward pass, and what it needed at its peak beside its inputs, in GiB."""

    milliseconds: float
    memory: float


def attention(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, layout: SequenceLayout) -> AttentionCall:
    """A call as `attend` makes it."""
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        pattern=pattern,
        query_layout=layout,
        key_layout=layout,
        bias=None,
        scale=query.shape[-1] ** -0.5,
        dropout=0.0,
    )


def kept_tiles(mask: BlockMask) -> int:
    """Tiles of which a kernel reads the keys: those that hold at least one pair."""
    assert mask.full_kv_num_blocks is not None
    return int(mask.kv_num_blocks.sum()) + int(mask.full_kv_num_blocks.sum())


def share(pattern: Pattern, length: int, device: torch.device) -> tuple[float, float]:
    """Tiles kept of all tiles, and tiles kept of those that the dense kernel keeps."""
    rows = SequenceLayout.plain_rows(1, length, device)
    dense = causal() if pattern.is_causal else full()
    kept, densely = (kept_tiles(flex.block_mask(which, rows, rows)) for which in (pattern, dense))
    return kept / (-(-length // flex.TILE)) ** 2, kept / densely


def interleaved(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timed]:
    """Each step's median and peak, one repeat of each in turn; two unmeasured ones before, in which kernels are compiled."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    memory = dict.fromkeys(steps, 0)
    for index in range(-2, repeats):
        for name, step in steps.items():
            if sum(times[name]) > ENOUGH * 1e3:
                continue
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            if index >= 0:
                times[name].append(start.elapsed_time(end))
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated() - before)
    return {name: Timed(statistics.median(times[name]), memory[name] / 2**30) for name in steps}


def measure(pattern: Pattern, length: int, options: argparse.Namespace) -> dict[str, Timed]:
    """dense, flex, and blocked where it serves the call."""
    shape = (options.batch, options.heads, length, options.width)
    query, key, value = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    gradient = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    call = attention(query, key, value, pattern, SequenceLayout.plain_rows(options.batch, length, "cuda"))

    def step(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), [query, key, value], gradient)

    def dense() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=pattern.is_causal)

    steps = {"dense": step(dense), "flex": step(lambda: flex.attend(call))}
    if options.blocked and not blocked.why_not(call):
        steps["blocked"] = step(lambda: blocked.attend(call))
    return interleaved(steps, options.repeats)


def mask_seconds(pattern: Pattern, length: int) -> tuple[float, float]:
    """Making the mask: of plain rows, once for ever; of packed rows (four documents), once a batch."""
    plain = SequenceLayout.plain_rows(1, length, "cuda")
    quarter = length // 4
    packed = [SequenceLayout.packed([[quarter - 7, quarter, quarter, quarter]], length, "cuda") for _ in range(3)]
    flex._plain.cache_clear()
    seconds = []
    for layout in (plain, *packed):
        torch.cuda.synchronize()
        start = time.perf_counter()
        flex.block_mask(pattern, layout, layout)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def row(name: str, pattern: Pattern, length: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    every, of_dense = share(pattern, length, torch.device("cuda", torch.cuda.current_device()))
    once, batch = mask_seconds(pattern, length)
    found = measure(pattern, length, options)
    dense, sparse, tiles = found["dense"], found["flex"], found.get("blocked")
    predicted = dense.milliseconds * of_dense
    return (
        f"| {name} | {length:,} | {dense.milliseconds:.2f} | {sparse.milliseconds:.2f} | {100 * every:.2f}% | {predicted:.2f} | "
        f"**{sparse.milliseconds / predicted:.2f}** | {dense.milliseconds / sparse.milliseconds:.1f} | "
        f"{f'{tiles.milliseconds:.2f}' if tiles else '-'} | {dense.memory:.2f} / {sparse.memory:.2f} / "
        f"{f'{tiles.memory:.2f}' if tiles else '-'} | {1e3 * once:.0f} / {1e3 * batch:.1f} |"
    )


def heading(options: argparse.Namespace) -> list[str]:
    """Where, with what and how, and the table's head."""
    device = torch.cuda.get_device_properties(0)
    return [
        "# Attention on a GPU: flex beside dense flash",
        "",
        f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}. Forward and "
        f"backward of the attention alone, bf16, {options.batch} row, {options.heads} heads of {options.width}; median of "
        f"{options.repeats} interleaved repeats. Predicted: dense x tiles kept of those that dense computes (its triangle where "
        f"the pattern is causal); the aim is a ratio of at most {AIM:.2f}. Memory: peak beside the inputs, with gradients, dense / "
        "flex / blocked. Mask: made on plain rows once for ever / on packed rows once a batch.",
        "",
        "| pattern | length | dense, ms | flex, ms | tiles kept | predicted, ms | flex / predicted | dense / flex | blocked, ms | "
        "memory, GiB | mask, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    """Print the table, and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS), choices=list(PATTERNS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--blocked", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="default: results/<device>-attention.md beside this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("attention_gpu.py: torch sees no CUDA device here, and this job is about one")
    torch.manual_seed(0)
    lines = heading(options)
    print("\n".join(lines), flush=True)
    for name in options.patterns:
        for length in options.lengths:
            try:
                lines.append(row(name, parse(PATTERNS[name]), length, options))
            except torch.OutOfMemoryError as error:
                lines.append(f"| {name} | {length:,} | out of memory: {str(error).split('.')[0]} |" + " |" * 8)
            torch.cuda.empty_cache()
            print(lines[-1], flush=True)
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    out = options.out or Path(__file__).parent / "results" / f"{device}-attention.md"
    out.write_text(
        "\n".join(
            [*lines, "", f"Command: `jobs/bench/attention_gpu.sh {' '.join(sys.argv[1:])}`".replace(" `", "`"), ""]
        )
    )
    print(f"written: {out}")


if __name__ == "__main__":
    main()

"""FlexAttention beside dense attention on a GPU: does the time fall with the tiles that a pattern keeps?

    jobs/bench/attention_gpu.sh                                           # tests, then this, on a bare machine
    python jobs/bench/attention_gpu.py --lengths 4096 32768 --repeats 20

Forward and backward of the attention alone, bf16, as many rows as make `--tokens`. Flash is torch's flash kernel: with its
causal triangle where the pattern is causal, on all pairs otherwise. Prediction: flash x (tiles that the pattern keeps / tiles
that flash keeps), both counted from BlockMasks of 128 x 128; the aim is a measured time within 1.10 of it. Dense is our `sdpa`
backend on the same rows, by the kernel that torch chooses, with a mask where the pattern or the documents need one (none is
given a window: dense then computes all pairs of its triangle). Medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from triune.attention import SequenceLayout, causal, full, parse
from triune.attention.backends import blocked, flex, sdpa
from triune.attention.call import AttentionCall
from triune.attention.patterns import Pattern

#: four documents a row, else one
PACKED = "causal, packed"
PATTERNS = {
    "full": "full()",
    "causal": "causal()",
    PACKED: "causal()",
    "window 1,024, causal": "window(1023, 0)",
    "window 256 each side, 4 global": "window(256, 256) | global_tokens(first=4)",
    "BigBird": "window(192, 192) | global_tokens(first=128) | random_blocks(128, 3, seed=0)",
}
LENGTHS = [4096, 8192, 16_384, 32_768, 65_536, 131_072]
AIM = 1.10
#: `blocked` is timed up to this length: some 20 times slower than flex, it is no rival on a GPU
BLOCKED = 8192
#: cycles of a GPU before each timed step: some two milliseconds
HEAD_START = 4_000_000


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


def rows_of(name: str, length: int, batch: int) -> SequenceLayout:
    """Rows of one document, or of four of almost the same length."""
    if name != PACKED:
        return SequenceLayout.plain_rows(batch, length, "cuda")
    quarter = length // 4
    return SequenceLayout.packed([[quarter - 7, quarter + 7, quarter - 1, quarter + 1]] * batch, length, "cuda")


def share(pattern: Pattern, layout: SequenceLayout) -> tuple[float, float]:
    """Tiles kept of all tiles, and tiles kept of those that the flash kernel computes."""
    length = layout.shape[1]
    plain = SequenceLayout.plain_rows(1, length, layout.documents.device)
    kept = kept_tiles(flex.block_mask(pattern, layout, layout)) / (1 if layout.plain else layout.shape[0])
    densely = kept_tiles(flex.block_mask(causal() if pattern.is_causal else full(), plain, plain))
    return kept / (-(-length // flex.TILE)) ** 2, kept / densely


def interleaved(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timed]:
    """Each step's median and peak, one repeat of each in turn; two unmeasured ones before, in which kernels are compiled."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    memory = dict.fromkeys(steps, 0)
    for index in range(-2, repeats):
        for name, step in steps.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HEAD_START)  # so that the clock runs on kernels, not on the host that starts them
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            if index >= 0:
                times[name].append(start.elapsed_time(end))
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated() - before)
    return {name: Timed(statistics.median(times[name]), memory[name] / 2**30) for name in steps}


def measure(pattern: Pattern, layout: SequenceLayout, options: argparse.Namespace) -> dict[str, Timed]:
    """flash, dense, flex, and blocked where it serves the call."""
    batch, length = layout.shape
    shape = (batch, options.heads, length, options.width)
    query, key, value = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    gradient = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    call = attention(query, key, value, pattern, layout)
    simple = causal() if pattern.is_causal else full()
    densely = call if not layout.plain else attention(query, key, value, simple, layout)

    def step(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), [query, key, value], gradient)

    def flash() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=pattern.is_causal)

    steps = {"flash": step(flash), "dense": step(lambda: sdpa.attend(densely)), "flex": step(lambda: flex.attend(call))}
    if length <= BLOCKED and not blocked.why_not(call):
        steps["blocked"] = step(lambda: blocked.attend(call))
    return interleaved({name: step for name, step in steps.items() if fits(step)}, options.repeats)


def fits(step: Callable[[], object]) -> bool:
    """Whether a step has room: a mask of all pairs of 131,072 tokens has not."""
    try:
        step()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def mask_milliseconds(pattern: Pattern, layout: SequenceLayout) -> float:
    """Making the mask: of plain rows once for ever (on the host), of others once a batch."""
    times = []
    for _ in range(3):
        again = replace(layout)
        flex._plain.cache_clear()
        torch.cuda.synchronize()
        start = time.perf_counter()
        flex.block_mask(pattern, again, again)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * times[-1]


def row(name: str, length: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    pattern, batch = parse(PATTERNS[name]), max(options.tokens // length, 1)
    layout = rows_of(name, length, batch)
    every, of_flash = share(pattern, layout)
    mask = mask_milliseconds(pattern, layout)
    found = measure(pattern, layout, options)
    dense, sparse, tiles = found.get("dense"), found["flex"], found.get("blocked")
    predicted = found["flash"].milliseconds * of_flash
    return (
        f"| {name} | {batch} x {length:,} | {found['flash'].milliseconds:.2f} | "
        f"{f'{dense.milliseconds:.2f}' if dense else 'no room'} | {sparse.milliseconds:.2f} | "
        f"{100 * every:.2f}% | {predicted:.2f} | **{sparse.milliseconds / predicted:.2f}** | "
        f"{f'{dense.milliseconds / sparse.milliseconds:.1f}' if dense else '-'} | {f'{tiles.milliseconds:.0f}' if tiles else '-'} | "
        f"{f'{dense.memory:.2f}' if dense else '-'} / {sparse.memory:.2f} | {mask:.1f} |"
    )


def heading(options: argparse.Namespace) -> list[str]:
    """Where, with what and how, and the table's head."""
    device = torch.cuda.get_device_properties(0)
    return [
        "# Attention on a GPU: flex beside dense kernels",
        "",
        f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}. Forward and "
        f"backward of the attention alone, bf16, {options.tokens:,} tokens in rows of the length, {options.heads} heads of "
        f"{options.width}; median of {options.repeats} interleaved repeats. Flash: torch's flash kernel, its triangle where the pattern "
        "is causal. Dense: our sdpa backend without the window, by the kernel that torch chooses; on packed rows with a mask. "
        f"Predicted: flash x tiles kept of those that it computes; the aim is a ratio of at most {AIM:.2f}. Memory: peak beside the "
        "inputs, with gradients, dense / flex. Mask: making it, on plain rows once for ever, on packed rows once a batch.",
        "",
        "| pattern | rows | flash, ms | dense, ms | flex, ms | tiles kept | predicted, ms | flex / predicted | dense / flex | "
        "blocked, ms | memory, GiB | mask, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    """Print the table, and write it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS), choices=list(PATTERNS))
    parser.add_argument("--tokens", type=int, default=131_072, help="of all rows together")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="default: results/<device>-attention.md beside this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("attention_gpu.py: torch sees no CUDA device here, and this job is about one")
    torch.manual_seed(0)
    lines = heading(options)
    print("\n".join(lines), flush=True)
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    out = options.out or Path(__file__).parent / "results" / f"{device}-attention.md"
    command = f"Command: `{shlex.join(['jobs/bench/attention_gpu.sh', *sys.argv[1:]])}`"
    for name in options.patterns:
        for length in options.lengths:
            try:
                lines.append(row(name, length, options))
            except torch.OutOfMemoryError as error:
                lines.append(f"| {name} | {length:,} | out of memory: {str(error).split('.')[0]} |" + " |" * 9)
            torch.cuda.empty_cache()
            print(lines[-1], flush=True)
            out.write_text("\n".join([*lines, "", command, ""]))
    print(f"written: {out}")


if __name__ == "__main__":
    main()

"""Decoding over the cache, ours beside `transformers`' generate on the same weights, and beside what reading the weights takes.

    python jobs/bench/generation.py --threads 1 --clock cpu --out jobs/bench/results/<machine>-generation.md

Greedy, random prompts of equal length, weights random (the speed is the same). Each side writes 1 and then 1 + `tokens` tokens; the
difference over `tokens` is a token's time, so that reading the prompt and preparing are not in it (ours once packs weights:
the column `start`). Both sides take turns in every round; the table has medians, and each side's best dtype is marked by *.
`limit` is the bytes of weights and of the cache that a token must read, over the bandwidth of summing 512 MiB in the same run
with the same threads. `--clock cpu` counts the time of this process on the processor: fair with one thread where others use the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import GPT2Config, LlamaConfig

from triune.exchange.importing import model_of, read_foreign
from triune.inference import generate
from triune.inference.packed import packed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = {
    "llama-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048,
    ),
    "gpt2-small": GPT2Config(),
}  # fmt: skip
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class Case(NamedTuple):
    """What a row of the table is about."""

    shape: str
    dtype: str
    batch: int


def pair_of(shape: str) -> tuple[Any, Any]:
    """(ours, theirs) with the same weights, in fp32."""
    config = SHAPES[shape]
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if isinstance(config, GPT2Config) else "LlamaForCausalLM"
    theirs = getattr(transformers, name)(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return model_of(read_foreign(Path(folder))).eval(), theirs


def token_time(write: Callable[[int], Any], tokens: int, clock: Callable[[], float]) -> float:
    """Seconds of a token after the first."""
    spent = []
    for count in (1, 1 + tokens):
        start = clock()
        write(count)
        spent.append(clock() - start)
    return (spent[1] - spent[0]) / tokens


def bandwidth(clock: Callable[[], float]) -> float:
    """Bytes a second of reading 512 MiB: the best of five sums."""
    numbers = torch.ones(2**27)
    times = []
    for _ in range(5):
        start = clock()
        numbers.sum()
        times.append(clock() - start)
    return numbers.nbytes / min(times)


def needed(model: Any, case: Case, held: float) -> float:
    """Bytes that a token must read: each weight once, and the keys and values of `held` tokens a row."""
    size = torch.finfo(DTYPES[case.dtype]).bits // 8
    table = 0 if model.config.tie_embeddings else model.embedding.weight.numel()
    positions = sum(p.numel() for name, p in model.named_parameters() if name.startswith("input.positions"))
    weights = sum(parameter.numel() for parameter in model.parameters()) - table - positions
    config = model.config
    cache = 2 * config.layers * config.resolved_key_value_heads * config.resolved_head_width * held * case.batch
    return (weights + cache) * size


def measure(shape: str, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table of one shape."""
    clock = CLOCKS[arguments.clock]
    ours, theirs = pair_of(shape)
    found: dict[Case, dict[str, list[float]]] = {}
    bytes_read: dict[Case, float] = {}
    starts: dict[Case, float] = {}
    draw = torch.Generator().manual_seed(1)
    for dtype in arguments.dtypes:
        ours.to(DTYPES[dtype])
        theirs.to(DTYPES[dtype])
        for batch in arguments.batches:
            case = Case(shape, dtype, batch)
            ids = torch.randint(0, 40000, (batch, arguments.prompt), generator=draw)
            sides = {"ours": our_writer(ours, ids), "theirs": their_writer(theirs, ids)}
            found[case] = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, write in sides.items():
                    found[case][side].append(token_time(write, arguments.tokens, clock))
            bytes_read[case] = needed(ours, case, arguments.prompt + arguments.tokens / 2)
            start = clock()
            with packed(ours, rows=batch, tokens=arguments.tokens):
                starts[case] = clock() - start
    return lines_of(found, bytes_read, starts, bandwidth(clock))


def our_writer(model: Any, ids: torch.Tensor) -> Callable[[int], Any]:
    """Writes so many tokens after the prompts; the weights are packed as for a long text, whatever the count."""

    def write(count: int) -> None:
        with packed(model, rows=len(ids), tokens=100):
            generate(model, ids.tolist(), max_new_tokens=count)

    return write


def their_writer(model: Any, ids: torch.Tensor) -> Callable[[int], Any]:
    """The same with `transformers`."""

    def write(count: int) -> None:
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0,
                eos_token_id=None,
            )  # fmt: skip

    return write


def lines_of(
    found: dict[Case, dict[str, list[float]]], bytes_read: dict[Case, float], starts: dict[Case, float], speed: float
) -> list[str]:
    """The table's rows, and one a batch that compares each side's best dtype."""
    times = {case: {side: statistics.median(values) for side, values in sides.items()} for case, sides in found.items()}
    lines, summary = [], []
    for batch in dict.fromkeys(case.batch for case in times):
        cases = [case for case in times if case.batch == batch]
        best = {side: min(cases, key=lambda case: times[case][side]) for side in ("ours", "theirs")}
        for case in cases:
            limit = bytes_read[case] / speed
            shown = [
                f"{times[case][side] * 1e3:,.1f}{'*' if best[side] == case else ''}" for side in ("ours", "theirs")
            ]
            lines.append(
                f"| {case.shape} | {batch} | {case.dtype} | {' | '.join(shown)} "
                f"| {times[case]['theirs'] / times[case]['ours']:.2f} | {limit * 1e3:,.1f} "
                f"| {limit / times[case]['ours']:.0%} | {limit / times[case]['theirs']:.0%} | {starts[case] * 1e3:,.0f} |"
            )
        ratio = times[best["theirs"]]["theirs"] / times[best["ours"]]["ours"]
        summary.append(
            f"{cases[0].shape}, batch {batch}: {ratio:.2f} times as fast, each in its best dtype (ours {best['ours'].dtype}, theirs {best['theirs'].dtype})."
        )
    return [*lines, f"<!-- {speed / 1e9:.1f} GB/s -->", *summary]


def main() -> None:
    """Measure all shapes and print the table; with --out also write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    rows, notes = [], []
    for shape in arguments.shapes:
        for line in measure(shape, arguments):
            (rows if line.startswith("|") else notes).append(line)
    text = "\n".join(
        [
            "# Decoding a token",
            "",
            f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
            f"{arguments.threads} thread(s), {arguments.clock} time; prompts of {arguments.prompt} tokens, then {arguments.tokens}; "
            f"medians of {arguments.rounds} turns. `python jobs/bench/generation.py {' '.join(sys.argv[1:])}`",
            "",
            "| shape | batch | dtype | ours, ms | transformers, ms | ratio | limit, ms | our share of it | theirs | start, ms |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *[note for note in notes if not note.startswith("<")],
            "",
            "Read bandwidth in the run: "
            + ", ".join(note.removeprefix("<!-- ").removesuffix(" -->") for note in notes if note.startswith("<")),
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

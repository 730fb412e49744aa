"""What attention costs: ours beside torch's dense attention and transformers' Longformer, BigBird, Reformer and BERT layers.

    python jobs/bench/attention_cost.py --out jobs/bench/results/<machine>-attention.md

One pass is forward and backward in fp32 over one row. Times: all sides of a comparison take turns in one process; a ratio
is that of the medians, in brackets the quartiles of the ratios of neighbours in time. Memory: a process of its own for each
(attention_measure.py), with the gradients of inputs and weights in place before it begins; "above" is the peak of the resident
set beyond that, activations and working space, "whole" that of the process. Run it alone on the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from attention_measure import Bench, Finding, at_least, at_most, share
from attention_peers import (
    ATTENTION_HEADS,
    HEAD_WIDTH,
    HEADS,
    WIDTH,
    Case,
    attention,
    bert,
    bigbird,
    bigbird_pattern,
    case,
    dense_attention,
    layer,
    longformer,
    reformer,
    reversible_reformer,
)

from triune.attention import parse

#: by the way they are asked for, our windows of 256 and 4 global tokens
WINDOWS = {
    "256 in all": "window(128, 128) | global_tokens(first=4)",
    "256 a side": "window(256, 256) | global_tokens(first=4)",
}
LONGFORMER = WINDOWS["256 in all"]
#: how many times quicker than the peer's layer, by row
TARGETS = {"b": 4, "e": 3, "f": 3}


def alone(bench: Bench) -> list[Finding]:
    """a: attention alone beside dense attention."""
    length = bench.length(8192)
    dense = case(f"torch, dense, {length:,}", dense_attention, length=length)
    ours = {
        name: case(f"ours, window {name}, {length:,}", attention, length=length, pattern=pattern, backend="blocked")
        for name, pattern in WINDOWS.items()
    }
    times = bench.times("a", [dense, *ours.values()])
    return [
        times.ratio(
            "a", f"attention alone, {length:,}, window {name} + 4 global: quicker than dense", dense, mine, at_least(8)
        )
        for name, mine in ours.items()
    ]


def beside(
    bench: Bench, row: str, what: str, ours: Case, theirs: Case, length: int, *, norm: str = "post", note: str = ""
) -> list[Finding]:
    """How much quicker than a peer's layer; and beside one that has hardly any attention, the most that attention can give."""
    floor = case(f"ours, layer, tokens see only neighbours, {length:,}", layer, length=length, pattern="window(1, 1)",
                 backend="blocked", norm=norm)  # fmt: skip
    times = bench.times(row, [ours, theirs, floor])
    target = at_least(TARGETS[row])
    findings = [times.ratio(row, f"{what}: quicker than the peer's", theirs, ours, target, note)]
    limit = "no target: the peer's layer beside ours with tokens that see only neighbours"
    findings.append(times.ratio(row, f"{what}: the most that attention could give", theirs, floor, None, limit))
    if not times.refused:
        own, others, rest = (statistics.median(times.seconds[each]) for each in (ours, theirs, floor))
        net = (others - rest) / (own - rest) if own > rest else None
        findings.append(Finding(row, f"{what}: the same, without what that costs on both sides", net, note="no target"))
    return findings


def beside_longformer(bench: Bench) -> list[Finding]:
    """b: a layer beside Longformer's, time and memory."""
    findings = []
    for length in (bench.length(4096), bench.length(8192)):
        ours = case(f"ours, layer, {length:,}", layer, length=length, pattern=LONGFORMER, backend="blocked")
        theirs = case(f"LongformerLayer, {length:,}", longformer, length=length, window=256, tokens=4)
        what = f"layer beside LongformerLayer, {length:,}, window 256 + 4 global"
        findings += beside(bench, "b", what, ours, theirs, length)
        peaks = bench.memory("b", ours), bench.memory("b", theirs)
        findings.append(share("b", f"{what}: memory", *peaks, at_most(0.5)))
    return findings


def growth(bench: Bench) -> list[Finding]:
    """c: twice the length, time and memory; 65,536 tokens within 6 GiB."""
    lengths = [bench.length(tokens) for tokens in (8192, 16384, 32768)]
    longest = bench.length(65536)
    cases = {
        length: case(f"ours, layer, {length:,}", layer, length=length, pattern=LONGFORMER, backend="blocked")
        for length in (*lengths, longest)
    }
    times = bench.times("c", [cases[length] for length in lengths])
    peaks = {length: bench.memory("c", mine) for length, mine in cases.items()}
    findings = []
    for short, long in pairwise(lengths):
        what = f"layer, {short:,} to {long:,}"
        findings.append(times.ratio("c", f"{what}: time", cases[long], cases[short], at_most(2.2)))
        findings.append(share("c", f"{what}: memory", peaks[long], peaks[short], at_most(2.2)))
    whole = None if peaks[longest].refused else peaks[longest].whole / 1024
    note = peaks[longest].refused or "the whole process, libraries included"
    return [
        *findings,
        Finding("c", f"layer, {longest:,} tokens: peak memory", whole, at_most(6), unit="GiB", note=note),
    ]


def windows(bench: Bench) -> list[Finding]:
    """d: the window shows in the time."""
    length = bench.length(8192)
    findings = []
    for what, contender in (("attention alone", attention), ("layer", layer)):
        narrow, wide = (
            case(f"ours, {what}, window {2 * side}, {length:,}", contender, length=length, pattern=f"window({side}, {side})",
                 backend="blocked")
            for side in (64, 256)
        )  # fmt: skip
        times = bench.times("d", [narrow, wide])
        alone = contender is attention
        note = "" if alone else "no target: the rest of a layer costs the same with any window"
        described = f"{what}, {length:,}: window 128 beside window 512"
        findings.append(times.ratio("d", described, narrow, wide, at_most(0.6) if alone else None, note))
    return findings


def beside_bigbird(bench: Bench) -> list[Finding]:
    """e: a layer beside BigBird's."""
    length, block, random = 1536 if bench.quick else 8192, 64, 3
    pattern = bigbird_pattern(length, block, random)
    ours = case(f"ours, layer, BigBird's pattern, {length:,}", layer, length=length, pattern=pattern, backend="blocked")
    theirs = case(f"BigBirdLayer, block_sparse, {length:,}", bigbird, length=length, block=block, random=random)
    kept = parse(pattern).kept(length, length) / length
    note = f"ours keeps {kept:.0f} keys a query, BigBird {_bigbird_keys(length, block, random):.0f}"
    what = f"layer beside BigBirdLayer, {length:,}, blocks of 64, 3 in the band, 3 random, 2 global"
    quicker = beside(bench, "e", what, ours, theirs, length, note=note)
    return [*quicker, share("e", f"{what}: memory", bench.memory("e", ours), bench.memory("e", theirs), None)]


def _bigbird_keys(length: int, block: int, random: int) -> float:
    """Mean keys a query: two global blocks of queries see all; the two next to them have one block of the band less."""
    blocks = length // block
    inner = (5 + random) * (blocks - 4) + 2 * (4 + random)
    return block * (inner + 2 * blocks) / blocks


def beside_reformer(bench: Bench) -> list[Finding]:
    """f: a layer beside Reformer's, and memory flat in depth."""
    length, chunk = bench.length(16384), 64
    buckets = 2 * length // chunk
    findings = []
    for rounds, causal in ((1, False), (2, False), (1, True)):
        pattern = f"lsh(buckets={buckets}, chunk={chunk}, rounds={rounds}, causal={causal})"
        same = {"length": length, "chunk": chunk, "rounds": rounds, "buckets": buckets, "causal": causal}
        kind = f"{rounds} round{'s' * (rounds > 1)}, {'causal' if causal else 'both ways'}, {length:,}"
        ours = case(f"ours, layer, {kind}", layer, length=length, pattern=pattern, backend="auto", norm="pre")
        theirs = case(f"ReformerLayer, {kind}", reformer, **same)
        what = f"LSH layer beside ReformerLayer, {kind}"
        findings += beside(bench, "f", what, ours, theirs, length, norm="pre")
        if causal or rounds > 1:
            continue
        walk = {"layers": 1, "reversible": True, "norm": "pre", "backend": "auto"}
        ours_walk = case(f"ours, reversible layer, {kind}", layer, length=length, pattern=pattern, **walk)
        theirs_walk = case(f"ReformerEncoder, reversible, 1 layer, {kind}", reversible_reformer, layers=1, **same)
        times = bench.times("f", [ours_walk, theirs_walk])
        faster = f"reversible LSH layer, {kind}: quicker than Reformer's"
        findings.append(times.ratio("f", faster, theirs_walk, ours_walk, at_least(3)))
        peaks = bench.memory("f", ours), bench.memory("f", theirs)
        findings.append(share("f", f"{what}: memory", *peaks, None))
    return findings + depth(bench)


def depth(bench: Bench) -> list[Finding]:
    """f: activations of reversible stacks of 12 layers and of 2."""
    length, chunk = bench.length(8192), 64
    same = {"length": length, "chunk": chunk, "rounds": 1, "buckets": 2 * length // chunk, "causal": False}
    pattern = f"lsh(buckets={same['buckets']}, chunk={chunk}, causal=False)"
    ours = {"length": length, "pattern": pattern, "backend": "auto", "norm": "pre"}
    stacks = {
        "ours, reversible": lambda n: case(f"ours, reversible, {n} layers", layer, **ours, layers=n, reversible=True),
        "ours, ordinary": lambda n: case(f"ours, ordinary, {n} layers", layer, **ours, layers=n),
        "Reformer's": lambda n: case(f"ReformerEncoder, {n} layers", reversible_reformer, **same, layers=n),
    }
    return [
        share("f", f"{name} stack, {length:,}: activations of 12 layers beside 2",
              bench.memory("f", make(12)), bench.memory("f", make(2)), at_most(1.5) if name == "ours, reversible" else None)
        for name, make in stacks.items()
    ]  # fmt: skip


def dispatch(bench: Bench) -> list[Finding]:
    """g: `auto` is never slower than the dense path, with the same pattern and with none."""
    lengths = (512, 1024) if bench.quick else (512, 1024, 2048, 4096, 8192)
    findings = []
    for length in lengths:
        patterns = {
            "window 64": "window(32, 32)",
            "window 256": "window(128, 128)",
            "window 512": "window(256, 256)",
            "causal window 256": "window(255, 0)",
            "window 256 + 4 global": LONGFORMER,
            "BigBird": bigbird_pattern(length, 64, 3),
        }
        for name, pattern in patterns.items():
            findings.append(_dispatched(bench, f"{name}, {length:,}", length, pattern))
    return findings


def _dispatched(bench: Bench, what: str, length: int, pattern: str) -> Finding:
    """The dense path twice: how far it is from itself is the noise that a verdict must be read with."""
    auto, sdpa, blocked = (
        case(f"{backend}, {what}", attention, length=length, pattern=pattern, backend=backend)
        for backend in ("auto", "sdpa", "blocked")
    )
    again = case(f"sdpa again, {what}", attention, length=length, pattern=pattern, backend="sdpa")
    unmasked = case(f"no mask, {what}", dense_attention, length=length, causal=parse(pattern).is_causal)
    times = bench.times("g", [auto, sdpa, blocked, again, unmasked])
    beside = {
        name: times.ratio("g", "", auto, other, None).figure
        for name, other in (("blocked", blocked), ("no mask", unmasked))
    }
    noise = times.ratio("g", "", again, sdpa, None).figure
    parts = [f"{value:.2f} of {name}" for name, value in beside.items() if value is not None]
    note = f"{', '.join(parts)}; sdpa beside itself {noise:.2f}"
    return times.ratio("g", f"auto beside sdpa, {what}", auto, sdpa, at_most(1.05), note)


def dense(bench: Bench) -> list[Finding]:
    """h: dense layers, for scale."""
    findings = []
    for length in (bench.length(4096), bench.length(8192)):
        ours = case(f"ours, dense layer, {length:,}", layer, length=length, pattern="full()", backend="auto")
        theirs = case(f"BertLayer, sdpa, {length:,}", bert, length=length)
        sparse = case(
            f"ours, layer, window 256 + 4 global, {length:,}", layer, length=length, pattern=LONGFORMER, backend="auto"
        )
        times = bench.times("h", [ours, theirs, sparse])
        findings.append(times.ratio("h", f"dense layer, {length:,}: BERT's beside ours", theirs, ours, None))
        findings.append(
            times.ratio("h", f"layer, {length:,}: dense BERT's beside our window 256 + 4 global", theirs, sparse, None)
        )
        peaks = bench.memory("h", ours), bench.memory("h", theirs)
        findings.append(share("h", f"dense layer, {length:,}: memory of ours beside BERT's", *peaks, None))
    return findings


ROWS: dict[str, Callable[[Bench], list[Finding]]] = {
    "a": alone,
    "b": beside_longformer,
    "c": growth,
    "d": windows,
    "e": beside_bigbird,
    "f": beside_reformer,
    "g": dispatch,
    "h": dense,
}


def header(options: argparse.Namespace) -> list[str]:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return [
        "# What attention costs",
        "",
        f"{capabilities.get('cpu_name', platform.machine())}, {options.threads} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"AMX {'yes' if capabilities.get('amx_bf16') else 'no'}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Forward and backward, fp32, one row; attention alone: {ATTENTION_HEADS} heads of "
        f"{HEAD_WIDTH}; a layer: width {WIDTH}, {HEADS} heads, feed-forward {4 * WIDTH}. Medians of {options.repeats} interleaved "
        "passes, quartiles of the paired ratios in brackets; memory is the peak resident set of a process of its own.",
        "",
    ]


def report(options: argparse.Namespace, bench: Bench, findings: list[Finding]) -> str:
    """The whole file."""
    judged = [f for f in findings if f.target is not None]
    met = sum(f.figure is not None and f.target is not None and f.target.met(f.figure) for f in judged)
    lines = header(options)
    if bench.quick:
        lines += ["**A trial of the script at an eighth of the lengths (--quick): its figures mean nothing.**", ""]
    lines += [
        f"{met} of {len(judged)} targets are met.",
        "",
        "| row | measured | target | figure | verdict | note |",
        "|---|---|---|---|---|---|",
    ]
    lines += [finding.line() for finding in findings]
    lines += ["", "## Times", "", "| row | case | median, ms | least | most |", "|---|---|---|---|---|", *bench.timed]
    if bench.weighed:
        lines += [
            "",
            "## Peak memory",
            "",
            "| row | case | above, MiB | whole, MiB |",
            "|---|---|---|---|",
            *bench.weighed,
        ]
    lines += ["", f"Command: `python jobs/bench/attention_cost.py {' '.join(_flags(options))}`", ""]
    return "\n".join(lines)


def _flags(options: argparse.Namespace) -> list[str]:
    flags = [f"--rows {','.join(options.rows)}", f"--repeats {options.repeats}", f"--threads {options.threads}"]
    return [*flags, "--quick"] if options.quick else flags


def main() -> None:
    """Print the tables, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS), help="for example a,b,c")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=12, help="GiB that a process may take to measure its memory")
    parser.add_argument(
        "--quick", action="store_true", help="try the script out: an eighth of the lengths, two repeats"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"--rows names {', '.join(unknown)}, but the rows are {', '.join(ROWS)}")
    if options.quick:
        options.repeats = 2
    bench = Bench(options.repeats, options.threads, int(options.limit * 2**30), options.quick)
    findings: list[Finding] = []
    for row in options.rows:
        found = ROWS[row](bench)
        print("\n".join(finding.line() for finding in found), flush=True)
        findings += found
    text = report(options, bench, findings)
    print("\n" + text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()

"""What a person reads at the end and before."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from triune.tracking.formatting import clock, count, duration, figure, flops, size
from triune.tracking.report import (
    FinalReport,
    PlanReport,
    Sample,
    Score,
    SeedScore,
    SeedsReport,
    final_report,
    literal,
    plan_report,
    scores_report,
    seeds_report,
)

COMMAND = 'make finetune CONFIG=configs/finetune/chat.yaml ARGS="init.from=runs/pretrain/tiny-decoder [x]"'
FINAL = FinalReport(
    title="pretrain tiny-decoder: complete",
    model="decoder, 5.31M parameters, causal",
    scores=[
        Score(name="bits per byte", value=1.6123, baselines={"unigram": 2.4312, "bigram": 1.913}),
        Score(name="loss (nats per token)", value=3.8123, baselines={"unigram": 5.741, "bigram": 4.533}),
        Score(name="perplexity", value=45.24),
        Score(name="accuracy", value=0.0411, baselines={"most frequent": 0.05}, higher_is_better=True),
    ],
    steps=1500,
    tokens=2_048_000,
    seconds=204.2,
    tokens_per_second=10_029.4,
    mfu=0.341,
    mfu_against="a measured bf16 matmul ceiling",
    samples=[Sample(prompt="A: hi\nB:", continuation=" [bold]not markup[/] \x1b[31mred\x07\nA: bye")],
    run_directory="runs/pretrain/tiny-decoder",
    wandb="wandb sync runs/pretrain/tiny-decoder/wandb/offline-run-*",
    next=[("continue it", "make pretrain NAME=tiny-decoder"), ("fine-tune it", COMMAND)],
)
PLAN = PlanReport(
    title="plan: pretrain tiny-decoder",
    experiment="name: tiny\nmodel:\n  attention: {pattern: 'a [b]'}\n",
    parameters={"embedding": 2_000_000, "attention": 6_000_000},
    flops_per_token=3.4e7,
    tokens=2_048_000,
    steps=500,
    batch_tokens=4096,
    memory={"weights": 32 * 2**20, "activations": 96 * 2**20},
    notes=[("precision", "bf16-mixed")],
)


def render(report: FinalReport | PlanReport, width: int = 80, **options: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, **options)  # type: ignore[arg-type]
    if isinstance(report, FinalReport):
        final_report(report, console)
    else:
        plan_report(report, console)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def test_final_report_reads_like_this() -> None:
    expected = """
      pretrain tiny-decoder: complete
      decoder, 5.31M parameters, causal

      Validation              this run   unigram   bigram   most frequent
      ───────────────────────────────────────────────────────────────────
      bits per byte              1.612     2.431    1.913
      loss (nats per token)      3.812     5.741    4.533
      perplexity                 45.24
      accuracy                 0.04110                            0.05000

      Training
        1,500 steps, 2.05M tokens, 3 min 24 s, 10,029 tokens/s
        MFU 34.1% of a measured bf16 matmul ceiling

      Sample
        A: hi
        B:▸ [bold]not markup[/] �[31mred�
        A: bye

      Where
        run  runs/pretrain/tiny-decoder
        W&B  wandb sync runs/pretrain/tiny-decoder/wandb/offline-run-*

      Next
        continue it
          make pretrain NAME=tiny-decoder
        fine-tune it
          make finetune CONFIG=configs/finetune/chat.yaml ARGS="init.from=runs/pretrain/tiny-decoder [x]"
    """
    wanted = textwrap.indent(textwrap.dedent(expected).strip("\n"), "  ")
    assert render(FINAL) == "\n".join(line.rstrip() for line in wanted.splitlines())


def test_plan_report_reads_like_this() -> None:
    text = render(PLAN)
    assert "\nname: tiny\nmodel:\n  attention: {pattern: 'a [b]'}\n" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["embedding", "2.00M", "25%"] in rows
    assert ["total", "8.00M"] in rows
    assert ["500", "steps", "of", "4,096", "tokens:", "2.05M", "tokens"] in rows
    assert ["34.0", "MFLOP", "per", "token,", "69.6", "TFLOP", "in", "total"] in rows
    assert ["activations", "96.0", "MiB", "75%"] in rows
    assert ["total", "128", "MiB"] in rows
    assert ["precision", "bf16-mixed"] in rows


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_commands_stay_on_one_line(width: int) -> None:
    assert COMMAND in render(FINAL, width)


def test_colours_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = render(FINAL, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;32m *1\.612", coloured)
    # an accuracy below its baseline is no success
    assert re.search(r"\x1b\[1m *0\.04110", coloured)
    assert "\x1b" not in render(FINAL)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in render(FINAL, force_terminal=True, color_system="standard")


def test_missing_numbers_leave_no_hole() -> None:
    bare = FinalReport(title="t", model="m", scores=[], steps=1, tokens=1, seconds=1.0, run_directory="runs/x")
    text = render(bare)
    assert "MFU" not in text
    assert "W&B" not in text
    assert "None" not in text


def test_a_terminal_without_unicode_is_no_reason_to_fail() -> None:
    code = (
        "from triune.tracking.report import *\n"
        "final_report(FinalReport(title='t', model='m', scores=[Score(name='s', value=1.0)], steps=1, tokens=1, seconds=1.0,"
        " samples=[Sample(prompt='日本', continuation='\\ud800 ok')], run_directory='r'))\n"
        "import sys; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "??" in done.stdout


def test_long_samples_are_cut() -> None:
    report = FinalReport(
        title="t", model="m", scores=[], steps=1, tokens=1, seconds=1.0, run_directory="r",
        samples=[Sample(prompt="", continuation="\n".join(str(number) for number in range(100)))],
    )  # fmt: skip
    text = render(report)
    assert "…" in text
    assert "    11\n" in text
    assert "    12\n" not in text


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.text(st.characters(codec=None), max_size=60))
def test_no_text_moves_the_cursor_or_fails(text: str) -> None:
    report = FinalReport(
        title=text.replace("\n", ""), model="m", scores=[], steps=1, tokens=1, seconds=1.0, run_directory="r",
        samples=[Sample(prompt=text, continuation=text)], next=[("x", text)],
    )  # fmt: skip
    shown = render(report)
    shown.encode()
    assert not set(shown) & set(map(chr, [*range(10), *range(11, 32), *range(127, 160), 0x202E, 0x2066]))
    assert len(literal(text).encode()) >= 0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(512), "512"), (count(999), "999"), (count(1000), "1.00k"), (count(14_200_000), "14.2M"),
        (count(999_499), "999k"), (count(999_500), "1.00M"), (count(99_950_000), "100M"), (count(1.5e12), "1.50T"),
        (flops(1.9e11, per_second=True), "190 GFLOP/s"), (flops(512), "512 FLOP"), (flops(3.4e20), "340 EFLOP"),
        (size(512), "512 B"), (size(1536), "1.50 KiB"), (size(3 * 2**30), "3.00 GiB"),
        (duration(0.25), "0.2 s"), (duration(9.97), "10 s"), (duration(59.6), "1 min 00 s"), (duration(204.2), "3 min 24 s"),
        (duration(7500), "2 h 05 min"), (duration(90_000), "1 d 01 h"),
        (clock(-1), "0:00"), (clock(102), "1:42"), (clock(7500), "2:05:00"),
        (figure(3.21412), "3.214"), (figure(93.1), "93.10"), (figure(1234.56), "1,235"), (figure(0.05), "0.05000"),
        (figure(2e-5), "2.000e-05"), (figure(float("nan")), "nan"), (figure(0.0), "0"), (figure(9.9996), "10.00"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def rendered(print_it: Callable[[Console], None], width: int = 80) -> str:
    out = io.StringIO()
    print_it(Console(file=out, width=width, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def as_shown(text: str) -> str:
    wanted = textwrap.indent(textwrap.dedent(text).strip("\n"), "  ")
    return "\n".join(line.rstrip() for line in wanted.splitlines())


SCORES = [
    Score(
        name="accuracy",
        value=0.875,
        baselines={"before": 0.25, "baseline": 0.5},
        higher_is_better=True,
        interval=(0.75, 0.96875),
    ),
    Score(name="reply perplexity", value=12.34, baselines={"before": 80.5}, interval=[11.0, 14.25]),
    Score(name="loss", value=0.5),
]


def test_scores_with_intervals_beside_the_start_read_like_this() -> None:
    shown = rendered(
        lambda console: scores_report("evaluate x: 3 records", SCORES, [("predictions", "p [b]")], console)
    )
    expected = """
      evaluate x: 3 records


      Metric             this run   95% interval       before   baseline
      ──────────────────────────────────────────────────────────────────
      accuracy             0.8750   0.7500 to 0.9688   0.2500     0.5000
      reply perplexity      12.34   11.00 to 14.25      80.50
      loss                 0.5000

      Where
        predictions  p [b]
    """
    assert shown == as_shown(expected)


def test_seeds_read_like_this() -> None:
    scores = [
        SeedScore(name="accuracy", mean=0.75, deviation=0.125, values=[0.625, 0.75, 0.875]),
        SeedScore(name="loss", mean=1.5, deviation=0.0, values=[1.5, 1.5, 1.5]),
    ]
    report = SeedsReport(
        title="finetune x: 3 seeds", scores=scores, runs=["runs/x-seed-1", "runs/x-seed-2", "runs/x-seed-3"]
    )
    expected = """
      finetune x: 3 seeds
      mean and sample standard deviation

      Validation     mean   deviation   each
      ────────────────────────────────────────────────────────
      accuracy     0.7500      0.1250   0.6250, 0.7500, 0.8750
      loss          1.500           0   1.500, 1.500, 1.500

      Where
        run 1  runs/x-seed-1
        run 2  runs/x-seed-2
        run 3  runs/x-seed-3
    """
    assert rendered(lambda console: seeds_report(report, console)) == as_shown(expected)

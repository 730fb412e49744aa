"""What a person sees at the end of a run, and before one (`DRY_RUN=1`): plain words and numbers, laid out by rich. Imports no torch.

Everything that comes from outside (samples, names, commands) is printed literally: brackets are no markup, and control characters
are made visible, because a model may well generate what would move the cursor. Commands are never wrapped, so that they can be copied.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from triune.tracking.formatting import count, duration, figure, flops, size

_SAMPLE_LINES = 12
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One validation metric beside what counting alone reaches.

    Args:
        name: metric and unit ("bits per byte").
        value: this run's.
        baselines: name of a baseline ("unigram") -> its value on the same split.
        higher_is_better: true for an accuracy.
        interval: where the value of 95% of resampled data sets lies; None where it was not asked for.
    """

    name: str
    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = False
    interval: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the model wrote.

    Args:
        prompt: what it was given.
        continuation: what it added.
        before: what the weights that training started from had added; None where they were not asked.
    """

    prompt: str
    continuation: str
    before: str | None = None


@dataclass(frozen=True, kw_only=True)
class FinalReport:
    """The end of a run.

    Args:
        title: what ended, and how ("pretrain tiny-decoder: complete").
        model: one line about the model ("decoder, 14.2M parameters, causal").
        scores: validation metrics, the most telling first.
        steps: optimizer steps of the whole run.
        tokens: tokens trained on.
        seconds: time spent training.
        tokens_per_second: over the whole run, all devices.
        mfu: model FLOPs utilisation, None where unknown.
        mfu_against: what the MFU is measured against.
        samples: generations to show.
        run_directory: where everything is.
        wandb: the run's page or the command that uploads it; None where W&B is off.
        next: (what it does, command) a person would want now.
    """

    title: str
    model: str
    scores: Sequence[Score]
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float | None = None
    mfu: float | None = None
    mfu_against: str | None = None
    samples: Sequence[Sample] = ()
    run_directory: str = ""
    wandb: str | None = None
    next: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class SeedScore:
    """A metric over runs that differ in their seed.

    Args:
        name: the metric.
        mean: over the runs.
        deviation: sample standard deviation over the runs.
        values: of each run.
    """

    name: str
    mean: float
    deviation: float
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class SeedsReport:
    """Runs that differ in their seed.

    Args:
        title: what ended.
        scores: the metrics.
        runs: their directories.
    """

    title: str
    scores: Sequence[SeedScore]
    runs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What a run would do.

    Args:
        title: what is planned.
        experiment: the resolved experiment as YAML.
        parameters: part of the model -> parameters; the total is their sum.
        flops_per_token: training FLOPs per token, forward and backward.
        tokens: tokens of the whole run.
        steps: optimizer steps.
        batch_tokens: tokens of one step.
        memory: part -> bytes on one device; the total is their sum.
        notes: further (name, value) lines.
    """

    title: str
    experiment: str
    parameters: Mapping[str, int]
    flops_per_token: float
    tokens: int
    steps: int
    batch_tokens: int
    memory: Mapping[str, float]
    notes: Sequence[tuple[str, str]] = ()


def final_report(report: FinalReport, console: Console | None = None) -> None:
    """Print the end of a run."""
    console = console or _console()
    parts: list[RenderableType] = [_heading(report.title, report.model), _scores(report.scores), _training(report)]
    for number, sample in enumerate(report.samples, start=1):
        title = "Sample" if len(report.samples) == 1 else f"Sample {number}"
        parts += [_section(title), Padding(_sample(sample), (0, 2, 0, 4), expand=False)]
    console.print(Group(*parts))
    _lines(console, "Where", [("run", report.run_directory), *([("W&B", report.wandb)] if report.wandb else [])])
    _lines(console, "Next", report.next)
    console.print()


def scores_report(
    title: str, scores: Sequence[Score], where: Sequence[tuple[str, str]], console: Console | None = None
) -> None:
    """Print metrics, and where they and the predictions are kept."""
    console = console or _console()
    console.print(_heading(title, ""))
    console.print(_scores(scores, title="Metric"))
    _lines(console, "Where", where)
    console.print()


def seeds_report(report: SeedsReport, console: Console | None = None) -> None:
    """Print mean and deviation of each metric over the seeds."""
    console = console or _console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="")
    for title, side in (("Validation", "left"), ("mean", "right"), ("deviation", "right"), ("each", "left")):
        table.add_column(Text(title, style="bold"), justify=side, no_wrap=title != "each")  # type: ignore[arg-type]
    for score in report.scores:
        each = ", ".join(map(figure, score.values))
        table.add_row(literal(score.name), figure(score.mean), figure(score.deviation), each)
    console.print(_heading(report.title, "mean and sample standard deviation"))
    console.print(Padding(table, (1, 0, 0, 2), expand=False))
    _lines(console, "Where", [(f"run {number}", run) for number, run in enumerate(report.runs, 1)])
    console.print()


def plan_report(report: PlanReport, console: Console | None = None) -> None:
    """Print what a run would do: the experiment as YAML, then what it costs."""
    console = console or _console()
    console.print(_heading(report.title, "nothing has been started"))
    console.print()
    console.print(Text(report.experiment.rstrip("\n")), soft_wrap=True)
    total = sum(report.parameters.values())
    parts: list[RenderableType] = [_section("Parameters"), _shares(report.parameters, total, count)]
    parts += [_section("Compute"), Padding(_compute(report), (0, 0, 0, 4), expand=False)]
    parts += [_section("Memory of one device (estimate)"), _shares(report.memory, sum(report.memory.values()), size)]
    console.print(Group(*parts))
    if report.notes:
        _lines(console, "Notes", report.notes)
    console.print()


def _console() -> Console:
    """A console on stdout that never fails on a character the terminal's encoding lacks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return Console(highlight=False)


def _heading(title: str, subtitle: str) -> RenderableType:
    return Group(Text(), Text.assemble("  ", (literal(title), "bold")), Text(f"  {literal(subtitle)}", style="dim"))


def _section(title: str) -> RenderableType:
    return Group(Text(), Text(f"  {title}", style="bold"))


def _scores(scores: Sequence[Score], title: str = "Validation") -> RenderableType:
    """One row a metric, one column a baseline."""
    names = list(dict.fromkeys(name for score in scores for name in score.baselines))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="")
    table.add_column(Text(title, style="bold"), no_wrap=True)
    table.add_column(Text("this run", style="bold"), justify="right", no_wrap=True)
    intervals = any(score.interval is not None for score in scores)
    if intervals:
        table.add_column(Text("95% interval", style="dim"), no_wrap=True)
    for name in names:
        table.add_column(Text(literal(name), style="dim"), justify="right", no_wrap=True)
    for score in scores:
        beaten = all(
            score.value > other if score.higher_is_better else score.value < other for other in score.baselines.values()
        )
        style = "bold green" if score.baselines and beaten else "bold"
        cells = [figure(score.baselines[name]) if name in score.baselines else "" for name in names]
        between = [" to ".join(map(figure, score.interval or ()))] if intervals else []
        table.add_row(literal(score.name), Text(figure(score.value), style=style), *between, *cells)
    return Padding(table, (1, 0, 0, 2), expand=False)


def _training(report: FinalReport) -> RenderableType:
    parts = [f"{report.steps:,} steps", f"{count(report.tokens)} tokens", duration(report.seconds)]
    if report.tokens_per_second is not None:
        parts.append(f"{report.tokens_per_second:,.0f} tokens/s")
    lines = [Text(", ".join(parts))]
    if report.mfu is not None:
        lines.append(Text(f"MFU {report.mfu:.1%} of {report.mfu_against or 'the peak'}"))
    return Group(_section("Training"), Padding(Group(*lines), (0, 2, 0, 4), expand=False))


def _sample(sample: Sample) -> RenderableType:
    """Prompt and continuation as one text, told apart by a bar where colours may be missing."""
    text = Text()
    text.append(literal(sample.prompt), style="dim")
    if sample.before is not None:
        text.append(f"before ▸ {literal(sample.before)}\nafter ", style="dim")
    text.append("▸ " if sample.before is not None else "▸", style="dim")
    text.append(literal(sample.continuation))
    lines = list(text.split("\n", allow_blank=True))
    if len(lines) > _SAMPLE_LINES:
        lines = lines[:_SAMPLE_LINES]
        lines.append(Text("…", style="dim"))
    return Group(*lines)


def _shares(parts: Mapping[str, float], total: float, write: Callable[[float], str]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    for name, value in parts.items():
        table.add_row(literal(name), write(value), f"{value / total:.0%}" if total else "")
    table.add_row(Text("total", style="bold"), Text(write(total), style="bold"), "")
    return Padding(table, (0, 0, 0, 4), expand=False)


def _compute(report: PlanReport) -> RenderableType:
    return Group(
        Text(f"{report.steps:,} steps of {report.batch_tokens:,} tokens: {count(report.tokens)} tokens"),
        Text(f"{flops(report.flops_per_token)} per token, {flops(report.flops_per_token * report.tokens)} in total"),
    )


def _lines(console: Console, title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Name and value on a line each, or a name above its value where the two do not fit; the value is never wrapped."""
    console.print(_section(title))
    width = max((len(name) for name, _ in lines), default=0)
    beside = all(4 + width + 2 + len(value) <= console.width for _, value in lines)
    for name, value in lines:
        label = Text(f"    {literal(name):<{width}}  " if beside else f"    {literal(name)}\n      ", style="dim")
        console.print(Text.assemble(label, literal(value)), soft_wrap=True)


def literal(text: str) -> str:
    """`text` with control characters, direction overrides and lone surrogates replaced by `�`; newlines and tabs stay."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(
        c if c == "\n" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI) else "�" for c in text
    )

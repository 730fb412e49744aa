"""The study's tables and its picture, from the figures of finished runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from study_patterns import Contender

#: Okabe and Ito's colours and three more, which stay apart in common kinds of colour blindness; names stand beside the lines as well
_COLOURS = {
    "full": "#000000",
    "full-again": "#999999",
    "window": "#0072B2",
    "window-sinks": "#56B4E9",
    "window-and-full": "#009E73",
    "fixed": "#E69F00",
    "bigbird": "#D55E00",
    "lsh-and-window": "#CC79A7",
    "moba": "#8A6D00",
    "nsa": "#5B3A8C",
    "longformer": "#56B4E9",
    "dilated-heads": "#E69F00",
}
_DISTANCES = ((1, 15, "1-15"), (16, 63, "16-63"), (64, 255, "64-255"))

Found = list[tuple[Contender, Mapping[str, Any]]]


def machine() -> str:
    """One sentence about where this runs."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    return f"{os.cpu_count()} cores ({model}), no GPU used; Python {platform.python_version()}, {packages}."


def language_table(found: Found) -> str:
    """Markdown, one line a contender of one family."""
    head = [
        "pattern", "validation loss", "training s", "tokens/s", "peak GiB", "MFLOP a token", "of it attention", "pairs kept", "M parameters"
    ]  # fmt: skip
    lines = []
    for contender, run in found:
        lines.append(
            [
                contender.name,
                f"{run['loss']:.3f}",
                f"{run['seconds']:.0f}",
                f"{run['tokens'] / run['seconds']:,.0f}",
                "n/a" if run["peak"] is None else f"{run['peak'] / 2**30:.2f}",
                f"{run['flops'] / 1e6:.2f}",
                f"{run['attention_flops'] / 1e6:.2f}",
                f"{100 * run['kept']:.1f}%",
                f"{run['parameters'] / 1e6:.2f}",
            ]
        )
    return _table(head, lines)


def synthetic_table(found: Mapping[str, Found]) -> str:
    """Markdown, one line a contender, a column a task, and recall by distance."""
    contenders = list(dict.fromkeys(contender for runs in found.values() for contender, _ in runs))
    figures = {task: dict(runs) for task, runs in found.items()}
    head = [
        "pattern", "reach of two layers", "recall", *(f"at distance {label}" for *_, label in _DISTANCES), "duplication", "s of both"
    ]  # fmt: skip
    lines = []
    for contender in contenders:
        recall, copying = (figures.get(task, {}).get(contender) for task in ("recall", "duplication"))
        near = _by_distance(recall["by_distance"]) if recall else ["" for _ in _DISTANCES]
        lines.append(
            [
                contender.name,
                "the row" if contender.reach is None else f"{2 * contender.reach * 16:.0f}",
                *([f"{100 * recall['accuracy']:.1f}%"] if recall else [""]),
                *near,
                f"{100 * copying['accuracy']:.1f}%" if copying else "",
                f"{sum(run['seconds'] for run in (recall, copying) if run):.0f}",
            ]
        )
    chance = {task: f"{100 * runs[0][1]['chance']:.1f}%" for task, runs in found.items() if runs}
    blank = [""] * len(_DISTANCES)
    lines.append(["a guess", "", chance.get("recall", ""), *blank, chance.get("duplication", ""), ""])
    return _table(head, lines)


def _by_distance(bins: list[list[float]]) -> list[str]:
    """Accuracy within each of `_DISTANCES`, from that by powers of two."""
    cells = []
    for least, most, _ in _DISTANCES:
        inside = [(count, accuracy) for low, _, count, accuracy in bins if least <= low <= most]
        asked = sum(count for count, _ in inside)
        cells.append(f"{100 * sum(count * accuracy for count, accuracy in inside) / asked:.1f}%" if asked else "")
    return cells


def pattern_table(found: Found) -> str:
    """Markdown: what each name stands for."""
    lines = []
    for contender, run in found:
        turns = [(len(list(same)), f"`{text}`".replace("|", "\\|")) for text, same in groupby(run["layers"])]
        lines.append([contender.name, "; ".join(text if count == 1 else f"{count} x {text}" for count, text in turns)])
    return _table(["pattern", "layers, from the first"], lines, right=False)


def _table(head: list[str], lines: list[list[str]], *, right: bool = True) -> str:
    rule = ["---"] + ["--:" if right else "---"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)) + "\n"


def draw(found: Mapping[str, Found], path: Path) -> None:
    """Validation loss against seconds, FLOPs and peak memory, a row of panels a family."""
    from matplotlib.figure import Figure

    families = [family for family, runs in found.items() if runs]
    figure = Figure(figsize=(13, 4.6 * len(families)), layout="constrained", dpi=100)
    axes = figure.subplots(len(families), 3, squeeze=False, sharey="row")
    for row, family in zip(axes, families, strict=True):
        for contender, run in found[family]:
            style = {"color": _COLOURS[contender.name], "marker": "o", "markersize": 3.5, "linewidth": 1.3}
            tokens, seconds, losses = zip(*run["curve"], strict=True)
            row[0].plot(seconds, losses, **style)
            row[1].plot([count * run["flops"] / 1e12 for count in tokens], losses, **style)
            if run["peak"] is not None:
                row[2].plot([run["peak"] / 2**30], losses[-1:], **style)
        later = [loss for _, run in found[family] for *_, loss in run["curve"][1:] or run["curve"]]
        margin = 0.06 * (max(later) - min(later)) + 1e-3
        row[0].set_ylim(min(later) - margin, max(later) + margin)  # the first validation is far above
        _labels(row, found[family])
        row[0].set_ylabel(f"{family}: validation loss, nats a predicted token")
        for panel, title in zip(
            row, ("seconds of training", "TFLOP of training", "peak GiB of the process"), strict=True
        ):
            panel.set_xlabel(title)
            panel.grid(color="0.92")
            panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, pil_kwargs={"optimize": True})


def _labels(row: Any, runs: Found) -> None:
    """Names at the ends of the lines, moved apart where they would touch."""
    for column, panel in enumerate(row):
        ends = []
        for contender, run in runs:
            tokens, seconds, loss = run["curve"][-1]
            across = (seconds, tokens * run["flops"] / 1e12, None if run["peak"] is None else run["peak"] / 2**30)[
                column
            ]
            if across is not None:
                ends.append((loss, across, contender.name, _COLOURS[contender.name]))
        if not ends:
            continue
        low, high = panel.get_ylim()
        widest = max(across for _, across, _, _ in ends)
        start = min([0.0] if column < 2 else [across for _, across, _, _ in ends])
        span = max(widest - start, 0.1 * widest)
        panel.set_xlim(start - 0.04 * span, widest + 0.45 * span)
        step, below = 0.05 * (high - low), -float("inf")
        for loss, across, name, colour in sorted(ends):
            below = max(loss, below + step)
            panel.annotate(
                name,
                xy=(across, loss),
                xytext=(widest + 0.06 * span, below),
                color=colour,
                fontsize=8,
                va="center",
                arrowprops={
                    "arrowstyle": "-",
                    "relpos": (0, 0.5),
                    "shrinkB": 3,
                    "color": colour,
                    "linewidth": 0.5,
                    "alpha": 0.6,
                },
            )

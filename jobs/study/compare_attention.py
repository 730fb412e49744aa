"""The same small models trained with each attention pattern, on text at length 2,048 and on two tasks that need distance.

    make compare-attention                                  # everything; some 40 minutes on two cores
    make compare-attention ARGS="--only decoder/window recall"
    make compare-attention ARGS="--tokens 20k --steps 20 --directory runs/study/smoke --output runs/study/smoke"

Each finished run leaves its figures as JSON in the directory and is not run again; a run that was stopped goes on. The tables and
the picture are written from what is there. docs/compare-attention.md says what is compared and what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run what is missing, then write tables and picture; the exit code."""
    arguments = _arguments()
    os.chdir(ROOT)
    directory = Path(arguments.directory)
    directory.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    parts = arguments.parts
    if "language" in parts:
        _language(arguments, directory)
    if "synthetic" in parts:
        _synthetic(arguments, directory)
    _report(arguments, directory)
    print(f"done in {(time.perf_counter() - started) / 60:.1f} min; tables and picture: {arguments.output}/")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=("language", "synthetic"), default=["language", "synthetic"],
                        help="what to run; `--parts language` leaves the synthetic tasks out")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], help="names of patterns, families or family/name")
    parser.add_argument("--tokens", help="training tokens of each run on text [run.tokens of configs/study/]")
    parser.add_argument("--steps", type=int, help="training steps of each run on a synthetic task")
    parser.add_argument("--wandb", choices=("offline", "online", "disabled"), default="offline")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="settings of the runs on text")
    parser.add_argument("--directory", default="runs/study/compare-attention", help="runs and their figures")
    parser.add_argument("--output", default="docs/compare-attention", help="tables and picture")
    return parser.parse_args()


def _language(arguments: argparse.Namespace, directory: Path) -> None:
    import language_runs
    from study_patterns import chosen

    own = [*arguments.set, *([f"run.tokens={arguments.tokens}"] if arguments.tokens else [])]
    documents, characters = language_runs.write_corpus()
    print(
        f"text: {documents} conversations, {characters / 1e6:.1f} M characters, in {language_runs.CORPUS}", flush=True
    )
    config = "configs/study/attention-decoder.yaml"
    subprocess.run([sys.executable, "-m", "triune.cli", "prepare", config, *own], check=True)
    overrides = [*own, f"tracking.mode={arguments.wandb}"]
    for contender in chosen(arguments.only):
        file = directory / "figures" / f"{contender.family}-{contender.name}.json"
        train = partial(language_runs.train, contender, overrides, str(directory))
        _once(file, {"layers": contender.expressions(2048, 4), "set": own}, train)


def _synthetic(arguments: argparse.Namespace, directory: Path) -> None:
    import synthetic_runs
    from study_patterns import chosen

    for name, task in synthetic_runs.TASKS.items():
        settings = synthetic_runs.SETTINGS[name]
        if arguments.steps:
            settings = replace(settings, steps=arguments.steps)
        for contender in chosen(arguments.only, "decoder"):
            file = directory / "figures" / f"{name}-{contender.name}.json"
            layers = synthetic_runs.patterns(contender, task.length, settings.layers)
            train = partial(synthetic_runs.train, contender, task, settings)
            _once(file, {"layers": layers, "settings": asdict(settings), "task": asdict(task)}, train)


def _once(file: Path, made_with: dict[str, Any], make: Callable[[], Any]) -> None:
    """Make figures unless they are there; SystemExit where those that are there were made with other settings."""
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8")).get("made_with")
        if before != made_with:
            raise SystemExit(
                f"{file} was made with {before}, not with {made_with}; give another --directory, or delete that file and its run"
            )
        print(f"{file}: there already", flush=True)
        return
    print(file.stem, flush=True)
    start = time.perf_counter()
    figures = asdict(make())
    figures |= {"wall_seconds": time.perf_counter() - start, "made_with": made_with}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def _report(arguments: argparse.Namespace, directory: Path) -> None:
    import study_report
    from study_patterns import CONTENDERS

    def read(stem: str) -> Any:
        file = directory / "figures" / f"{stem}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def found(prefix: str, family: str) -> study_report.Found:
        runs = [(c, read(f"{prefix}-{c.name}")) for c in CONTENDERS if c.family == family]
        return [(c, run) for c, run in runs if run is not None]

    text = {family: found(family, family) for family in ("decoder", "encoder")}
    tasks = {task: found(task, "decoder") for task in ("recall", "duplication")}
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    command = f"make compare-attention {_make_arguments()}".strip()
    runs = [run for part in (text, tasks) for group in part.values() for _, run in group]
    minutes = sum(run["wall_seconds"] for run in runs) / 60
    sections = [f"Made by `{command}` in {minutes:.0f} minutes of {len(runs)} runs.\n{study_report.machine()}\n"]
    for family, group in text.items():
        if group:
            sections += [f"**Text, {family}**\n\n{study_report.language_table(group)}"]
    if any(tasks.values()):
        sections.append(f"**Synthetic tasks, decoder**\n\n{study_report.synthetic_table(tasks)}")
    for family, group in text.items():
        if group:
            sections.append(f"**Patterns, {family}, on text**\n\n{study_report.pattern_table(group)}")
    if any(tasks.values()):
        group = next(group for group in tasks.values() if group)
        sections.append(f"**Patterns, on the synthetic tasks**\n\n{study_report.pattern_table(group)}")
    (output / "results.md").write_text("\n".join(sections), encoding="utf-8")
    if any(text.values()):
        study_report.draw(text, output / "results.png")


def _make_arguments() -> str:
    given = shlex.join(sys.argv[1:])
    return f'ARGS="{given}"' if given else ""


if __name__ == "__main__":
    sys.exit(main())

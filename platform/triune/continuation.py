"""Whether a run goes on: its directory, what is there already, and that the experiment is still the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triune import experiment as experiments
from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.experiment import Experiment
from triune.training.outcome import Outcome
from triune.training.run_directory import RunDirectory
from triune.training.weights import Start


def open_directory(experiment: Experiment, stage: str, *, restart: bool) -> RunDirectory:
    """The run's directory, or with `restart` the first free one beside it."""
    directory = RunDirectory(Path(experiment.run.directory) / stage / experiment.name)
    if restart and directory.started:
        fresh = directory.fresh()
        print(f"{directory.path} is left as it is; starting afresh in {fresh.path}")
        return fresh
    return directory


def check_same(directory: RunDirectory, now: Experiment) -> None:
    """UserError where another experiment lives in the directory."""
    if not directory.started:
        return
    before = experiments.load(directory.experiment)
    if now.model.vocabulary is None:  # there it is resolved: the tokenizer's size
        now = dataclasses.replace(now, model=dataclasses.replace(now.model, vocabulary=before.model.vocabulary))
    lines = experiments.differences(before, now)
    if lines:
        shown = "\n  ".join(lines[:10]) + (f"\n  … and {len(lines) - 10} more" if len(lines) > 10 else "")
        raise UserError(
            f"{directory.path} holds the run of a different experiment; give this one another NAME (--name), "
            f"or start it afresh with RESTART=1 (--restart)\n  {shown}"
        )


def completed(directory: RunDirectory, now: Experiment, steps: int) -> Outcome | None:
    """What a complete run reported, after a line that says so; None where there is more to train, more patience included."""
    report = directory.report()
    if report is None:
        return None
    early = report.get("ended_early") and now.run.patience == experiments.load(directory.experiment).run.patience
    if report["steps"] < steps and not early:
        return None
    more = "run.patience" if early else "run.tokens" if now.run.epochs is None else "run.epochs"
    print(
        f"{directory.path}: this run is complete ({report['steps']:,} steps{', ended early' if early else ''}). "
        f"Raise {more} to go on, or start afresh with RESTART=1."
    )
    return Outcome.from_dict(report)


def own_tokenizer(directory: RunDirectory) -> Tokenizer | None:
    """That of the run that goes on, so that the weights it started from may be gone; None for a new run."""
    return Tokenizer.load(directory.tokenizer) if directory.started and directory.tokenizer.is_dir() else None


def known_task(experiment: Experiment, directory: RunDirectory, start: Start | None) -> Mapping[str, Any] | None:
    """The task, with its classes, that the weights know: of the run that goes on, or of what it starts from."""
    if not experiments.is_task(experiment):
        return None
    if start is not None:
        return start.task
    if not directory.started:
        return None
    before = experiments.load(directory.experiment).objective
    return {"objective": {"kind": before.kind}, "labels": getattr(before, "labels", None)}

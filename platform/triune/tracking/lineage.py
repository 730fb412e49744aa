"""From which runs a run comes: which W&B run made the weights it starts from, its group, what its config says. Imports no torch.

One line of work (pretraining, the fine-tunings that start from it, their evaluations) is one W&B group. It passes from run to run by
files alone: `wandb.json` of a run directory, and what checkpoints and `model/` carry of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triune.tracking.config import TrackingConfig
from triune.tracking.identity import FILE, Origin, RunIdentity

EVALUATED = "evaluate"
_STEP = re.compile(r"step-(\d{8,})")


def origin_of(option: str, path: str | Path, made_by: Mapping[str, Any] | None = None) -> Origin:
    """Where weights come from.

    Args:
        option: what named them (`Origin.option`).
        path: where they were read: a model directory or a checkpoint file.
        made_by: what they carry of the run that made them: `wandb` in a checkpoint's description or a model's config. Without it, the
            `wandb.json` of the run directory around them tells.
    """
    place = Path(path).resolve()  # `checkpoints/last` is a link to its step
    found = Origin(option=option, path=str(path), step=_step(place))
    run = _run_directory(place)
    kept, carried = _identity(_read(run / FILE) if run else None), _identity(made_by)
    # the run's own file knows more than weights of an older triune, unless it was made anew since
    identity = kept if carried is None or (kept and kept.id == carried.id) else carried
    if identity is None:
        return found
    name = identity.name or (run.name if run else None)
    return dataclasses.replace(
        found,
        id=identity.id,
        project=identity.project,
        entity=identity.entity,
        name=name,
        group=identity.group or name,  # before groups were kept, a run's name was its group
    )


def group_of(origins: Sequence[Origin]) -> str | None:
    """The group that a run joins: that of the first origin that has one; None starts a group of its own."""
    return next((origin.group for origin in origins if origin.group), None)


def as_config(origins: Sequence[Origin]) -> dict[str, dict[str, Any]]:
    """`{"from": {"path": …, "id": …, "name": …, …}}` for W&B's config, one entry an origin; what is not known is left out."""
    return {
        origin.option.removeprefix("init."): {
            key: value for key, value in asdict(origin).items() if key != "option" and value is not None
        }
        for origin in origins
    }


def beside(config: TrackingConfig, origin: Origin) -> TrackingConfig:
    """Settings of a run that belongs beside `origin`'s in W&B (its evaluation): same project, same user or team, same group."""
    if origin.id is None or origin.project is None:
        return config
    return dataclasses.replace(config, project=origin.project, entity=origin.entity, group=origin.group)


def _run_directory(place: Path) -> Path | None:
    """The run directory that weights at `place` lie in, if it was followed."""
    candidates = [
        *([place.parent] if place.name == "model" else []),
        *(up.parent for up in place.parents[:2] if up.name == "checkpoints"),
    ]
    return next((run for run in candidates if (run / FILE).is_file()), None)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _identity(data: Any) -> RunIdentity | None:
    """None for what is no identity: somebody else's broken file is no reason not to train."""
    try:
        return RunIdentity.from_dict(data) if data else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _step(place: Path) -> int | None:
    found = _STEP.fullmatch(place.parent.name)
    return int(found[1]) if found else None

"""Settings of tracking. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run is followed: Weights & Biases, with CSV beside it.

    Args:
        mode: online, offline, disabled; null is online where a key is configured, else offline.
        project: W&B project.
        entity: W&B user or team; null is the account's own.
        group: W&B group; null is the experiment's name.
        tags: added to family, objective and pattern.
        checkpoints: upload checkpoints as artifacts.
        samples: generations logged at each validation; 0 is none.
        log_every: optimizer steps between two log lines.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str = "triune"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoints: bool = False
    samples: int = 4
    log_every: int = 10

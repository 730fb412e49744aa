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
        group: W&B group; null is the group of the run whose weights this one starts from, else the experiment's name.
        tags: added to family, objective and pattern.
        checkpoints: upload checkpoints as artifacts.
        artifacts: how the finished model and predictions go to W&B: reference (names, sizes and checksums, the files stay here), upload, none (nor are inputs declared).
        samples: generations logged at each validation; 0 is none.
        log_every: optimizer steps between two log lines.
    """

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str = "triune"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoints: bool = False
    artifacts: Literal["reference", "upload", "none"] = "reference"
    samples: int = 4
    log_every: int = 10

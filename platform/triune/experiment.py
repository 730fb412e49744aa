"""The typed tree behind every YAML. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triune.data.config import DataConfig
from triune.models.config import ModelConfig
from triune.objectives.config import CausalObjective, ObjectiveConfig
from triune.tracking.config import TrackingConfig
from triune.training.config import AdamW, Cosine, InitConfig, OptimizerConfig, RunConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: everything a run depends on.

    Args:
        name: names the run directory and the W&B run.
        model: the transformer.
        objective: what it learns to predict.
        data: the text.
        optimizer: how weights move.
        schedule: how the learning rate moves.
        run: length, batch, validation and checkpoints.
        init: what the weights start from.
        trainer: arguments of Lightning's Trainer, untouched.
        tracking: where the run is followed.
    """

    name: str = "unnamed"
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=CausalObjective)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=Cosine)
    run: RunConfig = field(default_factory=RunConfig)
    init: InitConfig = field(default_factory=InitConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

"""What a run would cost, before it starts: shapes of its rows, FLOPs, memory. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from triune.models import cost
from triune.models.config import ModelConfig
from triune.objectives.config import (
    DenoisingObjective,
    MaskedObjective,
    ObjectiveConfig,
    PrefixObjective,
    SpanCorruptionObjective,
)
from triune.objectives.task_config import TASK_FAMILIES, TaskConfig
from triune.tracking.report import PlanReport
from triune.training.config import OptimizerConfig, RunConfig

MICRO_BATCH_TOKENS = 16_384  # of one forward pass where run.micro_batch is null


class RowShape(NamedTuple):
    """Mean shape of a full row, as the cost model asks for it."""

    length: int  # tokens of the tower that predicts
    source: int | None  # tokens that an encoder beside it reads
    predicted: float  # share of `length` that passes through the vocabulary


def row_shape(objective: ObjectiveConfig | TaskConfig, length: int, family: str | None = None) -> RowShape:
    """What an objective makes of a row of `length` tokens, in the mean; special tokens are not counted."""
    if isinstance(objective, MaskedObjective):
        return RowShape(length, None, objective.rate)
    if isinstance(objective, PrefixObjective):
        return RowShape(length, None, 1.0 - (objective.minimum + objective.maximum) / 2)
    if isinstance(objective, SpanCorruptionObjective):
        noise = objective.rate * length
        spans = noise / objective.mean_span
        return RowShape(round(noise + spans), round(length - noise + spans), 1.0)
    if isinstance(objective, DenoisingObjective):
        noise = objective.infill_rate * length
        kept = length - noise + noise / objective.mean_span
        return RowShape(length, round(kept * (1.0 - objective.delete_rate)), 1.0)
    if objective.kind == "translation" or (objective.kind in TASK_FAMILIES and family == "encoder_decoder"):
        return RowShape(length, length, 1.0)
    return RowShape(length, None, 1.0)


def training_flops(model: ModelConfig, objective: ObjectiveConfig | TaskConfig, length: int) -> float:
    """FLOPs of training for each real token, the source's included (forward and backward; see `models/cost.py`)."""
    shape = row_shape(objective, length, model.family)
    return cost.flops_per_token(model, shape.length, source_length=shape.source, predicted_share=shape.predicted)


def plan_report(
    *,
    name: str,
    text: str,
    model: ModelConfig,
    objective: ObjectiveConfig | TaskConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    length: int,
    steps: int,
    world: int,
    precision: str,
    device: str,
    notes: list[tuple[str, str]],
) -> PlanReport:
    """The numbers of a dry run; `model.vocabulary` must be set.

    Args:
        name: of the run.
        text: the resolved experiment as YAML.
        model: the transformer.
        objective: what it learns to predict.
        optimizer: how weights move.
        run: length and batch.
        length: tokens of a row.
        steps: optimizer steps.
        world: devices over all nodes.
        precision: Lightning's name of the number format.
        device: type of the device.
        notes: further (name, value) lines.
    """
    shape = row_shape(objective, length, model.family)
    rows = run.batch_tokens // length
    micro = min(run.micro_batch or max(1, MICRO_BATCH_TOKENS // length), -(-rows // world))
    memory = cost.memory(
        model,
        batch=micro,
        length=shape.length,
        source_length=shape.source,
        predicted_share=shape.predicted,
        precision=precision,
        optimizer=optimizer.kind,
        device=device,
    )
    return PlanReport(
        title=f"plan of {name}",
        experiment=text,
        parameters=cost.parameters(model).parts,
        flops_per_token=training_flops(model, objective, length),
        tokens=steps * rows * length,
        steps=steps,
        batch_tokens=rows * length,
        memory=memory.parts,
        notes=[
            ("devices", f"{world}, {precision}"),
            ("one step", f"{rows} rows of {length} tokens, {micro} in a forward pass on each device"),
            *notes,
        ],
    )

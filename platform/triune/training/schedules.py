"""Learning-rate schedules as pure functions of the step, applied by torch's LambdaLR. Imports no torch at module level.

`factor(step)` multiplies the peak learning rate of optimizer step `step`, counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from triune.errors import UserError
from triune.training.config import Cosine, InverseSquareRoot, Linear, ScheduleConfig, WarmupStableDecay
from triune.units import Interval


def _length(option: str, interval: Interval, batch_tokens: int, total_steps: int) -> int:
    try:
        return interval.steps(batch_tokens=batch_tokens, total_steps=total_steps)
    except ValueError as error:
        raise UserError(f"schedule.{option}: {error}") from None


def schedule(config: ScheduleConfig, *, total_steps: int, batch_tokens: int) -> Callable[[int], float]:
    """Share of the peak learning rate at each step.

    Args:
        config: which schedule.
        total_steps: optimizer steps of the whole run.
        batch_tokens: tokens of one optimizer step, to turn spans in tokens into steps.

    Returns:
        factor(step) in [0, 1]; step counts from 0, and steps past the end keep the last value.

    Raises:
        UserError: a span that is a time, or warm-up and decay together longer than the run.
    """
    warmup = _length("warmup", config.warmup, batch_tokens, total_steps)
    if isinstance(config, InverseSquareRoot):
        # lrate = d^-0.5 min(step^-0.5, step warmup^-1.5) (2017, eq. 3), scaled so that its peak, at `warmup`, is 1
        peak = max(1, warmup)
        return lambda step: min((step + 1) / peak, math.sqrt(peak / (step + 1)))

    decay = max(0, total_steps - warmup)
    if isinstance(config, WarmupStableDecay):
        decay = _length("decay", config.decay, batch_tokens, total_steps)
    if warmup + decay > total_steps:
        raise UserError(
            f"schedule: warm-up ({warmup} steps) and decay ({decay} steps) are longer than the run of {total_steps} steps; "
            "shorten schedule.warmup or schedule.decay, or raise run.tokens"
        )
    start = total_steps - decay
    final = config.final
    shape = _half_cosine if isinstance(config, Cosine) else _line
    assert isinstance(config, Linear | Cosine | WarmupStableDecay)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step < start:
            return 1.0
        share = min(1.0, (step - start + 1) / max(1, decay))
        return final + (1.0 - final) * shape(share)

    return factor


def _line(share: float) -> float:
    return 1.0 - share


def _half_cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * share))

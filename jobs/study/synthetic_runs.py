"""Training on the synthetic tasks: a small decoder a pattern, the same rows in the same order, the same number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from study_patterns import Contender
from synthetic_tasks import Duplication, Recall, Rows, Task

from triune.models import build
from triune.training.config import Muon
from triune.training.optimizers import build_optimizer

TASKS: dict[str, Task] = {"recall": Recall(), "duplication": Duplication()}

#: rows of the test, drawn from a seed of their own
_TEST_ROWS = 256
_TEST_SEED = 10_001


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all patterns share.

    Args:
        steps: optimizer steps.
        rows: rows of a step.
        layers: blocks. The first sees the token itself and the one before, whatever the pattern; the pattern has the rest.
        width: M.
        heads: H.
        learning_rate: peak, of Muon; its AdamW part has a quarter.
    """

    steps: int
    rows: int = 32
    layers: int = 3
    width: int = 64
    heads: int = 2
    learning_rate: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a pattern did on a task.

    Args:
        accuracy: share of the test's questions answered.
        chance: the same of the best guess that recalls nothing.
        by_distance: (least, most distance, questions, accuracy) by powers of two.
        curve: (step, accuracy of that step's rows, before learning from them).
        seconds: of training.
        layers: the pattern of each block.
    """

    accuracy: float
    chance: float
    by_distance: list[tuple[int, int, int, float]]
    seconds: float
    layers: list[str]
    curve: list[tuple[int, float]] = field(default_factory=list)


SETTINGS = {"recall": Settings(steps=350), "duplication": Settings(steps=150)}


def patterns(contender: Contender, length: int, layers: int) -> list[str]:
    """The pattern of each block: a shift by one, then the contender's last layers of a whole number of fours."""
    tested = layers - 1
    return ["window(1, 0)", *contender.expressions(length, tested, first=-tested % 4)]


def train(contender: Contender, task: Task, settings: Settings, say: Callable[[str], None] = print) -> Score:
    """Train and test one pattern on one task."""
    torch.manual_seed(contender.seed)
    generator = np.random.default_rng(contender.seed)
    layers = patterns(contender, task.length, settings.layers)
    model = build(
        {
            "family": "decoder",
            "vocabulary": task.vocabulary,
            "context": task.length,
            "width": settings.width,
            "layers": settings.layers,
            "heads": settings.heads,
            "attention": {"pattern": layers},
            "position": {"kind": "rotary", "fraction": 0.5},
            "norm": {"kind": "rms", "placement": "pre"},
            "feed_forward": {"kind": "swiglu"},
            "bias": False,
            "initialization": {"kind": "normal", "std": settings.width**-0.5},
        }
    )
    rate = settings.learning_rate
    optimizer = build_optimizer(Muon(learning_rate=rate, adamw_learning_rate=rate / 4, weight_decay=0.01), model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    curve: list[tuple[int, float]] = []
    start = time.perf_counter()
    for step in range(settings.steps):
        rows = task.rows(settings.rows, generator)
        output = _loss(model, rows)
        (output.total / output.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 25 == 0:
            curve.append((step, float(output.correct / output.weight)))
        if step % 50 == 0:
            spent = time.perf_counter() - start
            say(f"    step {step}/{settings.steps}  accuracy {curve[-1][1]:.3f}  {spent:.0f} s")
    seconds = time.perf_counter() - start
    return Score(seconds=seconds, layers=layers, curve=curve, **_test(model, task))


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: up in 20 steps, down over the last third."""
    return min((step + 1) / 20, 1.0, 3 * (steps - step) / steps)


def _loss(model: Any, rows: Rows) -> Any:
    inputs, targets, weights = map(torch.from_numpy, (rows.inputs, rows.targets, rows.asked.astype(np.float32)))
    return model.head.loss(model(inputs), targets, weights)


@torch.no_grad()
def _test(model: Any, task: Task) -> dict[str, Any]:
    """Accuracy on rows that nothing was trained on."""
    model.eval()
    generator = np.random.default_rng(_TEST_SEED)
    right, distances, guesses = [], [], []
    for _ in range(_TEST_ROWS // 32):
        rows = task.rows(32, generator)
        answers = model.head.logits(model(torch.from_numpy(rows.inputs))).argmax(-1).numpy()
        right.append((answers == rows.targets)[rows.asked])
        distances.append(rows.distances[rows.asked])
        guesses.append(1 / rows.candidates[rows.asked])
    hits, places = np.concatenate(right), np.concatenate(distances)
    return {
        "accuracy": float(hits.mean()),
        "chance": float(np.concatenate(guesses).mean()),
        "by_distance": by_distance(hits, places),
    }


def by_distance(hits: np.ndarray, distances: np.ndarray) -> list[tuple[int, int, int, float]]:
    """(least, most distance, questions, accuracy) for distances 1, 2-3, 4-7, ... that occur."""
    found = []
    for power in range(int(distances.max()).bit_length()):
        inside = (distances >> power) == 1
        if inside.any():
            found.append((2**power, 2 ** (power + 1) - 1, int(inside.sum()), float(hits[inside].mean())))
    return found

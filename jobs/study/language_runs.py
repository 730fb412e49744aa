"""Training runs on text, through the product itself: `triune pretrain` in a process of its own a pattern."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from study_patterns import Contender

from triune import experiment as experiments
from triune.data.corpora import read_package
from triune.experiment import Experiment
from triune.models import cost
from triune.models.checks import layer_patterns
from triune.training.plan import training_flops

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path("runs/study/long-conversations.jsonl")
#: characters of the shortest document: some 2,100 tokens, so that most rows of 2,048 hold one document alone
_LEAST_CHARACTERS = 7_000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a finished run measured and cost.

    Args:
        parameters: of the model.
        loss: last validation loss, nats a predicted token.
        curve: (training tokens, seconds of training, validation loss), one a validation.
        seconds: of training, without validation.
        tokens: trained on.
        flops: of training, a token.
        attention_flops: of these, in scores and their weighted sums of values.
        kept: query-key pairs of all layers, as a share of all pairs of a row (of the causal ones, in a decoder).
        peak: most bytes that the training process has held, libraries included; None where the system doesn't say.
        layers: the pattern of each layer.
        wandb: the W&B group.
    """

    parameters: int
    loss: float
    curve: list[tuple[int, float, float]]
    seconds: float
    tokens: int
    flops: float
    attention_flops: float
    kept: float
    peak: int | None
    layers: list[str]
    wandb: str


def write_corpus() -> tuple[int, int]:
    """The demo corpus' long conversations as one JSONL file, written once; (documents, characters)."""
    import json

    if not CORPUS.exists():
        CORPUS.parent.mkdir(parents=True, exist_ok=True)
        documents = [text for text in read_package("chitchat-dataset") if len(text) >= _LEAST_CHARACTERS]
        draft = CORPUS.with_suffix(".tmp")
        draft.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        draft.replace(CORPUS)
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return len(texts), sum(map(len, texts))


def configured(contender: Contender, overrides: list[str], directory: str) -> tuple[list[str], Experiment]:
    """The command line of a contender's run, and its experiment."""
    config = f"configs/study/attention-{contender.family}.yaml"
    base = experiments.load(config, overrides)
    patterns = contender.expressions(int(base.model.context), base.model.layers)
    own = [
        *overrides,
        f"model.attention.pattern={patterns!r}",
        f"run.seed={contender.seed}",
        f"run.directory={directory}",
    ]
    name = f"{contender.family}-{contender.name}"
    experiment = experiments.load(config, own, name)
    experiments.check(experiment)
    return [sys.executable, "-m", "triune.cli", "pretrain", config, *own, f"--name={name}"], experiment


def train(contender: Contender, overrides: list[str], directory: str) -> Figures:
    """Train one contender, or continue its run. SystemExit where it fails."""
    command, experiment = configured(contender, overrides, directory)
    run = Path(directory) / "pretrain" / experiment.name
    peak = _watch(subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}), run)
    return _figures(experiments.load(run / "experiment.yaml"), run, peak)


def _watch(process: subprocess.Popen[bytes], run: Path) -> int | None:
    """Wait for a run; the peak of its resident memory until training ends (then `model/` appears), in bytes."""
    peak = None
    while process.poll() is None:
        now = _high_water(process.pid)
        if (run / "model").exists():
            break
        peak = now if now is not None else peak
        time.sleep(0.05)
    if code := process.wait():
        raise SystemExit(f"{run}: the run ended with exit code {code}; mend it, and the same command goes on")
    return peak


def _high_water(pid: int) -> int | None:
    """The kernel's VmHWM of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def _figures(experiment: Experiment, run: Path, peak: int | None) -> Figures:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = [(int(row["step"]), float(row["progress/seconds"])) for row in rows if row["progress/seconds"]]
    clock = np.array([(0, 0.0), *logged])
    curve = [
        (
            int(float(row["progress/tokens"])),
            float(np.interp(int(row["step"]), clock[:, 0], clock[:, 1])),
            float(row["validation/loss"]),
        )
        for row in rows
        if row["validation/loss"]
    ]
    model, length = experiment.model, int(experiment.model.context)
    decoder = model.family == "decoder"
    patterns = layer_patterns(model, model.layers, decoder=decoder)
    dense = length * (length + 1) // 2 if decoder else length**2
    heads = [part.kept(length, length) / len(pattern.heads()) for pattern in patterns for part in pattern.heads()]
    parts = cost.flops(model, length).parts
    return Figures(
        parameters=cost.parameters(model).total,
        loss=curve[-1][2],
        curve=curve,
        seconds=float(clock[-1, 1]),
        tokens=curve[-1][0],
        flops=training_flops(model, experiment.objective, length),
        attention_flops=3 * parts["attention scores"] / length,
        kept=sum(heads) / (model.layers * dense),
        peak=peak,
        layers=[str(pattern) for pattern in patterns],
        wandb=str(experiment.tracking.group),
    )

"""What the tests of fine-tuning share: tiny labelled data for each task, settings, and a run that dies at a step."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path

import pytest
import yaml

from triune.cli import main
from triune.objectives.task_config import TASK_FAMILIES
from triune.training.module import TransformerModule

COLOURS, ANIMALS = ["green", "blue"], ["cat", "dog", "house"]
CLOCK = ("train/tokens_per_second", "train/mfu", "progress/seconds")  # what a clock decides
WEIGHTS = "model/model.safetensors"


def _turn(number):
    return f"the {COLOURS[number % 2]} {ANIMALS[number % 3]} sees a {'young' if number % 5 else 'old'} garden"


def _texts(number):
    return {"text": _turn(number), "label": ANIMALS[number % 3]}


def _pairs(number):
    return {"text": _turn(number), "pair": _turn(number + number % 2), "label": str(number % 2)}


def _several(number):
    return {"text": _turn(number), "labels": sorted({COLOURS[number % 2], ANIMALS[number % 3]})}


def _scored(number):
    return {"text": _turn(number), "score": number % 3 + 0.5 * (number % 2)}


def _tagged(number):
    words = _turn(number).split()
    return {"words": words, "tags": ["B-A" if word in ANIMALS else "I-A" if word == "sees" else "O" for word in words]}


def _asked(number):
    context = " and ".join(_turn(number + more) for more in range(3))
    text = ANIMALS[number % 3]
    answers = (
        {"text": [text], "answer_start": [context.index(text)]} if number % 4 else {"text": [], "answer_start": []}
    )
    return {"question": f"{COLOURS[number % 2]} sees", "context": context, "answers": answers}


def _translated(number):
    return {"text": _turn(number), "target": f"{ANIMALS[number % 3]} {COLOURS[number % 2]}"}


def _talked(number):
    roles = ("user", "assistant", "user", "assistant")
    return {"messages": [{"role": role, "content": _turn(number + at)} for at, role in enumerate(roles)]}


def _matched(number):
    return {"text": _turn(number), "match": f"{ANIMALS[number % 3]} or {COLOURS[number % 2]} {number % 7 * 'with '}"}


#: name -> (the task's settings, what makes record i, its first metric)
TASKS = {
    "classification": ({"kind": "classification"}, _texts, "accuracy"),
    "pairs": ({"kind": "classification", "class_weights": "balanced"}, _pairs, "accuracy"),
    "multi_label": ({"kind": "classification", "multi_label": True}, _several, "micro F1"),
    "regression": ({"kind": "regression"}, _scored, "Pearson correlation"),
    "token_classification": ({"kind": "token_classification"}, _tagged, "entity F1"),
    "question_answering": ({"kind": "question_answering", "stride": 8}, _asked, "exact match"),
    "sequence_to_sequence": ({"kind": "sequence_to_sequence", "target_length": 5}, _translated, "BLEU"),
    "instruction": ({"kind": "instruction", "reply_length": 6}, _talked, "reply perplexity"),
    "response_selection": (
        {"kind": "response_selection", "candidates": 3, "context_length": 24, "reply_length": 16},
        _matched,
        "accuracy",
    ),
}

#: every task x family that claims it, with the kinds of classification spread over the families
PAIRS = [(kind, family) for kind, families in TASK_FAMILIES.items() for family in families]
PAIRS += [("pairs", "encoder"), ("pairs", "encoder_decoder"), ("multi_label", "decoder")]


def write_records(task, file, count, first=0):
    """`count` records of a task as a jsonl file."""
    make = TASKS[task][1]
    file.write_text("".join(json.dumps(make(number)) + "\n" for number in range(first, first + count)))
    return file


def settings(task, source, directory, *, records=12, held=5):
    """A fine-tuning of 9 steps of 4 rows: validated after each third step, checkpointed after each second."""
    directory.mkdir(parents=True, exist_ok=True)
    train = write_records(task, directory / f"{task}-train.jsonl", records)
    validation = write_records(task, directory / f"{task}-validation.jsonl", held, first=records)
    return {
        "init": {"from": str(source)},
        "objective": TASKS[task][0],
        "data": {"train": [str(train)], "validation": [str(validation)], "rows": {"kind": "single"}},
        "optimizer": {"kind": "adamw", "learning_rate": 3e-3},
        "schedule": {"kind": "linear", "warmup": 0.1},
        "run": {
            "tokens": 9 * 4 * 48,
            "batch_rows": 4,
            "micro_batch": 2,
            "validate_every": "3 steps",
            "checkpoint_every": "2 steps",
            "directory": str(directory / "runs"),
        },
        "trainer": {"enable_progress_bar": False},
        "tracking": {"mode": "disabled", "log_every": 2},
    }


def write(tree, file):
    """A tree of settings as a YAML file."""
    file.write_text(yaml.safe_dump(tree))
    return file


def finetune(config, name, *more):
    """`triune finetune`, in this process; its run directory."""
    assert main(["finetune", str(config), f"--name={name}", *map(str, more)]) == 0
    tree = yaml.safe_load(Path(config).read_text())
    return Path(tree["run"]["directory"]) / "finetune" / name


class Killed(BaseException):
    """Ends a run as a signal would, whatever catches exceptions."""


@contextlib.contextmanager
def killed_at(step):
    """A run that begins step `step` (from 0) dies there, with nothing saved since its last checkpoint."""
    whole = TransformerModule.training_step

    def training_step(module, batch, number):
        if module.trainer.global_step == step:
            raise Killed
        return whole(module, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformerModule, "training_step", training_step)
        with pytest.raises(Killed):
            yield


def report(run):
    """What a run reported."""
    return json.loads((run / "report.json").read_text())


def logged(run):
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in CLOCK} for row in csv.DictReader(file)]


def predictions(run):
    """The lines of predictions.jsonl."""
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def assert_same_run(run, expected):
    """Two runs ended alike, to the bit."""
    assert (run / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert (run / "predictions.jsonl").read_bytes() == (expected / "predictions.jsonl").read_bytes()
    first, second = report(run), report(expected)
    assert first["validation"] == second["validation"]
    assert first["report"]["scores"] == second["report"]["scores"]
    assert first["report"]["samples"] == second["report"]["samples"]
    assert logged(run) == logged(expected)

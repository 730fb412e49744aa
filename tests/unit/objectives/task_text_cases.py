"""What the tests of the tasks that write text share: tiny tokenizers and models, records, and training on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from triune.data.config import TokenizerConfig
from triune.data.task_rows import TaskRows
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.inference.outputs import outputs
from triune.models import build
from triune.objectives.batch import Batch, collate
from triune.objectives.record import Message, Record
from triune.objectives.task import Encoded, Task, joined
from triune.objectives.task_config import TaskConfig
from triune.objectives.tasks import build_task

_TEXT = "A: how are you today?\nB: I am well, thank you\nA: what is one and two\nB: three of them\nthe cat sat on the mat. dé: b.c é"


@cache
def tokenizer(kind: str = "byte_bpe") -> Tokenizer:
    """A tokenizer of a few merges."""
    vocabulary = {"byte_bpe": 300, "unigram": 100, "wordpiece": 160}[kind]
    return train_tokenizer(TokenizerConfig(kind=kind, vocabulary=vocabulary, sentinels=2), [_TEXT] * 4)


def task_of(config: TaskConfig, family: str, *, context: int = 64, text: Tokenizer | None = None) -> Task:
    """A task, checked."""
    task = build_task(config, text or tokenizer(), context, family=family)
    task.check(family)
    return task


def pair(text: str, target: str, where: str = "pairs.csv:2") -> Record:
    """A record of sequence to sequence."""
    return Record(where, {"text": text, "target": target})


def chat(*turns: str, where: str = "chats.jsonl:1") -> Record:
    """A record of instruction; a turn is "user: Hello"."""
    parted = [turn.split(": ", 1) for turn in turns]
    return Record(where, {"messages": [Message(role, text) for role, text in parted]})


def model_for(task: Task, seed: int = 0) -> torch.nn.Module:
    """Two layers of width 32 (each side), with relative positions and no dropout."""
    torch.manual_seed(seed)
    return build(
        {
            "family": task.family,
            "layers": 2,
            "width": 32,
            "heads": 2,
            "context": task.context,
            "vocabulary": task.vocabulary.size,
            "dropout": 0.0,
        }
    )


def hidden_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return model(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout)


def learn(model: torch.nn.Module, task: Task, records: Sequence[Record], *, steps: int, rate: float = 3e-3) -> float:
    """Train on all records at each step, packed; the last loss in nats a token."""
    rows = TaskRows(task.encode(records, training=True), capacity=task.context, kind="packed")
    batch = collate([joined(row) for row in (rows[n] for n in range(len(rows)))], pad=task.vocabulary.pad, length=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.head.loss(hidden_of(model, batch), batch.targets, batch.weights, selected=batch.predicted)
        (loss.total / loss.weight).backward()
        optimizer.step()
    return float(loss.total.detach() / loss.weight)


def predictions(model: torch.nn.Module, task: Task, records: Sequence[Record], **writing: object) -> list[dict]:
    encoded = task.encode(records, training=False)
    given = outputs(model, task, encoded, writing=writing or None)
    return task.predict(encoded, given, records)


def learned_texts(task: Task, encoded: Encoded) -> list[str]:
    """The stretches of targets with a weight, as text; special tokens spelled."""
    example = encoded.example
    stretches: list[list[int]] = []
    before = False
    for target, weight in zip(example.targets.tolist(), example.weights.tolist(), strict=True):
        if weight and not before:
            stretches.append([])
        if weight:
            stretches[-1].append(target)
        before = bool(weight)
    return [task.text.decode(ids, skip_special_tokens=False) for ids in stretches]


def alone_and_packed(task: Task, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states in fp64 of each example in a row of its own, and of all of them in one row, end to end."""
    model = model_for(task).double().eval()
    examples = [one.example for one in task.encode(records, training=True)]
    found = []
    for rows in ([[example] for example in examples], [examples]):
        batches = [collate([joined(row)], pad=task.vocabulary.pad, length=None, multiple_of=1) for row in rows]
        with torch.no_grad():
            found.append(torch.cat([hidden_of(model, batch)[0] for batch in batches]).numpy())
    return found[0], found[1]

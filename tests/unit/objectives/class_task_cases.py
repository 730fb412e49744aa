"""What the tests of classification, regression and token classification share: small tokenizers, toy problems, tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.models.factory import build
from triune.objectives.batch import Batch, collate
from triune.objectives.record import Record
from triune.objectives.task import Encoded, Task, joined
from triune.objectives.task_config import TaskConfig
from triune.objectives.tasks import build_task, task_class

torch.set_num_threads(1)

FAMILIES = ["encoder", "decoder", "encoder_decoder"]
_SENTENCE = (
    "apple pear plum cherry grape hammer nail saw drill plane red green big small old Maria Paris lives in near eats"
)
WORDS = _SENTENCE.split()
CONTEXT = 24


@cache
def tokenizer(kind: str = "byte_bpe") -> Tokenizer:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(WORDS)) for _ in range(50)]
    size = {"byte_bpe": 420, "wordpiece": 120, "unigram": 80}[kind]
    config = TokenizerConfig(kind=kind, vocabulary=size, sentinels=0)  # type: ignore[arg-type]
    return train_tokenizer(config, texts)


def records(fields: Sequence[dict[str, Any]]) -> list[Record]:
    return [Record(f"toy.csv:{number}", one) for number, one in enumerate(fields, 2)]


def make(config: TaskConfig, train: Sequence[Record], family: str, **more: Any) -> Task:
    """A task as `assembly` makes it, checked."""
    settings = {"context": CONTEXT, "text": tokenizer()} | more
    task = build_task(config, settings.pop("text"), settings.pop("context"), family=family, records=train, **settings)
    task.check(family)
    return task


def labels(config: TaskConfig, train: Sequence[Record]) -> list[str] | None:
    return task_class(config.kind).labels_of(config, train)


def model_for(task: Task, **more: Any) -> nn.Module:
    """A tiny model with the task's head; the same weights each time."""
    torch.manual_seed(0)
    return build(
        {"family": task.family, "vocabulary": task.text.vocabulary.size, "context": 4 * CONTEXT, "width": 32, "layers": 2, "heads": 4},
        head=task.head(),
        **more,
    )  # fmt: skip


def rows(encoded: Sequence[Encoded], share: int) -> Batch:
    """A batch with `share` examples in each row."""
    examples = [one.example for one in encoded]
    packed = [joined(examples[i : i + share]) for i in range(0, len(examples), share)]
    return collate(packed, pad=0, length=None)


def hidden(model: nn.Module, batch: Batch) -> Tensor:
    types = {} if batch.token_types is None else {"token_types": batch.token_types}
    return model(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout, **types)


def loss(model: nn.Module, batch: Batch) -> Any:
    """As `TransformerModule.loss` calls it."""
    return model.head.loss(
        hidden(model, batch), batch.targets, batch.weights, layout=batch.layout, values=batch.values, selected=batch.predicted
    )  # fmt: skip


def scores(model: nn.Module, encoded: Sequence[Encoded], share: int = 1) -> list[np.ndarray]:
    """What evaluation hands to `predict`: for each of `encoded` its scores [k, L]."""
    model.eval()
    with torch.no_grad():
        batch = rows(encoded, share)
        flat = model.head.scores(hidden(model, batch), batch.weights, batch.layout).numpy()
    counts = [int(np.count_nonzero(one.example.weights)) for one in encoded]
    return np.split(flat, np.cumsum(counts)[:-1])


def learn(task: Task, train: Sequence[Record], *, steps: int = 60, rate: float = 3e-3, share: int = 4) -> nn.Module:
    """A tiny model after `steps` steps of AdamW on all of `train`."""
    model, batch = model_for(task), rows(task.encode(train, training=True), share)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 5) * (1 - step / steps)
        output = loss(model, batch)
        optimizer.zero_grad()
        (output.total / output.weight).backward()
        optimizer.step()
    return model


def assert_packing_changes_nothing(task: Task, train: Sequence[Record], share: int) -> None:
    """Loss, gradients and scores of rows that examples share are those of rows of one example (fp64: only sums are reordered)."""
    encoded = task.encode(train, training=True)
    found = []
    for each in (1, share):
        model = model_for(task).double()
        output = loss(model, rows(encoded, each))
        output.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((output.total.detach(), output.weight, *gradients))
        given = np.concatenate(scores(model, encoded, each))
        found[-1] += (torch.from_numpy(given),)
    assert len(found[0]) > 10
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)

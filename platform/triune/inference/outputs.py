"""What a model gives for encoded examples, as tasks ask for it (`objectives.task.Output`).

Legend: B batch, T length, L labels, D documents, M model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triune.inference.generation import generate
from triune.inference.rows import answering
from triune.models.class_head import ClassHead
from triune.models.factory import Transformer
from triune.objectives.batch import Batch, collate
from triune.objectives.task import Encoded, Task

_BATCH_TOKENS = 8192  # of one forward pass, padding included


def outputs(
    model: Transformer,
    task: Task,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int = _BATCH_TOKENS,
    writing: dict[str, Any] | None = None,
) -> list[Any]:
    """What the model gives for each example, in order: arrays, or for a task that writes lists of ids.

    An example is alone in its row, and rows of like length share a batch; neither changes what is given but for rounding.

    Args:
        model: of the task's family, with its head.
        task: says what to ask the model for.
        encoded: the examples.
        batch_tokens: most tokens of a forward pass, unless one row has more.
        writing: settings of the generation, for a task that writes.
    """
    given: list[Any] = [None] * len(encoded)
    with answering(model) as device:
        for chosen in _batches(encoded, batch_tokens):
            part = [encoded[number] for number in chosen]
            answers = (
                _written(model, task, part, writing or {})
                if task.output == "text"
                else _read(model, task, part, device=device)
            )
            for number, answer in zip(chosen, answers, strict=True):
                given[number] = answer
    return given


def _batches(encoded: Sequence[Encoded], tokens: int) -> Iterator[list[int]]:
    """Numbers of the examples that share a forward pass, longest first: what does not fit into memory fails at once."""
    lengths = [
        max(len(one.example.inputs), 0 if one.example.source is None else len(one.example.source)) for one in encoded
    ]
    order = sorted(range(len(encoded)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


def _read(model: Transformer, task: Task, part: Sequence[Encoded], *, device: torch.device) -> list[np.ndarray]:
    batch = collate([one.example for one in part], pad=task.vocabulary.pad, length=None).to(device)
    types: dict[str, Any] = {} if batch.token_types is None else {"token_types": batch.token_types}
    hidden = model(batch.inputs, batch.layout, source=batch.source, source_layout=batch.source_layout, **types)
    if task.output == "likelihoods":
        return _split(_likelihoods(model, hidden, batch), batch)
    head = model.head
    assert isinstance(head, ClassHead)
    if task.output == "scores":
        return _split(head.scores(hidden, batch.weights, batch.layout), batch)
    if task.output == "positions":
        scores = head.logits(hidden, batch.layout).float().cpu().numpy()  # [B, T, L]
        return [row[: len(one.example.inputs)] for row, one in zip(scores, part, strict=True)]
    documents = [int(one.example.documents.max()) + 1 for one in part]
    vectors = head.vectors(hidden, batch.layout, max(documents)).float().cpu().numpy()  # [B, D, M]
    return [row[:count] for row, count in zip(vectors, documents, strict=True)]


def _likelihoods(model: Transformer, hidden: Tensor, batch: Batch) -> Tensor:
    """[k] log-likelihood of each target of weight above 0, row by row."""
    chosen = batch.weights > 0
    scores = model.head.logits(hidden[chosen]).float()  # [k, V]
    return scores.log_softmax(-1).gather(1, batch.targets[chosen].unsqueeze(1)).squeeze(1)


def _split(values: Tensor, batch: Batch) -> list[np.ndarray]:
    """What stands for the positions of weight above 0, one array a row."""
    counts = (batch.weights > 0).sum(1).tolist()
    return [part.numpy() for part in values.float().cpu().split(counts)]


def _written(model: Any, task: Task, part: Sequence[Encoded], writing: dict[str, Any]) -> list[list[int]]:
    prompts = [(one.example.inputs[:1] if one.prompt is None else one.prompt).tolist() for one in part]
    sources = [one.example.source.tolist() for one in part if one.example.source is not None] or None
    vocabulary = task.vocabulary
    room = int(model.config.context) - max(map(len, prompts))
    settings = {"max_new_tokens": max(1, room), **writing}
    settings["max_new_tokens"] = max(1, min(settings["max_new_tokens"], room))
    return generate(model, prompts, sources=sources, eos=vocabulary.closing, pad=vocabulary.pad, **settings)

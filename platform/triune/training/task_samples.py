"""A few answers of a model to labelled records, as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from triune.inference.config import GenerationConfig
from triune.inference.generation import generate
from triune.inference.text import Stops, cut
from triune.models.factory import Transformer
from triune.objectives.record import Record
from triune.objectives.task import Task
from triune.tracking.report import Sample

_WIDTH = 200  # characters of a field
_LINES = 5  # the end of a conversation
_SAMPLING = GenerationConfig(temperature=0.8, top_k=50, seed=1)


def task_samples(
    model: Transformer,
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[Mapping[str, Any]] | None,
    *,
    count: int,
) -> list[Sample]:
    """What the model makes of the first records: the replies it writes, or what it predicted.

    Args:
        model: of the task's family, with its head.
        task: what was learned.
        records: labelled.
        predictions: of the records; None shows replies only.
        count: samples.
    """
    prompts = task.reply_prompts(records, count)
    if prompts:
        return [_reply(model, task, prompt) for prompt in prompts]
    if predictions is None:
        return []
    shown = list(zip(records, predictions, strict=True))[:count]
    return [
        Sample(prompt=_fields(record) + "\n", continuation=_fields_of(task.shown(prediction)))
        for record, prediction in shown
    ]


def beside(before: Sequence[Sample], after: Sequence[Sample]) -> list[Sample]:
    """The same prompts answered twice, as one sample each; `after` as it is where nothing was asked before."""
    if [sample.prompt for sample in before] != [sample.prompt for sample in after]:
        return list(after)
    return [replace(two, before=one.continuation) for one, two in zip(before, after, strict=True)]


def _reply(model: Any, task: Any, prompt: Any) -> Sample:
    """What the model replies to a conversation: `prompt` is one of the task's `reply_prompts`."""
    ids = prompt.prompt.tolist()
    written = generate(
        model,
        [ids],
        _SAMPLING,
        sources=None if prompt.source is None else [prompt.source.tolist()],
        eos=task.ends,
        pad=task.vocabulary.pad,
        ending=Stops(task.text.decode, task.stop, before=ids),
        max_new_tokens=max(1, min(task.config.reply_length, int(model.config.context) - len(ids))),
    )[0]
    text = task.text.decode([*ids, *written])[len(task.text.decode(ids)) :]
    shown = "\n".join(prompt.conversation.splitlines()[-_LINES:])
    return Sample(prompt=f"{shown}\n", continuation=cut(text, task.stop).strip())


def _fields(record: Record) -> str:
    return _fields_of(record.fields)


def _fields_of(fields: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {_short(value)}" for name, value in fields.items())


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"

"""What a model writes, by family: continuations, filled masks, restored spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from triune.data.rows import Rows
from triune.data.tokenizers import Tokenizer
from triune.inference.filling import fill, filled
from triune.inference.generation import generate
from triune.models.encoder import Encoder
from triune.models.factory import Transformer
from triune.objectives.base import Objective
from triune.objectives.batch import Segment
from triune.objectives.seeding import generator
from triune.tracking.loggers import log_samples
from triune.tracking.report import Sample

_PROMPT = 24  # tokens of a validation document that a decoder goes on from, but at most half its context
_DOCUMENT = 64  # tokens of a validation document that is corrupted and restored
_NEW = 64  # most tokens written
_SAMPLING = {"temperature": 0.8, "top_k": 50, "seed": 1}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Ids for a model to work on: what it starts with, and what an encoder beside it reads."""

    prompt: list[int]
    source: list[int] | None = None


def tasks(objective: Objective, rows: Sequence[Rows], count: int) -> list[Task]:
    """Tasks of the first `count` validation documents, the same each time."""
    documents = (segment for part in rows for row in range(len(part)) for segment in part[row] if segment.starts)
    return [_task(objective, document, number) for number, document in zip(range(count), documents, strict=False)]


def _task(objective: Objective, document: Segment, number: int) -> Task:
    if "decoder" in objective.families:
        return Task(
            prompt=[objective.vocabulary.opening, *document.ids[: min(_PROMPT, objective.context // 2 - 1)].tolist()]
        )
    if document.split is None:
        document = Segment(document.ids[: min(_DOCUMENT, objective.longest)])
    example = objective([document], generator(0, 0, number))
    if example.source is None:
        return Task(prompt=example.inputs.tolist())
    return Task(prompt=example.inputs[:1].tolist(), source=example.source.tolist())


def write(model: Transformer, tokenizer: Tokenizer, work: Sequence[Task], **sampling: Any) -> list[Sample]:
    """What the model makes of each task, as text.

    A decoder goes on (sampled), an encoder fills the masks and an encoder-decoder spells out its target (both by the best
    answer), so that `sampling` counts for a decoder only.
    """
    if not work:
        return []
    vocabulary = tokenizer.vocabulary
    prompts = [task.prompt for task in work]
    if isinstance(model, Encoder):
        assert vocabulary.mask is not None
        answers = filled(prompts, fill(model, prompts, mask=vocabulary.mask, pad=vocabulary.pad))
        return [_shown(tokenizer, given, answer, apart=True) for given, answer in zip(prompts, answers, strict=True)]
    sources = [task.source for task in work if task.source is not None] or None
    room = int(model.config.context) - max(map(len, prompts))
    chosen = {"max_new_tokens": max(1, min(_NEW, room)), **(sampling if sources is None else {})}
    answers = generate(model, prompts, sources=sources, eos=vocabulary.closing, pad=vocabulary.pad, **chosen)
    given = sources or prompts
    return [_shown(tokenizer, g, answer, apart=sources is not None) for g, answer in zip(given, answers, strict=True)]


def _shown(tokenizer: Tokenizer, given: Sequence[int], answer: Sequence[int], *, apart: bool) -> Sample:
    """Text with masks and sentinels, without the borders of documents and entries that only round up the vocabulary.

    `apart` sets an answer that does not go on from the prompt on a line of its own.
    """
    vocabulary = tokenizer.vocabulary
    hidden = {vocabulary.pad, vocabulary.bos, vocabulary.eos}
    shown = [
        tokenizer.decode([i for i in ids if i not in hidden and i < tokenizer.size], skip_special_tokens=False)
        for ids in (given, answer)
    ]
    return Sample(prompt=shown[0] + ("\n" if apart else ""), continuation=shown[1])


def write_samples(
    model: Transformer, objective: Objective, tokenizer: Tokenizer, rows: Sequence[Rows], *, count: int
) -> list[Sample]:
    """What the model makes of the first validation documents."""
    return write(model, tokenizer, tasks(objective, rows, count), **_SAMPLING)


class SampleTable(Callback):
    """Logs what the model writes after each validation as a W&B table.

    Args:
        objective: which decides the task.
        tokenizer: text and ids.
        rows: validation rows.
        count: tasks; 0 logs nothing.
    """

    def __init__(self, objective: Objective, tokenizer: Tokenizer, rows: Sequence[Rows], count: int) -> None:
        self.tokenizer = tokenizer
        self.tasks = tasks(objective, rows, count)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log, on rank 0, outside the clock of training."""
        if not self.tasks or not trainer.is_global_zero or not trainer.loggers:
            return
        samples = write(pl_module.model, self.tokenizer, self.tasks, **_SAMPLING)  # type: ignore[arg-type]
        log_samples(trainer.loggers, [(s.prompt, s.continuation) for s in samples], trainer.global_step)


def with_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which masks and sentinels mean themselves (in a corpus they never do)."""
    vocabulary, roles = tokenizer.vocabulary, tokenizer.roles
    known = dict(zip(roles.sentinels, vocabulary.sentinels, strict=True))
    if roles.mask is not None and vocabulary.mask is not None:
        known[roles.mask] = vocabulary.mask
    if not known:
        return tokenizer.encode_batch([text])[0].tolist()
    pieces = re.split(f"({'|'.join(map(re.escape, known))})", text)
    plain = iter(tokenizer.encode_batch([piece for piece in pieces if piece not in known]))
    return [i for piece in pieces for i in ([known[piece]] if piece in known else next(plain).tolist())]

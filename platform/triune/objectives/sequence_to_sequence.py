"""A text from a text: translation, summaries, any rewriting (Sutskever et al. 2014)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from triune.errors import UserError
from triune.objectives.assemble import continued, next_token
from triune.objectives.batch import Example
from triune.objectives.measures import Measure
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Output, Task
from triune.objectives.task_config import TASK_FAMILIES, SequenceToSequenceTask
from triune.objectives.text import Frame
from triune.objectives.text_measures import bleu, chrf, exact_match, rouge


class SequenceToSequence(Task):
    """Writes the target of a source; only the target and what closes it are learned.

    An encoder-decoder's encoder reads the source, and its decoder writes the target from its start token, as in pretraining on
    pairs (`Translation`). A decoder reads source, separator and target in one row. Source, separator and target are encoded
    each by itself: writing starts from exactly the ids that training has before the target.

    Where a pair is longer than a row, the end of its source goes first. A target too long for a row by itself loses its end in
    training; what is written is measured by the whole.
    """

    kind = "sequence_to_sequence"
    families = frozenset(TASK_FAMILIES[kind])
    fields: ClassVar[tuple[Field, ...]] = (
        Field(name="text", kind="text", meaning="the text to write from"),
        Field(name="target", kind="text", meaning="the text to write"),
    )
    output: ClassVar[Output] = "text"
    measures_perplexity = True

    config: SequenceToSequenceTask

    def head(self) -> Mapping[str, Any] | None:
        return None

    def _check(self) -> None:
        config = self.config
        if config.beams < 1:
            raise UserError(f"objective.beams: {config.beams} is below 1; 1 writes greedily, 4 to 6 beams are usual")
        if config.target_length is not None and not 1 <= config.target_length <= self._target_room(1):
            raise UserError(
                f"objective.target_length: {config.target_length} tokens are not between 1 and the {self._target_room(1)} that a row "
                f"of {self.context} has room for beside a source; lower it, or lengthen data.rows.length"
            )
        if self.family == "decoder" and len(self._separator) == 0:
            raise UserError(
                f"objective.separator: {config.separator!r} is no token of this tokenizer, and a decoder must see where the source "
                'ends; set one that is, such as " = "'
            )
        if self._target_room(1) < 1:
            raise UserError(
                f"data.rows.length: a row of {self.context} tokens has no room for a source and a target; make it longer"
            )

    # ---- rows --------------------------------------------------------------------------------------------------

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        sources, targets = self._ids(records)
        if training:
            for name, texts in (("text", sources), ("target", targets)):
                _refuse_blank(name, texts, records)
        row = self._pair if self.family == "encoder_decoder" else self._line
        return [
            Encoded(example=row(source, target), record=number, prompt=self._prompt(source))
            for number, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]

    def _ids(self, records: Sequence[Record]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of each source, prefix included, and of each target."""
        sources = self.text.encode_batch([self.config.prefix + record.fields["text"] for record in records])
        return sources, self.text.encode_batch([record.fields["target"] for record in records])

    def _pair(self, source: np.ndarray, target: np.ndarray) -> Example:
        """What an encoder and its decoder read."""
        read = self._frame(source, length=self.context).ids
        learned = self._closed(target, self.context)
        return next_token(
            learned,
            np.array([len(learned)]),
            start=self.vocabulary.decoder_start,
            source=(read, np.array([len(read)])),
        )

    def _line(self, source: np.ndarray, target: np.ndarray) -> Example:
        """What a decoder reads."""
        learned = self._closed(target, self._target_room(0))
        given = self._given(source, self.context + 1 - len(learned))
        return continued(np.concatenate([given, learned]), np.arange(len(given) + len(learned)) >= len(given))

    def _prompt(self, source: np.ndarray) -> np.ndarray:
        """What writing starts from. How long the text will be is not known: `target_length` tokens of the row are kept for it,
        else half of the row."""
        if self.family == "encoder_decoder":
            return np.array([self.vocabulary.decoder_start])
        return self._given(source, self.context - self._kept)

    def _given(self, source: np.ndarray, length: int) -> np.ndarray:
        """A decoder's row up to the target, in at most `length` tokens."""
        before = self._frame.before
        room = max(0, length - len(before) - len(self._separator))
        return np.concatenate([before, source[:room], self._separator]).astype(np.int64)

    def _closed(self, target: np.ndarray, length: int) -> np.ndarray:
        """The target with what closes it, or its first `length` tokens: what is cut does not end there."""
        return np.append(target, self.vocabulary.closing)[:length].astype(np.int64)

    @cached_property
    def _frame(self) -> Frame:
        return self.text.frame(self.family)

    @cached_property
    def _separator(self) -> np.ndarray:
        return self.text.encode_batch([self.config.separator])[0]

    @property
    def _kept(self) -> int:
        """Tokens of a decoder's row that a prompt leaves free."""
        return self.context // 2 if self.config.target_length is None else self.config.target_length

    def _target_room(self, source: int) -> int:
        """Most tokens of a target and its closing beside `source` tokens of text."""
        if self.family == "encoder_decoder":
            return self.context
        return self.context + 1 - len(self._frame.before) - len(self._separator) - source

    # ---- results -----------------------------------------------------------------------------------------------

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        """`outputs` are lists of ids, without the prompt; what stands behind a closing token does not count."""
        texts = {one.record: self._read(ids) for one, ids in zip(encoded, outputs, strict=True)}
        return [{"text": texts[number]} for number in range(len(records))]

    def _read(self, ids: Sequence[int]) -> str:
        written = [int(token) for token in ids]
        closing = self.vocabulary.closing
        return self.text.decode(written[: written.index(closing)] if closing in written else written).strip()

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        written = [str(prediction["text"]) for prediction in predictions]
        references = [record.fields["target"] for record in records]
        if self.config.metric == "exact_match":
            return [exact_match(written, references)]
        if self.config.metric == "rouge":
            return rouge(written, references)
        return [bleu(written, references), chrf(written, references)]

    def describe(self, records: Sequence[Record]) -> str:
        """How long sources and targets are, and how many of them a row cuts."""
        sources, targets = (np.array([len(ids) for ids in texts]) for texts in self._ids(records))
        if not len(sources):
            return ""
        lines = [
            f"{len(sources):,} pairs; tokens of a source {_spread(sources)}, of a target {_spread(targets)} (median, longest)"
        ]
        learned = np.minimum(targets + 1, self._target_room(0))
        cut = {"targets": targets + 1 > learned, "sources": sources > self._source_room(learned)}
        lines += [
            f"{int(which.sum()):,} {name} are longer than a row of {self.context} tokens leaves room for, and lose their end"
            for name, which in cut.items()
            if which.any()
        ]
        short = sources > self._source_room(np.full_like(learned, self._kept + 1))
        if self.family == "decoder" and short.any():
            lines.append(
                f"{int(short.sum()):,} sources lose their end when their text is written, because a row keeps {self._kept} tokens for it; "
                "objective.target_length sets how many"
            )
        return "\n".join(lines)

    def _source_room(self, learned: np.ndarray) -> np.ndarray:
        """Most tokens of a source beside so many learned ones."""
        if self.family == "encoder_decoder":
            return np.full_like(learned, self._frame.room(self.context))
        return self._target_room(0) - learned

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """What the source itself reaches as the text."""
        copies = [{"text": record.fields["text"]} for record in records]
        return {measure.name: measure.value for measure in self.measures(copies, records)}


def _refuse_blank(name: str, texts: Sequence[np.ndarray], records: Sequence[Record]) -> None:
    for ids, record in zip(texts, records, strict=True):
        if len(ids) == 0 or not record.fields[name].strip():
            raise UserError(
                f"{record.where}: the {name} is {record.fields[name]!r}, which holds no token to "
                f"{'read' if name == 'text' else 'learn'}; give a text, or leave the record out"
            )


def _spread(lengths: np.ndarray) -> str:
    return f"{int(np.median(lengths)):,}, {int(lengths.max()):,}"

"""Extractive question answering: the span of a context that answers a question, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from triune.errors import UserError
from triune.objectives.answers import exact_match, f1
from triune.objectives.batch import Example
from triune.objectives.measures import Measure, mean
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Task, mark
from triune.objectives.task_config import QuestionAnsweringTask
from triune.objectives.text import Frame

_START, _END, _BOTH = 1, 2, 3  # targets; see `models.class_loss.span`

Span = tuple[int, int]  # first and last token


@dataclass(frozen=True)
class Window:
    """The part of a context that a row holds: where in the row it begins, and which characters each of its tokens stands for."""

    first: int
    offsets: np.ndarray  # [c, 2] of the whole context's text


@dataclass(frozen=True)
class _Found:
    """The best span of a window."""

    score: float
    start: int  # in characters
    stop: int
    total: float  # logarithm of the sum of e^score over the window's spans


class QuestionAnswering(Task):
    """Start and end of the answer among the tokens of a row (Devlin et al. 2019, 4.2); "no answer" is the row's first token as both (4.3).

    A context that is too long is read in windows that overlap, each in a row of its own with the question. A window learns the answer
    that it holds; one that holds none of it learns "no answer"; one that holds a part of it learns nothing.
    """

    kind = "question_answering"
    config: QuestionAnsweringTask
    fields: ClassVar = (
        Field(name="question", kind="text", meaning="what is asked"),
        Field(name="context", kind="text", meaning="the text that answers it"),
        Field(name="answers", kind="answers", meaning="spans of the context, or none where it has no answer"),
        Field(name="id", kind="label", meaning="the name of the question", optional=True),
    )
    output: ClassVar = "positions"
    best: ClassVar = "F1"
    packs: ClassVar = False

    def head(self) -> Mapping[str, Any]:
        return {"kind": "classes", "labels": 2, "problem": "span", "pool": "none", "transform": False}

    def _check(self) -> None:
        self._plain_loss()
        for name, least in (("stride", 0), ("answer_length", 1)):
            value = getattr(self.config, name)
            if value < least:
                raise UserError(f"objective.{name}: {value} is no number of tokens; it must be at least {least}")

    # ---- rows ----------------------------------------------------------------------------------------------------

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        """One row a window, those of a record one after the other; see `Task.encode`. In training, windows that learn nothing are left out."""
        frame = self.text.frame(self.family)
        # a decoder's texts have no token between them that tells where the context begins
        ending = "" if frame.between else "\n"
        questions = self.text.encode_batch([record.fields["question"].strip() + ending for record in records])
        texts = list(dict.fromkeys(record.fields["context"] for record in records))  # many questions share a context
        contexts = dict(zip(texts, self.text.encode_aligned(texts), strict=True))
        encoded: list[Encoded] = []
        for number, (record, question) in enumerate(zip(records, questions, strict=True)):
            ids, offsets = contexts[record.fields["context"]]
            rows = self._rows(record, frame, question, ids, offsets, training=training)
            encoded += [Encoded(example=example, record=number, origin=window) for example, window in rows]
        return encoded

    def _rows(
        self,
        record: Record,
        frame: Frame,
        question: np.ndarray,
        ids: np.ndarray,
        offsets: np.ndarray,
        *,
        training: bool,
    ) -> list[tuple[Example, Window]]:
        span = self._span(record, offsets, training=training)
        room = self._room(record, frame, question, ids)
        rows, held = [], False
        for start, stop in windows(len(ids), room, self.config.stride):
            framed = frame(question, ids[start:stop])
            window = Window(framed.starts[1], offsets[start:stop])
            example = self._marked(
                self.read(framed.ids, token_types=framed.token_types), window.first - start, start, stop, span
            )
            held |= span is not None and start <= span[0] and span[1] < stop
            if not training or example.weights.any():
                rows.append((example, window))
        if training and span is not None and not held:
            raise UserError(
                f"{record.where}: the answer has {span[1] - span[0] + 1} tokens, and no window of {room} tokens holds it whole; "
                f"raise objective.stride ({self.config.stride}) or model.context ({self.context}), or leave this question out"
            )
        return rows

    def _room(self, record: Record, frame: Frame, question: np.ndarray, context: np.ndarray) -> int:
        """Tokens of context that a row has room for."""
        for name, ids in (("question", question), ("context", context)):
            if not len(ids):
                raise UserError(f"{record.where}: the {name} {record.fields[name]!r} has no token that the model knows")
        room = frame.room(self.context, pair=True) - len(question)
        if room < 1:
            raise UserError(
                f"{record.where}: the question has {len(question)} tokens, which leaves no room for its context in a row of "
                f"{self.context}; shorten it, or take a longer row (data.rows.length, model.context)"
            )
        return room

    def _span(self, record: Record, offsets: np.ndarray, *, training: bool) -> Span | None:
        """The tokens of the first answer, each of which stands for a part of it; None for a question without an answer."""
        answers = record.fields.get("answers", ())
        if not answers:
            if training and not self.config.no_answer:
                raise UserError(
                    f"{record.where}: the question has no answer, but objective.no_answer is false; set it to true, or leave "
                    "this question out"
                )
            return None
        start, stop = answers[0].start, answers[0].start + len(answers[0].text)
        tokens = np.flatnonzero((offsets[:, 0] < stop) & (offsets[:, 1] > start) & (offsets[:, 0] < offsets[:, 1]))
        if len(tokens):
            return int(tokens[0]), int(tokens[-1])
        if training:
            raise UserError(f"{record.where}: the answer {answers[0].text!r} has no token that the model knows")
        return 0, len(offsets)  # more than any window holds: nothing is learned

    def _marked(self, example: Example, shift: int, start: int, stop: int, span: Span | None) -> Example:
        """The example with what a window of tokens `start` to `stop` learns; token t stands at t + `shift` in the row."""
        if span is not None and start <= span[0] and span[1] < stop:
            first, last = span[0] + shift, span[1] + shift
            if first != last:
                return mark(example, [first, last], [_START, _END], [0.5, 0.5])
            return mark(example, [first], [_BOTH], [1.0])
        apart = span is None or span[1] < start or stop <= span[0]
        return mark(example, [0], [_BOTH], [1.0]) if apart and self.config.no_answer else example

    # ---- answers -------------------------------------------------------------------------------------------------

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        """For each record its answer ("" for none), where it starts in characters, its probability among all spans allowed, and, where
        there may be no answer, by how much "no answer" scores above the best span. Of "no answer" the windows' least score counts, of
        spans the greatest, as in BERT's code for SQuAD 2.0."""
        parts: list[list[tuple[Window, np.ndarray]]] = [[] for _ in records]
        for one, scores in zip(encoded, outputs, strict=True):
            parts[one.record].append((one.origin, np.asarray(scores, np.float64)))
        return [self._prediction(record, part) for record, part in zip(records, parts, strict=True)]

    def _prediction(self, record: Record, part: Sequence[tuple[Window, np.ndarray]]) -> dict[str, Any]:
        found = [best_span(window, scores, self.config.answer_length) for window, scores in part]
        best = max(found, key=lambda span: span.score)
        totals = [span.total for span in found]
        name = {"id": record.fields["id"]} if "id" in record.fields else {}
        answer = {"answer": record.fields["context"][best.start : best.stop], "start": best.start}
        score, extra = best.score, {}
        if self.config.no_answer:
            nothing = min(float(scores[0].sum()) for _, scores in part)
            totals.append(nothing)
            extra = {"no_answer_score": nothing - best.score}
            if nothing - best.score > self.config.no_answer_threshold:
                answer, score = {"answer": "", "start": None}, nothing
        return name | answer | {"probability": float(np.exp(score - np.logaddexp.reduce(totals)))} | extra

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        """Exact match and F1 over all questions; then over those with and without an answer, where there are both."""
        references = [[answer.text for answer in record.fields["answers"]] for record in records]
        pairs = [(prediction["answer"], texts) for prediction, texts in zip(predictions, references, strict=True)]
        exact, overlap = (np.array([score(*pair) for pair in pairs]) for score in (exact_match, f1))
        found = [mean("exact match", exact), mean("F1", overlap)]
        answered = np.array([bool(texts) for texts in references], bool)
        if answered.all() or not answered.any():
            return found
        return [
            *found,
            _mean_of("has answer exact match", exact, answered),
            _mean_of("has answer F1", overlap, answered),
            _mean_of("no answer exact match", exact, ~answered),
        ]

    def describe(self, records: Sequence[Record]) -> str:
        """Questions, contexts, and the share of questions without an answer."""
        contexts = len({record.fields["context"] for record in records})
        without = sum(not record.fields["answers"] for record in records)
        return (
            f"{len(records):,} questions on {contexts:,} contexts; {without:,} ({without / max(1, len(records)):.1%}) "
            "have no answer"
        )

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """What "no answer" to every question reaches."""
        without = sum(not record.fields["answers"] for record in records) / max(1, len(records))
        return {"exact match": without, "F1": without}


def windows(count: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of at most `room` tokens that `count` tokens are read in, each `overlap` tokens (at most half of
    `room`) before the end of the last: any `overlap` + 1 tokens that follow one another are together in one of them."""
    overlap = min(overlap, room // 2)
    starts = range(0, max(1, count - overlap), room - overlap)
    return [(start, min(start + room, count)) for start in starts]


def best_span(window: Window, scores: np.ndarray, longest: int) -> _Found:
    """The span of the window's context with the greatest sum of start and end score.

    Args:
        window: part of a context.
        scores: [t, 2] start and end score of each token of the row.
        longest: tokens of a span, at most.
    """
    offsets = window.offsets
    own = scores[window.first : window.first + len(offsets)]  # [c, 2]
    own = np.where((offsets[:, 0] < offsets[:, 1])[:, None], own, -np.inf)  # no span begins or ends with a blank
    ends = np.concatenate([own[:, 1], np.full(longest, -np.inf)])
    table = own[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, longest)[: len(own)]  # [c, longest]
    start, further = np.unravel_index(int(table.argmax()), table.shape)
    return _Found(
        score=float(table[start, further]),
        start=int(offsets[start, 0]),
        stop=int(offsets[start + further, 1]),
        total=float(np.logaddexp.reduce(table, axis=None)),
    )


def _mean_of(name: str, values: np.ndarray, chosen: np.ndarray) -> Measure:
    """The mean of the `chosen` of [N] values."""
    return replace(mean(name, values), statistics=np.stack([values * chosen, chosen], 1))

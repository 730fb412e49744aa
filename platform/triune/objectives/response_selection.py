"""Response selection: vectors in which a text lies beside its match, learned against the other matches of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from triune.errors import UserError
from triune.objectives.batch import Example
from triune.objectives.measures import Measure, ratio
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Task, joined, mark
from triune.objectives.task_config import ResponseSelectionTask

_SEED = 20170705  # of the negatives in validation: their own, so that every run is asked the same questions


@dataclass(frozen=True)
class Pair:
    """A context and its reply; `turn` is the number of the reply in its conversation, and 1 for columns text and match."""

    record: int
    turn: int
    context: str
    reply: str


@dataclass(frozen=True)
class Candidates:
    """What a row of validation asks: which of `texts` answers turn `turn` - 1; the first does."""

    turn: int
    texts: tuple[str, ...]


class ResponseSelection(Task):
    """A row holds a context, document 0, and its reply, document 1, each alone behind walls; in training the replies of the other rows are
    the negatives (Henderson et al. 2017, 4). In validation other replies of the same data stand in the row as documents 2 and on.

    Replies are numbered, and a row's `values` [1, C] are the numbers of its candidates: another row's reply of the same number ("Yes.")
    is no negative.
    """

    kind = "response_selection"
    config: ResponseSelectionTask
    fields: ClassVar = (
        Field(name="messages", kind="messages", meaning="a conversation", optional=True),
        Field(name="text", kind="text", meaning="a text that has a match", optional=True),
        Field(name="match", kind="text", meaning="its match (a reply, a paraphrase)", optional=True),
    )
    output: ClassVar = "vectors"
    best: ClassVar = "accuracy"
    packs: ClassVar = False

    def head(self) -> Mapping[str, Any]:
        return {
            "kind": "classes",
            "labels": 0,
            "problem": "match",
            "pool": self.pool(),
            "scale": self.config.scale,
            "transform": False,
        }

    def capacity(self, *, training: bool) -> int:
        """Room for a context and its candidates. Each counts its positions from 0, so that the row may be longer than `context`."""
        return self.config.context_length + (1 if training else self.config.candidates) * self.config.reply_length

    def _check(self) -> None:
        self._plain_loss()
        config = self.config
        for name, least in (("candidates", 2), ("history", 1), ("validation_replies", 1)):
            value = getattr(config, name)
            if value is not None and value < least:
                raise UserError(f"objective.{name}: {value} must be at least {least}")
        if not config.scale > 0:
            raise UserError(f"objective.scale: {config.scale} must be above 0; Sentence-BERT multiplies by 20")
        special = -self.text.frame(self.family).room(0)
        for name in ("context_length", "reply_length"):
            value = getattr(config, name)
            if not special < value <= self.context:
                raise UserError(
                    f"objective.{name}: {value} tokens, but it must be above {special}, which are special ones, and at most "
                    f"{self.context}, the longest text that the model reads (model.context)"
                )

    # ---- rows ----------------------------------------------------------------------------------------------------

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        """One row a reply, those of a conversation one after the other; see `Task.encode`. A conversation of one turn has none."""
        pairs = self._pairs(records)
        contexts = self._framed([pair.context for pair in pairs], pairs, records, self.config.context_length, end=True)
        replies = self._framed([pair.reply for pair in pairs], pairs, records, self.config.reply_length, end=False)
        # replies that the model reads alike are the same reply
        known = {ids.tobytes(): number for number, ids in reversed(list(enumerate(replies)))}
        first = sorted(known.values())  # the pair that each distinct reply is from
        numbers = [int(np.searchsorted(first, known[ids.tobytes()])) for ids in replies]
        if not training:
            self._check_candidates(len(first), records)
        encoded = []
        for index in range(len(pairs)) if training else self._asked(pairs):
            pair, own = pairs[index], numbers[index]
            chosen = [own] if training else self._candidates(own, len(first), index)
            origin = Candidates(pair.turn, (pair.reply, *(pairs[first[other]].reply for other in chosen[1:])))
            example = self._row(contexts[index], [replies[first[other]] for other in chosen], chosen)
            encoded.append(Encoded(example=example, record=pair.record, origin=origin))
        return encoded

    def _pairs(self, records: Sequence[Record]) -> list[Pair]:
        pairs = [pair for number, record in enumerate(records) for pair in _pairs_of(number, record, self.config)]
        if not pairs and records:
            raise UserError(
                f"{records[0].where} and all {len(records):,} records: no conversation has a reply; each needs two turns at least"
            )
        return pairs

    def _framed(
        self, texts: Sequence[str], pairs: Sequence[Pair], records: Sequence[Record], length: int, *, end: bool
    ) -> list[np.ndarray]:
        """Ids of each text with special tokens, at most `length`: of a longer text its end, else its beginning."""
        frame = self.text.frame(self.family)
        room = frame.room(length)
        framed = []
        for pair, text, ids in zip(pairs, texts, self.text.encode_batch(texts), strict=True):
            if not len(ids):
                where = records[pair.record].where
                raise UserError(f"{where}: {text!r} has no token that the model knows; leave it out")
            framed.append(frame(ids[-room:] if end else ids[:room]).ids)
        return framed

    def _check_candidates(self, distinct: int, records: Sequence[Record]) -> None:
        if distinct < self.config.candidates and records:
            raise UserError(
                f"objective.candidates: {self.config.candidates}, but the {len(records):,} records of validation have only "
                f"{distinct} replies that differ; lower it to {max(2, distinct)}, or give more records"
            )

    def _asked(self, pairs: Sequence[Pair]) -> list[int]:
        """Which pairs validation asks for: `validation_replies` of each record, spread evenly."""
        of: dict[int, list[int]] = {}
        for index, pair in enumerate(pairs):
            of.setdefault(pair.record, []).append(index)
        return [index for own in of.values() for index in _spread(own, self.config.validation_replies)]

    def _candidates(self, own: int, distinct: int, seed: int) -> list[int]:
        """Numbers of replies: a pair's own, then others, none twice."""
        draw = np.random.default_rng([_SEED, seed])
        others = draw.choice(distinct - 1, self.config.candidates - 1, replace=False)
        return [own, *(int(other) for other in others + (others >= own))]

    def _row(self, context: np.ndarray, replies: Sequence[np.ndarray], numbers: Sequence[int]) -> Example:
        row = mark(joined([self.read(ids) for ids in (context, *replies)]), [0], [0], [1.0])
        return replace(row, values=np.array([numbers], np.float32) + 1)

    # ---- answers -------------------------------------------------------------------------------------------------

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        """For each record its replies: rank of the true one among the candidates (1 is the best; of equals the last), the one chosen,
        and the cosine similarity of each candidate, the true one first."""
        predictions: list[dict[str, Any]] = [{"replies": []} for _ in records]
        for one, vectors in zip(encoded, outputs, strict=True):
            scores = cosines(np.asarray(vectors, np.float64))
            candidates = one.origin.texts
            reply = {
                "turn": one.origin.turn,
                "rank": 1 + int((scores[1:] >= scores[0]).sum()),
                "choice": candidates[int(scores.argmax())],
                "scores": [float(score) for score in scores],
                "candidates": list(candidates),
            }
            predictions[one.record]["replies"].append(reply)
        return predictions

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        """Accuracy (recall@1) and mean reciprocal rank over all replies; resamples are of records, whose replies are alike."""
        ranks = [np.array([reply["rank"] for reply in prediction["replies"]], np.float64) for prediction in predictions]
        counts = [float(len(own)) for own in ranks]
        hits = [float((own == 1).sum()) for own in ranks]
        return [
            _mean("accuracy", hits, counts),
            _mean("MRR", [float((1 / own).sum()) for own in ranks], counts),
        ]

    def describe(self, records: Sequence[Record]) -> str:
        """Pairs and distinct replies."""
        pairs = self._pairs(records)
        distinct = len({pair.reply for pair in pairs})
        return f"{len(pairs):,} contexts with their replies ({distinct:,} distinct) from {len(records):,} records"

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """Chance."""
        ranks = np.arange(1, self.config.candidates + 1)
        return {"accuracy": 1 / self.config.candidates, "MRR": float((1 / ranks).mean())}


def _pairs_of(number: int, record: Record, config: ResponseSelectionTask) -> list[Pair]:
    """A text and its match, or every turn of a conversation after the first, with what was said before it."""
    fields = record.fields
    if "messages" in fields:
        turns = [message.text for message in fields["messages"] if message.role != "system"]
        return [
            Pair(number, turn, "\n".join(turns[max(0, turn - config.history) : turn]), turns[turn])
            for turn in range(1, len(turns))
        ]
    missing = [name for name in ("text", "match") if name not in fields]
    if missing:
        raise UserError(
            f"{record.where}: a conversation (messages), or a text and its match are needed, and here is no "
            f"{' and no '.join([*missing, 'messages'])}; say which columns hold them, for example columns: {{text: question, match: reply}}"
        )
    return [Pair(number, 1, fields["text"], fields["match"])]


def _spread(own: Sequence[int], most: int | None) -> list[int]:
    """At most `most` of `own`, from the last back at even distances."""
    if most is None or len(own) <= most:
        return list(own)
    return [own[round((place + 1) * len(own) / most) - 1] for place in range(most)]


def cosines(vectors: np.ndarray) -> np.ndarray:
    """[1 + C, M] -> [C] cosine similarity of the first vector to each of the others; 0 to one without length."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    text, *candidates = vectors / lengths
    return np.array([candidate @ text for candidate in candidates])


def _mean(name: str, sums: Sequence[float], counts: Sequence[float]) -> Measure:
    return Measure(
        name=name,
        statistics=np.stack([sums, counts], 1),
        combine=lambda totals: ratio(totals[..., 0], totals[..., 1]),
    )

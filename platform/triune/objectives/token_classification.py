"""A tag of each word: entities, parts of speech (Devlin et al. 2019, 5.3). Legend: L tags, k pieces that are scored, n tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from triune.errors import UserError
from triune.objectives.classes import UNKNOWN_WEIGHT, balance, check_weights, class_names, unknown_class, weights_of
from triune.objectives.entities import entity_measures, has_entities, word_accuracy
from triune.objectives.measures import Measure
from triune.objectives.record import Field, Record
from triune.objectives.task import Encoded, Task, mark
from triune.objectives.task_config import TASK_FAMILIES, TaskConfig, TokenClassificationTask
from triune.objectives.text import Framed


@dataclass(frozen=True)
class _Pieces:
    """The row of a record, where in it the scored pieces stand [k], and which word each is of [k]."""

    framed: Framed
    places: np.ndarray
    words: np.ndarray


class TokenClassification(Task):
    """A tag a word, learned and read at its first piece (or at all of them, whose probabilities are averaged).

    A word that the context has no room for, or in which the tokenizer finds nothing, has no piece: it is not learned, `describe`
    counts such words, and a prediction gives them O (without O the tag that is predicted most) and says how many (`unread`).
    Evaluation: F1, precision and recall of entities and the accuracy of words; of other tags the accuracy.
    """

    kind = "token_classification"
    families = frozenset(TASK_FAMILIES[kind])
    fields = (
        Field(name="words", kind="words", meaning="the words of a text"),
        Field(name="tags", kind="tags", meaning="the tag of each word"),
    )
    config: TokenClassificationTask

    def __init__(self, config: TaskConfig, *args: Any, **named: Any) -> None:
        super().__init__(config, *args, **named)
        self.best = "entity F1" if has_entities(self.labels or ()) else "accuracy"  # type: ignore[misc]  # as its tags say

    @classmethod
    def labels_of(cls, config: TaskConfig, records: Sequence[Record]) -> list[str]:
        assert isinstance(config, TokenClassificationTask)
        found = (tag for record in records for tag in record.fields["tags"])
        return class_names(config.labels, found, least=2, what="tag")

    @property
    def classes(self) -> list[str]:
        """The tags in the order of the scores."""
        assert self.labels is not None, "build_task gives the labels"
        return self.labels

    def _check(self) -> None:
        check_weights(self.config.class_weights, self.classes)
        if self.text.frame(self.family).room(self.context) < 1:
            raise UserError(
                f"data.rows.length: a row of {self.context} tokens has no room for a word beside the special tokens; "
                "make it longer (null is model.context)"
            )

    def head(self) -> Mapping[str, Any]:
        return {
            "kind": "classes",
            "labels": len(self.classes),
            "problem": "single_label",
            "pool": "none",
            "transform": False,
            "bias": True,
        }

    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        for record in records:
            self._fits(record, training)
        weights = weights_of(self.config.class_weights, self._counts(records)) if training else {}
        encoded = []
        for number, (record, pieces) in enumerate(zip(records, self._pieces(records), strict=True)):
            tags = record.fields.get("tags") or [""] * len(record.fields["words"])
            here = [tags[word] for word in pieces.words]
            of_word = Counter(pieces.words.tolist())  # a word has its weight in all, however many pieces
            each = [weights.get(tag, 1.0) if tag in self._number else UNKNOWN_WEIGHT for tag in here]
            shares = [weight / of_word[word] for weight, word in zip(each, pieces.words.tolist(), strict=True)]
            example = self.read(pieces.framed.ids, token_types=pieces.framed.token_types)
            example = mark(example, pieces.places.tolist(), [self._number.get(tag, 0) for tag in here], shares)
            encoded.append(Encoded(example=example, record=number, origin=pieces.words))
        return encoded

    def _fits(self, record: Record, training: bool) -> None:
        """UserError where words and tags don't go together, or one to be learned is unknown."""
        words, tags = record.fields["words"], record.fields.get("tags")
        if tags is not None and len(words) != len(tags):
            raise UserError(f"{record.where}: {len(words)} words but {len(tags)} tags; each word has one tag")
        for tag in tags or ():
            if training and tag not in self._number:
                raise unknown_class(record.where, tag, self.classes, "tag")

    def _pieces(self, records: Sequence[Record]) -> list[_Pieces]:
        frame = self.text.frame(self.family)
        aligned = self.text.encode_aligned([" ".join(record.fields["words"]) for record in records])
        found = []
        for record, (ids, offsets) in zip(records, aligned, strict=True):
            framed = frame(ids, length=self.context)
            pieces, words = word_pieces(record.fields["words"], offsets[: framed.lengths[0]])
            if self.config.label_pieces == "first":
                words, first = np.unique(words, return_index=True)
                pieces = pieces[first]
            found.append(_Pieces(framed, pieces + framed.starts[0], words))
        return found

    @cached_property
    def _number(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.classes)}

    @staticmethod
    def _counts(records: Sequence[Record]) -> Counter[str]:
        return Counter(tag for record in records for tag in record.fields["tags"])

    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        read = [self._read_tags(one.origin, output) for one, output in zip(encoded, outputs, strict=True)]
        given = Counter(tag for tags in read for tag in tags.values())
        rest = "O" if "O" in self._number or not given else given.most_common(1)[0][0]
        predictions = []
        for one, tags in zip(encoded, read, strict=True):
            count = len(records[one.record].fields["words"])
            prediction: dict[str, Any] = {"tags": [tags.get(word, rest) for word in range(count)]}
            if len(tags) < count:
                prediction["unread"] = count - len(tags)
            predictions.append(prediction)
        return predictions

    def _read_tags(self, words: np.ndarray, output: Any) -> dict[int, str]:
        """Word -> the tag of the greatest mean probability over its pieces."""
        scores = np.asarray(output, np.float64).reshape(-1, len(self.classes))  # [k, L]
        raised = np.exp(scores - scores.max(1, keepdims=True))
        there, place = np.unique(words, return_inverse=True)
        sums = np.zeros((len(there), len(self.classes)))
        np.add.at(sums, place, raised / raised.sum(1, keepdims=True))
        return {int(word): self.classes[best] for word, best in zip(there, sums.argmax(1), strict=True)}

    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        truth = [record.fields["tags"] for record in records]
        given = [prediction["tags"] for prediction in predictions]
        marked = entity_measures(truth, given) if has_entities(self.classes) else []
        return [*marked, word_accuracy(truth, given)]

    def describe(self, records: Sequence[Record]) -> str:
        counts, words = self._counts(records), sum(len(record.fields["words"]) for record in records)
        text = balance(self.classes, counts, total=words, unit="words", what="tag")
        unread = words - sum(len(np.unique(pieces.words)) for pieces in self._pieces(records))
        if not unread:
            return text
        return (
            f"{text}\n{unread:,} of {words:,} words are not read: they lie beyond the context of {self.context} tokens, "
            "or the tokenizer finds nothing in them"
        )

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """Always the most frequent tag."""
        counts = self._counts(train)
        most = max(self.classes, key=lambda tag: counts[tag])
        constant = [{"tags": [most] * len(record.fields["words"])} for record in records]
        return {measure.name: measure.value for measure in self.measures(constant, records)}


def word_pieces(words: Sequence[str], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces that stand for a part of a word, and the word of each: (pieces [k], words [k]).

    A piece belongs to the word that it starts in; one of nothing but blanks belongs to none.

    Args:
        words: joined by a blank, they are the text that was encoded.
        offsets: [n, 2] start and end of each piece in characters of that text, without blanks at its ends.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1  # of each word, which the blank follows
    word = np.searchsorted(ends, offsets[:, 0], side="right")
    pieces = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    return pieces, word[pieces]

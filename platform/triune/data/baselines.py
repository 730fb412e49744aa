"""What counting gets: unigram and bigram models over the same tokens, and the most frequent token's share.

A language model that does not beat the bigram has learnt nothing from context beyond one token. Each document is
scored as the causal objective sees it: [bos] ids predict ids [eos], n + 1 predictions for n ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from triune.data.shards import Shards
from triune.objectives.batch import Vocabulary

_CHUNK = 4_000_000  # predictions counted at a time
_LIMIT = 100_000_000  # training tokens counted at most: beyond, counts hardly change and time does


@dataclass(frozen=True)
class Score:
    """The loss of a model over some documents: total negative log-likelihood in nats, and its predictions."""

    nats: float
    predictions: int

    @property
    def nll(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.predictions

    def bits_per_byte(self, size: int) -> float:
        """Bits for each byte of text, over documents of `size` bytes in all."""
        return self.nats / math.log(2) / size


@dataclass(frozen=True)
class Counts:
    """How often each token follows each other. Pairs are coded context * V + target, sorted.

    Made by `Counts.of`; `unigram()` and `bigram()` are the two models.
    """

    size: int  # V
    bos: int
    eos: int
    pairs: np.ndarray  # [P] int64, sorted codes
    counts: np.ndarray  # [P] int64

    @classmethod
    def of(cls, shards: Sequence[Shards], vocabulary: Vocabulary, *, limit: int = _LIMIT) -> Counts:
        """Count training documents; of more than `limit` tokens, documents evenly spread over all shards."""
        total = sum(part.tokens for part in shards)
        step = max(1, -(-total // limit))
        return cls.of_documents((part.ids(i) for part in shards for i in range(0, part.documents, step)), vocabulary)

    @classmethod
    def of_documents(cls, documents: Iterable[np.ndarray], vocabulary: Vocabulary) -> Counts:
        """Count documents given as arrays of ids."""
        bos, eos = _borders(vocabulary)
        pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        for contexts, targets in _predictions(documents, bos, eos):
            new, times = np.unique(contexts * vocabulary.size + targets, return_counts=True)
            pairs, counts = _summed(np.concatenate([pairs, new]), np.concatenate([counts, times]))
        if not len(pairs):
            raise ValueError("no document to count")
        return cls(vocabulary.size, bos, eos, pairs, counts)

    def unigram(self) -> Unigram:
        """The model that knows no context."""
        occurrences = np.bincount(self.pairs % self.size, weights=self.counts, minlength=self.size)
        return Unigram(self, _discounted(occurrences))

    def bigram(self) -> Bigram:
        """The model that knows one token of context."""
        return Bigram(self)


class _Model:
    """Scores documents with `log_probabilities(contexts, targets)`."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def log_probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """([n], [n]) ids -> [n] natural logarithms of p(target | context)."""
        raise NotImplementedError

    def score(self, documents: Iterable[np.ndarray]) -> Score:
        """Total loss over documents given as arrays of ids (a `Shards` is one such iterable)."""
        nats, predictions = 0.0, 0
        for contexts, targets in _predictions(documents, self.counts.bos, self.counts.eos):
            nats -= float(self.log_probabilities(contexts, targets).sum())
            predictions += len(targets)
        return Score(nats, predictions)


class Unigram(_Model):
    """p(w) from counts, absolutely discounted towards the uniform distribution over the V tokens."""

    def __init__(self, counts: Counts, probabilities: np.ndarray) -> None:
        super().__init__(counts)
        self.probabilities = probabilities  # [V]

    def log_probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """([n], [n]) ids -> [n] natural logarithms of p(target)."""
        return np.log(self.probabilities)[targets]


class Bigram(_Model):
    """Interpolated Kneser-Ney with three discounts (Chen and Goodman 1999, 'modified Kneser-Ney'), order two.

    p(w|v) = (c(vw) - D(c(vw))) / c(v) + g(v) q(w), with q from the number of contexts that w follows, g(v) the mass
    that the discounts free, and D(1), D(2), D(3+) from the counts of counts. An unseen v leaves q alone.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts)
        size = counts.size
        contexts, targets = counts.pairs // size, counts.pairs % size
        discounts = _discounts(counts.counts)[np.minimum(counts.counts, 3)]  # [P]
        totals = np.bincount(contexts, weights=counts.counts, minlength=size)  # [V]
        freed = np.bincount(contexts, weights=discounts, minlength=size)  # [V]
        self._seen = (counts.counts - discounts) / totals[contexts]  # [P]
        self._backoff = np.divide(freed, totals, out=np.ones(size), where=totals > 0)  # [V]
        self._continuation = _discounted(np.bincount(targets, minlength=size).astype(np.float64))  # [V]

    def log_probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """([n], [n]) ids -> [n] natural logarithms of p(target | context)."""
        codes = contexts * self.counts.size + targets
        places = np.minimum(np.searchsorted(self.counts.pairs, codes), len(self.counts.pairs) - 1)
        seen = np.where(self.counts.pairs[places] == codes, self._seen[places], 0.0)
        return np.log(seen + self._backoff[contexts] * self._continuation[targets])


def most_frequent_share(targets: np.ndarray) -> float:
    """Share of the most frequent value among `targets` ([n] ids): the accuracy of the best constant answer."""
    values = np.asarray(targets).ravel()
    if not len(values):
        raise ValueError("no target to count")
    return float(np.bincount(values.astype(np.int64)).max() / len(values))


def _borders(vocabulary: Vocabulary) -> tuple[int, int]:
    bos = vocabulary.bos if vocabulary.bos is not None else vocabulary.eos
    eos = vocabulary.eos if vocabulary.eos is not None else vocabulary.bos
    if bos is None or eos is None:
        raise ValueError("the baselines need a token that begins or ends a document")
    return bos, eos


def _predictions(documents: Iterable[np.ndarray], bos: int, eos: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(contexts, targets), both int64, of many documents at a time."""
    border = np.array([bos]), np.array([eos])
    contexts: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    waiting = 0
    for ids in documents:
        contexts += [border[0], ids]
        targets += [ids, border[1]]
        waiting += len(ids) + 1
        if waiting >= _CHUNK:
            yield np.concatenate(contexts).astype(np.int64), np.concatenate(targets).astype(np.int64)
            contexts, targets, waiting = [], [], 0
    if waiting:
        yield np.concatenate(contexts).astype(np.int64), np.concatenate(targets).astype(np.int64)


def _summed(codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct codes with the sums of their counts."""
    order = np.argsort(codes, kind="stable")
    codes, counts = codes[order], counts[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, dtype=np.int64)
    return codes[starts], np.add.reduceat(counts, starts) if len(codes) else counts


def _discounts(counts: np.ndarray) -> np.ndarray:
    """[4] float: 0, D(1), D(2), D(3+), from how many counts are 1, 2, 3 and 4 (Chen and Goodman 1999, equation 26).

    Where one of these does not occur (tiny corpora) the formulas have no value, and 0.5, 0.75 and 0.75 are used.
    """
    n = np.bincount(np.minimum(counts, 5).astype(np.int64), minlength=5)[:5].astype(np.float64)
    if not n[1:].all():
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n[1] / (n[1] + 2 * n[2])
    discounts = np.array([0.0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)])
    return np.clip(discounts, [0.0, 0.05, 0.05, 0.05], [0.0, 0.95, 1.95, 2.95])


def _discounted(counts: np.ndarray) -> np.ndarray:
    """[V] counts -> [V] probabilities, none zero: absolute discounting, the freed mass spread evenly."""
    discounts = np.where(counts > 0, _discounts(counts)[np.minimum(counts, 3).astype(np.int64)], 0.0)
    return (counts - discounts + discounts.sum() / len(counts)) / counts.sum()

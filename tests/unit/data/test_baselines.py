"""Count models against the formulas written out, token by token, on tiny corpora."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triune.data.baselines as under_test
from triune.data.baselines import Counts, Score, most_frequent_share
from triune.data.shards import Shards, ShardWriter
from triune.objectives.batch import Vocabulary

SIZE, BOS, EOS = 9, 1, 2
VOCABULARY = Vocabulary(size=SIZE, pad=0, bos=BOS, eos=EOS)
Documents = list[list[int]]
documents = st.lists(st.lists(st.integers(3, SIZE - 1), min_size=1, max_size=12), min_size=1, max_size=8)


def arrays(texts: Documents) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.uint16) for ids in texts]


def predictions(texts: Documents) -> list[tuple[int, int]]:
    return [pair for ids in texts for pair in zip([BOS, *ids], [*ids, EOS], strict=True)]


def discounts(counts: list[int]) -> list[float]:
    """Chen and Goodman 1999, equation 26; index 3 serves every count from 3 up."""
    n = [sum(c == k for c in counts) for k in range(5)]
    if not all(n[1:]):
        return [0.0, 0.5, 0.75, 0.75]
    y = n[1] / (n[1] + 2 * n[2])
    raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
    return [0.0, *(min(max(d, 0.05), k - 0.05) for k, d in enumerate(raw, 1))]


def smoothed(counts: Counter[int]) -> list[float]:
    d = discounts(list(counts.values()))
    freed = sum(d[min(c, 3)] for c in counts.values())
    return [(counts[w] - d[min(counts[w], 3)] + freed / SIZE) / sum(counts.values()) for w in range(SIZE)]


def brute_bigram(texts: Documents) -> list[list[float]]:
    pairs = Counter(predictions(texts))
    d = discounts(list(pairs.values()))
    continuation = smoothed(Counter(w for _, w in pairs))
    following: dict[int, dict[int, int]] = defaultdict(dict)
    for (v, w), c in pairs.items():
        following[v][w] = c
    table = []
    for v in range(SIZE):
        if v not in following:
            table.append(continuation)
            continue
        total = sum(following[v].values())
        freed = sum(d[min(c, 3)] for c in following[v].values())
        counts = [following[v].get(w, 0) for w in range(SIZE)]
        table.append([(c - d[min(c, 3)]) / total + freed / total * continuation[w] for w, c in enumerate(counts)])
    return table


def table_of(model: under_test._Model) -> np.ndarray:
    contexts, targets = np.divmod(np.arange(SIZE * SIZE), SIZE)
    return np.exp(model.log_probabilities(contexts, targets)).reshape(SIZE, SIZE)


@given(documents, documents)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_models_equal_the_formulas(train: Documents, held: Documents) -> None:
    counts = Counts.of_documents(arrays(train), VOCABULARY)
    unigram = smoothed(Counter(w for _, w in predictions(train)))
    bigram = brute_bigram(train)
    for model, probability in (
        (counts.unigram(), lambda v, w: unigram[w]),
        (counts.bigram(), lambda v, w: bigram[v][w]),
    ):
        expected = -sum(math.log(probability(v, w)) for v, w in predictions(held))
        score = model.score(arrays(held))
        assert score.predictions == len(predictions(held))
        # float64 sums of at most 104 terms of at most some 10 nats: errors near 1e-13
        assert score.nats == pytest.approx(expected, rel=1e-11)


def zipf(count: int, seed: int) -> Documents:
    """Documents whose next token depends on the last, with a long tail, so that every count of counts is there."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.arange(1, SIZE - 2) ** 2
    rows = [np.roll(weights, shift) / weights.sum() for shift in range(SIZE)]
    texts = []
    for _ in range(count):
        ids = [3]
        for _ in range(int(generator.integers(1, 12))):
            ids.append(3 + int(generator.choice(SIZE - 3, p=rows[ids[-1]])))
        texts.append(ids)
    return texts


def test_discounts_come_from_counts_of_counts() -> None:
    counts = np.array([1] * 10 + [2] * 5 + [3] * 3 + [4] * 2 + [7])
    y = 10 / 20
    expected = [0, 1 - 2 * y * 5 / 10, 2 - 3 * y * 3 / 5, 3 - 4 * y * 2 / 3]
    assert under_test._discounts(counts) == pytest.approx(expected)
    assert discounts(counts.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("train", [zipf(30, 0), zipf(1, 1), [[3]]])
def test_probabilities_sum_to_one_for_every_context(train: Documents) -> None:
    counts = Counts.of_documents(arrays(train), VOCABULARY)
    for model in (counts.unigram(), counts.bigram()):
        table = table_of(model)
        assert (table > 0).all()
        assert table.sum(axis=1) == pytest.approx(np.ones(SIZE), abs=1e-12)
    assert table_of(counts.bigram()) == pytest.approx(np.array(brute_bigram(train)), rel=1e-11)


def test_the_bigram_beats_the_unigram_where_order_matters_and_approaches_the_entropy() -> None:
    train, held = zipf(3000, 0), zipf(300, 1)
    counts = Counts.of_documents(arrays(train), VOCABULARY)
    unigram, bigram = counts.unigram().score(arrays(held)).nll, counts.bigram().score(arrays(held)).nll
    # the relative frequencies of the held-out pairs themselves: no bigram model can do better there
    pairs = Counter(predictions(held))
    totals = Counter(v for v, _ in predictions(held))
    floor = -sum(c * math.log(c / totals[v]) for (v, _), c in pairs.items()) / pairs.total()
    assert floor < bigram < unigram - 0.2
    assert bigram < 1.03 * floor


def test_chunks_and_files_do_not_change_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = zipf(40, 3)
    whole = Counts.of_documents(arrays(train), VOCABULARY)
    with ShardWriter(tmp_path, dtype=np.dtype("<u2"), tokenizer="x", file_bytes=32) as writer:
        for ids in arrays(train):
            writer.add(ids, size=1)
    monkeypatch.setattr(under_test, "_CHUNK", 7)
    shards = Shards.open(tmp_path)
    chunked = Counts.of([shards], VOCABULARY)
    assert chunked.pairs.tolist() == whole.pairs.tolist()
    assert chunked.counts.tolist() == whole.counts.tolist()
    assert whole.counts.sum() == len(predictions(train))
    assert whole.bigram().score(shards).nats == pytest.approx(whole.bigram().score(arrays(train)).nats, rel=1e-12)
    third = Counts.of([shards], VOCABULARY, limit=-(-shards.tokens // 3))
    assert third.counts.sum() == len(predictions(train[::3]))


def test_wide_vocabularies_do_not_overflow() -> None:
    vocabulary = Vocabulary(size=200_000, pad=0, bos=1, eos=2)
    ids = np.array([199_999, 199_998, 199_999], dtype=np.uint32)
    counts = Counts.of_documents([ids], vocabulary)
    expected = [(1, 199_999), (199_998, 199_999), (199_999, 2), (199_999, 199_998)]
    assert [tuple(divmod(int(code), 200_000)) for code in counts.pairs] == expected


def test_eos_serves_as_bos() -> None:
    counts = Counts.of_documents(arrays([[3, 4]]), Vocabulary(size=SIZE, pad=0, eos=EOS))
    assert [tuple(divmod(int(code), SIZE)) for code in counts.pairs] == [(2, 3), (3, 4), (4, 2)]


def test_units() -> None:
    score = Score(nats=8 * math.log(2), predictions=4)
    assert score.nll == pytest.approx(2 * math.log(2))
    assert score.bits_per_byte(16) == pytest.approx(0.5)


def test_most_frequent_share() -> None:
    assert most_frequent_share(np.array([[3, 3], [4, 3]])) == 0.75
    assert most_frequent_share(np.array([5])) == 1.0
    with pytest.raises(ValueError, match="no target"):
        most_frequent_share(np.array([]))

"""Response selection: pairs, rows of candidates behind walls, negatives, and what is learned and measured."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError
from triune.models import class_loss
from triune.models.factory import Transformer, build
from triune.objectives.batch import Batch, collate
from triune.objectives.record import Message, Record
from triune.objectives.response_selection import ResponseSelection, _spread, cosines
from triune.objectives.task import Encoded
from triune.objectives.task_config import ResponseSelectionTask
from triune.objectives.tasks import build_task

torch.set_num_threads(1)
FAMILIES = ["encoder", "decoder"]
ANIMALS = ["cat", "dog", "cow", "owl", "pig", "hen", "fox", "bee"]
SOUNDS = ["meow", "woof", "moo", "hoot", "oink", "cluck", "yap", "buzz"]
FILLERS = ["so", "well", "then", "now", "oh", "hm"]
TEXTS = [f"{filler} says {word}, and {other}." for filler in FILLERS for word in ANIMALS for other in SOUNDS]
SMALL = {"context_length": 16, "reply_length": 8, "candidates": 4}


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="wordpiece", vocabulary=400, sentinels=2), TEXTS)


def make(text: Tokenizer, *, family: str = "encoder", context: int = 32, **options: Any) -> ResponseSelection:
    task = build_task(ResponseSelectionTask(**(SMALL | options)), text, context, family=family)
    task.check(family)
    assert isinstance(task, ResponseSelection)
    return task


def matched(text: str, match: str) -> Record:
    return Record(f"pairs.csv:{text}", {"text": text, "match": match})


def conversation(*turns: str, where: str = "chats.jsonl:1", system: str | None = None) -> Record:
    messages = [Message("user" if number % 2 == 0 else "assistant", said) for number, said in enumerate(turns)]
    first = [Message("system", system)] if system else []
    return Record(where, {"messages": first + messages})


def documents(one: Encoded) -> list[list[int]]:
    example = one.example
    return [example.inputs[example.documents == number].tolist() for number in range(example.documents.max() + 1)]


def pairs(count: int, seed: int = 0) -> list[Record]:
    """An animal among other words, and a reply with its sound; all replies of the first 36 x 8 are different."""
    draw = random.Random(seed)
    replies = [(sound, a, b) for a in FILLERS for b in FILLERS for sound in range(8)]
    draw.shuffle(replies)
    found = []
    for sound, a, b in replies[:count]:
        words = [*draw.choices(FILLERS, k=draw.randint(1, 4)), ANIMALS[sound]]
        draw.shuffle(words)
        found.append(matched(" ".join(words), f"{a} {SOUNDS[sound]} {b}"))
    return found


# ---- pairs and rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_by_hand(text: Tokenizer, family: str) -> None:
    (row,) = make(text, family=family).encode([matched("the cat", "meow")], training=True)
    bos, eos = [text.vocabulary.bos], [text.vocabulary.eos] * (family == "encoder")
    expected = [[*bos, *ids.tolist(), *eos] for ids in text.encode_batch(["the cat", "meow"])]
    example = row.example
    assert documents(row) == expected
    assert example.positions.tolist() == [*range(len(expected[0])), *range(len(expected[1]))]
    assert example.weights.tolist() == [1.0] + [0.0] * (len(example.inputs) - 1)
    assert example.values is not None
    assert example.values.tolist() == [[1.0]]
    assert (row.record, row.origin.turn, row.origin.texts) == (0, 1, ("meow",))


def test_every_turn_after_the_first_is_a_reply(text: Tokenizer) -> None:
    task = make(text, history=2)
    said = ["the cat", "meow", "the dog", "woof"]
    alone = conversation("hello")
    rows = task.encode([conversation(*said, system="be kind"), alone, conversation(*said[:2])], training=True)
    assert [(row.record, row.origin.turn, row.origin.texts) for row in rows] == [
        (0, 1, ("meow",)), (0, 2, ("the dog",)), (0, 3, ("woof",)), (2, 1, ("meow",)),
    ]  # fmt: skip
    contexts = [text.decode(documents(row)[0]) for row in rows]
    assert contexts == ["the cat", "the cat meow", "meow the dog", "the cat"]  # WordPiece has no line ends
    numbers = [float(row.example.values[0, 0]) for row in rows]  # type: ignore[index]
    assert numbers[0] == numbers[3]
    assert len(set(numbers)) == 3


def test_a_context_keeps_its_end_and_a_reply_its_beginning(text: Tokenizer) -> None:
    words = " ".join(ANIMALS * 4)
    (row,) = make(text).encode([matched(words, words)], training=True)
    (ids,) = text.encode_batch([words])
    bos, eos = text.vocabulary.bos, text.vocabulary.eos
    assert documents(row) == [[bos, *ids[-14:].tolist(), eos], [bos, *ids[:6].tolist(), eos]]


@given(seed=st.integers(0, 2**31), candidates=st.integers(2, 12), repeats=st.integers(0, 20))
@settings(deadline=None, max_examples=12, derandomize=True)
def test_candidates_in_validation(text: Tokenizer, seed: int, candidates: int, repeats: int) -> None:
    """The true reply first, and others once each, none of which the model reads as it does the true one."""
    records = pairs(30)
    draw = random.Random(seed)
    records += [replace(one, fields={**one.fields, "text": "again"}) for one in draw.choices(records, k=repeats)]
    task = make(text, candidates=candidates)
    encoded = task.encode(records, training=False)
    assert len(encoded) == len(records)
    for one, record in zip(encoded, records, strict=True):
        texts = one.origin.texts
        assert texts[0] == record.fields["match"]
        assert len(set(texts)) == len(texts) == candidates
        read = documents(one)[1:]
        assert len({tuple(ids) for ids in read}) == candidates
        bos, eos = text.vocabulary.bos, text.vocabulary.eos
        assert read == [[bos, *ids[:6].tolist(), eos] for ids in text.encode_batch(texts)]
        assert one.example.values is not None
        assert one.example.values.shape == (1, candidates)
        assert len(set(one.example.values[0].tolist()) - {0.0}) == candidates
        assert len(one.example.inputs) <= task.capacity(training=False)
    again = make(text, candidates=candidates).encode(records, training=False)
    assert [one.origin for one in again] == [one.origin for one in encoded]


def test_negatives_are_drawn_evenly(text: Tokenizer) -> None:
    records = pairs(12)
    task = make(text)
    drawn = np.zeros((12, 12), int)
    for seed in range(600):
        own, *others = task._candidates(seed % 12, 12, seed)
        drawn[own, others] += 1
    assert (np.diag(drawn) == 0).all()
    # 600 x 3 / 132 = 13.6 a cell; a binomial of 50 draws of 3/11 lies in 2..27 but for 1 in 10^4
    assert drawn[~np.eye(12, dtype=bool)].min() >= 2
    assert drawn.max() <= 27
    assert len({one.origin.texts[1:] for one in task.encode(records, training=False)}) > 6


def test_replies_that_are_read_alike_are_one(text: Tokenizer) -> None:
    """Cut to 6 tokens they are the same, so that neither is a candidate beside the other."""
    long = " ".join(ANIMALS[:6])
    records = [matched("a", f"{long} meow"), matched("b", f"{long} woof"), matched("c", "moo"), matched("d", "hoot")]
    with pytest.raises(UserError, match="only 3 replies that differ"):
        make(text).encode(records, training=False)
    for one in make(text, candidates=3).encode(records, training=False):
        assert sum(reply.startswith(long) for reply in one.origin.texts) == 1
    values = [float(one.example.values[0, 0]) for one in make(text).encode(records, training=True)]  # type: ignore[index]
    assert values == [1, 1, 2, 3]


def test_validation_asks_for_some_replies_of_each_conversation(text: Tokenizer) -> None:
    said = [f"{animal} {sound}" for animal in ANIMALS for sound in SOUNDS[:2]]
    records = [conversation(*said), conversation(*said[:3])]
    task = make(text, validation_replies=3)
    asked = [(one.record, one.origin.turn) for one in task.encode(records, training=False)]
    assert asked == [(0, 5), (0, 10), (0, 15), (1, 1), (1, 2)]
    assert len(task.encode(records, training=True)) == 17


@given(count=st.integers(0, 40), most=st.integers(1, 50))
def test_spread_takes_different_ones(count: int, most: int) -> None:
    chosen = _spread(range(count), most)
    assert len(set(chosen)) == len(chosen) == min(count, most)
    assert not chosen or chosen[-1] == count - 1


# ---- the model -------------------------------------------------------------------------------------------------------


def model_of(task: ResponseSelection, family: str, **options: Any) -> Transformer:
    torch.manual_seed(0)
    settings = {"vocabulary": task.vocabulary.size, "width": 32, "layers": 2, "heads": 4, "context": 32, **options}
    return build(settings, family=family, head=task.head())


def batch_of(task: ResponseSelection, encoded: list[Encoded]) -> Batch:
    return collate([one.example for one in encoded], pad=task.vocabulary.pad, length=None)


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_same_vector_alone_and_in_a_row(text: Tokenizer, family: str, pool: str, position: str) -> None:
    """Also where the row is longer than the model's context, because each of its documents is not."""
    task = make(text, family=family, pool=pool, candidates=8)
    model = model_of(task, family, position={"kind": position}, context=16).double().eval()
    encoded = task.encode(pairs(40), training=False)[:5]
    batch = batch_of(task, encoded)
    assert batch.inputs.shape[1] > 16
    with torch.no_grad():
        vectors = model.head.vectors(model(batch.inputs, batch.layout), batch.layout, 9)
        for row, one in enumerate(encoded):
            for number, ids in enumerate(documents(one)):
                alone = model.head.logits(model(torch.tensor([ids])))[0]
                torch.testing.assert_close(vectors[row, number], alone, rtol=1e-10, atol=1e-12)
        output = model.head.loss(
            model(batch.inputs, batch.layout), batch.targets, batch.weights, layout=batch.layout, values=batch.values
        )
    cosine = F.cosine_similarity(vectors[:, :1], vectors[:, 1:], dim=-1)
    expected = F.cross_entropy(20 * cosine, torch.zeros(5, dtype=torch.int64), reduction="sum")
    torch.testing.assert_close(output.total, expected, rtol=1e-10, atol=0)
    predictions = task.predict(encoded, list(vectors.numpy()), pairs(40))
    np.testing.assert_allclose([one["replies"][0]["scores"] for one in predictions[:5]], cosine, rtol=1e-10)
    right = [one["replies"][0]["rank"] == 1 for one in predictions[:5]]
    assert sum(right) == output.correct


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns(text: Tokenizer, family: str) -> None:
    """An animal's sound, chosen among four replies never seen; chance is 1/4 (and 7/8 of the others are of other animals)."""
    task = make(text, family=family, pool="mean" if family == "encoder" else "last")
    records = pairs(288)
    model = model_of(task, family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    encoded = task.encode(records[:240], training=True)
    before = accuracy(task, model, records[240:])
    model.train()
    for step in range(40):
        chosen = np.random.default_rng(step).choice(len(encoded), 24, replace=False)
        batch = batch_of(task, [encoded[number] for number in chosen])
        hidden = model(batch.inputs, batch.layout)
        output = model.head.loss(hidden, batch.targets, batch.weights, layout=batch.layout, values=batch.values)
        (output.total / output.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = accuracy(task, model, records[240:])
    assert after["accuracy"] > max(0.75, before["accuracy"])
    assert after["MRR"] > after["accuracy"]


def accuracy(task: ResponseSelection, model: Transformer, records: list[Record]) -> dict[str, float]:
    model.eval()
    encoded = task.encode(records, training=False)
    batch = batch_of(task, encoded)
    with torch.no_grad():
        vectors = model.head.vectors(model(batch.inputs, batch.layout), batch.layout, 1 + task.config.candidates)
    predictions = task.predict(encoded, list(vectors.numpy()), records)
    return {measure.name: measure.value for measure in task.measures(predictions, records)}


def test_the_loss_across_a_batch_by_hand() -> None:
    """Rows 0 and 2 have the same reply, so that it competes with neither; row 3 has no weight, but its reply competes."""
    torch.manual_seed(0)
    vectors = torch.randn(4, 2, 6, dtype=torch.float64)
    vectors[2, 1] = vectors[0, 1]
    numbers, weights = torch.tensor([[5.0], [2.0], [5.0], [9.0]]), torch.tensor([1.0, 2.0, 1.0, 0.0])
    output = class_loss.match(vectors, numbers, weights, scale=3.0, across=True)
    scores = 3 * F.cosine_similarity(vectors[:, None, 0], vectors[None, :, 1], dim=-1)
    expected, right = torch.zeros((), dtype=torch.float64), 0.0
    for row, competing in ((0, [0, 1, 3]), (1, [1, 0, 2, 3]), (2, [2, 1, 3])):
        chosen = scores[row, competing]
        expected += weights[row] * (chosen.logsumexp(0) - chosen[0])
        right += float(weights[row]) * float(chosen[0] > chosen[1:].max())
    torch.testing.assert_close(output.total, expected, rtol=1e-12, atol=0)
    assert (output.correct, output.weight) == (right, 4)


def test_the_loss_of_a_row_with_fewer_candidates() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    numbers, weights = torch.tensor([[1.0, 2, 3], [4, 1, 0]]), torch.ones(2)
    output = class_loss.match(vectors, numbers, weights, scale=3.0, across=False)
    scores = 3 * F.cosine_similarity(vectors[:, :1], vectors[:, 1:], dim=-1)
    expected = sum(scores[row, :count].logsumexp(0) - scores[row, 0] for row, count in ((0, 3), (1, 2)))
    torch.testing.assert_close(output.total, expected, rtol=1e-12, atol=0)
    ours, plain = (torch.autograd.grad(loss, vectors, retain_graph=True)[0] for loss in (output.total, expected))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


# ---- predictions and measures ----------------------------------------------------------------------------------------


def test_ranks_and_measures_by_hand(text: Tokenizer) -> None:
    task = make(text, candidates=3)
    records = [conversation("cat", "meow", "dog"), conversation("so"), matched("cow", "moo")]
    encoded = task.encode(records, training=False)
    east, north, west = [2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]
    given_vectors = [
        np.array([east, east, north, west]),  # first
        np.array([east, north, east, west]),  # second
        np.array([north, east, west, east]),  # of equals the last
    ]
    found = task.predict(encoded, given_vectors, records)
    assert [[reply["rank"] for reply in one["replies"]] for one in found] == [[1, 2], [], [3]]
    assert found[0]["replies"][0]["scores"] == [1.0, 0.0, -1.0]
    first, second = found[0]["replies"]
    assert first["choice"] == "meow"
    assert second["choice"] == second["candidates"][1]
    assert (second["turn"], second["candidates"][0]) == (2, "dog")
    values = {measure.name: measure.value for measure in task.measures(found, records)}
    assert values == pytest.approx({"accuracy": 1 / 3, "MRR": (1 + 1 / 2 + 1 / 3) / 3})
    assert task.baseline([], records) == pytest.approx({"accuracy": 1 / 3, "MRR": (1 + 1 / 2 + 1 / 3) / 3})
    assert task.describe(records) == "3 contexts with their replies (3 distinct) from 3 records"


def test_a_vector_without_length_is_like_none() -> None:
    assert cosines(np.array([[1.0, 1], [0, 0], [2, 2]])) == pytest.approx([0, 1])


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"here is no text and no match and no messages; say which columns"),
        ({"text": "a"}, r"here is no match and no messages"),
        ({"match": "a"}, r"here is no text and no messages"),
    ],
)
def test_a_record_that_has_no_pair(text: Tokenizer, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"x\.csv:3: .*{words}"):
        make(text).encode([matched("a", "b"), Record("x.csv:3", fields)], training=True)


def test_conversations_without_replies(text: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"chats\.jsonl:1 and all 2 records: no conversation has a reply"):
        make(text).encode([conversation("hello"), conversation("bye", system="be kind")], training=True)


def test_too_few_candidates(text: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"objective\.candidates: 10, but the 5 records .* only 5 replies"):
        make(text, candidates=10).encode(pairs(5), training=False)
    assert len(make(text, candidates=10).encode(pairs(5), training=True)) == 5


def test_a_text_without_a_token(text: Tokenizer) -> None:
    for record in (matched("\x00", "moo"), matched("cow", "\x00")):
        with pytest.raises(UserError, match=r"pairs\.csv:.* has no token"):
            make(text).encode([record], training=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": 1}, r"objective\.candidates: 1 must be at least 2"),
        ({"history": 0}, r"objective\.history: 0"),
        ({"validation_replies": 0}, r"objective\.validation_replies: 0"),
        ({"scale": 0.0}, r"objective\.scale: 0\.0 must be above 0"),
        ({"context_length": 33}, r"objective\.context_length: 33 tokens.* at most 32"),
        ({"reply_length": 2}, r"objective\.reply_length: 2 tokens.* above 2"),
        ({"label_smoothing": 0.1}, r"objective\.label_smoothing: 0\.1"),
    ],
)
def test_settings_that_make_no_sense(text: Tokenizer, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(text, **options)


def test_an_encoder_decoder_cannot(text: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"'response_selection' works from a model of family encoder or decoder"):
        make(text, family="encoder_decoder")

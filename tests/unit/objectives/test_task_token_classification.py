"""Token classification: pieces and words aligned, who can learn it, words that are not read, predictions, and each bad input."""

from __future__ import annotations

from typing import Any

import class_task_cases as cases
import numpy as np
import pytest
from class_task_cases import FAMILIES, make, records, tokenizer

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.objectives.record import Record
from triune.objectives.task_config import TokenClassificationTask
from triune.objectives.token_classification import word_pieces

KINDS = ["byte_bpe", "wordpiece", "unigram"]
ODD = ["Maria", "xyzzy", "héllo", "東京", "🙂", "don't", "a", "apple-pear", "New York", "Paris"]


def toy(count: int = 32) -> list[Record]:
    """Maria is a person, Paris a place, and so is "old Paris"."""
    rng = np.random.default_rng(0)
    fields = []
    for _ in range(count):
        words, tags = ["lives"], ["O"]
        for _ in range(rng.integers(2, 4)):
            choice = rng.integers(4)
            words += [["Maria"], ["Paris"], ["old", "Paris"], ["near", "red"]][choice]
            tags += [["B-PER"], ["B-LOC"], ["B-LOC", "I-LOC"], ["O", "O"]][choice]
        fields.append({"words": words, "tags": tags})
    return records(fields)


def surface(text: Tokenizer, ids: np.ndarray) -> str:
    return text.decode(ids.tolist()).replace(" ", "").lower()


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_word_spell_it(kind: str) -> None:
    """Of any tokenizer: what a word's pieces decode to is the word."""
    text = tokenizer(kind)
    for words in (cases.WORDS, list(reversed(cases.WORDS)), ["apple"] * 5):
        ((ids, offsets),) = text.encode_aligned([" ".join(words)])
        pieces, owner = word_pieces(words, offsets)
        assert sorted(set(owner)) == list(range(len(words)))
        for number, word in enumerate(words):
            assert surface(text, ids[pieces[owner == number]]) == word.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_any_script_have_their_own_pieces(kind: str) -> None:
    ((ids, offsets),) = tokenizer(kind).encode_aligned([" ".join(ODD)])
    pieces, owner = word_pieces(ODD, offsets)
    assert (np.diff(owner) >= 0).all()
    assert sorted(set(owner)) == list(range(len(ODD)))
    spoken = {int(piece) for piece in pieces}
    blank = [n for n in range(len(ids)) if n not in spoken]
    assert all(surface(tokenizer(kind), ids[[n]]) in ("", "\u2581") for n in blank)


def test_pieces_by_hand() -> None:
    words = ["ab", "c", "de"]  # "ab c de": 0-2, 3-4, 5-7
    offsets = np.array([[0, 1], [1, 2], [2, 2], [3, 4], [5, 7], [5, 7]])
    pieces, owner = word_pieces(words, offsets)
    assert pieces.tolist() == [0, 1, 3, 4, 5]
    assert owner.tolist() == [0, 0, 1, 2, 2]
    pieces, owner = word_pieces(words, np.array([[0, 4], [5, 7]]))  # one piece of two words is the first's
    assert owner.tolist() == [0, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_stand_at_first_pieces(family: str, kind: str) -> None:
    text = tokenizer(kind)
    data = records([{"words": ["Maria", "grand", "Paris"], "tags": ["B-PER", "O", "B-LOC"]}])
    task = make(TokenClassificationTask(), data, family, text=text)
    (one,) = task.encode(data, training=True)
    example = one.example
    ids = example.inputs if example.source is None else example.source
    places = np.flatnonzero(example.weights)
    assert example.targets[places].tolist() == [1, 2, 0]  # B-LOC, B-PER, O
    assert example.weights[places].tolist() == [1, 1, 1]
    bounds = [*places, len(ids)]
    for word, start, stop in zip(data[0].fields["words"], bounds, bounds[1:], strict=False):
        own = [number for number in ids[start:stop].tolist() if number not in text.vocabulary.special]
        assert surface(text, np.array(own)) == word.lower()
    if family == "encoder_decoder":
        assert example.inputs[1:].tolist() == ids[:-1].tolist()


def test_all_pieces_share_the_weight_of_their_word() -> None:
    data = records([{"words": ["Maria", "xyzzy"], "tags": ["A", "B"]}] * 3)
    setting: dict[str, Any] = {"class_weights": {"B": 3.0}, "label_pieces": "all"}
    task = make(TokenClassificationTask(**setting), data, "encoder")
    example = task.encode(data, training=True)[0].example
    of_b = (example.targets == 1) & (example.weights > 0)
    assert of_b.sum() > 1
    assert example.weights[of_b].sum() == pytest.approx(3)
    assert example.weights.sum() == pytest.approx(4)
    assert task.encode(data, training=False)[0].example.weights.sum() == pytest.approx(2)


@pytest.mark.parametrize("pieces", ["first", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_tags(family: str, pieces: Any) -> None:
    data = toy()
    if family == "decoder":  # it can't know what follows "old"
        data = [Record(r.where, r.fields | {"tags": [t if w != "old" else "O" for w, t in zip(r.fields["words"], r.fields["tags"], strict=True)]}) for r in data]  # fmt: skip
    task = make(TokenClassificationTask(label_pieces=pieces), data, family)
    model = cases.learn(task, data)
    encoded = task.encode(data, training=False)
    predictions = task.predict(encoded, cases.scores(model, encoded, share=3), data)
    found = {measure.name: measure.value for measure in task.measures(predictions, data)}
    assert found["entity F1"] > 0.9
    assert found["accuracy"] > 0.95
    assert task.best == next(iter(found))
    baseline = task.baseline(data, data)
    assert baseline["entity F1"] == 0
    assert 0 < baseline["accuracy"] < found["accuracy"]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_learn_the_same(family: str) -> None:
    data = toy(7)
    setting: dict[str, Any] = {"label_pieces": "all", "class_weights": "balanced"}
    cases.assert_packing_changes_nothing(make(TokenClassificationTask(**setting), data, family), data, 3)


def test_other_tags_have_their_accuracy_only() -> None:
    data = records([{"words": ["Maria", "eats"], "tags": ["NOUN", "VERB"]}] * 2)
    task = make(TokenClassificationTask(), data, "encoder")
    (found,) = task.measures([{"tags": ["NOUN", "NOUN"]}, {"tags": ["NOUN", "VERB"]}], data)
    assert (found.name, found.value) == ("accuracy", 0.75)
    assert task.best == "accuracy"
    assert task.baseline(data, data) == {"accuracy": 0.5}


def test_balanced_weights_count_words() -> None:
    data = records([{"words": ["red"] * 4, "tags": ["A", "A", "A", "B"]}] * 2)
    task = make(TokenClassificationTask(class_weights="balanced"), data, "encoder")
    weights = task.encode(data, training=True)[0].example.weights
    assert weights[weights > 0].tolist() == pytest.approx([8 / (2 * 6)] * 3 + [8 / (2 * 2)])


def test_several_pieces_are_averaged() -> None:
    """Two pieces say B with 0.6, one says A with 0.9: mean of A is 0.57."""
    data = records([{"words": ["xyz"], "tags": ["A"]}, {"words": ["red"], "tags": ["B"]}])
    task = make(TokenClassificationTask(label_pieces="all"), data, "encoder")
    encoded = task.encode(data[:1], training=False)
    assert encoded[0].origin.tolist() == [0, 0, 0]
    chances = np.array([[0.4, 0.6], [0.4, 0.6], [0.9, 0.1]])
    assert task.predict(encoded, [np.log(chances)], data[:1]) == [{"tags": ["A"]}]
    assert task.predict(encoded, [np.log(chances[[0, 0, 0]])], data[:1]) == [{"tags": ["B"]}]


# ---- words that are not read -----------------------------------------------------------------------------------------


def scored(task: Any, data: list[Record], tag: str) -> list[dict[str, Any]]:
    """Predictions where every piece says `tag`."""
    encoded = task.encode(data, training=False)
    line = np.where(np.array(task.classes) == tag, 5.0, 0.0)
    return task.predict(encoded, [np.tile(line, (np.count_nonzero(one.example.weights), 1)) for one in encoded], data)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_beyond_the_context_are_said_and_given_o(family: str) -> None:
    long = records([{"words": ["Maria"] * 40, "tags": ["B-PER"] * 40}, {"words": ["red"], "tags": ["O"]}])
    task = make(TokenClassificationTask(), long, family)
    encoded = task.encode(long, training=True)
    assert len(encoded[0].example.inputs) == cases.CONTEXT
    read = np.count_nonzero(encoded[0].example.weights)
    assert 0 < read < 40
    first, second = scored(task, long, "B-PER")
    assert first == {"tags": ["B-PER"] * read + ["O"] * (40 - read), "unread": 40 - read}
    assert second == {"tags": ["B-PER"]}
    assert f"\n{40 - read} of 41 words are not read: they lie beyond the context of 24 tokens" in task.describe(long)
    assert "not read" not in task.describe(toy(4))
    recall = {m.name: m.value for m in task.measures([first, {"tags": ["O"]}], long)}["entity recall"]
    assert recall == pytest.approx(read / 40)


def test_without_o_the_tag_predicted_most_stands_in() -> None:
    long = records([{"words": ["red"] * 40, "tags": ["ADJ"] * 40}, {"words": ["eats"], "tags": ["VERB"]}])
    task = make(TokenClassificationTask(), long, "encoder")
    assert scored(task, long, "VERB")[0]["tags"] == ["VERB"] * 40


def test_a_word_in_which_the_tokenizer_finds_nothing() -> None:
    data = records(
        [{"words": ["red", "\u200b", "Maria"], "tags": ["O", "O", "B-A"]}, {"words": ["\u200b"], "tags": ["O"]}]
    )
    task = make(TokenClassificationTask(), data, "encoder", text=tokenizer("wordpiece"))
    first, second = task.encode(data, training=True)
    assert first.origin.tolist() == [0, 2]
    assert second.example.weights.sum() == 0
    assert scored(task, data, "B-A") == [
        {"tags": ["B-A", "O", "B-A"], "unread": 1}, {"tags": ["O"], "unread": 1},
    ]  # fmt: skip
    assert "2 of 4 words are not read" in task.describe(data)


def test_a_tag_that_training_never_saw_is_a_miss() -> None:
    task = make(TokenClassificationTask(), toy(8), "encoder")
    strange = records([{"words": ["Maria", "red"], "tags": ["B-ORG", "O"]}])
    (one,) = task.encode(strange, training=False)
    assert np.sort(one.example.weights[one.example.weights > 0]) == pytest.approx([0, 1], abs=1e-6)
    (prediction,) = scored(task, strange, "B-PER")
    found = {m.name: m.value for m in task.measures([prediction], strange)}
    assert found == {"entity F1": 0, "entity precision": 0, "entity recall": 0, "accuracy": 0}


def test_head_and_columns() -> None:
    task = make(TokenClassificationTask(), toy(8), "decoder")
    assert dict(task.head()) == {"kind": "classes", "labels": 4, "problem": "single_label", "pool": "none", "transform": False, "bias": True}  # fmt: skip
    assert [(f.name, f.kind, f.optional) for f in task.fields_of(task.config)] == [
        ("words", "words", False), ("tags", "tags", False),
    ]  # fmt: skip


def test_the_balance_is_said() -> None:
    data = records([{"words": ["red"] * 8, "tags": ["O"] * 7 + ["B-A"]}])
    assert make(TokenClassificationTask(), data, "encoder").describe(data) == (
        "2 tags, 8 words: O 87.5%, B-A 12.5%\nfewer than 5 words of B-A (1): don't expect these to be learned"
    )


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_words_and_tags_of_different_number() -> None:
    task = make(TokenClassificationTask(), toy(4), "encoder")
    for training in (True, False):
        with pytest.raises(UserError, match=r"x\.conll:7: 2 words but 1 tags"):
            task.encode([Record("x.conll:7", {"words": ["a", "b"], "tags": ["O"]})], training=training)


def test_an_unknown_training_tag_is_refused_with_its_place() -> None:
    task = make(TokenClassificationTask(labels=["O", "B-PER"]), toy(4), "encoder")
    with pytest.raises(
        UserError, match=r"x\.conll:7: the tag 'B-PERS' is none of the 2 classes; did you mean 'B-PER'\?.*O, B-PER"
    ):
        task.encode([Record("x.conll:7", {"words": ["a"], "tags": ["B-PERS"]})], training=True)


@pytest.mark.parametrize(("settings", "message"), [
    ({"class_weights": {"B-PERS": 2.0}}, r"class_weights: 'B-PERS' is none of the classes; did you mean 'B-PER'"),
    ({"class_weights": {"O": -1.0}}, r"class_weights: O is -1\.0"),
    ({"labels": ["O", "B-PER", "O"]}, r"objective\.labels: 'O' stands there twice"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(TokenClassificationTask(**settings), toy(8), "encoder")


def test_data_of_one_tag_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.train: every example has the tag 'O'"):
        make(TokenClassificationTask(), records([{"words": ["red", "old"], "tags": ["O", "O"]}]), "encoder")


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.rows\.length: a row of 2 tokens has no room for a word"):
        make(TokenClassificationTask(), toy(4), "encoder", context=2)

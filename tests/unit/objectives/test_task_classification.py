"""Classification: what stands where in a row, who can learn it, weights of classes, predictions, and each bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import class_task_cases as cases
import numpy as np
import pytest
from class_task_cases import FAMILIES, make, records, tokenizer

from triune.data.config import DataConfig, RowsConfig, SourceConfig
from triune.errors import UserError
from triune.models.factory import resolve
from triune.objectives.record import Record
from triune.objectives.task_config import ClassificationTask
from triune.supervision import supervise

FRUIT, TOOLS, COLOURS = ["apple", "pear", "plum"], ["hammer", "nail", "saw"], ["red", "green"]


def toy(count: int = 48, *, pairs: bool = False) -> list[Record]:
    """A fruit or a tool somewhere in the text (with pairs: in the second)."""
    rng = np.random.default_rng(0)
    fields = []
    for n in range(count):
        kind = ["fruit", "tool"][n % 2]
        words = ["old", *rng.choice(["big", "small", *COLOURS], rng.integers(1, 3))]
        words.insert(rng.integers(1, len(words) + 1), rng.choice(FRUIT if kind == "fruit" else TOOLS))
        text = {"text": "old Maria", "pair": " ".join(words)} if pairs else {"text": " ".join(words)}
        fields.append(text | {"label": kind})
    return records(fields)


def toy_several(count: int = 48) -> list[Record]:
    """Fruit, tools and colours, each there or not."""
    rng = np.random.default_rng(1)
    fields = []
    for n in range(count):
        there = [name for bit, name in enumerate(["fruit", "tool", "colour"]) if n >> bit & 1]
        words = ["old", *(rng.choice({"fruit": FRUIT, "tool": TOOLS, "colour": COLOURS}[name]) for name in there)]
        fields.append({"text": " ".join(["old", *rng.permutation(words)]), "labels": there})
    return records(fields)


def evaluate(task: Any, model: Any, data: list[Record]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    encoded = task.encode(data, training=False)
    predictions = task.predict(encoded, cases.scores(model, encoded), data)
    return predictions, {measure.name: measure.value for measure in task.measures(predictions, data)}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_one_class(family: str) -> None:
    data = toy()
    task = make(ClassificationTask(), data, family)
    predictions, found = evaluate(task, cases.learn(task, data), data)
    assert found["accuracy"] >= 0.9
    assert task.best in found
    for one in predictions:
        assert sum(one["scores"].values()) == pytest.approx(1)
        assert one["probability"] == one["scores"][one["label"]] == max(one["scores"].values())
    assert all(found[name] > value for name, value in task.baseline(data, data).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_several_classes(family: str) -> None:
    data = toy_several()
    task = make(ClassificationTask(multi_label=True), data, family)
    assert task.classes == ["colour", "fruit", "tool"]
    predictions, found = evaluate(task, cases.learn(task, data), data)
    assert found["exact match"] >= 0.9
    assert task.best in found
    for one in predictions:
        assert one["labels"] == [label for label, chance in one["scores"].items() if chance >= 0.5]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_from_a_pair(family: str) -> None:
    data = toy(pairs=True)
    task = make(ClassificationTask(), data, family)
    assert evaluate(task, cases.learn(task, data), data)[1]["accuracy"] >= 0.9


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_learn_the_same(family: str, pool: str) -> None:
    data = toy(7)
    task = make(ClassificationTask(pool=pool, class_weights={"tool": 3.0}), data, family)  # type: ignore[arg-type]
    cases.assert_packing_changes_nothing(task, data, 3)
    several = toy_several(7)
    cases.assert_packing_changes_nothing(make(ClassificationTask(pool=pool, multi_label=True), several, family), several, 3)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(("family", "pool", "last"), [
    ("encoder", None, False), ("decoder", None, True), ("encoder_decoder", None, True),
    ("encoder", "last", True), ("decoder", "mean", False),
])  # fmt: skip
def test_where_the_target_stands(family: str, pool: Any, last: bool) -> None:
    data = toy(4)
    task = make(ClassificationTask(pool=pool), data, family)
    for record, one in zip(data, task.encode(data, training=True), strict=True):
        example = one.example
        place = len(example.inputs) - 1 if last else 0
        assert np.flatnonzero(example.weights).tolist() == [place]
        assert example.targets[place] == ["fruit", "tool"].index(record.fields["label"])
        if family == "encoder_decoder":  # the decoder reads what the encoder does, one later
            assert example.source is not None
            assert example.inputs[1:].tolist() == example.source[:-1].tolist()
            assert example.inputs[0] == task.vocabulary.decoder_start
        ids = example.inputs if example.source is None else example.source
        assert tokenizer().decode(ids) == record.fields["text"]


def test_the_tokens_around_a_pair_and_its_segments() -> None:
    data = records([{"text": "red apple", "pair": "big saw", "label": "a"}, {"text": "old", "label": "b"}])
    task = make(ClassificationTask(), data, "encoder", token_types=True)
    pair, alone = (one.example for one in task.encode(data, training=True))
    opening, closing = task.vocabulary.opening, task.vocabulary.closing
    assert pair.inputs[0] == alone.inputs[0] == opening
    assert (pair.inputs == closing).sum() == 2
    assert (alone.inputs == closing).sum() == 1
    assert pair.token_types is not None
    assert len(pair.token_types) == len(pair.inputs)


def test_a_long_text_is_cut_to_the_context_and_said_to_be() -> None:
    data = records([{"text": "hammer " * 40, "label": "a"}, {"text": "red", "label": "b"}])
    for family in FAMILIES:
        task = make(ClassificationTask(), data, family)
        assert len(task.encode(data, training=True)[0].example.inputs) == cases.CONTEXT
        assert "beyond the context of 24 tokens, cut there: 1 of 2" in task.describe(data)
        assert "context" not in task.describe(data[1:])


def test_a_long_pair_is_said_to_be_cut() -> None:
    whole = " ".join(["red"] * 7)
    data = records([{"text": whole, "pair": whole, "label": "a"}, {"text": whole, "label": "b"}])
    task = make(ClassificationTask(), data, "encoder", context=14)
    assert len(task.encode(data, training=True)[0].example.inputs) == 14
    assert "cut there: 1 of 2" in task.describe(data)


def test_the_head_is_the_fields_own() -> None:
    for family in FAMILIES:
        head = dict(make(ClassificationTask(), toy(4), family).head())
        dense = family != "decoder"
        assert head == {"kind": "classes", "labels": 2, "problem": "single_label", "pool": "first" if family == "encoder" else "last",
                        "transform": dense, "activation": "tanh", "bias": dense}  # fmt: skip
    assert make(ClassificationTask(multi_label=True), toy_several(8), "encoder").head()["problem"] == "multi_label"


def test_the_columns() -> None:
    one, several = ClassificationTask(), ClassificationTask(multi_label=True)
    kind = type(make(one, toy(4), "encoder"))
    assert [(f.name, f.kind, f.optional) for f in kind.fields_of(one)] == [
        ("text", "text", False), ("pair", "text", True), ("label", "label", False),
    ]  # fmt: skip
    assert [f.name for f in kind.fields_of(several)] == ["text", "pair", "labels"]


def test_the_order_of_classes() -> None:
    def order(*names: str, **settings: Any) -> list[str] | None:
        return cases.labels(ClassificationTask(**settings), records([{"text": "red", "label": n} for n in names]))

    assert order("b", "a", "b") == ["a", "b"]
    assert order("10", "9", "-1", "9") == ["-1", "9", "10"]
    assert order("10", "9", "x") == ["10", "9", "x"]
    assert order("b", "a", labels=["b", "a", "c"]) == ["b", "a", "c"]


# ---- weights of classes ---------------------------------------------------------------------------------------------


def unbalanced() -> list[Record]:
    return records([{"text": "red apple", "label": label} for label in "a" * 6 + "b" * 3 + "c"])


def weights(setting: Any, *, training: bool = True) -> list[float]:
    task = make(ClassificationTask(class_weights=setting, labels=["a", "b", "c", "d"]), unbalanced(), "encoder")
    return [float(one.example.weights.sum()) for one in task.encode(unbalanced(), training=training)]


def test_balanced_weights_are_scikit_learns() -> None:
    """sklearn.utils.class_weight.compute_class_weight('balanced', ...) = N / (classes in the data * examples of the class)."""
    expected = [10 / (3 * 6)] * 6 + [10 / (3 * 3)] * 3 + [10 / 3]
    assert weights("balanced") == pytest.approx(expected)
    assert np.mean(weights("balanced")) == pytest.approx(1)


def test_weights_by_hand_and_in_evaluation() -> None:
    assert weights({"b": 2.5}) == [1] * 6 + [2.5] * 3 + [1]
    assert weights("none") == [1] * 10
    assert weights("balanced", training=False) == weights({"a": 7}, training=False) == [1] * 10


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_a_class_that_training_never_saw_is_a_miss() -> None:
    data = toy(8)
    task, strange = make(ClassificationTask(), data, "encoder"), records([{"text": "red apple", "label": "colour"}])
    encoded = task.encode([*data, *strange], training=False)
    model = cases.model_for(task)
    loss = cases.loss(model, cases.rows(encoded, 1))
    without = cases.loss(model, cases.rows(encoded[:-1], 1))
    assert float(loss.nll / loss.weight) == pytest.approx(float(without.nll / without.weight), rel=1e-5)
    right = [{"label": record.fields["label"]} for record in data]
    found = {m.name: m.value for m in task.measures([*right, {"label": "fruit"}], [*data, *strange])}
    assert found["accuracy"] == pytest.approx(8 / 9)
    assert found["macro F1"] == pytest.approx((2 * 4 / 9 + 1 + 0) / 3)


def test_an_unknown_one_of_several_is_a_miss() -> None:
    data = toy_several(8)
    task = make(ClassificationTask(multi_label=True), data, "encoder")
    strange = records([{"text": "old apple", "labels": ["fruit", "animal"]}])
    (one,) = task.encode(strange, training=False)
    assert one.example.values is not None
    assert one.example.values.tolist() == [[0, 1, 0]]
    found = {m.name: m.value for m in task.measures([{"labels": ["fruit"]}], strange)}
    assert found["exact match"] == 0
    assert found["micro F1"] == pytest.approx(2 / 3)


def test_the_threshold() -> None:
    data = toy_several(8)
    task = make(ClassificationTask(multi_label=True, threshold=0.8), data, "encoder")
    (one,) = task.predict(
        task.encode(data[:1], training=False), [np.log([[0.7 / 0.3, 0.9 / 0.1, 0.1 / 0.9]])], data[:1]
    )
    assert one["labels"] == ["fruit"]
    assert one["scores"] == pytest.approx({"colour": 0.7, "fruit": 0.9, "tool": 0.1})


def test_scores_of_any_size_make_probabilities() -> None:
    task = make(ClassificationTask(), toy(4), "encoder")
    given = task.predict(task.encode(toy(2), training=False), [[[1000.0, 0.0]], [[-1000.0, -1000.0]]], toy(2))
    assert [one["probability"] for one in given] == [1.0, 0.5]
    assert given[0]["scores"] == {"fruit": 1.0, "tool": 0.0}


def test_the_baseline_is_the_most_frequent_class() -> None:
    task = make(ClassificationTask(), unbalanced(), "encoder")
    found = task.baseline(unbalanced(), unbalanced())
    assert found == pytest.approx({"accuracy": 0.6, "macro F1": 0.75 / 3, "Matthews correlation": 0})
    several = make(ClassificationTask(multi_label=True), toy_several(8), "encoder")
    assert several.baseline(toy_several(8), toy_several(8))["micro F1"] > 0


def test_the_balance_is_said() -> None:
    task = make(ClassificationTask(labels=["a", "b", "c", "d"]), unbalanced(), "encoder")
    assert task.describe(unbalanced()) == (
        "4 classes, 10 examples: a 60.0%, b 30.0%, c 10.0%, d 0.0%\n"
        "fewer than 5 examples of b (3), c (1), d (0): don't expect these to be learned"
    )
    many = records([{"text": "red", "label": f"c{n}"} for n in range(9) for _ in range(1000 if n == 0 else 6)])
    assert make(ClassificationTask(), many, "encoder").describe(many) == (
        "9 classes, 1,048 examples: c0 95.4%, c1 0.57%, c2 0.57%, c3 0.57%, c4 0.57%, … c8 0.57%"
    )


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_unknown_training_label_is_refused_with_its_place() -> None:
    data = [*toy(4), Record("more.csv:9", {"text": "red", "label": "fruits"})]
    task = make(ClassificationTask(labels=["fruit", "tool"]), data, "encoder")
    with pytest.raises(
        UserError,
        match=r"more\.csv:9: the label 'fruits' is none of the 2 classes; did you mean 'fruit'\?.*fruit, tool",
    ):
        task.encode(data, training=True)
    several = [*toy_several(4), Record("more.csv:9", {"text": "red", "labels": ["fruit", "fruits"]})]
    task = make(ClassificationTask(labels=["fruit", "tool"], multi_label=True), several, "encoder")
    with pytest.raises(UserError, match=r"'colour' is none|'fruits' is none"):
        task.encode(several, training=True)


@pytest.mark.parametrize(("settings", "message"), [
    ({"class_weights": {"fruits": 2.0}}, r"class_weights: 'fruits' is none of the classes; did you mean 'fruit'"),
    ({"class_weights": {"fruit": 0.0}}, r"class_weights: fruit is 0\.0.*above 0"),
    ({"class_weights": {"fruit": float("nan")}}, r"class_weights: fruit is nan"),
    ({"threshold": 1.0}, r"threshold: 1\.0 .*\(0, 1\)"),
    ({"threshold": 0.0}, r"threshold: 0\.0"),
    ({"label_smoothing": 1.5}, r"label_smoothing: 1\.5"),
    ({"labels": ["fruit", "tool", "fruit"]}, r"objective\.labels: 'fruit' stands there twice"),
    ({"labels": ["fruit"]}, r"objective\.labels: \['fruit'\] has fewer than 2"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(ClassificationTask(**settings), toy(4), "encoder")


@pytest.mark.parametrize(("settings", "message"), [
    ({"class_weights": "balanced"}, r"class_weights: .*multi_label.*none"),
    ({"label_smoothing": 0.1}, r"label_smoothing: 0\.1"),
    ({"z_loss": 1e-4}, r"z_loss: 0\.0001"),
    ({"labels": []}, r"objective\.labels: \[\] has fewer than 1"),
])  # fmt: skip
def test_settings_that_several_classes_do_not_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(ClassificationTask(multi_label=True, **settings), toy_several(8), "encoder")


def test_data_of_one_class_is_refused() -> None:
    data = records([{"text": "red", "label": "a"}] * 3)
    with pytest.raises(UserError, match=r"data\.train: every example has the label 'a'.*column"):
        make(ClassificationTask(), data, "encoder")
    with pytest.raises(UserError, match=r"no example has a label"):
        make(ClassificationTask(multi_label=True), records([{"text": "red", "labels": []}]), "encoder")


def test_a_text_of_nothing_is_refused_with_its_place() -> None:
    data = records([{"text": "red", "label": "a"}, {"text": "\u200b\x00", "label": "b"}])
    task = make(ClassificationTask(), data, "encoder", text=tokenizer("wordpiece"))
    with pytest.raises(UserError, match=r"toy\.csv:3: the tokenizer finds nothing to read in the text"):
        task.encode(data, training=True)


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.rows\.length: a row of 4 tokens has no room"):
        make(ClassificationTask(), toy(4), "encoder", context=4)


def test_balanced_weights_are_of_all_sources_together(tmp_path: Path) -> None:
    sources = []
    for name, labels in (("one.csv", "aaab"), ("two.csv", "b")):
        (tmp_path / name).write_text("text,label\n" + "".join(f"red {n},{label}\n" for n, label in enumerate(labels)))
        sources.append(SourceConfig(path=str(tmp_path / name)))
    data = DataConfig(train=sources, validation=sources, rows=RowsConfig(kind="single"))
    model = resolve({"family": "encoder", "width": 32, "layers": 1, "heads": 4})
    found = supervise(
        ClassificationTask(class_weights="balanced"), data=data, model=model, tokenizer=tokenizer(), length=24
    )
    weights = [[float(rows[n][0].weights.sum()) for n in range(len(rows))] for rows in found.rows]
    assert weights == [pytest.approx([5 / 6] * 3 + [5 / 4]), pytest.approx([5 / 4])]

"""Regression: where the number stands, who can learn it, predictions, and each bad input."""

from __future__ import annotations

from typing import Any

import class_task_cases as cases
import numpy as np
import pytest
from class_task_cases import FAMILIES, make, records, tokenizer

from triune.errors import UserError
from triune.objectives.record import Record
from triune.objectives.task_config import RegressionTask

SIZES = {"small": -1.0, "old": 0.0, "big": 1.0}


def toy(count: int = 48) -> list[Record]:
    """How big the thing in the second text is."""
    rng = np.random.default_rng(0)
    fields = []
    for _ in range(count):
        word = rng.choice(list(SIZES))
        pair = " ".join(["lives", word, *rng.choice(["apple", "saw", "red"], rng.integers(1, 3))])
        fields.append({"text": "Maria lives", "pair": pair, "score": SIZES[word]})
    return records(fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_learns_a_number(family: str) -> None:
    data = toy()
    task = make(RegressionTask(), data, family)
    model = cases.learn(task, data)
    encoded = task.encode(data, training=False)
    predictions = task.predict(encoded, cases.scores(model, encoded), data)
    found = {measure.name: measure.value for measure in task.measures(predictions, data)}
    assert found["Pearson correlation"] > 0.9
    baseline = task.baseline(data, data)
    assert found["mean squared error"] < baseline["mean squared error"] / 4
    assert task.best == next(iter(found))
    scores = np.array([record.fields["score"] for record in data])
    assert baseline == pytest.approx(
        {"Pearson correlation": 0, "Spearman correlation": 0, "mean squared error": scores.var()}
    )


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_learn_the_same(family: str, pool: str) -> None:
    data = toy(7)
    cases.assert_packing_changes_nothing(make(RegressionTask(pool=pool), data, family), data, 3)  # type: ignore[arg-type]


def test_the_loss_is_the_mean_squared_error() -> None:
    data = toy(9)
    task = make(RegressionTask(), data, "encoder")
    encoded = task.encode(data, training=True)
    model = cases.model_for(task)
    predictions = task.predict(encoded, cases.scores(model, encoded), data)
    output = cases.loss(model, cases.rows(encoded, 2))
    expected = np.mean([(p["score"] - r.fields["score"]) ** 2 for p, r in zip(predictions, data, strict=True)])
    assert float(output.nll / output.weight) == pytest.approx(expected, rel=1e-5)  # fp32
    assert {m.name: m.value for m in task.measures(predictions, data)}["mean squared error"] == pytest.approx(expected)


def test_head_and_columns() -> None:
    task = make(RegressionTask(), toy(4), "encoder")
    assert dict(task.head()) == {"kind": "classes", "labels": 1, "problem": "regression", "pool": "first", "transform": True,
                                 "activation": "tanh", "bias": True}  # fmt: skip
    assert [(f.name, f.kind, f.optional) for f in task.fields_of(task.config)] == [
        ("text", "text", False), ("pair", "text", True), ("score", "number", False),
    ]  # fmt: skip
    assert cases.labels(RegressionTask(), toy(4)) is None


def test_what_is_said_of_the_data() -> None:
    data = records([{"text": "red", "score": score} for score in (0.0, 5.0, 2.5)])
    task = make(RegressionTask(), data, "encoder")
    assert task.describe(data) == "3 examples: scores from 0 to 5, mean 2.5, standard deviation 2.04"
    long = records([{"text": "hammer " * 40, "score": 1.0}])
    assert task.describe(long).endswith("texts beyond the context of 24 tokens, cut there: 1 of 1")


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"label_smoothing": 0.1}, r"label_smoothing: 0\.1"),
    ({"z_loss": 1e-4}, r"z_loss: 0\.0001"),
])  # fmt: skip
def test_settings_that_squared_error_does_not_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(RegressionTask(**settings), toy(4), "encoder")


def test_scores_that_are_all_the_same_are_refused() -> None:
    data = records([{"text": "red", "score": 1.5}] * 3)
    task = make(RegressionTask(), data, "encoder")
    with pytest.raises(UserError, match=r"data\.train: every score is 1\.5"):
        task.encode(data, training=True)
    assert len(task.encode(data, training=False)) == 3


def test_a_second_text_of_nothing_is_refused_with_its_place() -> None:
    data = records([{"text": "red", "pair": "old", "score": 1.0}, {"text": "red", "pair": "\u200b\x00", "score": 2.0}])
    task = make(RegressionTask(), data, "encoder", text=tokenizer("wordpiece"))
    with pytest.raises(UserError, match=r"toy\.csv:3: the tokenizer finds nothing to read in the pair"):
        task.encode(data, training=True)


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.rows\.length: a row of 4 tokens has no room"):
        make(RegressionTask(), toy(4), "encoder", context=4)

"""What happens at a validation of a task: metrics measured and logged, early stopping that survives a resume."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from triune.training import task_callbacks
from triune.training.task_callbacks import Patience, TaskMetrics, metric_name
from triune.training.task_outcome import Before


def trainer(**state: Any) -> Any:
    found = {
        "sanity_checking": False,
        "is_global_zero": True,
        "global_step": 7,
        "should_stop": False,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "strategy": SimpleNamespace(broadcast=lambda value, src: value),
    }
    return SimpleNamespace(**{**found, **state})


def validated(**values: float) -> Any:
    return SimpleNamespace(validation={f"validation/{name}": value for name, value in values.items()})


def watch(patience: Patience, values: list[float]) -> list[bool]:
    """Whether the run is told to stop after each validation."""
    stops = []
    for value in values:
        state = trainer()
        patience.on_validation_end(state, validated(f1=value))
        stops.append(state.should_stop)
    return stops


@pytest.mark.parametrize(
    ("measure", "name"),
    [("macro F1", "validation/macro_f1"), ("accuracy", "validation/accuracy"), ("R@1", "validation/r_at_1")],
)
def test_a_measure_has_its_name_in_the_log(measure: str, name: str) -> None:
    assert metric_name(measure) == name


def test_patience_counts_validations_without_a_new_best() -> None:
    up = Patience("validation/f1", higher_is_better=True, patience=2)
    assert watch(up, [0.1, 0.3, 0.2, 0.4, 0.4, 0.3]) == [False] * 5 + [True]
    down = Patience("validation/f1", higher_is_better=False, patience=2)
    assert watch(down, [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]) == [False] * 5 + [True]
    assert (up.best, down.best) == (0.4, -1.9)


def test_not_a_number_is_no_progress() -> None:
    assert watch(Patience("validation/f1", higher_is_better=True, patience=2), [0.5, math.nan, math.nan]) == [
        *(False, False),
        True,
    ]


@pytest.mark.parametrize("cut", range(6))
def test_patience_goes_on_where_a_checkpoint_left_it(cut: int) -> None:
    values = [0.1, 0.3, 0.2, 0.2, 0.25, 0.1]
    whole = Patience("validation/f1", higher_is_better=True, patience=3)
    expected = watch(whole, values)
    before, after = (Patience("validation/f1", higher_is_better=True, patience=3) for _ in range(2))
    stops = watch(before, values[:cut])
    after.load_state_dict(before.state_dict())
    assert stops + watch(after, values[cut:]) == expected
    assert after.exhausted


@pytest.mark.parametrize("state", [{"sanity_checking": True}, {"state": SimpleNamespace(fn=TrainerFn.VALIDATING)}])
def test_a_validation_that_is_not_of_training_does_not_count(state: dict[str, Any]) -> None:
    patience = Patience("validation/f1", higher_is_better=True, patience=1)
    patience.on_validation_end(trainer(**state), validated(f1=1.0))
    assert (patience.best, patience.waited) == (-math.inf, 0)


def measured(monkeypatch: pytest.MonkeyPatch, output: str, **state: Any) -> tuple[Any, list[Any]]:
    """The module after `TaskMetrics`, and what it logged."""
    monkeypatch.setattr(task_callbacks, "evaluate", lambda *given: SimpleNamespace(values={"macro F1": 0.25}))
    logged: list[Any] = []
    module = validated(loss=1.0)
    module.model, module.log_now = None, lambda *given: logged.append(given)
    module.throughput = SimpleNamespace(pause=lambda: None)
    task: Any = SimpleNamespace(output=output)
    metrics = TaskMetrics(task, [], [])
    metrics.on_validation_epoch_start(trainer(**state), module)
    assert "validation/macro_f1" not in module.validation
    metrics.on_validation_end(trainer(**state), module)
    return module, logged


def test_the_tasks_metrics_stand_beside_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    module, logged = measured(monkeypatch, "scores")
    assert module.validation == {"validation/loss": 1.0, "validation/macro_f1": 0.25}
    assert logged == [({"validation/macro_f1": 0.25}, 7)]


def test_a_rank_above_0_takes_what_rank_0_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(broadcast=lambda value, src: {"validation/macro_f1": 0.75})
    module, _ = measured(monkeypatch, "scores", is_global_zero=False, strategy=told)
    assert module.validation["validation/macro_f1"] == 0.75


@pytest.mark.parametrize("output", ["text", "likelihoods"])
def test_what_is_dear_or_the_loss_itself_is_left_to_the_end(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    module, logged = measured(monkeypatch, output)
    assert (module.validation, logged) == ({"validation/loss": 1.0}, [])


BEFORE = Before(values={"macro F1": 0.1}, higher_is_better={"accuracy": True, "macro F1": True, "error": False})


@pytest.mark.parametrize(
    ("before", "chosen", "expected"),
    [
        (BEFORE, None, ("validation/accuracy", True)),
        (BEFORE, "macro_f1", ("validation/macro_f1", True)),
        (BEFORE, "macro F1", ("validation/macro_f1", True)),
        (BEFORE, "validation/error", ("validation/error", False)),
        (BEFORE, "loss", ("validation/loss", False)),
        (Before(), None, ("validation/loss", False)),
    ],
)
def test_the_best_checkpoint_is_chosen_by(before: Before, chosen: str | None, expected: tuple[str, bool]) -> None:
    assert before.best(chosen) == expected


def test_a_metric_that_there_is_not_is_answered_with_those_there_are() -> None:
    with pytest.raises(KeyError) as error:
        BEFORE.best("bleu")
    assert error.value.args[0] == "accuracy, macro_f1, error, loss"


def test_what_was_before_is_kept_beside_the_run(tmp_path: Any) -> None:
    assert Before.read(tmp_path / "before.json") is None
    BEFORE.write(tmp_path / "before.json")
    assert Before.read(tmp_path / "before.json") == BEFORE

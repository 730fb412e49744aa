"""metrics.csv: appended to by every continuation, whole after every kill."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.tracking.csv_log import CsvLog
from triune.tracking.metrics import METRICS, NAMES, STEP, TOKENS, table


def read(log: CsvLog) -> list[dict[str, str]]:
    with log.path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_one_row_a_step_in_stable_columns(tmp_path: Path) -> None:
    log = CsvLog(tmp_path)
    log.log_metrics({"train/loss": 4.5}, 1)
    log.log_metrics({"validation/loss": 5.0, "progress/tokens": 4096}, 1)
    log.log_metrics({"train/loss": 0.1 + 0.2, "train/mfu": 0.1 + 0.2}, 2)
    log.log_metrics({"train/mfu": 1.0}, 2)  # a shorter row than the one it replaces
    assert read(log) == [
        {"step": "1", "train/loss": "4.5", "validation/loss": "5.0", "progress/tokens": "4096"},
        {"step": "2", "train/loss": "0.30000000000000004", "train/mfu": "1.0"},
    ]
    assert log.path.read_text().splitlines()[0].split(",") == ["step", *NAMES]


def test_a_column_of_its_own_is_added_at_the_end(tmp_path: Path) -> None:
    log = CsvLog(tmp_path)
    log.log_metrics({"train/loss": 4.5}, 1)
    log.log_metrics({"mine": 1}, 1)
    log.log_metrics({"mine": 2}, 2)
    again = CsvLog(tmp_path)
    again.log_metrics({"train/loss": 4.0}, 3)
    assert read(again) == [
        {"step": "1", "train/loss": "4.5", "mine": "1"},
        {"step": "2", "mine": "2"},
        {"step": "3", "train/loss": "4.0"},
    ]
    assert log.path.read_text().splitlines()[0].endswith(",mine")


def test_a_continuation_drops_what_it_does_again(tmp_path: Path) -> None:
    log = CsvLog(tmp_path)
    for step in range(1, 8):
        log.log_metrics({"train/loss": float(step)}, step)
    log = CsvLog(tmp_path)
    log.rewind(5)
    assert [int(row["step"]) for row in log.rows()] == [1, 2, 3, 4, 5]
    log.log_metrics({"train/loss": 60.0}, 6)
    log = CsvLog(tmp_path)  # without being told: a step that is there already is from another time
    log.log_metrics({"train/loss": 30.0}, 3)
    assert read(log) == [
        {"step": "1", "train/loss": "1.0"},
        {"step": "2", "train/loss": "2.0"},
        {"step": "3", "train/loss": "30.0"},
    ]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    log = CsvLog(tmp_path)
    for step in range(1, 4):
        log.log_metrics({"train/loss": float(step), "memory/peak": 7}, step)
    whole = log.path.read_bytes()
    start = whole.rindex(b"\n3,") + 1
    for cut in range(start, len(whole)):
        log.path.write_bytes(whole[:cut])
        again = CsvLog(tmp_path)
        again.log_metrics({"train/loss": 4.0}, 4)
        assert [row["step"] for row in read(again)] == ["1", "2", "4"]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from([*NAMES, "own"]), st.booleans()), max_size=30))
def test_steps_rise_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str, bool]]
) -> None:
    """Against a dictionary: a step below the last forgets it and all after it."""
    directory = tmp_path_factory.mktemp("csv")
    log, model = CsvLog(directory), {}
    for number, (step, name, reopen) in enumerate(events):
        log = CsvLog(directory) if reopen else log
        if model and step < max(model):
            model = {known: row for known, row in model.items() if known < step}
        model.setdefault(step, {"step": str(step)})[name] = str(number)
        log.log_metrics({name: number}, step)
        assert read(log) == [model[known] for known in sorted(model)]


def test_metrics_are_named_once() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert TOKENS in NAMES
    assert STEP not in NAMES
    required = (
        "train/loss train/perplexity train/tokens_per_second train/mfu train/grad_norm train/learning_rate progress/tokens "
        "progress/epoch validation/loss validation/perplexity validation/bits_per_byte validation/accuracy"
    )
    assert set(required.split()) <= set(NAMES)
    assert all(metric.unit and metric.meaning and "/" in metric.name for metric in METRICS)
    assert len(table().splitlines()) == 2 + len(METRICS)
    assert all(line.count("|") == 4 for line in table().splitlines())

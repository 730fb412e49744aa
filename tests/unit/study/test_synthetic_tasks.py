"""The study's synthetic tasks: what is asked has one answer, it stands where the task says, and nothing else gives it away."""

import sys
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).resolve().parents[3] / "jobs" / "study"


@pytest.fixture(scope="module")
def tasks():
    """jobs/study/synthetic_tasks.py as a module."""
    sys.path.insert(0, str(STUDY))
    try:
        import synthetic_tasks
    finally:
        sys.path.remove(str(STUDY))
    return synthetic_tasks


@pytest.fixture(scope="module", params=["recall", "small recall", "duplication", "short duplication"])
def task(request, tasks):
    return {
        "recall": tasks.Recall(),
        "small recall": tasks.Recall(length=16, pairs=3, keys=4),
        "duplication": tasks.Duplication(),
        "short duplication": tasks.Duplication(length=8, symbols=3),
    }[request.param]


def _draw(task, count=200, seed=3):
    return task.rows(count, np.random.default_rng(seed))


def test_shapes_types_and_ids(task):
    rows = _draw(task)
    for part in (rows.inputs, rows.targets, rows.distances, rows.candidates):
        assert part.shape == (200, task.length)
        assert part.dtype == np.int64
    assert rows.inputs.min() >= 0
    assert rows.inputs.max() < task.vocabulary
    assert 0 < rows.asked.mean() < 1
    assert (rows.targets[~rows.asked] == 0).all()
    assert ((rows.candidates > 0) == rows.asked).all()


def test_the_answer_stands_at_its_distance(task):
    rows = _draw(task)
    row, position = np.nonzero(rows.asked)
    answers = rows.inputs[row, position - rows.distances[row, position]]
    assert (rows.distances[row, position] <= position).all()
    assert (answers == rows.targets[row, position]).all()


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(task):
    first, again, other = _draw(task), _draw(task), _draw(task, seed=4)
    assert (first.inputs == again.inputs).all()
    assert (first.targets == again.targets).all()
    assert (first.inputs != other.inputs).any()


def test_every_id_occurs(task):
    rows = _draw(task, count=400)
    assert set(np.unique(rows.inputs)) == set(range(task.vocabulary))


def test_an_oracle_that_looks_keys_up_recalls_everything(tasks):
    task = tasks.Recall()
    rows = _draw(task)
    for inputs, targets, asked in zip(rows.inputs, rows.targets, rows.asked, strict=True):
        known = {}
        for position, token in enumerate(inputs):
            if token in range(task.keys, 2 * task.keys):
                key = inputs[position - 1]
                assert key not in known
                known[key] = token
            elif asked[position]:
                assert known[token] == targets[position]
        assert len(known) == task.pairs


def test_recall_asks_everywhere_but_in_pairs_and_before_the_first(tasks):
    task = tasks.Recall()
    rows = _draw(task)
    values = (rows.inputs >= task.keys) & (rows.inputs < 2 * task.keys)
    keys_of_pairs = np.roll(values, -1, axis=1)
    blanks = rows.inputs == 2 * task.keys
    assert (rows.asked == ~(values | keys_of_pairs | blanks)).all()
    assert np.nonzero(values)[1].max() < task.length // 2
    assert (rows.candidates == np.where(rows.asked, values.cumsum(axis=1), 0)).all()


def test_recall_asks_for_every_pair_at_near_and_far(tasks):
    task = tasks.Recall()
    rows = _draw(task, count=400)
    distances = rows.distances[rows.asked]
    for least, most, share in ((1, 16, 0.05), (16, 128, 0.4), (128, 256, 0.2)):
        assert ((distances >= least) & (distances < most)).mean() > share
    # in the second half each of the 8 pairs is asked for equally often: 400 x 128 draws, a standard error of 0.0015
    second = slice(task.length // 2, None)
    ranks = np.stack(
        [
            np.searchsorted(np.nonzero(values)[0], np.arange(128, 256) - places)
            for values, places in zip((rows.inputs >= 16) & (rows.inputs < 32), rows.distances[:, second], strict=True)
        ]
    )
    shares = np.bincount(ranks.ravel(), minlength=task.pairs) / ranks.size
    assert np.abs(shares - 1 / task.pairs).max() < 5 * 0.0015


def test_a_guess_among_the_candidates_has_the_chance_that_the_study_prints(tasks):
    task = tasks.Recall()
    rows = _draw(task, count=400)
    values = np.where((rows.inputs >= task.keys) & (rows.inputs < 2 * task.keys), rows.inputs, -1)
    last = np.maximum.accumulate(np.where(values >= 0, np.arange(task.length), 0), axis=1)
    newest = np.take_along_axis(rows.inputs, last, axis=1)  # a guess that recalls nothing: the last value that passed
    hits = (newest == rows.targets)[rows.asked]
    chance = (1 / rows.candidates[rows.asked]).mean()
    # equal values of two pairs help the guess by at most (1 - chance) / keys; 100,000 questions have an error below 0.002
    assert chance - 0.01 < hits.mean() < chance + 1 / task.keys + 0.01


def test_duplication_is_0w0w_and_judges_the_second_w(tasks):
    task = tasks.Duplication()
    rows = _draw(task)
    half = task.length // 2
    assert (rows.inputs[:, :half] == rows.inputs[:, half:]).all()
    assert (rows.inputs[:, 0] == 0).all()
    assert (rows.inputs[:, 1:half] > 0).all()
    assert (np.nonzero(rows.asked)[1].reshape(200, -1) == np.arange(half, task.length - 1)).all()
    assert (rows.targets[:, half:-1] == rows.inputs[:, half + 1 :]).all()
    # 25,400 symbols, each of the 127 equally often: 200 of each, standard deviation 14
    counts = np.bincount(rows.inputs[:, 1:half].ravel(), minlength=task.vocabulary)[1:]
    assert np.abs(counts - 200).max() < 6 * 14


def test_sizes_that_make_no_task_are_refused(tasks):
    for sizes in ({"pairs": 0}, {"pairs": 17, "keys": 16}, {"length": 16, "pairs": 5, "keys": 16}):
        with pytest.raises(ValueError, match="pairs is"):
            tasks.Recall(**sizes)
    for length in (7, 2):
        with pytest.raises(ValueError, match="length is"):
            tasks.Duplication(length=length)

"""For any segments and seed: corrupted input plus target give back the text, costs hold, and equal seeds equal rows."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_cases import CONFIGS, MASK, VOCABULARY, cut, document, restore

from triune.objectives.batch import Example, Segment
from triune.objectives.build import build
from triune.objectives.config import DenoisingObjective
from triune.objectives.seeding import generator

ROWS = st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=5)
cases = settings(deadline=None, max_examples=50, derandomize=True)
every = pytest.mark.parametrize("name", CONFIGS)


def row_of(name: str, shapes, seed: int) -> list[Segment]:
    pair = CONFIGS[name].kind == "translation"
    return [cut(document(n, seed + i), pair=pair, ends=ends or pair) for i, (n, ends) in enumerate(shapes)]


def equal(one: Example, other: Example) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Example))


@every
@cases
@given(shapes=ROWS, seed=st.integers(0, 2**32))
def test_input_and_target_give_back_the_text(name, shapes, seed):
    config = CONFIGS[name]
    segments = row_of(name, shapes, seed)
    example = build(config, VOCABULARY, 400)(segments, generator(seed, 0, 0))
    texts = restore(config.kind, example)
    assert len(texts) == len(segments)
    for text, segment in zip(texts, segments, strict=True):
        assert np.array_equal(text, segment.ids)


@every
@cases
@given(shapes=ROWS, seed=st.integers(0, 2**32))
def test_a_row_is_well_formed(name, shapes, seed):
    config = CONFIGS[name]
    segments = row_of(name, shapes, seed)
    row = build(config, VOCABULARY, 400)(segments, generator(seed, 0, 0))
    for documents, positions in [(row.documents, row.positions), (row.source_documents, row.source_positions)]:
        if documents is None:
            continue
        # documents in order, none missing, each counted from 0 without a gap
        assert np.array_equal(np.unique(documents), np.arange(len(segments)))
        assert (np.diff(documents) >= 0).all()
        for number in range(len(segments)):
            assert np.array_equal(positions[documents == number], np.arange((documents == number).sum()))
    assert np.isin(row.weights, [0, 1]).all()
    assert row.weights.sum() >= 1
    lengths = {len(getattr(row, n)) for n in ("inputs", "targets", "weights", "documents", "positions")}
    assert len(lengths) == 1


@every
@cases
@given(data=st.data(), context=st.integers(8, 96), seed=st.integers(0, 2**32))
def test_rows_filled_by_cost_fit_in_both_towers(name, data, context, seed):
    config = CONFIGS[name]
    objective = build(config, VOCABULARY, context)
    shapes: list[tuple[int, bool]] = []
    used = 0
    for n in data.draw(st.lists(st.integers(1, objective.longest), min_size=1, max_size=12)):
        split = np.array([n // 2]) if config.kind == "translation" else None
        cost = int(objective.cost(np.array([n]), split)[0])
        if used + cost <= context:
            used += cost
            shapes.append((n, True))
    assert shapes, "one document of any length up to `longest` fits"
    for row in range(5):
        example = objective(row_of(name, shapes, seed), generator(seed, 0, row))
        assert len(example.inputs) <= used
        assert example.source is None or len(example.source) <= used


@every
@pytest.mark.parametrize("context", [8, 9, 31, 64, 512])
def test_longest_is_the_longest_that_fits(name, context):
    objective = build(CONFIGS[name], VOCABULARY, context)
    costs = objective.cost(np.arange(2 * context + 2))
    assert (np.diff(costs) >= 0).all()
    assert costs[objective.longest] <= context < costs[objective.longest + 1]


@every
def test_cost_is_reached(name):
    """Room is not given away: the fuller tower takes the whole cost (denoising's source alone may stay one below)."""
    config = CONFIGS[name]
    objective = build(config, VOCABULARY, 400)
    for n in (1, 2, 3, 40, 41):
        segment = cut(document(n), pair=config.kind == "translation")
        split = None if segment.split is None else np.array([segment.split])
        most = 0
        for row in range(20):
            example = objective([segment], generator(0, 0, row))
            most = max(most, len(example.inputs), 0 if example.source is None else len(example.source))
        cost = int(objective.cost(np.array([n]), split)[0])
        assert cost - most == 0 or (config.kind == "denoising" and cost - most == 1)


@every
def test_a_function_of_seed_epoch_and_row(name):
    objective = build(CONFIGS[name], VOCABULARY, 400)
    copy = pickle.loads(pickle.dumps(objective))  # as a worker gets it
    segments = row_of(name, [(40, True), (23, True)], 7)
    keys = [(seed, epoch, row) for seed in (0, 1) for epoch in (0, 1) for row in (0, 5)]
    there = {key: objective(segments, generator(*key)) for key in keys}
    back = {key: copy(segments, generator(*key)) for key in reversed(keys)}
    assert all(equal(there[key], back[key]) for key in keys)
    if CONFIGS[name].kind in ("causal", "translation"):
        assert all(equal(there[keys[0]], there[key]) for key in keys)
        return
    different = sum(not equal(there[one], there[other]) for i, one in enumerate(keys) for other in keys[:i])
    # 28 pairs; two documents left as they are by fill in the middle agree at 0.3^4 of them
    assert different >= (24 if CONFIGS[name].kind == "fill_in_the_middle" else 28)


@every
@cases
@given(shapes=ROWS, seed=st.integers(0, 2**32))
def test_segments_are_left_untouched(name, shapes, seed):
    segments = row_of(name, shapes, seed)
    for segment in segments:
        segment.ids.setflags(write=False)  # as a memory-mapped shard is
    before = [segment.ids.copy() for segment in segments]
    build(CONFIGS[name], VOCABULARY, 400)(segments, generator(seed, 0, 0))
    assert all(np.array_equal(one, segment.ids) for one, segment in zip(before, segments, strict=True))


@every
def test_empty_segments_do_no_harm(name):
    config = CONFIGS[name]
    segments = row_of(name, [(0, True), (9, True), (0, True), (0, False)], 1)
    objective = build(config, VOCABULARY, 64)
    example = objective(segments, generator(0, 0, 0))
    texts = restore(config.kind, example)
    assert [len(text) for text in texts] == [0, 9, 0, 0]
    assert np.array_equal(texts[1], segments[1].ids)
    objective(segments[:1], generator(0, 0, 0))


# how many words one document has shifts the draws of the next
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("masked word")])
def test_changing_one_document_changes_no_other(name):
    """Nothing crosses a document's border: with the draws held fixed, the neighbours stay as they are."""
    config = CONFIGS[name]
    segments = row_of(name, [(21, True), (17, False), (30, True)], 3)
    changed = list(segments)
    changed[1] = cut(document(17, 99), pair=config.kind == "translation", ends=segments[1].ends)
    objective = build(config, VOCABULARY, 400)
    for row in range(5):
        one, other = (objective(these, generator(0, 0, row)) for these in (segments, changed))
        outside = one.documents != 1
        assert np.array_equal(one.inputs[outside], other.inputs[outside])
        assert np.array_equal(one.targets[outside], other.targets[outside])
        assert np.array_equal(one.weights, other.weights)
        if one.source is not None:
            ours, theirs = one.source[one.source_documents != 1], other.source[other.source_documents != 1]
            assert np.array_equal(ours, theirs)


@cases
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32), rate=st.floats(0.05, 0.95), mean=st.floats(1, 8))
def test_infilled_source_is_the_text_with_gaps(n, seed, rate, mean):
    """What lies between masks is text, in order; with distinct ids the gaps can be measured."""
    text = np.arange(24, 24 + n)
    config = DenoisingObjective(infill_rate=rate, mean_span=mean, permute_sentences=0.0)
    row = build(config, VOCABULARY, 100)([Segment(text)], generator(seed, 0, 0))
    source = row.source[1:-1]
    kept = source[source != MASK]
    assert (np.diff(kept) > 0).all()
    hidden = n - len(kept)
    assert abs(hidden - rate * n) < 1
    # every hidden token lies under a mask: between two kept tokens without a mask nothing is missing
    framed = np.concatenate([[23], source, [24 + n]])
    neighbours = (framed[1:] != MASK) & (framed[:-1] != MASK)
    assert (np.diff(framed)[neighbours] == 1).all()


@cases
@given(n=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_permuted_sentences_stay_whole(n, seed):
    config = DenoisingObjective(infill_rate=0.0)
    text = document(n, seed % 1000).astype(int)
    source = build(config, VOCABULARY, 100)([Segment(text)], generator(seed, 0, 0)).source[1:-1]
    assert sorted(map(tuple, sentences(source, text))) == sorted(map(tuple, sentences(text, text)))


def sentences(ids: np.ndarray, original: np.ndarray) -> list[list[int]]:
    """Runs up to a sentence's end; the original's unfinished last sentence may lie anywhere, joined to the next."""
    tail = len(original) - (np.flatnonzero(original % 8 == 0).max(initial=-1) + 1)
    rest = list(original[len(original) - tail :])
    ids = list(ids)
    if rest:
        at = next(i for i in range(len(ids)) if ids[i : i + tail] == rest and (i == 0 or ids[i - 1] % 8 == 0))
        ids = ids[:at] + ids[at + tail :]
    runs: list[list[int]] = [[]]
    for token in ids:
        runs[-1].append(int(token))
        if token % 8 == 0:
            runs.append([])
    return runs

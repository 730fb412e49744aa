"""The resume contract: cut anywhere, go on with other ranks, workers and batches, and see exactly the rows and
corruption of a run that was never cut."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_fakes import MAKERS, module, packed_rows, rows_of_step, run, shown, single_rows, uninterrupted

from triune.data.loader import deal


@st.composite
def phases(draw):
    world_size = draw(st.integers(1, 4))
    return {
        "world_size": world_size,
        "rows_per_step": world_size * draw(st.integers(1, 5)),
        "micro_batch": draw(st.integers(1, 4)),
        "steps": draw(st.integers(0, 4)),
    }


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    kind=st.sampled_from(["packed", "single"]),
    sizes=st.lists(st.integers(2, 25), min_size=1, max_size=3),
    weighted=st.booleans(),
    runs=st.lists(phases(), min_size=2, max_size=4),
)
def test_a_run_resumed_with_other_ranks_and_batches_sees_the_rows_of_one_never_cut(kind, sizes, weighted, runs):
    train = [MAKERS[kind](size, number) for number, size in enumerate(sizes)]
    weights = [3.0, 1.0, 0.5][: len(sizes)] if weighted else None
    total = sum(phase["steps"] * phase["rows_per_step"] for phase in runs)
    expected = uninterrupted(train, total, weights)
    state, position = None, 0
    for phase in runs:
        made = module(
            train,
            state=state,
            weights=weights,
            rows_per_step=phase["rows_per_step"],
            micro_batch=phase["micro_batch"],
        )
        for step in run(made, phase["steps"], phase["world_size"]):
            wanted = expected[position : position + len(step)]
            # the order within a step is free where its rows are sorted by length
            assert (step == wanted) if kind == "packed" else (sorted(step) == sorted(wanted))
            position += len(step)
        state = made.state_dict()
        assert state["rows_seen"] == position
    assert position == total


@pytest.mark.parametrize(("kind", "workers"), list(itertools.product(MAKERS, [(0, 2), (2, 1)])))
def test_a_run_resumed_with_other_workers_sees_the_rows_of_one_never_cut(kind, workers):
    train = [MAKERS[kind](9, 0), MAKERS[kind](5, 1)]
    expected = uninterrupted(train, 5 * 6 + 3 * 8)
    first = module(train, rows_per_step=6, micro_batch=2, workers=workers[0])
    steps = run(first, 5)
    second = module(train, state=first.state_dict(), rows_per_step=8, micro_batch=3, workers=workers[1])
    assert second.rows_seen == 30
    steps += run(second, 3, world_size=2)
    position = 0
    for step in steps:
        assert sorted(step) == sorted(expected[position : position + len(step)])
        position += len(step)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_after_a_resume_are_equal_to_the_bit(workers):
    train = [packed_rows(20)]
    whole = module(train, rows_per_step=4, micro_batch=2, workers=0)
    steps = list(itertools.islice(iter(whole.train_loader()), 9))
    cut = module(train, rows_per_step=4, micro_batch=2, workers=workers, state={**whole.state_dict(), "rows_seen": 24})
    for expected, got in zip(steps[6:], cut.train_loader(), strict=False):
        for one, two in zip(expected, got, strict=True):
            for name in ("inputs", "targets", "weights"):
                assert torch.equal(getattr(one, name), getattr(two, name))
            assert torch.equal(one.layout.documents, two.layout.documents)
            assert torch.equal(one.layout.positions, two.layout.positions)
            assert (one.tokens, one.predicted) == (two.tokens, two.predicted)


@pytest.mark.parametrize("kind", MAKERS)
def test_an_epoch_holds_each_row_once_and_the_next_one_corrupts_it_anew(kind):
    rows = MAKERS[kind](23)
    seen = uninterrupted([rows], 2 * len(rows))
    first, second = seen[: len(rows)], seen[len(rows) :]
    ids = sorted(tuple(token for segment in rows[i] for token in segment.ids.tolist()) for i in range(len(rows)))
    assert sorted(row[0] for row in first) == sorted(row[0] for row in second) == ids
    assert len({corruption[0] for _, corruption in seen}) == len(seen)  # no two streams of random numbers are alike
    assert [row[0] for row in first] != [row[0] for row in second]


def test_equal_rows_of_two_sources_are_corrupted_differently():
    seen = uninterrupted([single_rows(10, 0, longest=7), single_rows(10, 0, longest=7)], 20)
    assert len({corruption[0] for _, corruption in seen}) == 20


def test_an_iterator_made_anew_starts_where_the_run_stands():
    """Lightning makes one at each of its epochs, where the user limits their length."""
    made = module([packed_rows(12)], rows_per_step=2)
    loader = made.train_loader()
    seen = []
    for _ in range(3):
        for step in itertools.islice(iter(loader), 4):
            seen += rows_of_step([step])
            made.advance(2)
    assert seen == uninterrupted([packed_rows(12)], 24)


def test_a_resume_far_into_the_stream_reads_only_its_own_rows():
    for maker in MAKERS.values():
        train = [maker(300, 0), maker(200, 1)]
        made = module(train, rows_per_step=6, micro_batch=3)
        made.load_state_dict({**made.state_dict(), "rows_seen": 10**7})
        for rows in train:
            rows.corpus.read = 0
        step = next(iter(made.train_loader(rank=1, world_size=2)))
        segments = sum(int(batch.layout.documents.max(dim=1).values.add(1).sum()) for batch in step)
        assert sum(rows.corpus.read for rows in train) == segments
        assert sum(len(batch.inputs) for batch in step) == 3


def test_fixed_lengths_and_padding_to_the_longest():
    rows = [single_rows(50)]
    fixed = next(iter(module(rows, rows_per_step=8, micro_batch=8).train_loader()))
    assert fixed[0].inputs.shape == (8, 8)
    loader = module(rows, rows_per_step=8, micro_batch=4, length=None, multiple_of=2).train_loader()
    for step in itertools.islice(loader, 10):
        widths = [batch.inputs.shape[1] for batch in step]
        assert widths == sorted(widths)  # rows of a step are sorted by length
        for batch in step:
            assert 0 <= batch.inputs.shape[1] - int((batch.inputs >= 0).sum(dim=1).max()) < 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(share=st.integers(1, 40), micro_batch=st.integers(1, 12), world_size=st.integers(1, 6))
def test_a_step_is_dealt_whole_and_equally(share, micro_batch, world_size):
    rows = np.arange(share * world_size)
    dealt = [deal(len(rows), micro_batch, world_size, rank) for rank in range(world_size)]
    assert sorted(int(row) for parts in dealt for part in parts for row in rows[part]) == rows.tolist()
    sizes = [[len(rows[part]) for part in parts] for parts in dealt]
    assert all(one == sizes[0] for one in sizes)
    assert max(sizes[0]) <= micro_batch
    assert len(sizes[0]) == -(-share // micro_batch)


def test_loaders_leave_the_global_random_state_alone():
    """A resumed run restores that state once: a loader made anew must not move it."""
    before = torch.get_rng_state()
    for workers in (0, 1):
        made = module([packed_rows(5)], workers=workers)
        next(iter(made.train_loader()))
        next(iter(made.validation_loader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_can_be_sent_to_spawned_workers():
    made = module([packed_rows(5)], rows_per_step=2, micro_batch=2)
    stream = made.train_loader()._stream()
    sent = pickle.loads(pickle.dumps(stream))
    assert shown(next(iter(sent))) == shown(next(iter(stream)))

"""Rows, stream and workers over shards on disk."""

import itertools
import pickle

import numpy as np
import pytest
from stream_fakes import Shown, module, run

from triune.data.config import RowsConfig
from triune.data.rows import Rows
from triune.data.shards import Shards, ShardWriter


def written(directory, lengths, first=0):
    """Shards of several files whose ids count up from `first`."""
    with ShardWriter(directory, dtype=np.dtype(np.uint16), tokenizer="t", file_bytes=100) as writer:
        for length in lengths:
            writer.add(np.arange(first, first + length), length)
            first += length
    return Shards.open(directory)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_over_shards_reads_every_token_once(tmp_path, workers):
    lengths = np.random.default_rng(0).integers(0, 40, 60).tolist()
    rows = Rows.of(written(tmp_path, lengths), Shown(16), RowsConfig())
    made = module([rows], rows_per_step=1, workers=workers, length=16)
    steps = run(made, len(rows))
    assert sorted(itertools.chain(*(ids for step in steps for ids, _ in step))) == list(range(sum(lengths)))


def test_rows_are_the_same_wherever_the_shards_lie_and_after_pickling(tmp_path):
    one, two = (Rows.of(written(tmp_path / name, [5, 9, 30]), Shown(16), RowsConfig()) for name in "ab")
    sent = pickle.loads(pickle.dumps(two))
    assert one.fingerprint == two.fingerprint == sent.fingerprint
    for i in range(len(one)):
        for mine, theirs in zip(one[i], sent[i], strict=True):
            np.testing.assert_array_equal(mine.ids, theirs.ids)
    other = Rows.of(written(tmp_path / "c", [5, 9, 30], first=1), Shown(16), RowsConfig())
    assert other.fingerprint != one.fingerprint


def test_pickled_rows_carry_no_tokens(tmp_path):
    rows = Rows.of(written(tmp_path, [20_000]), Shown(20_001), RowsConfig())
    assert len(pickle.dumps(rows)) < 10_000  # 40,000 bytes of ids

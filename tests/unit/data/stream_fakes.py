"""A corpus in memory and an objective whose batches show which rows they hold, for the tests of the row stream."""

from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from triune.data.config import RowsConfig
from triune.data.module import TextDataModule
from triune.data.rows import Rows
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment, Vocabulary
from triune.objectives.config import LossConfig


class MemoryCorpus:
    """Shards in memory: documents of given lengths; token t of document d of corpus c is unique. Counts the documents read."""

    def __init__(self, lengths: Sequence[int], splits: Sequence[int] | None = None, number: int = 0) -> None:
        self.lengths = np.array(lengths, np.int64)
        self.splits = None if splits is None else np.array(splits)
        self.number = number
        self.read = 0

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(fingerprint=f"{self.number} {self.lengths.tolist()}")

    def ids(self, document: int, /) -> np.ndarray:
        self.read += 1
        first = self.number * 10**7 + int(self.lengths[:document].sum())
        return np.arange(first, first + self.lengths[document])


class Shown(Objective):
    """Inputs are the row's ids, targets one random number a token: a row and its corruption can be read off a batch."""

    kind = "shown"

    def __init__(self, context: int) -> None:
        super().__init__(LossConfig(), Vocabulary(size=100, pad=-1, bos=1, eos=2), context)

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths) + 1

    @cached_property
    def longest(self) -> int:
        return self.context - 1

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        ids = np.concatenate([segment.ids for segment in segments])
        lengths = [len(segment.ids) for segment in segments]
        return Example(
            inputs=ids,
            targets=(generator.random(len(ids)) * 2**31).astype(np.int64),
            weights=np.ones(len(ids), np.float32),
            documents=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        )


def single_rows(count: int, number: int = 0, *, longest: int = 7, context: int = 8) -> Rows:
    """`count` rows of one document each, of 1 to `longest` tokens."""
    lengths = np.random.default_rng(number).integers(1, longest + 1, count).tolist()
    return Rows.of(MemoryCorpus(lengths, number=number), Shown(context), RowsConfig(kind="single"))


def packed_rows(count: int, number: int = 0, *, context: int = 8) -> Rows:
    """About `count` packed rows of 1 to `context` - 1 tokens a document."""
    lengths = np.random.default_rng(number).integers(1, context, 2 * count).tolist()
    return Rows.of(MemoryCorpus(lengths, number=number), Shown(context), RowsConfig())


MAKERS = {"packed": packed_rows, "single": single_rows}


def module(train, *, state=None, rows_per_step=1, micro_batch=1, workers=0, weights=None, **options):
    options = {"validation": [single_rows(3, 9)], "seed": 5, "length": 8, **options}
    made = TextDataModule(
        train=train,
        objective=Shown(8),
        rows_per_step=rows_per_step,
        micro_batch=micro_batch,
        workers=workers,
        weights=weights,
        **options,
    )
    if state is not None:
        made.load_state_dict(state)
    return made


def shown(batch):
    """Each row of a batch as (ids, corruption): what tells it from any other row and epoch."""
    return [
        (tuple(ids[mask].tolist()), tuple(targets[mask].tolist()))
        for ids, targets, mask in zip(batch.inputs, batch.targets, batch.inputs >= 0, strict=True)
    ]


def rows_of_step(steps):
    """The ranks' micro-batches of one step, [rank][micro] -> rows in the order of the stream."""
    return [row for run in zip(*steps, strict=True) for batch in run for row in shown(batch)]


def run(made, steps, world_size=1):
    """Train for `steps` steps on every rank: the rows of each step."""
    loaders = [iter(made.train_loader(rank, world_size)) for rank in range(world_size)]
    seen = []
    for _ in range(steps):
        seen.append(rows_of_step([next(loader) for loader in loaders]))
        made.advance(made.rows_per_step)
    for loader in loaders:  # Lightning fetches a step ahead: it must not count
        next(loader)
    return seen


def uninterrupted(train, rows, weights=None):
    return [row for step in run(module(train, weights=weights), rows) for row in step]

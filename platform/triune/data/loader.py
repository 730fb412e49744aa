"""Streams of batches that start at any position at once: one for training, one for validation.

Worker processes build micro-batches; the main process puts those of an optimizer step together. Which rows a step
holds follows from its position alone, so the position is the whole state and lives in the main process only:
what workers build ahead does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triune.data.mixture import Mixture, Places
from triune.data.order import derive
from triune.data.rows import RowSource
from triune.objectives.base import Objective
from triune.objectives.batch import Batch, collate
from triune.objectives.seeding import generator

#: micro-batches that one worker may build ahead: each holds open files of shared memory until it is used
_MOST_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Rows at their places -> a batch; the corruption of a row depends on its source, epoch and number only."""

    rows: Sequence[RowSource]
    objective: Objective
    seed: int
    length: int | None  # T; None pads to the longest row of the batch
    source_length: int | None  # S; likewise
    multiple_of: int

    def __call__(self, places: Places) -> Batch:
        """[n] places -> a batch of n rows."""
        seeds = [derive(self.seed, source) for source in range(len(self.rows))]
        examples = [
            self.objective(self.rows[source][row], generator(seeds[source], epoch, row))
            for source, epoch, row in zip(
                places.source.tolist(), places.epoch.tolist(), places.row.tolist(), strict=True
            )
        ]
        return collate(
            examples,
            pad=self.objective.vocabulary.pad,
            length=self.length,
            source_length=self.source_length,
            multiple_of=self.multiple_of,
        )

    def by_length(self, places: Places) -> Places:
        """Places with those of bucketed rows sorted by length, so that a batch's rows are of like length."""
        if not any(rows.bucketed for rows in self.rows):
            return places
        lengths = [self.rows[s].plan.cost[r] for s, r in zip(places.source, places.row, strict=True)]
        return places[np.argsort(lengths, kind="stable")]


def deal(rows: int, micro_batch: int, world_size: int, rank: int) -> list[slice]:
    """The micro-batches of one rank in a step of `rows` rows (a multiple of the ranks), as slices of the step.

    Each rank gets as many rows in as many micro-batches as any other: runs of micro_batch * world_size rows are
    divided among the ranks, the last run perhaps a shorter one.
    """
    run = micro_batch * world_size
    shares = [(start, min(run, rows - start) // world_size) for start in range(0, rows, run)]
    return [slice(start + rank * share, start + (rank + 1) * share) for start, share in shares]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStream(IterableDataset):
    """The endless micro-batches of one rank, step after step, from row `start` of the mixture's stream.

    Step t holds the rows start + t * rows_per_step onward. Worker w of W builds micro-batches w, w + W, ...;
    torch's DataLoader takes from its workers in turn, so that they arrive in order.
    """

    builder: Builder
    mixture: Mixture
    start: int
    rows_per_step: int
    micro_batches: Sequence[slice]  # of one step, for this rank

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        known, places = -1, None
        while True:
            step, micro = divmod(number, len(self.micro_batches))
            if step != known or places is None:
                first = self.start + step * self.rows_per_step
                places = self.mixture.locate(np.arange(first, first + self.rows_per_step))
                known, places = step, self.builder.by_length(places)
            yield self.builder(places[self.micro_batches[micro]])
            number += workers


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationStream(IterableDataset):
    """The validation batches of one rank: batch b of all goes to rank b modulo the ranks.

    The batches are the same for any number of ranks. Every rank yields as many, since the ranks compute together:
    one that would be short yields the last batch again with all weights 0, which adds nothing to any sum.
    """

    builder: Builder
    places: Places
    micro_batch: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-self._batches // self.world_size)

    @property
    def _batches(self) -> int:
        return -(-len(self.places) // self.micro_batch)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for turn in range(number, len(self), workers):
            batch = turn * self.world_size + self.rank
            first = min(batch, self._batches - 1) * self.micro_batch
            built = self.builder(self.places[first : first + self.micro_batch])
            yield built if batch < self._batches else _weightless(built)


def _weightless(batch: Batch) -> Batch:
    return replace(batch, weights=torch.zeros_like(batch.weights), tokens=0, predicted=0)


def batches(stream: IterableDataset, *, workers: int, ahead: int, pin_memory: bool) -> Iterator[Batch]:
    """The stream's batches, built by `workers` processes (0: here), at least `ahead` of them beforehand."""
    return iter(
        DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=min(max(2, -(-ahead // workers)), _MOST_AHEAD) if workers else None,
            pin_memory=pin_memory,
            # DataLoader draws a seed for its workers: not from the global generator, whose state a resume restores
            generator=torch.Generator(),
        )
    )


class StepLoader:
    """Endless optimizer steps of one rank, each the list of its micro-batches.

    Each `iter()` makes a stream that starts at the position of that moment.
    """

    def __init__(self, stream: Callable[[], TrainStream], *, workers: int, pin_memory: bool) -> None:
        self._stream = stream
        self._workers = workers
        self._pin_memory = pin_memory

    def __iter__(self) -> Iterator[list[Batch]]:
        stream = self._stream()
        each = len(stream.micro_batches)
        built = batches(stream, workers=self._workers, ahead=each, pin_memory=self._pin_memory)
        return _grouped(built, each)


def _grouped(built: Iterator[Batch], each: int) -> Iterator[list[Batch]]:
    while True:
        yield [next(built) for _ in range(each)]


class ValidationLoader:
    """The validation batches of one rank, the same at each `iter()`."""

    def __init__(self, stream: ValidationStream, *, workers: int, pin_memory: bool) -> None:
        self._stream = stream
        self._workers = workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        return batches(self._stream, workers=self._workers, ahead=2, pin_memory=self._pin_memory)

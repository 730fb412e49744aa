"""The data of a run as Lightning sees it: where the stream stands, and the loaders that go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from triune.data.loader import Builder, StepLoader, TrainStream, ValidationLoader, ValidationStream, deal
from triune.data.mixture import Mixture, Places
from triune.data.order import Order, derive
from triune.data.rows import RowSource
from triune.errors import UserError
from triune.objectives.base import Objective
from triune.objectives.batch import Batch

#: seeds the choice and the corruption of validation rows, in every run: validation losses of runs can be compared
VALIDATION_SEED = derive(0, 1 << 32)


class TextDataModule(LightningDataModule):
    """Training and validation batches of one experiment.

    The training loader yields, for each rank and optimizer step, the list of its micro-batches, without end. The
    position in the stream is `rows_seen`, which the trainer's side moves with `advance` after each optimizer step;
    it is all the state there is. A run saved and loaded continues with exactly the next row, whatever the ranks,
    workers, rows of a step or of a micro-batch before and after.

    Validation reads the same rows, with the same corruption, each time and on any number of ranks.

    Args:
        train: rows of each training source.
        weights: share of each source in the training tokens, relative to the others'; None is their sizes.
        validation: rows of each validation source.
        objective: what turns rows into examples.
        length: T of every batch; None pads each to its longest row.
        source_length: S of every batch, for objectives with a source; None likewise.
        multiple_of: lengths of padded batches are rounded up to this.
        rows_per_step: rows of one optimizer step, over all ranks.
        micro_batch: most rows of one forward pass on one rank.
        validation_rows: rows of one validation; None, or more than there are, is all.
        seed: seeds the order and the corruption of training rows.
        workers: processes that build batches, on each rank and for each loader; 0 builds them in the main process.

    Raises:
        UserError: training data smaller than one row, a source or a validation set without a row.
    """

    def __init__(
        self,
        *,
        train: Sequence[RowSource],
        validation: Sequence[RowSource],
        objective: Objective,
        rows_per_step: int,
        micro_batch: int,
        seed: int,
        weights: Sequence[float] | None = None,
        length: int | None = None,
        source_length: int | None = None,
        multiple_of: int = 8,
        validation_rows: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        _check_size(train, validation)
        self.rows_seen = 0
        self.seed = seed
        self.rows_per_step = rows_per_step
        self.micro_batch = micro_batch
        self.workers = workers
        self._mixture = Mixture(
            [len(rows) for rows in train],
            None if weights is None else _row_weights(train, weights),
            seed=seed,
            lengths=[rows.plan.cost if rows.bucketed else None for rows in train],
        )
        self._train = Builder(
            rows=train,
            objective=objective,
            seed=seed,
            length=length,
            source_length=source_length,
            multiple_of=multiple_of,
        )
        self._validation = Builder(
            rows=validation,
            objective=objective,
            seed=VALIDATION_SEED,
            length=length,
            source_length=source_length,
            multiple_of=multiple_of,
        )
        self._validation_places = self._validation.by_length(_choose(validation, validation_rows))

    @property
    def rows(self) -> int:
        """Training rows of one pass over all sources."""
        return sum(map(len, self._train.rows))

    def advance(self, rows: int) -> None:
        """Count `rows` rows of the stream, over all ranks, as trained on."""
        self.rows_seen += rows

    def state_dict(self) -> dict[str, Any]:
        """Position in the stream, and what tells this stream from another."""
        return {"rows_seen": self.rows_seen, **self._stream_identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position; UserError where it is of another stream: other rows, weights or seed."""
        now = self._stream_identity()
        for name, option in {"rows": "data", "weights": "data.train weights", "seed": "run.seed"}.items():
            if state_dict[name] != now[name]:
                raise UserError(
                    f"{option}: this run directory was trained on other rows, so it cannot be continued exactly: "
                    f"{name} were {state_dict[name]}, now {now[name]}. "
                    "Give back the data and settings of then, or start a run of another name (init.from takes over the weights)."
                )
        self.rows_seen = int(state_dict["rows_seen"])

    def train_dataloader(self) -> StepLoader:
        """This rank's steps, from `rows_seen` on."""
        return self.train_loader(*self._replica())

    def val_dataloader(self) -> ValidationLoader:
        """This rank's validation batches; every rank has as many."""
        return self.validation_loader(*self._replica())

    def train_loader(self, rank: int = 0, world_size: int = 1) -> StepLoader:
        """The steps of one of `world_size` data-parallel ranks; UserError where a step does not divide among them."""
        if self.rows_per_step < 1 or self.rows_per_step % world_size:
            raise UserError(
                f"run.batch_tokens: {self.rows_per_step} rows of a step do not divide among {world_size} data-parallel "
                f"devices; make batch_tokens a multiple of {world_size} rows"
            )
        micro_batches = deal(self.rows_per_step, self.micro_batch, world_size, rank)

        def stream() -> TrainStream:
            return TrainStream(
                builder=self._train,
                mixture=self._mixture,
                start=self.rows_seen,
                rows_per_step=self.rows_per_step,
                micro_batches=micro_batches,
            )

        return StepLoader(stream, workers=self.workers, pin_memory=self._on_cuda())

    def validation_loader(self, rank: int = 0, world_size: int = 1) -> ValidationLoader:
        """The validation batches of one of `world_size` data-parallel ranks."""
        stream = ValidationStream(
            builder=self._validation,
            places=self._validation_places,
            micro_batch=self.micro_batch,
            rank=rank,
            world_size=world_size,
        )
        return ValidationLoader(stream, workers=self.workers, pin_memory=self._on_cuda())

    def transfer_batch_to_device(
        self, batch: list[Batch] | Batch, device: torch.device, dataloader_idx: int
    ) -> list[Batch] | Batch:
        """Batches on the device; pinned ones are copied while it computes."""
        if isinstance(batch, list):
            return [part.to(device, non_blocking=device.type == "cuda") for part in batch]
        return batch.to(device, non_blocking=device.type == "cuda")

    def _stream_identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "weights": self._mixture.weights,
            "rows": [rows.fingerprint for rows in self._train.rows],
        }

    def _replica(self) -> tuple[int, int]:
        """Data-parallel rank and ranks: under tensor parallelism several processes share one."""
        replica = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (replica["rank"], replica["num_replicas"]) if replica else (0, 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _check_size(train: Sequence[RowSource], validation: Sequence[RowSource]) -> None:
    for number, rows in enumerate(train):
        if not len(rows):
            raise UserError(f"data.train[{number}]: no row comes of it ({rows.plan}); give it text, or leave it out")
    room = sum(int(rows.plan.cost.sum(dtype=np.int64)) for rows in train)
    capacity = max((rows.plan.capacity for rows in train), default=0)
    if not all(rows.bucketed for rows in train) and room < capacity:
        raise UserError(
            f"data.train: {room:,} tokens are less than one row of {capacity:,}; "
            f"give more text, or set data.rows.length (or model.context) to {room} or less"
        )
    if not sum(map(len, validation)):
        plans = "; ".join(str(rows.plan) for rows in validation)
        raise UserError(f"data.validation: no row to validate on ({plans}); give more text, or raise validation_share")


def _row_weights(train: Sequence[RowSource], weights: Sequence[float]) -> list[float]:
    """Weights in tokens -> weights in rows: packed rows are as good as full, others hold their mean."""
    return [
        weight / float(rows.plan.cost.mean()) if rows.bucketed else weight
        for rows, weight in zip(train, weights, strict=True)
    ]


def _choose(validation: Sequence[RowSource], wanted: int | None) -> Places:
    """The rows of one validation: the first `wanted` of a shuffle of all sources' rows, the same in every run."""
    ends = np.cumsum([len(rows) for rows in validation])
    total = int(ends[-1])
    _, chosen = Order(total, VALIDATION_SEED).locate(np.arange(total if wanted is None else min(wanted, total)))
    source = np.searchsorted(ends, chosen, side="right")
    row = chosen - (ends - [len(rows) for rows in validation])[source]
    return Places(source, np.zeros_like(row), row)

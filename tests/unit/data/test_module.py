"""The data module in Lightning, its validation set and its refusals."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from stream_fakes import MemoryCorpus, Shown, module, packed_rows, rows_of_step, shown, single_rows, uninterrupted

from triune.data.config import RowsConfig
from triune.data.rows import Rows
from triune.errors import UserError


def validated(made, world_size=1):
    """Batches of one validation by rank."""
    return [list(made.validation_loader(rank, world_size)) for rank in range(world_size)]


@pytest.mark.parametrize("maker", [packed_rows, single_rows])
def test_validation_is_the_same_each_time_and_for_any_seed_and_position(maker):
    made = module([single_rows(9)], validation=[maker(30, 1), maker(9, 2)], micro_batch=4)
    first = [shown(batch) for batch in validated(made)[0]]
    made.advance(12)
    assert [shown(batch) for batch in validated(made)[0]] == first
    other = module([single_rows(5)], validation=[maker(30, 1), maker(9, 2)], micro_batch=4, seed=6, workers=2)
    assert [shown(batch) for batch in validated(other)[0]] == first


@pytest.mark.parametrize("wanted", [1, 7, 8, None, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_validation_over_ranks_loses_and_repeats_nothing_that_weighs(wanted, world_size):
    sources = [single_rows(13, 1), single_rows(6, 2)]
    made = module([single_rows(9)], validation=sources, validation_rows=wanted, micro_batch=3)
    ranks = validated(made, world_size)
    rows = min(wanted or 19, 19)
    assert {len(batches) for batches in ranks} == {math.ceil(math.ceil(rows / 3) / world_size)}
    assert [len(batches) for batches in ranks] == [
        len(made.validation_loader(rank, world_size)) for rank in range(world_size)
    ]
    weighing = [batch for batches in ranks for batch in batches if batch.weights.any()]
    alone = validated(made)[0]
    assert sorted(row for batch in weighing for row in shown(batch)) == sorted(
        row for batch in alone for row in shown(batch)
    )
    assert len({row for batch in alone for row in shown(batch)}) == rows
    for batch in (batch for batches in ranks for batch in batches if not batch.weights.any()):
        assert (batch.tokens, batch.predicted) == (0, 0)
    assert sum(batch.predicted for batch in weighing) == sum(batch.predicted for batch in alone)


def test_a_smaller_validation_is_part_of_a_larger_one_and_mixes_sources():
    sources = [single_rows(40, 1), single_rows(40, 2)]
    small, large = (
        {
            row
            for batch in validated(module([single_rows(9)], validation=sources, validation_rows=n))[0]
            for row in shown(batch)
        }
        for n in (20, 40)
    )
    assert small < large
    of_second = sum(ids[0] >= 2 * 10**7 for ids, _ in large)
    assert 8 <= of_second <= 32  # hypergeometric, mean 20, standard deviation 2.25: beyond 5 deviations


def test_state_of_other_data_seed_or_weights_is_refused():
    made = module([packed_rows(9), packed_rows(5, 1)], weights=[1.0, 2.0])
    made.advance(3)
    state = made.state_dict()
    others = {
        "data: ": {"train": [packed_rows(9), packed_rows(6, 1)]},
        "data.train weights: ": {"weights": [2.0, 1.0]},
        "run.seed: .* 5, now 6": {"seed": 6},
    }
    for message, change in others.items():
        options = {"train": [packed_rows(9), packed_rows(5, 1)], "weights": [1.0, 2.0], **change}
        with pytest.raises(UserError, match=message):
            module(options.pop("train"), state=state, **options)
    same = module([packed_rows(9), packed_rows(5, 1)], weights=[1.0, 2.0], state=state)
    assert same.rows_seen == 3


def test_a_step_that_does_not_divide_among_the_devices_is_refused():
    with pytest.raises(UserError, match=r"run\.batch_tokens: 6 rows .* among 4 .* multiple of 4 rows"):
        module([packed_rows(9)], rows_per_step=6).train_loader(0, 4)


def test_a_corpus_smaller_than_one_row_is_refused():
    small = Rows.of(MemoryCorpus([2, 3]), Shown(8), RowsConfig())
    with pytest.raises(UserError, match=r"data\.train: 7 tokens are less than one row of 8; .*to 7 or less"):
        module([small])
    full = Rows.of(MemoryCorpus([2, 4]), Shown(8), RowsConfig())
    assert len(uninterrupted([full], 20)) == 20
    single = Rows.of(MemoryCorpus([2]), Shown(8), RowsConfig(kind="single"))
    assert len(uninterrupted([single], 3)) == 3


def test_a_source_or_a_validation_without_a_row_is_refused():
    empty = Rows.of(MemoryCorpus([0, 0]), Shown(8), RowsConfig())
    with pytest.raises(UserError, match=r"data\.train\[1\]: no row .*2 empty documents"):
        module([packed_rows(9), empty])
    with pytest.raises(UserError, match=r"data\.validation: no row .*validation_share"):
        module([packed_rows(9)], validation=[empty])
    with pytest.raises(UserError, match=r"data\.validation: no row"):
        module([packed_rows(9)], validation=[])


def test_weights_are_shares_of_the_tokens_also_where_rows_differ_in_length():
    short, long_ = (Rows.of(MemoryCorpus([n] * 9, number=n), Shown(8), RowsConfig(kind="single")) for n in (1, 7))
    seen = uninterrupted([short, long_], 50, weights=[0.5, 0.5])  # room of a row, end token included: 2 and 8
    assert sum(len(ids) == 1 for ids, _ in seen) == 40
    packed = uninterrupted([packed_rows(9), packed_rows(9, 1)], 50, weights=[4, 1])
    assert sum(ids[0] < 10**7 for ids, _ in packed) == 40


def test_ranks_are_the_data_parallel_ones_of_the_trainer():
    made = module([packed_rows(9)], rows_per_step=4, micro_batch=2)
    wanted = shown(next(iter(made.train_loader(1, 2)))[0])
    made.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": 1, "num_replicas": 2},
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        # under tensor parallelism there are more processes than data-parallel ranks
        global_rank=3,
        world_size=4,
    )
    assert shown(next(iter(made.train_dataloader()))[0]) == wanted
    assert len(made.val_dataloader()) == 1  # 3 rows are 2 batches, one for each of 2 ranks


class Recorder(LightningModule):
    """Records the rows of each step and moves the data module on, as training does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = []
        self.validations = []

    def training_step(self, batch, index):
        self.steps.append(rows_of_step([batch]))
        return self.weight * 1.0

    def on_train_batch_end(self, *_):
        self.trainer.datamodule.advance(self.trainer.datamodule.rows_per_step)

    def validation_step(self, batch, index):
        self.validations.append(shown(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_and_restores_the_position(tmp_path):
    train = [packed_rows(7), packed_rows(6, 1)]
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": None,
    }
    seen, state = [], None
    for until, workers, rows_per_step, extra in [(3, 0, 4, {}), (8, 1, 2, {"limit_train_batches": 3}), (10, 0, 6, {})]:
        recorder = Recorder()
        data = module(train, rows_per_step=rows_per_step, micro_batch=2, workers=workers)
        trainer = Trainer(max_steps=until, val_check_interval=3, **options, **extra)
        trainer.fit(recorder, datamodule=data, ckpt_path=state)
        state = tmp_path / f"{until}.ckpt"
        trainer.save_checkpoint(state)
        seen += list(itertools.chain(*recorder.steps))
        assert data.rows_seen == len(seen)
        for start in range(0, len(recorder.validations), len(validated(data)[0])):
            stop = start + len(validated(data)[0])
            assert recorder.validations[start:stop] == [shown(batch) for batch in validated(data)[0]]
    assert seen == uninterrupted(train, 3 * 4 + 5 * 2 + 2 * 6)

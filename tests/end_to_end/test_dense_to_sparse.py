"""A trained dense run becomes a sparse, longer one by `init.from`, a pattern and a context."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from triune.cli import main
from triune.training.weights import read_weights

DENSE = {"run": {"tokens": 40 * 128, "checkpoint_every": "20 steps"}}
POSITIONS = {"learned": {"kind": "learned"}, "rotary": {"kind": "rotary"}}
#: moves no weight: 1e-30 is below half a unit in the last place of every number but 0
STILL = ["optimizer.learning_rate=1e-30", "optimizer.adamw_learning_rate=1e-30", "run.tokens=128", "run.validate_every=0.5"]  # fmt: skip
CASES = [("decoder", "learned"), ("decoder", "rotary"), ("encoder", "learned"), ("encoder_decoder", "rotary")]


@pytest.fixture
def dense(write_config, tmp_path, capsys):
    """dense(family, position) -> (config, run directory) of a finished dense run."""

    def run(family, position):
        config = write_config(family, {**DENSE, "model": {"position": POSITIONS[position]}}, name="dense")
        assert main(["pretrain", str(config)]) == 0
        capsys.readouterr()
        return config, tmp_path / "runs" / "pretrain" / "dense"

    return run


def report(run):
    return json.loads((run / "report.json").read_text())


def sparse(family, left):
    return f"model.attention.pattern=window({left}, {0 if family == 'decoder' else left})"


@pytest.mark.parametrize(("family", "position"), CASES)
def test_where_nothing_is_cut_the_loss_is_the_dense_runs_own(family, position, dense, tmp_path):
    """Rows stay at the dense context of 32, which a window of 31 covers: the same rows, weights and pairs."""
    config, run = dense(family, position)
    same = [f"init.from={run}", "model.context=64", "data.rows.length=32", *STILL]
    assert main(["pretrain", str(config), "--name", "same", *same, sparse(family, 31)]) == 0
    found = report(tmp_path / "runs" / "pretrain" / "same")["validation"]["validation/loss"]
    # a masked kernel may add the 32 terms of a sum in another order than an unmasked one: 32 x 6e-8 of numbers of order 1
    assert found == pytest.approx(report(run)["validation"]["validation/loss"], abs=32 * 6e-8)
    if family == "encoder_decoder":
        return  # after 40 steps its decoder hardly reads the source, so that a cut would prove nothing
    assert main(["pretrain", str(config), "--name", "cut", *same, sparse(family, 1)]) == 0
    assert abs(report(tmp_path / "runs" / "pretrain" / "cut")["validation"]["validation/loss"] - found) > 1e-5


@pytest.mark.parametrize("position", POSITIONS)
def test_a_sparse_longer_run_says_what_it_took_trains_and_goes_on_without_its_source(position, dense, tmp_path, capsys):
    config, run = dense("decoder", position)
    longer = [
        "--name",
        "sparse",
        f"init.from={run / 'checkpoints' / 'last'}",
        "model.context=96",
        sparse("decoder", 15),
    ]
    longer += ["run.batch_tokens=384", "run.validate_every=10 steps"]
    assert main(["plan", str(config), *longer]) == 0
    planned = capsys.readouterr().out
    assert main(["pretrain", str(config), *longer, f"run.tokens={20 * 384}"]) == 0
    shown = capsys.readouterr().out
    new = tmp_path / "runs" / "pretrain" / "sparse"
    table = (new / "init.txt").read_text()
    assert table in planned
    assert shown.count(table) == 1
    assert f"weights from {run}" in table
    assert "causal() -> window(15, 0)" in table
    assert ("positions 0-31 copied 3 times in a row" in table) == (position == "learned")
    assert ("positions 32 to 95 were never trained" in table) == (position == "rotary")
    assert report(new)["steps"] == 20  # counted from 0: the optimizer and the schedule start afresh
    saved = read_weights(new)
    assert saved.model.context == 96
    if position == "learned":
        rows = saved.tensors["input.positions.weight"]
        assert not torch.equal(rows[:32], rows[32:64])  # it trained

    shutil.rmtree(run)
    assert main(["pretrain", str(config), *longer, f"run.tokens={30 * 384}"]) == 0
    shown = capsys.readouterr().out
    assert "continuing from" in shown
    assert "weights from" not in shown
    assert (new / "init.txt").read_text() == table
    assert report(new)["steps"] == 30


@pytest.mark.parametrize("what", ["", "model", "checkpoints/last", "checkpoints/step-00000040/checkpoint.ckpt"])
def test_run_model_directory_and_checkpoint_give_the_same_start(what, dense, tmp_path):
    config, run = dense("decoder", "learned")
    options = [f"init.from={run / what}", "model.context=80", "run.batch_tokens=80", *STILL, "run.tokens=80"]
    assert main(["pretrain", str(config), "--name", "longer", *options]) == 0
    old, new = (
        load_file(tmp_path / "runs/pretrain" / name / "model/model.safetensors") for name in ("dense", "longer")
    )
    table = old["input.positions.weight"]
    assert torch.equal(new["input.positions.weight"], torch.cat([table, table, table[:16]]))


def test_a_mistake_is_refused_before_any_text_is_read(dense, tmp_path, capsys):
    config, run = dense("decoder", "learned")
    nowhere = [f"init.from={run}", "--name", "other", "data.train=[{path: nowhere.txt}]"]
    assert main(["pretrain", str(config), *nowhere, "model.position.kind=rotary"]) == 2
    shown = capsys.readouterr().err
    assert "model.position.kind: rotary here, learned in" in shown
    assert "nowhere.txt" not in shown
    assert not (tmp_path / "runs" / "pretrain" / "other").exists()

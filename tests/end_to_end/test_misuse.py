"""Mistakes a user makes: one screen that names option, value, constraint and fix; exit code 2; no traceback."""

import errno
import json
from pathlib import Path

import pytest

from triune.cli import main
from triune.training.checkpoints import list_checkpoints

QUICK = {"run": {"tokens": 12 * 128, "checkpoint_every": "4 steps", "validate_every": "6 steps"}}


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """refused(*arguments) -> what is printed for a mistake, after checking its form."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        shown = capsys.readouterr()
        assert code == 2, shown
        assert "Traceback" not in shown.err
        assert len(shown.err.splitlines()) <= 25
        return shown.err

    return run


def source(path, **extra):
    return {"data": {"train": [{"path": str(path), **extra}], "validation_share": 0.1}}


def test_missing_file(refused, write_config, tmp_path):
    shown = refused("pretrain", write_config("decoder", source(tmp_path / "nowhere.txt")))
    assert "nowhere.txt" in shown


def test_empty_file(refused, write_config, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in refused("pretrain", write_config("decoder", source(tmp_path / "empty.txt")))


def test_binary_file(refused, write_config, tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    assert "binary.txt" in refused("pretrain", write_config("decoder", source(tmp_path / "binary.txt")))


def test_file_that_is_not_utf8(refused, write_config, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 100)
    shown = refused("pretrain", write_config("decoder", source(tmp_path / "latin.txt")))
    assert "latin.txt" in shown
    assert "UTF-8" in shown


def test_corpus_smaller_than_one_row(refused, write_config, tmp_path):
    (tmp_path / "small.txt").write_text("a cat\nthe dog\nold house\n")
    extra = source(tmp_path / "small.txt", document="line") | {"model": {"context": 128}, "run": {"batch_tokens": 256}}
    extra["data"]["validation_share"] = 0.4
    shown = refused("pretrain", write_config("decoder", extra))
    assert "row" in shown or "documents" in shown


def test_more_devices_than_there_are(refused, write_config):
    shown = refused("pretrain", write_config("decoder"), "--devices", "64", "run.batch_tokens=4096")
    assert "trainer.devices: 64" in shown


def test_trainer_arguments_that_do_not_exist_or_are_ours(refused, write_config):
    shown = refused("pretrain", write_config("decoder"), "trainer.max_stepz=3")
    assert "trainer.max_stepz" in shown
    assert "max_steps" in shown
    shown = refused("pretrain", write_config("decoder"), "trainer.gradient_clip_val=1.0")
    assert "run.gradient_clip" in shown


def test_run_directory_of_a_different_experiment(refused, write_config):
    assert main(["pretrain", str(write_config("decoder", QUICK))]) == 0
    shown = refused("pretrain", write_config("decoder", QUICK), "model.layers=1")
    assert "model.layers: 2 there, 1 here" in shown
    assert "RESTART=1" in shown


def test_tokenizer_that_does_not_match_the_checkpoint(refused, write_config, tmp_path):
    assert main(["pretrain", str(write_config("decoder", QUICK))]) == 0
    run = tmp_path / "runs" / "pretrain" / "run"
    other = write_config("decoder", QUICK, name="other")
    shown = refused("finetune", other, f"init.from={run}", "data.tokenizer.vocabulary=330")
    assert "another tokenizer" in shown
    assert "data.tokenizer: {kind: pretrained" in shown


def test_weights_that_know_positions_otherwise(refused, write_config, tmp_path):
    learned = {"model": {"position": {"kind": "learned"}}}
    assert main(["pretrain", str(write_config("decoder", QUICK | learned))]) == 0
    run = tmp_path / "runs" / "pretrain" / "run"
    other = write_config("decoder", QUICK | {"model": {"position": {"kind": "rotary"}}}, name="other")
    shown = refused("finetune", other, f"init.from={run}")
    assert "model.position.kind: rotary here, learned in" in shown
    assert "set model.position.kind=learned" in shown


def test_weights_of_another_shape_or_nowhere(refused, write_config, tmp_path):
    assert main(["pretrain", str(write_config("decoder", QUICK))]) == 0
    run = tmp_path / "runs" / "pretrain" / "run"
    other = write_config("decoder", QUICK, name="other")
    assert "do not fit" in refused("finetune", other, f"init.from={run}", "model.feed_forward.width=64")
    assert "does not exist" in refused("finetune", other, "init.from=nowhere")
    assert "init.from" in refused("finetune", other)


def test_fine_tuning_starts_from_a_run_and_lands_beside_it(write_config, tmp_path):
    assert main(["pretrain", str(write_config("decoder", QUICK))]) == 0
    run = tmp_path / "runs" / "pretrain" / "run"
    report = json.loads((run / "report.json").read_text())
    assert main(["finetune", str(write_config("decoder", QUICK)), f"init.from={run}", "optimizer.learning_rate=1e-9",
                 "optimizer.adamw_learning_rate=1e-9"]) == 0  # fmt: skip
    tuned = json.loads((tmp_path / "runs" / "finetune" / "run" / "report.json").read_text())
    # with hardly any step the validation loss stays what it was: the weights did arrive
    assert tuned["validation"]["validation/loss"] == pytest.approx(report["validation"]["validation/loss"], abs=1e-4)


def test_a_full_disk_keeps_the_last_good_checkpoint_whole(refused, write_config, monkeypatch, tmp_path):
    from lightning.fabric.plugins.io import torch_io

    written = torch_io._atomic_save
    count = iter(range(100))

    def full_at_the_third(checkpoint, path):
        if next(count) < 2:
            return written(checkpoint, path)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_io, "_atomic_save", full_at_the_third)
    config = write_config("decoder", QUICK)
    shown = refused("pretrain", config)
    checkpoints = tmp_path / "runs" / "pretrain" / "run" / "checkpoints"
    good = list_checkpoints(checkpoints)[-1]
    assert "no room on disk" in shown
    assert str(good) in shown
    assert (checkpoints / "last").resolve() == good.resolve()
    assert not list(checkpoints.glob("*.tmp"))
    monkeypatch.setattr(torch_io, "_atomic_save", written)
    assert main(["pretrain", str(config)]) == 0


def test_a_loss_that_is_no_number_stops_the_run_with_advice(refused, write_config):
    shown = refused("pretrain", write_config("decoder"), "optimizer.kind=adamw", "optimizer.learning_rate=1e30",
                    "run.gradient_clip=0", "tracking.log_every=1")  # fmt: skip
    assert "diverged" in shown
    assert "optimizer.learning_rate" in shown

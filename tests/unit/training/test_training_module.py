"""The training step: one loss however a step is divided, clipping, and what a checkpoint carries."""

import csv
import itertools
import json

import pytest
from safetensors.torch import load_file

from triune.cli import main


def train(config, *overrides):
    assert main(["pretrain", str(config), *overrides]) == 0


def result(tmp_path, name):
    run = tmp_path / "runs" / "pretrain" / name
    return load_file(run / "model" / "model.safetensors"), json.loads((run / "report.json").read_text())


SHORT = {"model": {"dropout": 0.0}, "run": {"tokens": 6 * 128}, "optimizer": {"kind": "adamw"}}


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_accumulation_does_not_change_a_step(family, write_config, tmp_path):
    """With a mean of micro-batch means, rows with few masked tokens would weigh more, and this would fail for the encoder."""
    for rows in (1, 4):
        train(write_config(family, SHORT, name=f"rows{rows}"), f"run.micro_batch={rows}")
    (one, first), (four, second) = result(tmp_path, "rows1"), result(tmp_path, "rows4")
    # AdamW's first steps are sign-like: a gradient near zero may round to the other side, by at most the step 2e-3 x 6
    close = [(one[n] - four[n]).abs().lt(1e-5).float().mean().item() for n in one]
    assert min(close) > 0.99
    assert first["validation"]["validation/loss"] == pytest.approx(second["validation"]["validation/loss"], rel=1e-4)


def test_clipping_holds_the_gradient_and_changes_the_run(write_config, tmp_path):
    sgd_like = {**SHORT, "optimizer": {"kind": "adamw", "epsilon": 1.0}}  # an update in proportion to the gradient
    for clip in (0.0, 1e-4):
        train(write_config("decoder", sgd_like, name=f"clip{clip}"), f"run.gradient_clip={clip}")
    (free, _), (held, _) = result(tmp_path, "clip0.0"), result(tmp_path, "clip0.0001")
    assert any((free[n] - held[n]).abs().max() > 1e-6 for n in free)


def test_bf16_mixed_with_clipping_and_fused_adamw_trains(write_config, tmp_path):
    """Lightning 2.6's own clipping raises here."""
    train(write_config("decoder", SHORT, name="bf16"), "trainer.precision=bf16-mixed", "run.gradient_clip=0.5")
    assert result(tmp_path, "bf16")[1]["steps"] == 6


def test_averaged_weights_are_what_is_validated_and_saved(write_config, tmp_path):
    for average in (0.0, 0.9):
        train(write_config("decoder", SHORT, name=f"average{average}"), f"run.average={average}")
    (plain, _), (mean, report) = result(tmp_path, "average0.0"), result(tmp_path, "average0.9")
    assert any((plain[n] - mean[n]).abs().max() > 1e-5 for n in plain)
    assert report["validation"]["validation/loss"] > 0


def test_each_optimizer_and_activation_checkpointing_train(write_config, tmp_path):
    train(write_config("decoder", {**SHORT, "optimizer": {"kind": "adafactor"}}, name="adafactor"))
    train(write_config("decoder", SHORT, name="kept"))
    train(write_config("decoder", SHORT, name="recomputed"), "model.activation_checkpointing=true")
    kept, recomputed = result(tmp_path, "kept")[0], result(tmp_path, "recomputed")[0]
    assert all((kept[n] == recomputed[n]).all() for n in kept)


def read_csv(tmp_path, name):
    with (tmp_path / "runs" / "pretrain" / name / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_clock_of_training_goes_on_after_a_validation_that_saves_nothing(write_config, tmp_path):
    still = {"kind": "adamw", "learning_rate": 1e-12}  # no validation is better than the first
    config = write_config("decoder", {**SHORT, "optimizer": still, "run": {"tokens": 12 * 128}}, name="clock")
    train(config, "run.validate_every=2 steps", "run.checkpoint_every=1000 steps", "tracking.log_every=1")
    seconds = [float(row["progress/seconds"]) for row in read_csv(tmp_path, "clock")]
    assert len(seconds) == 12
    assert all(before < after for before, after in itertools.pairwise(seconds))


def test_the_learning_rate_logged_is_that_of_the_step(write_config, tmp_path):
    linear = {"kind": "linear", "warmup": "0 steps"}
    optimizer = {"kind": "adamw", "learning_rate": 1.0e-3}
    train(
        write_config("decoder", {**SHORT, "optimizer": optimizer, "schedule": linear}, name="rate"),
        "tracking.log_every=1",
    )
    rates = [float(row["train/learning_rate"]) for row in read_csv(tmp_path, "rate")]
    assert rates == pytest.approx([1e-3 * (5 - step) / 6 for step in range(6)])

"""Two processes on the CPU (gloo) train what one does, and either goes on where the other stopped."""

import json

import pytest

STILL = {"model": {"dropout": 0.0}, "optimizer": {"kind": "adamw"}}


def losses(tmp_path, name):
    report = json.loads((tmp_path / "runs" / "pretrain" / name / "report.json").read_text())
    return report["validation"]["validation/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_two_devices_train_what_one_trains(family, write_config, triune, tmp_path):
    # updates in proportion to the gradient: AdamW's own do not change with its scale, which is what ranks could get wrong
    proportional = {"kind": "adamw", "epsilon": 1.0, "learning_rate": 0.3}
    run = {"tokens": 30 * 128, "checkpoint_every": "15 steps", "gradient_clip": 0.0}
    quick = {**STILL, "optimizer": proportional, "run": run}
    one = triune("pretrain", write_config(family, quick, name="one"))
    assert one.returncode == 0, one.stderr
    two = triune("pretrain", write_config(family, quick, name="two"), "--devices", 2)
    assert two.returncode == 0, two.stderr
    # the same rows and masks in another order of summation: fp32 rounding, grown over 30 steps
    assert losses(tmp_path, "two") == pytest.approx(losses(tmp_path, "one"), rel=2e-4)


@pytest.mark.slow
def test_a_run_of_two_devices_goes_on_with_one(write_config, triune, tmp_path):
    full = {**STILL, "run": {"tokens": 30 * 128}, "schedule": {"kind": "inverse_square_root", "warmup": "5 steps"}}
    half = {**full, "run": {"tokens": 15 * 128}}
    assert triune("pretrain", write_config("decoder", full, name="whole")).returncode == 0
    assert triune("pretrain", write_config("decoder", half, name="moved"), "--devices", 2).returncode == 0
    moved = triune("pretrain", write_config("decoder", full, name="moved"))
    assert moved.returncode == 0, moved.stderr
    assert "continuing from" in moved.stdout
    assert losses(tmp_path, "moved") == pytest.approx(losses(tmp_path, "whole"), rel=2e-4)

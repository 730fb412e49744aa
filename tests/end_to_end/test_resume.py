"""Killed at any moment and started again, a run ends as one that was never killed, to the bit."""

import csv
import json
import random
import time

import pytest

CLOCK = ("train/tokens_per_second", "train/mfu", "progress/seconds")  # what a clock decides


def newest(run):
    steps = [int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*") if p.suffix != ".tmp"]
    return max(steps, default=0)


def kill_after(process, run, step, delay):
    """SIGKILL once a checkpoint of `step` or later is there, and a little later."""
    deadline = time.monotonic() + 120
    while newest(run) < step:
        assert process.poll() is None, f"ended before step {step}: {process.log.read_text()}"
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -9, f"the run was over before it could be killed: {process.log.read_text()}"


def rows(run):
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def tiles(*patterns):
    return {"attention": {"pattern": list(patterns), "backend": "blocked"}}


MODELS = {
    "decoder": {},
    "encoder": {},
    "encoder_decoder": {},
    "window decoder": tiles("window(3, 0)"),
    "longformer encoder": tiles("window(3, 3) | global_tokens(first=1)"),
    "bigbird encoder_decoder": tiles("block_local(4, 1, 1) | global_tokens(first=2) | random_blocks(4, 1, seed=1)"),
    "reformer decoder": {"reversible": True, "dropout": 0.1, "feed_forward": {"chunk": 16}}
    | tiles("window(3, 0)", "lsh(buckets=4, chunk=4, rounds=2, causal=True)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_killed_twice_ends_as_one_that_was_not(name, write_config, triune, start, tmp_path):
    family, model = name.split()[-1], {"model": MODELS[name]}
    whole = triune("pretrain", write_config(family, model, name="whole"))
    assert whole.returncode == 0, whole.stderr
    config = write_config(family, model, name="killed")
    draw = random.Random(name)
    run = tmp_path / "runs" / "pretrain" / "killed"
    kill_after(start("pretrain", config), run, 10, draw.uniform(0, 0.1))
    first = newest(run)
    kill_after(start("pretrain", config), run, first + 20, draw.uniform(0, 0.1))
    assert newest(run) > first
    last = triune("pretrain", config)
    assert last.returncode == 0, last.stderr
    assert "continuing from" in last.stdout

    expected = tmp_path / "runs" / "pretrain" / "whole"
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (expected / weights).read_bytes()
    reports = [json.loads((d / "report.json").read_text())["validation"] for d in (run, expected)]
    assert reports[0] == reports[1]
    assert rows(run) == rows(expected)


@pytest.mark.slow
def test_the_same_command_again_says_that_the_run_is_complete_and_restart_starts_another(
    write_config, triune, tmp_path
):
    config = write_config("decoder", {"run": {"tokens": 10 * 128, "validate_every": "5 steps"}})
    assert triune("pretrain", config).returncode == 0
    weights = tmp_path / "runs" / "pretrain" / "run" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = triune("pretrain", config)
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert weights.stat().st_mtime_ns == before
    afresh = triune("pretrain", config, "--restart")
    assert afresh.returncode == 0, afresh.stderr
    assert weights.stat().st_mtime_ns == before
    second = tmp_path / "runs" / "pretrain" / "run-2" / "model" / "model.safetensors"
    assert second.read_bytes() == weights.read_bytes()
    longer = triune("pretrain", config, "run.tokens=2000")
    assert longer.returncode == 0, longer.stderr
    assert "continuing from" in longer.stdout

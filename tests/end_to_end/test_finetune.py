"""`triune finetune` end to end: each task from each family that claims it learns, reports, saves, and survives being killed.

The models have dropout; a run dies twice, in the middle of what its last checkpoint holds, and ends as one that never did, to the bit.
"""

import json

import pytest
import torch
from finetune_cases import (
    PAIRS,
    TASKS,
    WEIGHTS,
    assert_same_run,
    finetune,
    killed_at,
    predictions,
    report,
    settings,
    write,
)
from safetensors.torch import load_file

from triune.cli import main
from triune.exchange.model_directory import read_model
from triune.training.module import TransformerModule
from triune.training.weights import load_model


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_a_run_reports_saves_and_predicts(task, family, finetuned):
    _, run = finetuned(task, family)
    told = report(run)
    scores = {score["name"]: score for score in told["report"]["scores"]}
    assert next(iter(scores)) == TASKS[task][2]
    for score in scores.values():
        low, high = score["interval"]
        assert low <= high
        assert ("before" in score["baselines"]) == (task != "sequence_to_sequence")
    assert (told["steps"], told["ended_early"]) == (9, False)
    assert len(told["report"]["samples"]) >= 1

    lines = predictions(run)
    assert [line["where"].rpartition(":")[2] for line in lines] == ["1", "2", "3", "4", "5"]
    assert all(line["record"] and line["prediction"] for line in lines)
    saved = read_model(run / "model")
    assert saved.task["objective"]["kind"] == TASKS[task][0]["kind"]
    model, _ = load_model(run)
    assert model.config.family == family
    if saved.task["labels"] is not None:
        assert model.config.head.labels == len(saved.task["labels"])


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_a_run_killed_twice_ends_as_one_that_was_not(task, family, finetuned):
    config, whole = finetuned(task, family)
    with killed_at(5):
        finetune(config, "killed")
    with killed_at(7):
        finetune(config, "killed")
    assert_same_run(finetune(config, "killed"), whole)


WAYS = {
    "lora": ("classification", "encoder", ["adapter={kind: lora, rank: 2, dropout: 0.2}"]),
    "dora": ("instruction", "decoder", ["adapter={kind: dora, rank: 2, targets: [attention]}"]),
    "frozen": ("regression", "encoder_decoder", ["tuning.freeze=backbone"]),
    "layer-decay": ("token_classification", "encoder", ["tuning.layer_decay=0.5"]),
    "average": ("classification", "decoder", ["run.average=0.5"]),
    "packed": ("classification", "encoder", ["data.rows={kind: packed}"]),
    "epochs": ("pairs", "encoder", ["run.epochs=3"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_fine_tuning_goes_on_to_the_bit(way, pretrained, tmp_path):
    task, family, more = WAYS[way]
    config = write(settings(task, pretrained(family), tmp_path), tmp_path / "tune.yaml")
    whole = finetune(config, "whole", *more)
    with killed_at(5):
        finetune(config, "killed", *more)
    killed = finetune(config, "killed", *more)
    assert_same_run(killed, whole)
    if "adapter" in more[0]:
        file = "adapter/adapter_model.safetensors"
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_what_is_validated_under_an_average_is_the_average(pretrained, tmp_path, monkeypatch):
    """The metrics of the last validation are those of the weights that are saved: both are averages, not the newest weights."""
    said = []
    monkeypatch.setattr(TransformerModule, "log_now", lambda module, metrics, step: said.append({**metrics}))
    config = write(settings("regression", pretrained("encoder"), tmp_path), tmp_path / "tune.yaml")
    run = finetune(config, "average", "run.average=0.9", "run.best=loss", "run.validate_every=9 steps")
    final = {score["name"]: score["value"] for score in report(run)["report"]["scores"]}
    [last] = [metrics for metrics in said if "validation/mean_squared_error" in metrics]
    assert last["validation/mean_squared_error"] == final["mean squared error"]


# ---- which weights are the result ---------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch):
    """losses(values) -> validations say these losses, one after the other; the rest of them is as it is."""

    left = []
    whole = TransformerModule.on_validation_epoch_end

    def end(module):
        whole(module)
        module.validation["validation/loss"] = left.pop(0)

    monkeypatch.setattr(TransformerModule, "on_validation_epoch_end", end)

    def say(values):
        left[:] = values

    return say


@pytest.mark.slow
def test_the_best_checkpoint_is_what_is_saved_and_measured(losses, pretrained, tmp_path):
    config = write(settings("classification", pretrained("encoder"), tmp_path), tmp_path / "tune.yaml")
    losses([3.0, 1.0, 2.0])
    run = finetune(config, "best", "run.best=loss")
    assert (run / "checkpoints" / "best").resolve().name == "step-00000006"
    assert "weights of step 6, the best" in report(run)["report"]["model"]
    saved = load_file(run / WEIGHTS)
    states = {
        step: torch.load(run / "checkpoints" / f"step-0000000{step}" / "checkpoint.ckpt", weights_only=True)[
            "state_dict"
        ]
        for step in (6, 9)
    }
    assert all(torch.equal(tensor, states[6][f"model.{name}"]) for name, tensor in saved.items())
    assert not all(torch.equal(tensor, states[9][f"model.{name}"]) for name, tensor in saved.items())
    # what was measured is what was saved
    out = tmp_path / "out"
    data = tmp_path / "classification-validation.jsonl"
    assert main(["evaluate", str(run), "--data", str(data), "--output", str(out), "tracking.mode=disabled"]) == 0
    assert (out / "predictions.jsonl").read_text() == (run / "predictions.jsonl").read_text()


@pytest.mark.slow
def test_a_run_without_progress_ends_early_says_so_and_is_complete(losses, pretrained, tmp_path, capsys):
    config = write(settings("classification", pretrained("encoder"), tmp_path), tmp_path / "tune.yaml")
    more = ["run.best=loss", "run.patience=2", f"run.tokens={18 * 4 * 48}"]
    losses([2.0, 1.0, 1.5, 1.0, 0.5, 0.4] * 3)
    whole = finetune(config, "whole", *more)
    told = report(whole)
    assert (told["steps"], told["ended_early"]) == (12, True)
    assert told["report"]["title"] == "finetune whole: ended early"
    assert "weights of step 6, the best" in told["report"]["model"]

    capsys.readouterr()
    before = (whole / WEIGHTS).stat().st_mtime_ns
    assert finetune(config, "whole", *more) == whole
    assert "this run is complete (12 steps, ended early). Raise run.patience to go on" in capsys.readouterr().out
    assert (whole / WEIGHTS).stat().st_mtime_ns == before

    losses([0.9, 0.8])
    with killed_at(17):  # more patience goes on, and what was reported before holds no longer
        finetune(config, "whole", *more, "run.patience=3")
    losses([0.8])
    assert report(finetune(config, "whole", *more, "run.patience=3"))["steps"] == 18

    with killed_at(10):  # one validation without progress, at step 9, is behind it
        losses([2.0, 1.0, 1.5])
        finetune(config, "killed", *more)
    losses([1.0, 0.5, 0.4])
    killed = report(finetune(config, "killed", *more))
    assert (killed["steps"], killed["ended_early"]) == (12, True)
    assert (killed["validation"], killed["report"]["scores"]) == (told["validation"], told["report"]["scores"])


# ---- seeds --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_with_mean_and_deviation(pretrained, tmp_path, capsys):
    config = write(settings("regression", pretrained("encoder"), tmp_path), tmp_path / "tune.yaml")
    more = ["seeds=3", "run.seed=5", "trainer.max_steps=3"]
    finetune(config, "tune", *more)
    folder = tmp_path / "runs" / "finetune"
    runs = [folder / f"tune-seed-{seed}" for seed in (5, 6, 7)]
    found = json.loads((folder / "tune-seeds.json").read_text())
    assert found["runs"] == [str(run) for run in runs]
    reports = [report(run)["report"]["scores"] for run in runs]
    for place, score in enumerate(found["scores"]):
        values = torch.tensor([scores[place]["value"] for scores in reports], dtype=torch.float64)
        assert score["values"] == values.tolist()
        assert score["mean"] == pytest.approx(values.mean().item(), rel=1e-12)
        assert score["deviation"] == pytest.approx(values.std(correction=1).item(), rel=1e-9, abs=1e-15)
    assert len({(run / WEIGHTS).read_bytes() for run in runs}) == 3
    assert "3 seeds" in capsys.readouterr().out

    finetune(config, "tune", *more)  # again: all are complete, and the summary is the same
    assert capsys.readouterr().out.count("this run is complete") == 3
    assert json.loads((folder / "tune-seeds.json").read_text()) == found
    # each is the run of that seed alone
    alone = finetune(config, "alone", "run.seed=6", "trainer.max_steps=3")
    assert (alone / WEIGHTS).read_bytes() == (runs[1] / WEIGHTS).read_bytes()

"""A pretraining, a fine-tuning that starts from it and an evaluation are one group, linked in files, in the config and by artifacts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.exchange.model_directory import describe, fill_directory, read_model
from triune.models.factory import build as build_model
from triune.tracking import offline
from triune.tracking.config import TrackingConfig
from triune.tracking.identity import FILE, Origin, RunIdentity
from triune.tracking.lineage import as_config, beside, group_of, origin_of
from triune.tracking.loggers import (
    build_loggers,
    finish,
    identity_of,
    log_checkpoint,
    log_model,
    log_predictions,
    maker_of,
)
from triune.training.weights import read_weights


def identity(run: Path, **fields: Any) -> RunIdentity:
    return RunIdentity.open(run, project="p", environ={}, **fields)


def model(directory: Path, weights: str = "w") -> Path:
    """A directory that looks like a finished model's."""
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_text(weights)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def start(
    directory: Path, job: str, origins: list[Origin] | None = None, config: TrackingConfig | None = None
) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    loggers = build_loggers(
        config or TrackingConfig(),
        run_directory=directory,
        name=directory.name,
        job_type=job,
        tags=["decoder"],
        resolved_config={},
        facts={},
        origins=origins or [],
        say=said.append,
    )
    return loggers, said


def train(directory: Path, job: str, origins: list[Origin] | None = None, **config: Any) -> tuple[str, list[str]]:
    """One run from start to finish, with a model of its own; its W&B id and what it said."""
    loggers, said = start(directory, job, origins, TrackingConfig(**config))
    for logger in loggers:
        logger.log_metrics({"train/loss": 1.0}, 1)
    log_model(loggers, model(directory / "model", weights=directory.name))
    finish(loggers)
    return loggers[0].identity.id, said


def evaluate(directory: Path, origin: Origin) -> tuple[str, list[str]]:
    loggers, said = start(directory, "evaluate", [origin], beside(TrackingConfig(), origin))
    predictions = directory / "predictions.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
    predictions.write_text("{}\n")
    log_predictions(loggers, predictions)
    finish(loggers)
    return loggers[0].identity.id, said


def three_runs(tmp_path: Path) -> tuple[list[str], list[Path]]:
    """Pretrained, fine-tuned from it, evaluated: their ids and directories."""
    places = [tmp_path / "pretrain" / "base", tmp_path / "finetune" / "mine", tmp_path / "finetune" / "mine" / "test"]
    first, _ = train(places[0], "pretrain")
    second, _ = train(places[1], "finetune", [origin_of("init.from", places[0] / "model")])
    third, _ = evaluate(places[2], origin_of("evaluate", places[1] / "model"))
    return [first, second, third], places


def written(run: Path, run_id: str, kind: str) -> list[Any]:
    return [
        getattr(record, kind)
        for path in offline.files(run, run_id)
        for record in offline.records(path)
        if record.WhichOneof("record_type") == kind
    ]


def configured(record: Any) -> Any:
    return json.loads(next(item.value_json for item in record.config.update if item.key == "lineage"))


# --- whose weights these are, from files alone -------------------------------------------------


def test_weights_in_a_run_directory_are_its_run_s(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "base"
    kept = identity(run, name="base", group="line")
    step = run / "checkpoints" / "step-00000012"
    step.mkdir(parents=True)
    (step / "checkpoint.ckpt").touch()
    (run / "checkpoints" / "last").symlink_to(step.name)
    (run / "model").mkdir()
    expected = Origin(option="init.from", path="", id=kept.id, project="p", name="base", group="line")
    for path, number in (
        (run / "model", None),
        (step / "checkpoint.ckpt", 12),
        (run / "checkpoints" / "last" / "checkpoint.ckpt", 12),
    ):
        assert origin_of("init.from", path) == dataclasses.replace(expected, path=str(path), step=number)


def test_weights_elsewhere_say_who_made_them(tmp_path: Path) -> None:
    made = identity(tmp_path / "a", name="base", group="line", entity="us").as_maker()
    origin = origin_of("init.encoder", tmp_path / "copied", made)
    assert (origin.id, origin.entity, origin.name, origin.group) == (made["id"], "us", "base", "line")
    # a copy into another run's folder is still the first run's; so is a run followed anew since
    other = identity(tmp_path / "b", name="other", group="other")
    assert origin_of("init.from", tmp_path / "b" / "model", made).id == made["id"] != other.id


def test_files_of_an_older_triune(tmp_path: Path) -> None:
    """Neither name nor group was kept: a run's name was its directory's, and its group's."""
    run = tmp_path / "base"
    old = {"id": "abcdefgh", "project": "p", "entity": None, "created": "2026-01-01T00:00:00+00:00"}
    run.mkdir()
    (run / FILE).write_text(json.dumps(old))
    opened = identity(run, name="now", group="now")
    assert (opened.id, opened.name, opened.group, opened.origins) == ("abcdefgh", None, None, ())
    origin = origin_of("init.from", run / "model", old)
    assert (origin.id, origin.name, origin.group) == ("abcdefgh", "base", "base")
    # the weights know only the id, the run's file its group too
    (run / FILE).write_text(json.dumps(old | {"group": "line"}))
    assert origin_of("init.from", run / "model", old).group == "line"
    assert origin_of("init.from", tmp_path / "far" / "model", old).group is None


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[1]", '"x"', "{", '{"id": 3}', '{"id": "a", "project": "p", "origins": 1}']
)
def test_what_is_nobody_s_has_a_path_only(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    path = tmp_path / "model"
    assert origin_of("init.from", path) == Origin(option="init.from", path=str(path))
    assert origin_of("init.from", path, {"id": "x"}) == Origin(option="init.from", path=str(path))


def test_a_neighbour_s_file_claims_nothing(tmp_path: Path) -> None:
    identity(tmp_path, name="run")
    assert origin_of("init.from", tmp_path / "downloaded").id is None
    assert origin_of("init.from", tmp_path / "model" / "part").id is None


def test_group_and_config_of_several_origins() -> None:
    foreign = Origin(option="init.encoder", path="bert")
    ours = Origin(option="init.decoder", path="runs/a/model", id="i", project="p", name="a", group="line")
    assert group_of([foreign, ours]) == "line"
    assert group_of([foreign]) is None
    assert as_config([foreign, ours]) == {
        "encoder": {"path": "bert"},
        "decoder": {"path": "runs/a/model", "id": "i", "project": "p", "name": "a", "group": "line"},
    }
    assert beside(TrackingConfig(project="q", mode="offline"), ours) == TrackingConfig(
        project="p", group="line", mode="offline"
    )
    assert beside(TrackingConfig(project="q"), foreign) == TrackingConfig(project="q")


def test_weights_carry_the_run_that_made_them(tmp_path: Path) -> None:
    """Through the files that a run writes: a model directory and a checkpoint."""
    loggers, _ = start(tmp_path / "run", "pretrain", [Origin(option="init.from", path="/home/me/secret")])
    small = build_model({"family": "decoder", "width": 32, "layers": 1, "heads": 2, "vocabulary": 64, "context": 16})
    (tmp_path / "model").mkdir()
    fill_directory(small, None, tmp_path / "model", objective="causal", wandb=maker_of(loggers))
    saved = read_model(tmp_path / "model")
    assert origin_of("init.from", saved.path, saved.wandb).id == loggers[0].identity.id
    assert "secret" not in (tmp_path / "model" / "config.json").read_text()

    state = {f"model.{name}": tensor for name, tensor in small.state_dict().items()}
    facts = {**describe(small, objective="causal", tokenizer=""), "wandb": identity_of(loggers)}
    torch.save({"state_dict": state, "triune": facts}, tmp_path / "moved.ckpt")
    saved = read_weights(tmp_path / "moved.ckpt")
    assert origin_of("init.from", saved.path, saved.wandb).id == loggers[0].identity.id
    # a run directory that lost its file has its whole identity back from the checkpoint
    assert saved.wandb is not None
    assert RunIdentity.open(tmp_path / "lost", project="q", saved=saved.wandb) == loggers[0].identity

    fill_directory(small, None, tmp_path / "model", objective="causal")
    assert read_model(tmp_path / "model").wandb is None


# --- offline ------------------------------------------------------------------------------------


def test_three_runs_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids, places = three_runs(tmp_path)
    assert capfd.readouterr() == ("", "")
    runs = [written(place, run_id, "run")[0] for place, run_id in zip(places, ids, strict=True)]
    assert [run.run_group for run in runs] == ["base"] * 3
    assert [run.job_type for run in runs] == ["pretrain", "finetune", "evaluate"]
    assert [list(run.tags) for run in runs] == [["decoder"]] * 3
    assert configured(runs[0]) == {}
    common = {"project": "triune", "group": "base"}
    assert configured(runs[1]) == {"from": {"path": str(places[0] / "model"), "id": ids[0], "name": "base", **common}}
    assert configured(runs[2]) == {
        "evaluate": {"path": str(places[1] / "model"), "id": ids[1], "name": "mine", **common}
    }

    logged, used = [], []
    for place, run_id in zip(places, ids, strict=True):
        for record in written(place, run_id, "artifact"):
            if record.type != "job":
                (used if record.use_after_commit else logged).append(record)
    assert [(record.name, record.type) for record in logged] == [
        (f"model-{ids[0]}", "model"), (f"model-{ids[1]}", "model"), (f"predictions-{ids[2]}", "predictions"),
    ]  # fmt: skip
    assert [list(record.aliases) for record in logged] == [["latest"]] * 3
    # what is used is what was logged, by name and by content, and moves no alias
    assert [(record.name, record.digest) for record in used] == [(r.name, r.digest) for r in logged[:2]]
    assert [list(record.aliases) for record in used] == [[], []]
    assert logged[0].digest != logged[1].digest
    # nothing but names, sizes and checksums
    contents = logged[0].manifest.contents
    assert {entry.path: entry.ref for entry in contents} == {
        name: (places[0] / "model" / name).as_uri() for name in ("model.safetensors", "tokenizer.json")
    }


def test_a_continued_run_keeps_what_it_is(tmp_path: Path) -> None:
    train(tmp_path / "base", "pretrain")
    run_id, _ = train(tmp_path / "mine", "finetune", [origin_of("init.from", tmp_path / "base" / "model")])
    shutil.rmtree(tmp_path / "mine" / "model")
    _, said = train(tmp_path / "mine", "finetune", group="another", mode="offline")
    runs = written(tmp_path / "mine", run_id, "run")
    assert [run.run_group for run in runs] == ["base", "base"]
    assert configured(runs[0]) == configured(runs[1]) != {}
    assert said == [
        "W&B: this run stays in group 'base'; tracking.group=another is for new runs",
        "W&B: has this run's rows to step 1 already; new ones follow from there",
    ]
    used = [record for record in written(tmp_path / "mine", run_id, "artifact") if record.use_after_commit]
    assert len(used) == 1  # declared when it first started


def test_a_run_of_an_older_triune_goes_on_in_its_group(tmp_path: Path) -> None:
    old = {"id": "abcdefgh", "project": "triune", "entity": None, "created": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).write_text(json.dumps(old))
    origin = Origin(option="init.from", path="x", id="ijklmnop", project="triune", group="line")
    run_id, _ = train(tmp_path / "mine", "finetune", [origin])
    assert run_id == "abcdefgh"
    assert [run.run_group for run in written(tmp_path / "mine", run_id, "run")] == ["mine"]
    assert json.loads((tmp_path / "mine" / FILE).read_text()) == old


def test_a_configured_group_is_the_run_s(tmp_path: Path) -> None:
    origin = Origin(option="init.from", path="x", id="ijklmnop", project="triune", group="line")
    loggers, _ = start(tmp_path / "mine", "finetune", [origin], TrackingConfig(group="chosen"))
    assert loggers[0].identity.group == "chosen"


def test_artifacts_as_configured(tmp_path: Path) -> None:
    base = tmp_path / "base"
    run_id, _ = train(base, "pretrain", artifacts="upload")
    (record,) = written(base, run_id, "artifact")
    assert {entry.path: entry.ref for entry in record.manifest.contents} == {
        "model.safetensors": "", "tokenizer.json": "",
    }  # fmt: skip
    origin = origin_of("init.from", base / "model")
    (base / "model" / "evaluations").mkdir()
    (base / "model" / "evaluations" / "report.json").touch()  # kept there since, and no part of the model
    mine, _ = train(tmp_path / "mine", "finetune", [origin], artifacts="reference")
    used = next(record for record in written(tmp_path / "mine", mine, "artifact") if record.use_after_commit)
    assert used.digest == record.digest  # uploaded or not
    none, said = train(tmp_path / "none", "finetune", [origin], artifacts="none", mode="offline")
    assert written(tmp_path / "none", none, "artifact") == []
    assert configured(written(tmp_path / "none", none, "run")[0])["from"]["id"] == run_id
    assert said == []


def test_a_checkpoint_is_an_input_too(tmp_path: Path) -> None:
    base, step = tmp_path / "base", tmp_path / "base" / "checkpoints" / "step-00000003"
    loggers, _ = start(base, "pretrain")
    step.mkdir(parents=True)
    (step / "checkpoint.ckpt").write_text("w")
    log_checkpoint(loggers, step, ["last"])
    finish(loggers)
    run_id = loggers[0].identity.id
    (logged,) = written(base, run_id, "artifact")
    assert set(logged.aliases) == {"step-00000003", "last", "latest"}
    mine, _ = train(tmp_path / "mine", "finetune", [origin_of("init.from", step / "checkpoint.ckpt")])
    used = next(record for record in written(tmp_path / "mine", mine, "artifact") if record.use_after_commit)
    assert (used.name, used.digest) == (f"checkpoint-{run_id}", logged.digest)


def test_weights_that_are_gone_do_not_stop_a_run(tmp_path: Path) -> None:
    gone = Origin(option="init.from", path=str(tmp_path / "gone"), id="ijklmnop", project="triune", group="line")
    run_id, said = train(tmp_path / "mine", "finetune", [gone], mode="offline")
    (line,) = said
    assert line.startswith("W&B: model-ijklmnop is not linked as an input (")
    assert line.endswith("; lineage in the config names it")
    assert [record.name for record in written(tmp_path / "mine", run_id, "artifact")] == [f"model-{run_id}"]


def test_a_model_that_can_not_be_logged_does_not_stop_a_run(tmp_path: Path) -> None:
    loggers, said = start(tmp_path / "mine", "finetune", config=TrackingConfig(mode="offline"))
    log_model(loggers, tmp_path / "gone")
    finish(loggers)
    (line,) = said
    assert line.startswith("W&B: an artifact was not logged (")


# --- with a server -------------------------------------------------------------------------------


@pytest.fixture
def online(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    return server


def check_graph(server: Any, ids: list[str]) -> None:
    """The server holds three artifacts, each logged by its run, and two of them used by the next."""
    known = {artifact["name"]: artifact for artifact in server.artifacts}
    assert len(server.artifacts) == len(known) == 3
    for name, run_id in zip((f"model-{ids[0]}", f"model-{ids[1]}", f"predictions-{ids[2]}"), ids, strict=True):
        assert (known[name]["run"], known[name]["state"]) == (run_id, "COMMITTED")
        assert known[name]["aliases"] == ["latest"]
    assert sorted(server.uses) == sorted(
        [(ids[1], known[f"model-{ids[0]}"]["id"]), (ids[2], known[f"model-{ids[1]}"]["id"])]
    )
    groups = {upsert["name"]: upsert["groupName"] for upsert in server.upserts if upsert.get("groupName")}
    assert groups == dict.fromkeys(ids, "base")


def test_online(tmp_path: Path, online: Any) -> None:
    ids, _ = three_runs(tmp_path)
    check_graph(online, ids)


def test_offline_and_uploaded_later(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, places = three_runs(tmp_path)
    assert server.requests == []
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb = Path(sys.executable).with_name("wandb")
    for place in places:
        parts = (place / "wandb").glob("offline-run-*")
        subprocess.run([wandb, "sync", *parts], check=True, capture_output=True, timeout=60)
    check_graph(server, ids)


def test_a_server_that_never_saw_the_source(tmp_path: Path, online: Any) -> None:
    """The source ran offline: its artifact is made from the files, and nobody's output yet."""
    base, _ = train(tmp_path / "base", "pretrain", mode="offline")
    mine, said = train(tmp_path / "mine", "finetune", [origin_of("init.from", tmp_path / "base" / "model")])
    assert said == []
    artifact = next(artifact for artifact in online.artifacts if artifact["name"] == f"model-{base}")
    assert online.uses == [(mine, artifact["id"])]
    assert not artifact["run"]


def test_another_project_s_artifact_that_is_not_there(tmp_path: Path, online: Any) -> None:
    train(tmp_path / "base", "pretrain", project="one", mode="offline")
    mine, said = train(
        tmp_path / "mine", "finetune", [origin_of("init.from", tmp_path / "base" / "model")], project="two"
    )
    (line,) = said
    assert "is not linked as an input" in line
    assert online.uses == []
    assert [artifact["name"] for artifact in online.artifacts] == [f"model-{mine}"]

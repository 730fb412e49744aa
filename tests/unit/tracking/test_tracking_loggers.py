"""A run is written to W&B and CSV, killed, continued, and read back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from triune.errors import UserError
from triune.tracking import loggers as loggers_module
from triune.tracking import offline
from triune.tracking.config import TrackingConfig
from triune.tracking.csv_log import CsvLog
from triune.tracking.loggers import (
    WandbRun,
    address_of,
    build_loggers,
    finish,
    identity_of,
    log_checkpoint,
    log_samples,
    rewind,
)
from triune.tracking.mode import sync_command


def build(
    directory: Path, said: list[str] | None = None, config: TrackingConfig | None = None, **more: Any
) -> list[Any]:
    arguments: dict[str, Any] = {
        "name": "tiny",
        "job_type": "pretrain",
        "tags": ["decoder", "causal", "window(256, 256) | " * 8],
        "resolved_config": {"model": {"width": 64}, "name": "tiny"},
        "facts": {"parameters": 1234, "data_fingerprint": "abc"},
        "say": (said if said is not None else []).append,
    }
    return build_loggers(config or TrackingConfig(tags=["mine"]), run_directory=directory, **(arguments | more))


def log(loggers: list[Any], values: dict[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(values, step)


def history(directory: Path, run_id: str) -> list[dict[str, Any]]:
    """Rows of every part of the run, in the order of writing."""
    rows = []
    for path in offline.files(directory, run_id):
        for record in offline.records(path):
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


def kinds(directory: Path, run_id: str, kind: str) -> list[Any]:
    return [
        getattr(record, kind)
        for path in offline.files(directory, run_id)
        for record in offline.records(path)
        if record.WhichOneof("record_type") == kind
    ]


def test_offline_file_holds_what_was_logged(
    tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # whatever wandb-core (a process of its own) tries to reach, it reaches this server instead
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    directory = tmp_path / "run"
    said: list[str] = []
    loggers = build(directory, said)
    log(loggers, {"train/loss": 4.5, "progress/tokens": 4096}, 1)
    log(loggers, {"train/loss": 4.25, "progress/tokens": 8192}, 2)
    log(loggers, {"validation/loss": 4.75}, 2)
    log_samples(loggers, [("once", "upon [a] time")], 2)
    checkpoint = tmp_path / "step-00000002"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("w")
    log_checkpoint(loggers, checkpoint, ["last"])
    identity = identity_of(loggers)
    assert identity is not None
    run_id = identity["id"]
    assert address_of(loggers) == sync_command(directory)
    finish(loggers)

    assert said == [f"W&B: offline (no API key found); `{sync_command(directory)}` uploads it later"]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert server.requests == []

    rows = history(directory, run_id)
    assert [row["trainer/global_step"] for row in rows] == [1, 2]
    assert [row["_step"] for row in rows] == [1, 2]
    assert rows[1]["train/loss"] == 4.25
    assert rows[1]["validation/loss"] == 4.75
    table = next(value for key, value in rows[1].items() if key.startswith("samples/") and key.endswith("/path"))
    written = json.loads((offline.files(directory, run_id)[0].parent / "files" / table).read_text())
    assert written == {"columns": ["step", "prompt", "continuation"], "data": [[2, "once", "upon [a] time"]]}

    (run,) = kinds(directory, run_id, "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"] == {"width": 64}
    assert config["facts"]["parameters"] == 1234
    assert config["facts"]["data_fingerprint"] == "abc"
    assert config["facts"]["packages"]["wandb"]
    assert "git" in config["facts"]
    assert (run.run_id, run.project, run.run_group, run.job_type, run.display_name) == (
        run_id, "triune", "tiny", "pretrain", "tiny",
    )  # fmt: skip
    assert list(run.tags)[:2] == ["decoder", "causal"]
    assert "mine" in run.tags
    assert max(map(len, run.tags)) == 64
    axes = {metric.name: metric.step_metric for metric in kinds(directory, run_id, "metric") if metric.name}
    assert axes["train/loss"] == "trainer/global_step"
    (artifact,) = [artifact for artifact in kinds(directory, run_id, "artifact") if artifact.type == "model"]
    assert artifact.name == f"checkpoint-{run_id}"
    assert "last" in artifact.aliases


def log_and_die(directory: Path, first: int, last: int) -> None:
    loggers = build(directory)
    rewind(loggers, first)
    for step in range(first + 1, last + 1):
        log(loggers, {"train/loss": 1 / step}, step)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """SIGKILL takes what wandb has not written yet; the continuation fills it in, twice, without a gap or a repeat."""
    directory = tmp_path / "run"
    for first, last in ((0, 7), (5, 12)):  # back from 7 to the checkpoint of 5
        child = os.fork()
        if child == 0:
            try:
                log_and_die(directory, first, last)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    loggers = build(directory)
    rewind(loggers, 10)
    for step in (11, 12, 13):
        log(loggers, {"train/loss": 1 / step}, step)
    finish(loggers)

    identity = identity_of(loggers)
    assert identity is not None
    rows = history(directory, identity["id"])
    steps = [row["trainer/global_step"] for row in rows]
    assert steps == list(range(1, 14))
    assert [row["train/loss"] for row in rows] == [1 / step for step in steps]
    assert [int(row["step"]) for row in CsvLog(directory).rows()] == steps
    assert {run.run_id for run in kinds(directory, identity["id"], "run")} == {identity["id"]}


def test_rows_that_wandb_has_already_are_not_sent_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    loggers = build(directory)
    for step in range(1, 7):
        log(loggers, {"train/loss": float(step)}, step)
    finish(loggers)  # all six are on disk, while the last checkpoint is of step 3
    said: list[str] = []
    loggers = build(directory, said)
    rewind(loggers, 3)
    for step in range(4, 9):
        log(loggers, {"train/loss": float(step)}, step)
    finish(loggers)
    run_id = loggers[0].identity.id
    assert [row["_step"] for row in history(directory, run_id)] == list(range(1, 9))
    assert [int(row["step"]) for row in CsvLog(directory).rows()] == list(range(1, 9))
    assert [line for line in said if "already" in line] == [
        "W&B: has this run's rows to step 6 already; new ones follow from there"
    ]


def test_records_span_blocks_and_stop_at_damage(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    loggers = build(directory, resolved_config={"long": "x" * 100_000})  # one record over four blocks
    for step in range(300):
        log(loggers, {"train/loss": float(step)}, step)
    finish(loggers)
    run_id = loggers[0].identity.id
    (path,) = offline.files(directory, run_id)
    assert offline.last_step(directory, run_id) == 299
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 50_000])
    cut = offline.last_step(directory, run_id)
    assert cut is not None
    assert 0 < cut < 299
    damaged = bytearray(whole)
    damaged[len(whole) // 2 + 50_000] ^= 1
    path.write_bytes(bytes(damaged))
    assert offline.last_step(directory, run_id) == cut
    path.write_bytes(b"")
    assert offline.last_step(directory, run_id) is None


def test_disabled_and_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = build(tmp_path / "a", config=TrackingConfig(mode="disabled"))
    assert isinstance(only, CsvLog)
    assert identity_of([only]) is None
    assert address_of([only]) is None
    monkeypatch.setattr(loggers_module.rank_zero_only, "rank", 1)
    assert build(tmp_path / "b") == []
    assert not (tmp_path / "b").exists()


def test_a_process_that_becomes_rank_one_logs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = build(tmp_path / "run")
    monkeypatch.setattr(loggers_module.rank_zero_only, "rank", 1)
    log(loggers, {"train/loss": 1.0}, 1)
    rewind(loggers, 0)
    log_samples(loggers, [("a", "b")], 1)
    finish(loggers)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_run_stays_in_its_project(tmp_path: Path) -> None:
    first = build(tmp_path, config=TrackingConfig(project="one", mode="offline"))
    said: list[str] = []
    second = build(tmp_path, said, config=TrackingConfig(project="two", mode="offline"))
    assert identity_of(first) == identity_of(second)
    assert "stays in project 'one'" in said[0]


def test_online_run_is_continued(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    said: list[str] = []
    loggers = build(tmp_path / "run", said)
    for step in range(1, 5):
        log(loggers, {"train/loss": 1 / step}, step)
    url = address_of(loggers)
    finish(loggers)
    assert url is not None
    assert url.startswith("http")
    loggers = build(tmp_path / "run", said)
    rewind(loggers, 2)
    for step in range(3, 7):
        log(loggers, {"train/loss": 1 / step}, step)
    finish(loggers)
    assert [row["trainer/global_step"] for row in server.rows] == [1, 2, 3, 4, 5, 6]
    assert {upsert["name"] for upsert in server.upserts if upsert.get("name")} == {loggers[0].identity.id}
    assert said == ["W&B: has this run's rows to step 4 already; new ones follow from there"]


@pytest.mark.parametrize("chosen", [False, True])
def test_a_server_that_refuses(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    """Following a key: offline, after a bounded wait. Told to be online: an error that says what to do."""
    url = server.url
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(loggers_module, "INIT_TIMEOUT", 1.0)
    said: list[str] = []
    loggers = build(tmp_path / "run", said, config=TrackingConfig(mode="online" if chosen else None))
    if chosen:
        with pytest.raises(UserError, match=r"tracking\.mode=offline"):
            log(loggers, {"train/loss": 1.0}, 1)
        return
    log(loggers, {"train/loss": 1.0}, 1)
    finish(loggers)
    assert "so offline" in said[0]
    assert [row["train/loss"] for row in history(tmp_path / "run", loggers[0].identity.id)] == [1.0]


def test_lightning_drives_the_loggers(tmp_path: Path) -> None:
    """Through a Trainer: the run starts at setup, self.log reaches both, and a second fit goes on."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            loss = self.layer(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    directory = tmp_path / "run"
    common: dict[str, Any] = {
        "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    data = torch.utils.data.DataLoader([torch.ones(2)] * 8, batch_size=1)
    checkpoint = tmp_path / "c.ckpt"
    loggers = build(directory)
    trainer = Trainer(logger=loggers, max_steps=4, **common)
    trainer.fit(Module(), data)
    trainer.save_checkpoint(checkpoint)
    finish(loggers)
    loggers = build(directory)
    assert isinstance(loggers[0], WandbRun)
    trainer = Trainer(logger=loggers, max_steps=6, **common)
    rewind(loggers, 4)
    trainer.fit(Module(), data, ckpt_path=checkpoint)
    finish(loggers)
    steps = [row["trainer/global_step"] for row in history(directory, loggers[0].identity.id)]
    assert steps == sorted(set(steps))
    assert len(steps) == 6
    assert [int(row["step"]) for row in CsvLog(directory).rows()] == steps

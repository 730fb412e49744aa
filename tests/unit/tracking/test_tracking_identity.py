"""The identity file, and how the mode is chosen."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triune.errors import UserError
from triune.tracking import mode as mode_module
from triune.tracking.identity import FILE, RunIdentity


def test_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    first = RunIdentity.open(run, project="one", entity="me", environ={})
    assert RunIdentity.open(run, project="two", environ={"WANDB_RUN_ID": "other"}) == first
    assert len(first.id) == 8
    assert [path.name for path in run.iterdir()] == [FILE]
    assert RunIdentity.from_dict(first.as_dict()) == first


def test_a_race_ends_with_one_identity(tmp_path: Path) -> None:
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _, d=directory: RunIdentity.open(d, project="p", environ={}), range(8)))
        assert len(found) == 1


def test_a_sweep_or_a_checkpoint_names_the_run(tmp_path: Path) -> None:
    assert RunIdentity.open(tmp_path / "a", project="p", environ={"WANDB_RUN_ID": "sweep-1"}).id == "sweep-1"
    saved = RunIdentity.open(tmp_path / "b", project="p", environ={})
    again = RunIdentity.open(tmp_path / "c", project="other", saved=saved.as_dict(), environ={})
    assert again == saved


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "", "project": "p", "created": ""}', '{"id": "a"'])
def test_a_broken_identity_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"wandb\.json does not name a W&B run"):
        RunIdentity.open(tmp_path, project="p", environ={})


def test_without_a_key_it_is_offline_and_says_so(tmp_path: Path) -> None:
    mode = mode_module.resolve(None, "runs/tiny", environ={"HOME": str(tmp_path)})
    assert mode.name == "offline"
    assert mode.line is not None
    assert "\n" not in mode.line
    assert "wandb sync runs/tiny/wandb/offline-run-*" in mode.line


def test_the_command_that_uploads_works_outside_the_virtual_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    command = mode_module.sync_command("runs/tiny").split()
    assert Path(command[0]).is_file()
    assert command[1:] == ["sync", "runs/tiny/wandb/offline-run-*"]
    monkeypatch.setattr(mode_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert mode_module.sync_command("runs/tiny") == "wandb sync runs/tiny/wandb/offline-run-*"


KEYS = {
    "environment": ({"WANDB_API_KEY": "k"}, {}),
    "token": ({"WANDB_IDENTITY_TOKEN_FILE": "/t"}, {}),
    "netrc": ({}, {".netrc": "machine api.wandb.ai\n login user\n password k\n"}),
    "named netrc": ({"NETRC": "{home}/keys"}, {"keys": "machine api.wandb.ai login user password k"}),
    "own server": (
        {"WANDB_BASE_URL": "http://wandb.local:8080"},
        {".netrc": "machine wandb.local:8080 login user password k"},
    ),
    "settings": ({}, {".config/wandb/settings": "[default]\napi_key = k\n"}),
    "settings folder": ({"WANDB_CONFIG_DIR": "{home}/c"}, {"c/settings": "[default]\napi_key = k%\n"}),
}
NO_KEYS = {
    "nothing": ({}, {}),
    "empty": ({"WANDB_API_KEY": ""}, {}),
    "another machine": ({}, {".netrc": "machine example.org login user password k"}),
    "key of the other server": (
        {"WANDB_BASE_URL": "http://wandb.local:8080"},
        {".netrc": "machine api.wandb.ai login user password k"},
    ),
    "broken netrc": ({}, {".netrc": "machine\nmachine"}),
    "broken settings": ({}, {".config/wandb/settings": "no section"}),
}


@pytest.mark.parametrize(
    ("environ", "files", "expected"),
    [(*case, "online") for case in KEYS.values()] + [(*case, "offline") for case in NO_KEYS.values()],
    ids=[*KEYS, *NO_KEYS],
)
def test_a_key_is_found_where_wandb_finds_it(
    tmp_path: Path, environ: dict[str, str], files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    environ = {"HOME": str(tmp_path)} | {name: value.format(home=tmp_path) for name, value in environ.items()}
    mode = mode_module.resolve(None, "run", environ=environ)
    assert (mode.name, mode.chosen) == (expected, False)


def test_precedence(tmp_path: Path) -> None:
    """tracking.mode, then WANDB_MODE, then W&B's settings, then the key."""
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n")
    environ = {"HOME": str(tmp_path), "WANDB_API_KEY": "k"}
    assert mode_module.resolve(None, "run", environ=environ).name == "offline"
    environ["WANDB_MODE"] = "disabled"
    assert mode_module.resolve(None, "run", environ=environ).name == "disabled"
    assert mode_module.resolve("online", "run", environ=environ).name == "online"
    environ["WANDB_MODE"] = "dryrun"
    assert mode_module.resolve(None, "run", environ=environ).name == "offline"


def test_wrong_modes_are_named(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(UserError, match=r"tracking\.mode is online, but no W&B API key"):
        mode_module.resolve("online", "run", environ=environ)
    with pytest.raises(UserError, match=r"WANDB_MODE is 'ofline'.*did you mean 'offline'"):
        mode_module.resolve(None, "run", environ=environ | {"WANDB_MODE": "ofline"})


def test_identity_file_is_readable(tmp_path: Path) -> None:
    identity = RunIdentity.open(tmp_path, project="p", environ={})
    assert json.loads((tmp_path / FILE).read_text())["id"] == identity.id

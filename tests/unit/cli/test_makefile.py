"""The Makefile in a scratch directory with a recorder in place of `.venv/bin/triune`: what reaches the command line, and how it helps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORDER = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


def _script(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def scratch(tmp_path):
    """A directory with the Makefile and an installed-looking environment."""
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    _script(tmp_path / ".venv/bin/triune", RECORDER)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def _make(directory, *arguments, **environment):
    # MAKEFLAGS and MAKELEVEL of a `make test` around us are not ours
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TRIUNE_"))}
    return subprocess.run(
        ["make", "-C", str(directory), "--no-print-directory", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
    )


def _recorded(directory, *arguments, **environment):
    told = _make(directory, *arguments, **environment)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrain"], ["pretrain", "configs/pretrain/tiny-decoder.yaml", "--overrides="]),
        (["finetune"], ["finetune", "configs/finetune/replies.yaml", "--overrides="]),
        (
            ["finetune", "FROM=my runs/x", "CONFIG=c.yaml", "ARGS=data.train=mine.csv", "RESTART=1"],
            ["finetune", "c.yaml", "--overrides=data.train=mine.csv", "--from=my runs/x", "--restart"],
        ),
        (["evaluate", "RUN=a b", "DATA=my test.csv"], ["evaluate", "a b", "--data=my test.csv", "--overrides="]),
        (
            ["evaluate", "RUN=x", "ARGS=data.train.0.columns.text='a b'"],
            ["evaluate", "x", "--overrides=data.train.0.columns.text='a b'"],
        ),
        (["plan", "CONFIG=my dir/x.yaml"], ["plan", "my dir/x.yaml", "--overrides="]),
        (["prepare", "NAME="], ["prepare", "configs/pretrain/tiny-decoder.yaml", "--overrides="]),
        (
            ["pretrain", "NAME=trial-7", "DEVICES=2", "NODES=1", "RESTART=1", "DRY_RUN=1"],
            [
                *("pretrain", "configs/pretrain/tiny-decoder.yaml", "--overrides=", "--name=trial-7"),
                *("--devices=2", "--nodes=1", "--restart", "--dry-run"),
            ],
        ),
        (["pretrain", "RESTART=0", "DRY_RUN=no"], ["pretrain", "configs/pretrain/tiny-decoder.yaml", "--overrides="]),
        (["generate"], ["generate", "runs/pretrain/tiny-decoder", "--prompt="]),
        (["generate", "RUN=x", 'PROMPT=it\'s "a" *'], ["generate", "x", '--prompt=it\'s "a" *']),
        (["look"], ["look", "pattern", "modernbert-base"]),
        (
            ["look", "PATTERN=window(64, 64) | prefix(2)", "LENGTH=256", "TILE=32", "OUTPUT=a b.png"],
            ["look", "pattern", "window(64, 64) | prefix(2)", "--length=256", "--tile=32", "--output=a b.png"],
        ),
    ],
)
def test_variables_reach_the_command_line(scratch, arguments, expected):
    assert _recorded(scratch, *arguments) == expected


@pytest.mark.parametrize(
    "text",
    [
        "model.layers=8 trainer.max_steps=500",
        "'model.attention.pattern=window(64, 64) & causal()' x=1",
        "data.train.0.path=*.txt",
        "a=(;echo `ls` | cat > f",
    ],
)
def test_args_are_never_parsed_by_the_shell(scratch, text):
    (scratch / "a.txt").touch()
    assert _recorded(scratch, "pretrain", f"ARGS={text}")[2] == f"--overrides={text}"


def test_the_environment_changes_nothing(scratch):
    around = {
        "NAME": "a-computer",
        "CONFIG": "x.yaml",
        "ARGS": "a=b",
        "RESTART": "1",
        "NODES": "4",
        "FROM": "y",
        "DATA": "z",
    }
    told = _recorded(scratch, "pretrain", **around)
    assert told == ["pretrain", "configs/pretrain/tiny-decoder.yaml", "--overrides="]
    assert _recorded(scratch, "finetune", **around) == ["finetune", "configs/finetune/replies.yaml", "--overrides="]
    assert _recorded(scratch, "evaluate", "RUN=x", **around) == ["evaluate", "x", "--overrides="]


def test_the_exit_code_of_a_mistake_stops_make(scratch):
    _script(scratch / ".venv/bin/triune", "#!/bin/sh\nexit 2\n")
    told = _make(scratch, "pretrain")
    assert told.returncode == 2
    assert "Error 2" in told.stderr


def test_help_is_the_default_and_names_every_target_and_variable(scratch):
    text = (ROOT / "Makefile").read_text()
    told = _make(scratch).stdout
    assert told == _make(scratch, "help").stdout
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    variables = re.findall(r"^([A-Z_]+) := ##", text, re.MULTILINE)
    assert {"CONFIG", "FROM", "NAME", "ARGS", "DEVICES", "NODES", "DRY_RUN", "RESTART", "RUN", "DATA"} <= set(variables)
    for name in [*targets, *variables]:
        assert re.search(rf"^  {name} +\w", told, re.MULTILINE), name


def test_every_default_config_exists():
    for path in re.findall(r"configs/\S+?\.yaml", (ROOT / "Makefile").read_text()):
        assert (ROOT / path).is_file(), path


def test_python_without_ensurepip_names_the_package_to_install(scratch):
    shutil.rmtree(scratch / ".venv")
    _script(
        scratch / "python",
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n',
    )
    told = _make(scratch, "install", "PYTHON=./python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert told.returncode == 2
    assert f"sudo apt-get install python{version}-venv" in told.stderr
    assert not (scratch / ".venv").exists()


def test_an_old_python_is_named(scratch):
    shutil.rmtree(scratch / ".venv")
    _script(scratch / "python", "#!/bin/sh\nexit 1\n")
    told = _make(scratch, "install", "PYTHON=./python")
    assert told.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13 found (./python)" in told.stderr


def test_a_changed_lock_installs_again_and_a_failed_install_is_not_marked_done(scratch):
    asked = scratch / "asked"
    _script(
        scratch / ".venv/bin/python", f'#!/bin/sh\n[ "$1" = -m ] || exit 0\necho "$*" >> "{asked}"\n[ ! -e fail ]\n'
    )
    os.utime(scratch / ".venv/.installed", (1, 1))
    (scratch / "fail").touch()
    assert _make(scratch, "install").returncode != 0
    (scratch / "fail").unlink()
    assert _make(scratch, "install").returncode == 0
    lines = asked.read_text().splitlines()
    assert "--requirement requirements.lock" in lines[-2]
    assert "--no-deps --editable ." in lines[-1]
    assert _make(scratch, "install").returncode == 0
    assert asked.read_text().splitlines() == lines


def test_clean_leaves_runs_and_data(scratch):
    for name in ("runs/pretrain/x", "data-cache", ".mypy_cache", "platform/x/__pycache__", "tests", "jobs"):
        (scratch / name).mkdir(parents=True)
    assert _make(scratch, "clean").returncode == 0
    assert sorted(path.name for path in scratch.iterdir() if path.is_dir()) == [
        "data-cache",
        "jobs",
        "platform",
        "runs",
        "tests",
    ]
    assert not (scratch / "platform/x/__pycache__").exists()
    assert (scratch / "runs/pretrain/x").exists()

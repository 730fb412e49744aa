"""Where a run comes from: the commit of the code, told apart from an unrelated repository around it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from triune.tracking import facts


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_and_whether_it_is_what_runs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "code").mkdir(parents=True)
    (repository / "environment").mkdir()
    (repository / "environment" / "installed.py").write_text("")
    (repository / "code" / "a.py").write_text("1")
    assert facts.git(repository) is None
    git(repository, "init", "-q")
    assert facts.git(repository) is None
    git(repository, "add", "code")
    git(repository, "commit", "-qm", "one")
    commit = git(repository, "rev-parse", "HEAD")
    assert facts.git(repository / "code") == {"commit": commit, "dirty": False}
    (repository / "code" / "a.py").write_text("2")
    assert facts.git(repository / "code") == {"commit": commit, "dirty": True}
    # a package installed in an untracked folder of somebody's repository is not that repository's code
    assert facts.git(repository / "environment") is None


def test_no_git_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts.git(Path(__file__).parent) is None
    environment = facts.environment()
    assert environment["git"] is None
    assert {"torch", "lightning", "wandb"} <= set(environment["packages"])

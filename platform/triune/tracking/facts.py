"""Where a run comes from: the code's commit and the versions of what it runs on. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("triune", "torch", "lightning", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "wandb")
_SECONDS = 5.0  # git on a slow network file system must not hold up a run


def environment() -> dict[str, Any]:
    """`{"git": {"commit", "dirty"} | None, "packages": {name: version}, "python": version, "platform": text}`."""
    return {
        "git": git(Path(__file__).parent) or git(Path.cwd()),
        "packages": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on; a missing one is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git(directory: Path) -> dict[str, Any] | None:
    """Commit of the repository that tracks files in `directory`, and whether tracked files differ from it.

    None where there is no git, no repository, no commit, or the repository does not track the directory
    (an installed package inside a project's ignored virtual environment is not that project's code).
    """
    if not _git(directory, "ls-files", "--cached", "."):
        return None
    commit = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if not commit:
        return None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            # no lock files in somebody's repository, no question on the terminal
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""Whether W&B is online, offline or off, decided from settings and files alone: no network, no prompt. Imports no torch.

Order of precedence: `tracking.mode`, the environment's WANDB_MODE, the `mode` of W&B's settings files (what `wandb offline`
writes), and last: online where a key is configured, else offline. A key is looked for where wandb looks for it:
WANDB_API_KEY, an identity token file, the netrc entry of the server, and the settings files.
"""

from __future__ import annotations

import configparser
import netrc
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from triune.errors import UserError, nearest

ModeName = Literal["online", "offline", "disabled"]
SERVER = "https://api.wandb.ai"
_NAMES: dict[str, ModeName] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How W&B is used by this process.

    Args:
        name: online, offline or disabled.
        chosen: the user asked for it by name; else it follows from whether there is a key.
        line: what to tell the user, or None where nothing needs saying.
    """

    name: ModeName
    chosen: bool
    line: str | None = None


def resolve(
    mode: ModeName | None,
    run_directory: str | os.PathLike[str],
    *,
    environ: Mapping[str, str] = os.environ,
) -> Mode:
    """Decide the mode of a run in `run_directory`; `mode` is `tracking.mode`.

    Raises:
        UserError: WANDB_MODE is no mode, or online was asked for and no key is configured.
    """
    settings = _settings(environ)
    for source, text in (
        ("tracking.mode", mode),
        ("WANDB_MODE", environ.get("WANDB_MODE")),
        ("mode in W&B's settings", settings.get("mode")),
    ):
        if text:
            return _chosen(source, text, environ, settings)
    if has_key(environ, settings):
        return Mode(name="online", chosen=False)
    line = f"W&B: offline (no API key found); `{sync_command(run_directory)}` uploads it later"
    return Mode(name="offline", chosen=False, line=line)


def sync_command(run_directory: str | os.PathLike[str]) -> str:
    """The command that uploads every offline part of the run, in order; it works outside the virtual environment too."""
    return f"{_wandb()} sync {Path(run_directory) / 'wandb'}/offline-run-*"


def _wandb() -> str:
    """`wandb`, or where that is not on the PATH (an environment not activated) the one beside this interpreter."""
    beside = Path(sys.executable).with_name("wandb")
    if shutil.which("wandb") or not beside.exists():
        return "wandb"
    return os.path.relpath(beside)


def has_key(environ: Mapping[str, str], settings: Mapping[str, str]) -> bool:
    """Whether W&B has credentials for its server, without asking the server whether they are good."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    server = environ.get("WANDB_BASE_URL") or settings.get("base_url") or SERVER
    return _in_netrc(urlsplit(server).netloc, environ)


def _chosen(source: str, text: str, environ: Mapping[str, str], settings: Mapping[str, str]) -> Mode:
    if text not in _NAMES:
        raise UserError(f"{source} is {text!r}, not one of online, offline, disabled{nearest(text, _NAMES)}")
    name = _NAMES[text]
    if name == "online" and not has_key(environ, settings):
        raise UserError(
            f"{source} is {text}, but no W&B API key is configured. "
            "Run `wandb login`, set WANDB_API_KEY, or use tracking.mode=offline and upload later."
        )
    return Mode(name=name, chosen=True)


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path("~").expanduser()


def _in_netrc(host: str, environ: Mapping[str, str]) -> bool:
    home = _home(environ)
    named = environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]:
        try:
            entry = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if entry and entry[2]:
            return True
    return False


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """W&B's own settings: the user's file, then the working directory's, which wins."""
    folder = environ.get("WANDB_CONFIG_DIR")
    user = Path(folder).expanduser() if folder else _home(environ) / ".config" / "wandb"
    workspace = Path(environ.get("WANDB_DIR") or ".")
    found: dict[str, str] = {}
    for path in (user / "settings", workspace / "wandb" / "settings", workspace / ".wandb" / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        if parser.has_section("default"):
            found.update(parser.items("default"))
    return found

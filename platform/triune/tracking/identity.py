"""Which W&B run a run directory is and which runs it goes back to: written once, kept for the life of the run. Imports no torch."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triune.errors import UserError

FILE = "wandb.json"
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Weights that a run starts from or evaluates, and the W&B run that made them, as far as files tell.

    Args:
        option: what named them: init.from, init.encoder, init.decoder; `evaluate` for weights under evaluation.
        path: the model directory, checkpoint or file that was read.
        step: optimizer step of a checkpoint; None for a finished model.
        id: W&B run that made them; None where no run of ours did, or one that was not followed.
        project: its project.
        entity: its user or team; None is the account's own.
        name: its name.
        group: its group.
    """

    option: str
    path: str
    step: int | None = None
    id: str | None = None
    project: str | None = None
    entity: str | None = None
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The W&B run of a run directory, so that every continuation of the run is the same W&B run.

    Args:
        id: W&B run id, eight letters or digits where we made it.
        project: W&B project the run was created in.
        entity: W&B user or team; None is the account's own.
        created: time of creation, UTC, ISO 8601.
        name: name of the run; None in a file written before names were kept.
        group: W&B group, which runs that go back to this one join; None in a file written before groups were kept.
        origins: weights that the run started from, or that it evaluates.
    """

    id: str
    project: str
    entity: str | None = None
    created: str
    name: str | None = None
    group: str | None = None
    origins: tuple[Origin, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint carries; `RunIdentity.open(..., saved=...)` reads it back."""
        return asdict(self)

    def as_maker(self) -> dict[str, Any]:
        """What a finished model carries about the run that made it: no paths of the machine, since models are given away."""
        return {key: value for key, value in self.as_dict().items() if key != "origins"}

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        project: str,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        origins: Sequence[Origin] = (),
        saved: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> RunIdentity:
        """The identity kept in `directory`, created there (once, atomically) where it is missing.

        A new identity comes from `saved` (a checkpoint's, for a run directory that lost its file), else from the arguments, and its
        id from WANDB_RUN_ID (set by a sweep's agent), else from chance. Of two processes that create it at once both get the same one.

        Raises:
            UserError: the file is there and is not an identity.
        """
        path = Path(directory) / FILE
        if not path.exists():
            fresh = (
                cls.from_dict(saved)
                if saved
                else cls(
                    id=environ.get("WANDB_RUN_ID") or "".join(secrets.choice(_ALPHABET) for _ in range(8)),
                    project=project,
                    entity=entity,
                    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    name=name,
                    group=group,
                    origins=tuple(origins),
                )
            )
            _create_once(path, json.dumps(fresh.as_dict(), indent=2) + "\n")
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} does not name a W&B run ({error}). "
                "Delete the file to follow this run as a new W&B run from here on."
            ) from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunIdentity:
        """The inverse of `as_dict`; KeyError, TypeError or ValueError where it is none."""
        identity = cls(
            id=data["id"],
            project=data["project"],
            entity=data.get("entity"),
            created=data["created"],
            name=data.get("name"),
            group=data.get("group"),
            origins=tuple(Origin(**origin) for origin in data.get("origins", ())),
        )
        if not identity.id or not isinstance(identity.id, str) or not isinstance(identity.project, str):
            raise ValueError("id and project must be text")
        return identity


def _create_once(path: Path, text: str) -> None:
    """Create `path` whole or not at all; where another process was first, its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            # unlike a rename, a hard link never replaces what is there
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)

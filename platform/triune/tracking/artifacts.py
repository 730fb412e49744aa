"""W&B artifacts of a run: what it made (logged) and what it was made from (used).

An artifact's digest is that of its files' names and contents, whether they are uploaded or referred to. So an input is declared by
its content: W&B finds the version that the run that made it has logged, or makes it where that run has not been uploaded yet.
`run.use_artifact`, the public way, refuses offline and waits for the server without end; the record that it writes
(`use_after_commit`) does neither, and `wandb sync` turns it into the same edge of the graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triune.tracking.identity import Origin, RunIdentity


def build(name: str, kind: str, path: str | os.PathLike[str], *, upload: bool, nested: bool = False) -> Any:
    """A `wandb.Artifact` of a file, or of the files of a directory under their names in it.

    Args:
        name: letters, digits, `-`, `_` and `.`.
        kind: W&B's type: model, predictions.
        path: the file or the directory.
        upload: send the files; else their names, sizes and checksums and where they lie on this machine.
        nested: with the files of its directories; without, what is kept in a model's directory later (`evaluations/`) doesn't count.
    """
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata={"path": os.fspath(path)})
    root = Path(path)
    files = sorted(file for file in root.glob("**/*" if nested else "*") if file.is_file()) if root.is_dir() else [root]
    for file in files:
        within = str(file.relative_to(root)) if root.is_dir() else file.name
        if upload:
            artifact.add_file(os.fspath(file), name=within)
        else:
            artifact.add_reference(file.resolve().as_uri(), name=within)
    return artifact


def log(run: Any, artifact: Callable[[], Any], aliases: Sequence[str], say: Callable[[str], None]) -> None:
    """Log an artifact as the output of a `wandb.Run`; what keeps W&B from it is said, and never stops a run at its end."""
    try:
        run.log_artifact(artifact(), aliases=list(aliases))
    except Exception as error:
        say(f"W&B: an artifact was not logged ({_line(error)}); the files are whole")


def use(run: Any, identity: RunIdentity, say: Callable[[str], None]) -> None:
    """Declare the artifacts of the run's origins as the inputs of a `wandb.Run`; one line for each that can't be."""
    for origin in identity.origins:
        if origin.id is None:
            continue
        try:
            _use(run, identity, origin)
        except Exception as error:
            say(
                f"W&B: {artifact_name(origin)} is not linked as an input ({_line(error)}); lineage in the config names it"
            )


def artifact_name(origin: Origin) -> str:
    """The artifact that the origin's run logs its weights to: `model-<id>`, or `checkpoint-<id>` for a checkpoint."""
    return f"{'checkpoint' if origin.path.endswith('.ckpt') else 'model'}-{origin.id}"


def _use(run: Any, identity: RunIdentity, origin: Origin) -> None:
    name = artifact_name(origin)
    if (origin.project, origin.entity) == (identity.project, identity.entity):
        artifact = build(name, "model", origin.path, upload=False)
        artifact.finalize()
        # no aliases: `latest` stays where the run that makes the artifact puts it
        run._interface.publish_artifact(run, artifact, aliases=[], is_user_created=True, use_after_commit=True)
    elif not run.offline:  # another project's artifact goes by its name, which only the server knows
        version = "latest" if origin.step is None else f"step-{origin.step:08d}"
        place = [part for part in (origin.entity, origin.project) if part]
        run.use_artifact("/".join([*place, f"{name}:{version}"]), type="model")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

"""The loggers of a run: Weights & Biases, and CSV beside it.

The x-axis. A row's W&B step is the optimizer step, so that a continued run goes on where it was. A killed process leaves W&B behind
(wandb writes in bursts) or ahead (the run goes back to its last checkpoint) of the weights. Rows that W&B has already are not sent
again, rows that it lost are sent from `metrics.csv`: its history stays strictly monotone, without a gap or a repeat.

A server that can't be reached. `wandb.init` tries for `INIT_TIMEOUT` seconds; then a run that follows a configured key goes on
offline and says so, and one that was told to be online stops. A server that goes away later doesn't disturb training: wandb keeps
the rows on disk and tries again.

Lineage. A run joins the group of the run whose weights it starts from or evaluates, declares that run's artifact as its input when
it first starts, and logs what it made (`tracking.artifacts`). All of that is in its config too, whatever the server knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triune.errors import UserError
from triune.tracking import artifacts, metrics, mode, offline
from triune.tracking.config import TrackingConfig
from triune.tracking.csv_log import CsvLog
from triune.tracking.facts import environment
from triune.tracking.identity import Origin, RunIdentity
from triune.tracking.lineage import as_config, group_of

INIT_TIMEOUT = 30.0
_TAG_LENGTH = 64  # the server refuses longer ones

Say = Callable[[str], None]


def build_loggers(
    config: TrackingConfig,
    *,
    run_directory: str | os.PathLike[str],
    name: str,
    job_type: str,
    tags: Sequence[str],
    resolved_config: Mapping[str, Any],
    facts: Mapping[str, Any],
    origins: Sequence[Origin] = (),
    saved_identity: Mapping[str, Any] | None = None,
    say: Say = print,
) -> list[Logger]:
    """Lightning loggers of one run; none on a rank above 0. W&B starts when Lightning first asks for it.

    Args:
        config: the `tracking` part of the experiment.
        run_directory: where the run lives; W&B's files go to its `wandb/`.
        name: name of the W&B run, and its group where none is configured and no origin has one.
        job_type: pretrain, finetune or evaluate.
        tags: family, objective, pattern; the user's are added.
        resolved_config: the whole experiment, as plain values.
        facts: what else the W&B config should hold (parameters, data fingerprint); commit and package versions are added.
        origins: weights that a new run starts from or evaluates (`lineage.origin_of`); a continued run keeps those it had.
        saved_identity: `identity_of(...)` from a checkpoint, for a run directory that lost its identity.
        say: prints one line to the user.

    Raises:
        UserError: a mode that is none, online without a key, or a broken identity file.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return []
    log = CsvLog(run_directory)
    chosen = mode.resolve(config.mode, run_directory)
    if chosen.name == "disabled":
        return [log]
    identity = RunIdentity.open(
        run_directory,
        project=config.project,
        entity=config.entity,
        name=name,
        group=config.group or group_of(origins) or name,
        origins=origins,
        saved=saved_identity,
    )
    group = identity.group or config.group or name
    if identity.project != config.project:
        say(f"W&B: this run stays in project {identity.project!r}; tracking.project={config.project} is for new runs")
    if config.group and group != config.group:
        say(f"W&B: this run stays in group {group!r}; tracking.group={config.group} is for new runs")
    if chosen.line:
        say(chosen.line)
    run = WandbRun(
        identity=identity,
        mode=chosen,
        log=log,
        say=say,
        artifacts=config.artifacts,
        name=name,
        job_type=job_type,
        group=group,
        tags=list(dict.fromkeys(tag[:_TAG_LENGTH] for tag in (*tags, *config.tags) if tag)),
        config={
            **resolved_config,
            "facts": {**environment(), **facts},
            "lineage": as_config(identity.origins),
        },
    )
    return [run, log]


class WandbRun(WandbLogger):
    """Lightning's WandbLogger whose W&B step is the optimizer step, silent, and never waiting for a server without end."""

    def __init__(
        self, *, identity: RunIdentity, mode: mode.Mode, log: CsvLog, say: Say, artifacts: str, **init: Any
    ) -> None:
        super().__init__(
            save_dir=log.save_dir, id=identity.id, project=identity.project, entity=identity.entity, **init
        )
        self.identity = identity
        self._mode = mode
        self._log = log
        self._say = say
        self._artifacts = artifacts
        self._floor = 0  # rows below this step are in W&B already
        self._told = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`, started when first asked for."""
        # a spawned process attaches to its parent's run, which is Lightning's affair
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._start()
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send `metrics` as (part of) the row of `step`; a row that W&B has already is left out."""
        run = self.experiment
        if step is None:
            run.log(dict(metrics))
        elif step >= self._floor:
            self._send(metrics, step)
        elif not self._told:
            self._told = True
            self._say(f"W&B: has this run's rows to step {self._floor - 1} already; new ones follow from there")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """The run goes on from the checkpoint of `step`: send the rows up to it that a killed process kept from W&B."""
        _ = self.experiment
        for row in self._log.rows():
            number = int(row["step"])
            if self._floor <= number <= step:
                self._send({name: float(cell) for name, cell in row.items() if cell and name != "step"}, number)
                self._floor = number  # not beyond: more may be logged at this very step

    @rank_zero_only
    def log_artifact(self, name: str, kind: str, path: str | os.PathLike[str], aliases: Sequence[str] = ()) -> None:
        """Log a file or a directory as the next version of the artifact `<name>-<run id>`, as `tracking.artifacts` says."""
        if self._artifacts == "none":
            return
        full, upload = f"{name}-{self.identity.id}", self._artifacts == "upload"
        artifacts.log(self.experiment, lambda: artifacts.build(full, kind, path, upload=upload), aliases, self._say)

    @property
    def address(self) -> str:
        """Where a person finds the run: its page, or the command that uploads it."""
        url = None if self._experiment is None else self._experiment.url
        return url or mode.sync_command(self._log.save_dir)

    @rank_zero_only
    def finish(self, *, failed: bool = False) -> None:
        """Bring the last rows to the disk (and the server) and end this process's part of the run."""
        if self._experiment is None:
            return
        import wandb

        run, self._experiment = self._experiment, None
        run.finish(exit_code=int(failed))
        if run.offline and wandb.run is None:
            # `finish` may return before the file is whole, and a continuation in this process reads it
            wandb.teardown()

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        self.experiment.log({**values, metrics.STEP: step}, step=step)

    def _start(self) -> Any:
        import wandb

        settings = wandb.Settings(console="off", silent=True, init_timeout=INIT_TIMEOUT)
        wandb.setup(settings)  # `init` alone still announces the login
        # Lightning's logger puts "dryrun" into the environment of the whole process; an argument stays in this run
        arguments = {**self._wandb_init, "settings": settings}
        try:
            run = wandb.init(**arguments, mode=self._mode.name)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise UserError(f"W&B refuses this run: {error}. Mend it, or use tracking.mode=offline.") from error
        except wandb.errors.CommError as error:
            if self._mode.chosen:
                raise UserError(
                    f"W&B can't be reached within {INIT_TIMEOUT:.0f} s: {error}. "
                    "Use tracking.mode=offline and upload the run later."
                ) from error
            wandb.teardown()  # or the id would stay taken by the attempt
            wandb.setup(settings)
            run = wandb.init(**arguments, mode="offline")
            command = mode.sync_command(self._log.save_dir)
            self._say(f"W&B: no answer from the server, so offline; `{command}` uploads it later")
        metrics.define(run)
        self._floor = self._first_missing(run)
        # inputs are declared once, while their files are what the run read
        if self._floor == 0 and self._artifacts != "none":
            artifacts.use(run, self.identity, self._say)
        return run

    def _first_missing(self, run: Any) -> int:
        """The first step that W&B doesn't have: the server says it, or the files of the run's earlier parts."""
        if not run.offline:
            return run.starting_step
        last = offline.last_step(self._log.save_dir, self.identity.id)
        return 0 if last is None else last + 1


def _wandb_run(loggers: Sequence[Logger]) -> WandbRun | None:
    return next((logger for logger in loggers if isinstance(logger, WandbRun)), None)


def identity_of(loggers: Sequence[Logger]) -> dict[str, Any] | None:
    """What a checkpoint keeps about the W&B run; None where there is none."""
    run = _wandb_run(loggers)
    return run.identity.as_dict() if run else None


def maker_of(loggers: Sequence[Logger]) -> dict[str, Any] | None:
    """What a finished model keeps about the W&B run that made it; None where there is none."""
    run = _wandb_run(loggers)
    return run.identity.as_maker() if run else None


def address_of(loggers: Sequence[Logger]) -> str | None:
    """The W&B page of the run or the command that uploads it; None where W&B is off."""
    run = _wandb_run(loggers)
    return run.address if run else None


@rank_zero_only
def rewind(loggers: Sequence[Logger], step: int) -> None:
    """Call once, when a run goes on from the checkpoint of optimizer step `step`, before anything is logged."""
    for logger in loggers:
        if isinstance(logger, CsvLog):
            logger.rewind(step)
    run = _wandb_run(loggers)
    if run:
        run.rewind(step)


@rank_zero_only
def log_samples(loggers: Sequence[Logger], samples: Sequence[tuple[str, str]], step: int) -> None:
    """Log (prompt, continuation) pairs as a W&B table."""
    run = _wandb_run(loggers)
    if run and samples:
        rows = [[step, prompt, continuation] for prompt, continuation in samples]
        run.log_table(metrics.SAMPLES, columns=["step", "prompt", "continuation"], data=rows, step=step)


@rank_zero_only
def log_checkpoint(loggers: Sequence[Logger], path: str | os.PathLike[str], aliases: Sequence[str] = ()) -> None:
    """Upload a checkpoint (a file or a directory) as the next version of the run's `checkpoint-<run id>`; its name is an alias."""
    run = _wandb_run(loggers)
    if run is None:
        return
    artifact = artifacts.build(f"checkpoint-{run.identity.id}", "model", path, upload=True, nested=True)
    run.experiment.log_artifact(artifact, aliases=[Path(path).name, *aliases])


@rank_zero_only
def log_model(loggers: Sequence[Logger], path: str | os.PathLike[str], aliases: Sequence[str] = ()) -> None:
    """Log a finished model directory as the next version of `model-<run id>`; runs that start from it use it."""
    run = _wandb_run(loggers)
    if run:
        run.log_artifact("model", "model", path, aliases)


@rank_zero_only
def log_predictions(loggers: Sequence[Logger], path: str | os.PathLike[str]) -> None:
    """Log a file of predictions as the next version of `predictions-<run id>`."""
    run = _wandb_run(loggers)
    if run:
        run.log_artifact("predictions", "predictions", path)


@rank_zero_only
def finish(loggers: Sequence[Logger], *, failed: bool = False) -> None:
    """Close the run: W&B's last rows reach the disk (and the server), and another run may start in this process."""
    run = _wandb_run(loggers)
    if run:
        run.finish(failed=failed)

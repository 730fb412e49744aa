"""The typed tree behind every YAML: load, check, write and compare experiments. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from triune.adapters.config import AdapterConfig, TuningConfig
from triune.data.config import DataConfig
from triune.errors import UserError
from triune.models.checks import check as check_model
from triune.models.config import ModelConfig
from triune.objectives.config import FAMILY, CausalObjective, ObjectiveConfig
from triune.objectives.task_config import TASK_FAMILIES, TaskConfig
from triune.tracking.config import TrackingConfig
from triune.training.config import AdamW, Cosine, InitConfig, OptimizerConfig, RunConfig, ScheduleConfig
from triune.training.schedules import schedule
from triune.tree import Tree, construct, load_yaml, merge, override, report, to_tree, to_yaml
from triune.units import Count


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: everything a run depends on.

    Args:
        name: names the run directory and the W&B run; where the file has none of its own, its file name.
        model: the transformer.
        objective: what it learns: to predict text, or a supervised task.
        data: the text, or the labelled records.
        optimizer: how weights move.
        schedule: how the learning rate moves.
        run: length, batch, validation and checkpoints.
        init: what the weights start from.
        tuning: which weights move, and how fast.
        adapter: low-rank updates that train in place of the weights; null trains the weights.
        seeds: runs with as many seeds from run.seed on, with mean and deviation at the end.
        trainer: arguments of Lightning's Trainer, untouched.
        tracking: where the run is followed.
    """

    name: str = "unnamed"
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig | TaskConfig = field(default_factory=CausalObjective)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=Cosine)
    run: RunConfig = field(default_factory=RunConfig)
    init: InitConfig = field(default_factory=InitConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    adapter: AdapterConfig | None = None
    seeds: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    name: str | None = None,
    beneath: Callable[[Tree], Mapping[str, Any]] | None = None,
) -> Experiment:
    """The experiment in the YAML file at `path`, with `a.b=c` assignments over it and `name` over both.

    A name is never inherited from a `base:`, so that two files never share a run directory by accident.

    Args:
        path: the file.
        overrides: assignments.
        name: of the run.
        beneath: given what file and assignments say, the plain settings under them (those of weights that fine-tuning starts from).

    Raises UserError that lists what is unreadable, unknown or of a wrong type.
    """
    data = override(load_yaml(path), overrides)
    own = {os.path.normpath(path), "command line"}
    if name or "name" not in data or data.origin["name"].file not in own:
        data.put("name", name or os.path.splitext(os.path.basename(path))[0], data.origin.get("name"))
    if beneath is not None:
        data = merge(beneath(data), data)
    return _with_batch(construct(Experiment, data))


def _with_batch(experiment: Experiment) -> Experiment:
    """The experiment with `run.batch_rows` as tokens."""
    rows = experiment.run.batch_rows
    if rows is None or rows < 1:
        return experiment
    return replace(experiment, run=replace(experiment.run, batch_tokens=Count(rows * _row(experiment))))


def is_task(experiment: Experiment) -> bool:
    """Whether the objective is a supervised task, which reads labelled records."""
    return experiment.objective.kind in TASK_FAMILIES


def dump(experiment: Experiment) -> str:
    """The whole resolved experiment as YAML text; `load` of it gives an equal experiment."""
    return to_yaml(to_tree(experiment))


@dataclass(frozen=True)
class _Bound:
    """What a number must be, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


_ABOVE_0 = _Bound("above 0", lambda value: value > 0)
_FROM_0 = _Bound("0 or more", lambda value: value >= 0)
_FROM_1 = _Bound("1 or more", lambda value: value >= 1)
_SHARE = _Bound("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_1 = _Bound("0 or more and below 1", lambda value: 0 <= value < 1)

#: Dotted path, with `*` for a list index -> bound. The model's own bounds are in `triune.models.checks`.
_BOUNDS = {
    path: bound
    for bound, paths in (
        (_ABOVE_0, "optimizer.learning_rate optimizer.adamw_learning_rate optimizer.epsilon"),
        (_FROM_0, "objective.z_loss optimizer.weight_decay run.keep run.gradient_clip run.seed tracking.samples"),
        (_FROM_0, "data.workers data.seed"),
        (_FROM_1, "objective.mean_span run.tokens run.batch_tokens run.micro_batch run.validate_tokens"),
        (_FROM_1, "data.rows.length data.rows.multiple_of data.tokenizer.vocabulary data.tokenizer.sample_bytes"),
        (
            _FROM_1,
            "tracking.log_every seeds run.batch_rows run.patience objective.stride objective.answer_length objective.beams",
        ),
        (_FROM_1, "objective.target_length objective.reply_length objective.history objective.context_length"),
        (_ABOVE_0, "run.epochs objective.scale"),
        (_Bound("2 or more", lambda value: value >= 2), "objective.candidates"),
        (_SHARE, "objective.threshold"),
        (_SHARE, "objective.rate objective.mask_share objective.random_share objective.minimum objective.maximum"),
        (_SHARE, "objective.suffix_first objective.infill_rate objective.permute_sentences objective.rotate"),
        (_SHARE, "objective.delete_rate schedule.final"),
        (_BELOW_1, "objective.label_smoothing optimizer.momentum optimizer.betas.* run.average"),
    )
    for path in paths.split()
}
_NAME = re.compile(r"\w[\w.+-]{0,99}")


def check(experiment: Experiment) -> None:
    """Refuse an experiment whose settings cannot go together, before anything heavy is imported.

    Raises UserError that lists each contradiction with the options, their values and a way out.
    """
    report(_out_of_bounds(experiment))  # the rest divides by some of these
    problems: list[str] = []
    for test in (_name, _family, _model, _rows, _length, _schedule, _data, _init, _supervised):
        try:
            problems.extend(test(experiment))
        except UserError as error:
            problems.extend(str(error).splitlines())
    report(problems)


def _out_of_bounds(experiment: Experiment) -> Iterator[str]:
    for path, value in _leaves(to_tree(experiment)):
        bound = _BOUNDS.get(re.sub(r"\.\d+", ".*", path))
        if bound is not None and value is not None and not bound.holds(value):
            yield f"{path}: {value} must be {bound.words}"


def _name(experiment: Experiment) -> Iterator[str]:
    if not _NAME.fullmatch(experiment.name):
        yield (
            f"name: {experiment.name!r} cannot name a directory; use at most 100 letters, digits and . _ - +, "
            "beginning with a letter or digit"
        )


def _family(experiment: Experiment) -> Iterator[str]:
    kind, family = experiment.objective.kind, experiment.model.family
    served = TASK_FAMILIES[kind] if is_task(experiment) else (FAMILY[kind],)
    if family not in served:
        able = {**{kind: (of,) for kind, of in FAMILY.items()}, **TASK_FAMILIES}
        fitting = " or ".join(kind for kind, families in able.items() if family in families)
        families = "' or '".join(served)
        yield (
            f"objective.kind: '{kind}' trains a model.family of '{families}', not '{family}'; "
            f"use model.family={served[0]}, or objective.kind={fitting}"
        )


def _model(experiment: Experiment) -> Iterator[str]:
    check_model(experiment.model)
    heads = () if is_task(experiment) else (("head.kind", experiment.model.head.kind, "vocabulary"),)
    for option, kind, wanted in (*heads, ("input.kind", experiment.model.input.kind, "tokens")):
        if kind != wanted:
            yield (
                f"model.{option}: '{kind}' is built, imported and exported, but objective.kind='{experiment.objective.kind}' "
                f"trains a model.{option} of '{wanted}' only"
            )
    entries, tokenizer = experiment.model.vocabulary, experiment.data.tokenizer
    if entries is not None and tokenizer.kind != "pretrained" and entries < tokenizer.vocabulary:
        yield (
            f"model.vocabulary: {entries} is less than data.tokenizer.vocabulary={tokenizer.vocabulary}; "
            "leave model.vocabulary out to take the tokenizer's"
        )


def _row(experiment: Experiment) -> int:
    return experiment.data.rows.length or experiment.model.context


def _rows(experiment: Experiment) -> Iterator[str]:
    row, context = _row(experiment), experiment.model.context
    if row > context:
        yield f"data.rows.length: {row} is more than model.context={context}; use at most {context}, or a longer context"


def _processes(experiment: Experiment) -> int:
    """Processes that train, as far as the tree says; 1 where it leaves that to the machine."""
    counts = (experiment.trainer.get("devices", 1), experiment.trainer.get("num_nodes", 1))
    return math.prod(count if type(count) is int and count > 0 else 1 for count in counts)


def _length(experiment: Experiment) -> Iterator[str]:
    run, processes = experiment.run, _processes(experiment)
    least = _row(experiment) * processes
    if run.batch_tokens < least:
        over = f" on each of {processes} devices" if processes > 1 else ""
        yield f"run.batch_tokens: {run.batch_tokens} is less than one row of {_row(experiment)} tokens{over}; use at least {least}"
    if run.epochs is None and run.tokens < run.batch_tokens and _max_steps(experiment) is None:
        yield (
            f"run.tokens: {run.tokens} is less than one optimizer step of run.batch_tokens={run.batch_tokens}; "
            f"use at least {run.batch_tokens}"
        )


def _max_steps(experiment: Experiment) -> int | None:
    steps = experiment.trainer.get("max_steps")
    return steps if type(steps) is int and steps > 0 else None


def total_steps(experiment: Experiment) -> int:
    """Optimizer steps of the run: `trainer.max_steps`, else `run.tokens` in steps of `run.batch_tokens`, rounded up."""
    return _max_steps(experiment) or -(-experiment.run.tokens // experiment.run.batch_tokens)


def _schedule(experiment: Experiment) -> Iterator[str]:
    schedule(experiment.schedule, total_steps=total_steps(experiment), batch_tokens=experiment.run.batch_tokens)
    yield from ()


def _data(experiment: Experiment) -> Iterator[str]:
    data = experiment.data
    if not data.train:
        yield "data.train: no source; name one, such as `train: [{path: corpus/*.txt}]`"
    if not data.validation and data.validation_share == 0:
        yield "data.validation_share: 0 leaves nothing to validate on; use for example 0.02, or name data.validation sources"
    if experiment.objective.kind != "translation":
        return
    for part, sources in (("train", data.train), ("validation", data.validation)):
        for index, source in enumerate(sources):
            if not source.is_paired:
                path = f"data.{part}.{index}.target_column"
                yield f"{path}: null, but objective.kind=translation reads pairs; name the column of the target text"


def _init(experiment: Experiment) -> Iterator[str]:
    init, family = experiment.init, experiment.model.family
    halves = [option for option in init.sources if option != "init.from"]
    if init.from_ is not None and halves:
        yield f"init.from: {init.from_} is for the whole model, and {' and '.join(halves)} for a part of it; give one or the other"
    if init.decoder_layers is not None and family != "encoder_decoder":
        yield f"init.decoder_layers: a model.family of '{family}' has one stack; use init.layers"
    if init.cross_attention != "fresh" and init.decoder is None:
        yield (
            f"init.cross_attention: {init.cross_attention} is copied from the decoder's, but init.decoder names no weights; "
            "name some, or leave cross-attention fresh"
        )
    changed = [key for key, value in to_tree(init).items() if value != to_tree(InitConfig())[key]]
    if changed and not init.sources:
        yield f"init.{changed[0]}: says how weights are taken over, but none are named; set init.from, or init.encoder and init.decoder"


def _supervised(experiment: Experiment) -> Iterator[str]:
    run = experiment.run
    if is_task(experiment):
        if experiment.data.tokenizer.kind != "pretrained":
            yield (
                f"data.tokenizer.kind: {experiment.data.tokenizer.kind} is trained on text, and labelled records are no corpus; give "
                "init.from, whose tokenizer is taken, or data.tokenizer: {kind: pretrained, path: ...}"
            )
        return
    for option, value in (("run.epochs", run.epochs), ("run.best", run.best)):
        if value is not None:
            yield f"{option}: {value} is for supervised tasks; objective.kind='{experiment.objective.kind}' has run.tokens and the loss"


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every scalar and every empty mapping or list."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not items or not tree:
        yield path, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


#: What may differ when a run is continued: how long, how often, where and on what it runs, but not what it computes.
CONTINUE_MAY_CHANGE = (
    "name",
    "trainer",
    "tracking",
    "data.cache",
    "data.workers",
    "model.attention.backend",
    "model.activation_checkpointing",
    "model.feed_forward.chunk",
    "model.loss_chunk",
    "run.tokens",
    "run.epochs",
    "run.patience",
    "run.micro_batch",
    "run.validate_every",
    "run.validate_tokens",
    "run.checkpoint_every",
    "run.keep",
    "run.compile",
    "run.directory",
)


def _fixed(experiment: Experiment) -> dict[str, Any]:
    """Dotted path -> value of everything that makes this experiment another one."""
    free = tuple(f"{path}." for path in CONTINUE_MAY_CHANGE)
    return {path: value for path, value in _leaves(to_tree(experiment)) if not f"{path}.".startswith(free)}


def digest(experiment: Experiment) -> str:
    """16 hexadecimal digits, equal for two experiments of which one may continue the other's run."""
    text = json.dumps(sorted(_fixed(experiment).items(), key=operator.itemgetter(0)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Experiment, now: Experiment) -> list[str]:
    """One line for each setting that keeps `now` from continuing `before`'s run; empty where their digests are equal."""
    old, new = _fixed(before), _fixed(now)
    paths = [path for path in {**old, **new} if old.get(path, ...) != new.get(path, ...)]
    return [f"{path}: {_told(old, path)} there, {_told(new, path)} here" for path in paths]


def _told(leaves: dict[str, Any], path: str) -> str:
    return json.dumps(leaves[path], ensure_ascii=False) if path in leaves else "absent"

"""Heads of tasks: the classes of `transformers` that score a text, each token, or the ends of an answer, and which head of ours each is.

An architecture's file names those that it has: `ARCHITECTURE = with_tasks(Architecture(...), sequence=TaskHead(...), ...)`. Reading,
writing and the tensors of the head are done here; the file says the rest of the model as before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from triune.errors import UserError
from triune.exchange.architecture import Architecture, Classes, Settings, TokenIds, architecture, class_head, known
from triune.exchange.labels import read_labels, unnamed, write_labels
from triune.exchange.mapping import Entry, Part, TensorMapping, module
from triune.exchange.obstacles import obstacles
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.objectives.task_config import (
    ClassificationTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaskConfig,
    TokenClassificationTask,
)
from triune.tree import to_tree
from triune.units import Count

#: What is scored: a whole text (or number of it), each token, or each token as the start and the end of an answer.
Kind = Literal["sequence", "tokens", "span"]

_ENDINGS: dict[str, Kind] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "span",
}
_AUTO = {kind: f"AutoModel{ending}" for ending, kind in _ENDINGS.items()}
_UNKNOWN = ("ForMultipleChoice", "ForNextSentencePrediction")  # heads that no task of ours has
_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_SAID = {"sequence": "a class of a text", "tokens": "a class of each token", "span": "the ends of an answer"}


def kind_of(head: HeadConfig | ClassHeadConfig) -> Kind | None:
    """What a head scores; None for one over the vocabulary, one without scores, and a yes or no of each token (ELECTRA's discriminator)."""
    if not isinstance(head, ClassHeadConfig) or not head.labels:
        return None
    if head.problem == "span":
        return "span"
    if head.pool == "none":
        return "tokens" if head.labels > 1 else None
    return "sequence"


def task_of(head: HeadConfig | ClassHeadConfig, labels: Sequence[str] | None) -> dict[str, Any] | None:
    """The task of an imported head, as our model directory keeps it: {"objective": settings, "labels": names or None}."""
    kind = kind_of(head)
    if kind is None:
        return None
    assert isinstance(head, ClassHeadConfig)
    pool = None if head.pool == "none" else head.pool
    objective: TaskConfig
    if kind == "span":
        objective = QuestionAnsweringTask()
    elif kind == "tokens":
        objective = TokenClassificationTask()
    elif head.problem == "regression":
        objective = RegressionTask(pool=pool)
    else:
        objective = ClassificationTask(multi_label=head.problem == "multi_label", pool=pool)
    return {"objective": to_tree(objective), "labels": None if labels is None else list(labels)}


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A class of theirs with scores, and the head of ours that it is.

    Args:
        concrete: the class.
        scores: their name of the layer that gives the scores.
        dense: their name of the dense layer before it; empty where there is none.
        norm: their name of the norm between the two; empty where there is none.
        pool: what stands for a text.
        activation: of the dense layer.
        bias: of the scores.
        dropout: key of its dropout; empty where theirs has none of its own.
        rate: that dropout where the config names none; None is the model's own.
        prefix: what the names of the body's tensors begin with, where it is not the architecture's `prefix`.
        read: from their settings and the body's as ours, what they leave to the config of the head's shape (ModernBERT's pooling).
        write: that as keys of theirs.
    """

    concrete: str
    scores: str
    dense: str = ""
    norm: str = ""
    pool: Literal["first", "last", "none"] = "none"
    activation: str = "tanh"
    bias: bool = True
    dropout: str = ""
    rate: float | None = 0.0
    prefix: str | None = None
    read: Callable[[Settings, ModelConfig], Mapping[str, Any]] = lambda settings, config: {}
    write: Callable[[ClassHeadConfig], Mapping[str, Any]] = lambda head: {}


def with_tasks(base: Architecture, **heads: TaskHead) -> Architecture:
    """The architecture with its classes of tasks: `sequence`, `tokens` and `span`, as far as `transformers` has them."""
    tasks = Tasks(base, heads)
    return replace(
        base,
        read_config=tasks.read_config,
        write_config=tasks.write_config,
        mapping=tasks.mapping,
        classes=tasks.classes,
        heads=tuple(dict.fromkeys([*base.heads, "classes"])),
        tasks=tasks,
    )


class Tasks:
    """An architecture's functions with those of its task heads around them.

    Args:
        base: the architecture without them.
        heads: by `Kind`.
    """

    def __init__(self, base: Architecture, heads: Mapping[str, TaskHead]) -> None:
        self.base = base
        self.heads = heads

    def read_config(self, settings: Settings) -> ModelConfig:
        """Settings of any class of the architecture; UserError for a task's class that triune has no head for."""
        kind = self._named(settings)
        config = self.base.read_config(settings)
        return config if kind is None else self._headed(settings, config, kind)

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """Settings for the class that the head asks for; of the shape of the head only what theirs leaves open."""
        task = self._task(config)
        if task is None:
            return self.base.write_config(config)
        head = class_head(config)
        written = {**self.base.write_config(_body(config)), **task.write(head)}
        if task.dropout:
            written[task.dropout] = head.dropout
        if head.problem == "span":
            return written
        if head.pool != "none":
            # one yes-or-no score is what theirs calls several labels, of which there is one
            spelled = "multi_label" if head.labels == 1 and head.problem == "single_label" else head.problem
            written["problem_type"] = next(theirs for theirs, ours in _PROBLEMS.items() if ours == spelled)
        return written | write_labels(unnamed(head.labels))

    def mapping(self, config: ModelConfig) -> TensorMapping:
        """Tensors of the class that the head asks for."""
        task = self._task(config)
        if task is None:
            return self.base.mapping(config)
        prefix = self.base.prefix if task.prefix is None else task.prefix
        body = _moved(self.base.mapping(_body(config)), self.base.prefix, prefix)
        fixed = tuple(one for one in body.fixed if one.name.startswith(prefix))  # not BART's bias of the vocabulary
        return replace(body, entries=(*body.entries, *_entries(config, task)), fixed=fixed)

    def classes(self, config: ModelConfig) -> Classes:
        """The class that the head asks for; UserError where there is none."""
        task, kind = self._task(config), kind_of(config.head)
        if task is not None and kind is not None:
            return Classes(auto=_AUTO[kind], concrete=task.concrete)
        if config.head.kind not in self.base.heads:
            scored = "vectors without scores" if kind is None else _SAID[kind]
            raise UserError(f"model.head: transformers has no class of {self.base.model_type} for {scored}")
        return self.base.classes(config)

    def fitting(self, config: ModelConfig, kind: Kind, **wanted: Any) -> ModelConfig | None:
        """`config` with the head that the architecture's class has; None where it has none.

        Args:
            config: a model with any head.
            kind: what is to be scored.
            wanted: settings of the head that are given: labels, problem, perhaps pool.
        """
        if kind not in self.heads or config.family != self.base.family:
            return None
        body = _body(config)
        if isinstance(config.head, HeadConfig) and config.head.transform:  # what it was pretrained with (ModernBERT)
            body = replace(body, head=config.head)
        written = self.base.config_json(body, TokenIds()) | {"architectures": [self.heads[kind].concrete]}
        try:
            head = class_head(self._headed(Settings(written, place=self.base.model_type), body, kind))
        except UserError:
            return None
        return replace(config, head=replace(head, **wanted))

    def _named(self, settings: Settings) -> Kind | None:
        """What the class scores that the config names."""
        named = [name for name in settings.values.get("architectures") or () if isinstance(name, str)]
        for kind, task in self.heads.items():
            if task.concrete in named:
                return kind  # type: ignore[return-value]
        for name in named:
            if name.endswith((*_ENDINGS, *_UNKNOWN)):
                can = ", ".join(task.concrete for task in self.heads.values())
                raise settings.refusal(
                    "architectures", name, f"of {self.base.model_type} with a task's head triune can do {can}"
                )
        return None

    def _headed(self, settings: Settings, config: ModelConfig, kind: Kind) -> ModelConfig:
        task = self.heads[kind]
        labels, _ = read_labels(settings)
        problem = "span" if kind == "span" else "single_label"
        if kind == "sequence" and settings.has("problem_type"):
            problem = settings.choice("problem_type", _PROBLEMS)
        elif kind == "sequence" and labels == 1:
            problem = "regression"  # what theirs takes one score for where nothing says so
        rate = config.dropout if task.rate is None else task.rate
        shape: dict[str, Any] = {
            "labels": labels,
            "problem": problem,
            "pool": task.pool,
            "transform": bool(task.dense),
            "activation": task.activation,
            "norm": bool(task.norm),
            "bias": task.bias,
            "dropout": settings.number(task.dropout, rate) if task.dropout else rate,
        }
        head = ClassHeadConfig(**{**shape, **task.read(settings, config)})
        return replace(config, head=head, tie_embeddings=True)

    def _task(self, config: ModelConfig) -> TaskHead | None:
        kind = kind_of(config.head)
        return None if kind is None else self.heads.get(kind)


def head_for(
    config: ModelConfig,
    architecture_name: str | None,
    problem: str,
    labels: int,
    *,
    pool: str | None = None,
    ids: TokenIds | None = None,
) -> dict[str, Any]:
    """Settings of `model.head` with which a model of `config` exports: those of the class of its twin.

    Args:
        config: a model with any head, such as that of an imported BERT.
        architecture_name: the twin's `model_type`; None tries all, in alphabetical order.
        problem: as `model.head.problem`.
        labels: number of scores.
        pool: as `model.head.pool`, where it is given: none for a class of each token; None is the twin's.
        ids: special tokens of the tokenizer, which count where positions are counted from one of them (RoBERTa).

    Returns: settings beside kind, labels and problem; empty where the model has no twin, or the twin no such class.
    """
    kind: Kind = "span" if problem == "span" else "tokens" if pool == "none" else "sequence"
    config = replace(config, vocabulary=config.vocabulary or Count(64))
    wanted = {"labels": labels, "problem": problem} | ({} if pool is None else {"pool": pool})
    names = known() if architecture_name is None else [architecture_name]
    for target in map(architecture, names):
        if target.tasks is None or (target.twin and architecture_name is None):
            continue
        fitted = target.tasks.fitting(config, kind, **wanted)
        if fitted is not None and not obstacles(fitted, target, ids):
            given = ("kind", "labels", "problem", "scale")
            return {key: value for key, value in to_tree(fitted.head).items() if key not in given}
    return {}


def _body(config: ModelConfig) -> ModelConfig:
    """The model with a head over the vocabulary that has no tensor of its own, in place of a task's."""
    head = config.head
    plain = HeadConfig()
    if isinstance(head, ClassHeadConfig):  # ModernBERT's config has one word for both heads
        plain = HeadConfig(transform_bias=head.transform_bias, activation=head.activation)
    return replace(config, head=plain, tie_embeddings=True)


def _entries(config: ModelConfig, task: TaskHead) -> Iterator[Entry]:
    head = class_head(config)
    if head.transform and task.dense:
        yield from module("head.dense", task.dense, bias=head.transform_bias)
    if head.norm and task.norm:
        yield from module("head.norm", task.norm, bias=config.norm.bias and config.norm.kind == "layer")
    yield from module("head", task.scores, bias=head.bias)


def _moved(mapping: TensorMapping, prefix: str, place: str) -> TensorMapping:
    """The mapping with the body's tensors under another prefix."""
    if prefix == place:
        return mapping

    def moved(name: str) -> str:
        return place + name.removeprefix(prefix) if name.startswith(prefix) else name

    def part(one: Part) -> Part:
        return replace(one, names=tuple(map(moved, one.names)))

    pattern = re.escape(prefix)
    return replace(
        mapping,
        entries=tuple(Entry(entry.ours, tuple(map(part, entry.theirs))) for entry in mapping.entries),
        fixed=tuple(replace(one, name=moved(one.name)) for one in mapping.fixed),
        ignored=tuple(
            replace(one, pattern=re.escape(place) + one.pattern.removeprefix(pattern))
            if one.pattern.startswith(pattern)
            else one
            for one in mapping.ignored
        ),
    )

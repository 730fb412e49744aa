"""The contract of a supervised task: records with named fields in, rows of a model out, predictions and metrics back.

Adding one: a file beside this with a subclass, its config in `task_config.py`, a line in `tasks.py`, a YAML in configs/finetune/.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from triune.errors import UserError
from triune.objectives.base import Objective
from triune.objectives.batch import Example
from triune.objectives.measures import Measure
from triune.objectives.record import Field, Record
from triune.objectives.task_config import TASK_FAMILIES, TaskConfig
from triune.objectives.text import TextEncoder

#: what a model gives for evaluation: scores of its head at the positions of weight above 0 [k, L]; scores of the head at every
#: position [t, L]; a vector of each document [D, M]; log-likelihoods of the targets at the positions of weight above 0 [k];
#: text that it writes after `Encoded.prompt` (with beam search, as the evaluation's settings say)
Output = Literal["scores", "positions", "vectors", "likelihoods", "text"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A record, or a part of one, as a model reads it.

    Args:
        example: one document for the model, or several that belong together (a context and its replies).
        record: number of the record it is of.
        prompt: for tasks that write: what the (decoder's) text starts with, special tokens included; None is `example.inputs[:1]`.
        origin: what the task needs to turn the model's output back into text (offsets, candidates).
    """

    example: Example
    record: int
    prompt: np.ndarray | None = None
    origin: Any = None


class Task(Objective):
    """An objective that learns from labelled records. It has no randomness: a record gives the same row in every epoch.

    Args:
        config: this task's settings.
        text: the tokenizer.
        context: the longest row of either tower, in tokens.
        family: of the model.
        labels: the classes in the order of the model's scores, where the task has classes.
        token_types: whether the model knows segments (BERT's pairs).
    """

    fields: ClassVar[tuple[Field, ...]]
    output: ClassVar[Output] = "scores"
    #: metric (as `evaluate` names it, and validation/<name>) by which the best checkpoint is chosen; None is the lowest validation loss
    best: ClassVar[str | None] = None
    #: whether the loss is a likelihood in nats a token, so that perplexity means something
    measures_perplexity: ClassVar[bool] = False
    #: whether several examples may share a row (walls between them)
    packs: ClassVar[bool] = True

    config: Any

    def __init__(
        self,
        config: TaskConfig,
        text: TextEncoder,
        context: int,
        *,
        family: str,
        labels: Sequence[str] | None = None,
        token_types: bool = False,
    ) -> None:
        super().__init__(config, text.vocabulary, context)
        self.text = text
        self.family = family
        self.labels = list(labels) if labels is not None else None
        self.token_types = token_types

    @classmethod
    def fields_of(cls, config: TaskConfig) -> tuple[Field, ...]:
        """The columns that the task reads under these settings."""
        return cls.fields

    @classmethod
    def labels_of(cls, config: TaskConfig, records: Sequence[Record]) -> list[str] | None:
        """The classes of `config`, else those of the training records, sorted; None for a task without classes."""
        return None

    @abstractmethod
    def head(self) -> Mapping[str, Any] | None:
        """Settings of `model.head` that this task needs, as YAML has them; None is the model's own vocabulary head."""

    @abstractmethod
    def encode(self, records: Sequence[Record], *, training: bool) -> list[Encoded]:
        """Rows for the model, in the order of the records; one that can't be learned from raises UserError with its place.

        Args:
            records: labelled; without `training` a label that training never saw is scored as a miss, not refused.
            training: whether class weights count and negatives come from the batch; else each example is weighed 1 and stands for itself.
        """

    @abstractmethod
    def predict(
        self, encoded: Sequence[Encoded], outputs: Sequence[Any], records: Sequence[Record]
    ) -> list[dict[str, Any]]:
        """One prediction a record, as JSON has it, from what the model gave for each of `encoded` (see `Output`)."""

    @abstractmethod
    def measures(self, predictions: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> list[Measure]:
        """The task's metrics, the most telling first, of predictions for labelled records."""

    def describe(self, records: Sequence[Record]) -> str:
        """What a person should know of the training data, in a line or a few (classes and their balance); may be empty."""
        return ""

    def baseline(self, train: Sequence[Record], records: Sequence[Record]) -> dict[str, float]:
        """Metric -> what a constant answer or chance reaches on `records`; may be empty."""
        return {}

    def reply_prompts(self, records: Sequence[Record], count: int) -> Sequence[Any]:
        """Conversations to write a reply to, for a task that learns replies."""
        return ()

    def shown(self, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a prediction that a person reads first."""
        return {name: value for name, value in prediction.items() if not isinstance(value, list | dict)} or prediction

    @classmethod
    def check_family(cls, family: str) -> None:
        """UserError that names the families which can do this task, and the tasks that `family` can do."""
        served = TASK_FAMILIES[cls.kind]
        if family not in served:
            others = [repr(kind) for kind, families in TASK_FAMILIES.items() if family in families]
            raise UserError(
                f"objective.kind: '{cls.kind}' works from a model of family {' or '.join(served)}, not {family}; "
                f"from {family} these do: {', '.join(others)}"
            )

    # ---- what an Objective is ------------------------------------------------------------------------------------

    def check(self, family: str) -> None:
        """UserError where this task cannot be learned by `family`, or its settings make no sense."""
        self.check_family(family)
        self._share("label_smoothing", self.config.label_smoothing, "[0, 1)")
        self._check()

    def capacity(self, *, training: bool) -> int:
        """The longest row of either tower, in tokens: more than `context` where a row holds several documents."""
        return self.context

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths)

    def __call__(self, examples: Sequence[Example], generator: np.random.Generator) -> Example:  # type: ignore[override]
        """One row of the model from the examples that share it."""
        return joined(examples)

    # ---- what tasks share ----------------------------------------------------------------------------------------

    def read(self, ids: np.ndarray, *, token_types: np.ndarray | None = None) -> Example:
        """An example in which each position of the predicting tower stands for the token of `ids` at its place; nothing is
        predicted yet (`mark`). An encoder or decoder reads `ids`; an encoder-decoder's encoder reads them, and its decoder
        reads them shifted right from its start token, as BART's and T5's classifiers do (Lewis et al. 2020, 3.1)."""
        count = len(ids)
        number = np.arange(count, dtype=np.int32)
        document = np.zeros(count, np.int32)
        example = Example(
            inputs=ids.astype(np.int64),
            targets=np.zeros(count, np.int64),
            weights=np.zeros(count, np.float32),
            documents=document,
            positions=number,
            token_types=token_types.astype(np.int64) if self.token_types and token_types is not None else None,
        )
        if self.family != "encoder_decoder":
            return example
        shifted = np.concatenate([[self.vocabulary.decoder_start], ids[:-1]]).astype(np.int64)
        return replace(
            example, inputs=shifted, source=example.inputs, source_documents=document, source_positions=number
        )

    def _plain_loss(self) -> None:
        """UserError for settings that only the cross-entropy of classes knows."""
        for name in ("label_smoothing", "z_loss"):
            if value := getattr(self.config, name):
                raise UserError(f"objective.{name}: {value}, but '{self.kind}' has a loss without it; set it to 0")

    def pooled_position(self, length: int, pool: str) -> int:
        """Where the target of a whole text of `length` tokens stands: its first token, else its last."""
        return 0 if pool in ("first", "mean") else length - 1

    def pool(self) -> str:
        """`objective.pool`, else the family's custom: an encoder's first token (BERT), the last of those that read left to right."""
        return self.config.pool or ("first" if self.family == "encoder" else "last")


def mark(example: Example, positions: Sequence[int], targets: Sequence[int], weights: Sequence[float]) -> Example:
    """The example with `targets` of `weights` at `positions`."""
    changed = replace(example, targets=example.targets.copy(), weights=example.weights.copy())
    changed.targets[list(positions)] = targets
    changed.weights[list(positions)] = weights
    return changed


def joined(examples: Sequence[Example]) -> Example:
    """Examples end to end as one row: documents are numbered on, so that walls stand between them."""
    if len(examples) == 1:
        return examples[0]
    documents = np.cumsum([0, *(int(example.documents.max(initial=-1)) + 1 for example in examples)])
    values = np.cumsum([0, *(0 if example.values is None else len(example.values) for example in examples)])

    def end_to_end(name: str) -> Any:
        parts = [getattr(example, name) for example in examples]
        if any(part is None for part in parts):
            return None
        kind = parts[0].dtype  # sums below are of 64 bits
        if name in ("documents", "source_documents"):
            parts = [part + first for part, first in zip(parts, documents, strict=False)]
        elif name == "targets" and examples[0].values is not None:
            parts = [part + first for part, first in zip(parts, values, strict=False)]
        return np.concatenate(parts, dtype=kind)

    return Example(**{name: end_to_end(name) for name in Example.__dataclass_fields__})

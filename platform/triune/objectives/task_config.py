"""Settings of the supervised tasks, one variant a `kind`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from triune.objectives.config import LossConfig

Pool = Literal["first", "last", "mean"]


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(LossConfig):
    """A class of a text or of a pair of texts; with `multi_label` any number of classes. From every family.

    Args:
        kind: the variant.
        labels: the classes, in the order of the scores; null is those of the training data, sorted.
        multi_label: each class is a yes-or-no question of its own.
        pool: the token whose hidden state stands for the text; null is the first of an encoder, the last of the others.
        class_weights: balanced weighs each class by the inverse of its frequency (mean 1), a mapping by hand; none counts each example once.
        threshold: probability from which a class of several is given (multi_label).
    """

    kind: Literal["classification"] = "classification"
    labels: list[str] | None = None
    multi_label: bool = False
    pool: Pool | None = None
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RegressionTask(LossConfig):
    """A number for a text or a pair of texts (similarity, a score), by mean squared error. From every family.

    Args:
        kind: the variant.
        pool: the token whose hidden state stands for the text; null is the first of an encoder, the last of the others.
    """

    kind: Literal["regression"] = "regression"
    pool: Pool | None = None


@dataclass(frozen=True, kw_only=True)
class TokenClassificationTask(LossConfig):
    """A class of each word (entities, parts of speech). From every family; a decoder sees the words before only.

    Args:
        kind: the variant.
        labels: the tags, in the order of the scores; null is those of the training data, sorted.
        class_weights: as in classification.
        label_pieces: which pieces of a word are learned from: its first (BERT), or all.
    """

    kind: Literal["token_classification"] = "token_classification"
    labels: list[str] | None = None
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    label_pieces: Literal["first", "all"] = "first"


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringTask(LossConfig):
    """The span of a context that answers a question, or none (Devlin et al. 2019, 4.2 and 4.3). From every family.

    Args:
        kind: the variant.
        stride: tokens by which the windows of a long context overlap, at most half of a window.
        answer_length: longest answer, in tokens.
        no_answer: whether "no answer" may be given (SQuAD 2.0), by the score of the row's first token.
        no_answer_threshold: "no answer" is given where it scores above the best span by more than this (BERT's null_score_diff_threshold).
    """

    kind: Literal["question_answering"] = "question_answering"
    stride: int = 128
    answer_length: int = 30
    no_answer: bool = True
    no_answer_threshold: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceTask(LossConfig):
    """A text from a text (translation, summaries, any rewriting), from an encoder-decoder or a decoder.

    Args:
        kind: the variant.
        label_smoothing: share of the target's probability spread over the vocabulary.
        prefix: text set before each source ("translate English to Spanish: ").
        separator: text between source and target in a decoder's row.
        metric: what the written texts are measured by: bleu (with chrF), rouge, or exact_match.
        target_length: longest text to write, in tokens; null is what the context has room for.
        beams: beams of the search that evaluation writes with.
        length_penalty: of that search: scores are divided by length to this power.
    """

    kind: Literal["sequence_to_sequence"] = "sequence_to_sequence"
    label_smoothing: float = 0.0
    prefix: str = ""
    separator: str = "\n"
    metric: Literal["bleu", "rouge", "exact_match"] = "bleu"
    target_length: int | None = None
    beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class InstructionTask(LossConfig):
    """Replies in conversations; only the replies are learned. From a decoder or an encoder-decoder.

    Args:
        kind: the variant.
        template: how turns become text: speakers ("A: …" and "B: …" a line, as the demo corpus), chatml (<|im_start|> markers, Qwen), or tokenizer (the chat template that comes with it).
        learn: which turns are learned: assistant, or every turn but the first.
        reply_length: longest reply to write, in tokens.
    """

    kind: Literal["instruction"] = "instruction"
    template: Literal["speakers", "chatml", "tokenizer"] = "speakers"
    learn: Literal["assistant", "all"] = "assistant"
    reply_length: int = 64


@dataclass(frozen=True, kw_only=True)
class ResponseSelectionTask(LossConfig):
    """Vectors in which a text lies beside its match (the next turn of a conversation, a paraphrase), learned against the other matches of
    the batch (Henderson et al. 2017; van den Oord et al. 2018). From an encoder or a decoder.

    Args:
        kind: the variant.
        pool: what stands for a text: its first token, its last, or the mean of all.
        scale: what cosine similarities are multiplied by (Sentence-BERT: 20).
        candidates: among how many the match is to be found in validation, itself included.
        history: turns of a conversation before the reply that are read.
        context_length: most tokens of a context, special ones included; its end is kept.
        reply_length: most tokens of a match, special ones included; its beginning is kept.
        validation_replies: how many replies of each conversation validation asks for, spread over it; null is all.
    """

    kind: Literal["response_selection"] = "response_selection"
    pool: Pool | None = "mean"
    scale: float = 20.0
    candidates: int = 10
    history: int = 4
    context_length: int = 96
    reply_length: int = 32
    validation_replies: int | None = None


TaskConfig = (
    ClassificationTask
    | RegressionTask
    | TokenClassificationTask
    | QuestionAnsweringTask
    | SequenceToSequenceTask
    | InstructionTask
    | ResponseSelectionTask
)

_ALL = ("encoder", "decoder", "encoder_decoder")

#: The model families that can do each task.
TASK_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "classification": _ALL,
    "regression": _ALL,
    "token_classification": _ALL,
    "question_answering": _ALL,
    "sequence_to_sequence": ("decoder", "encoder_decoder"),
    "instruction": ("decoder", "encoder_decoder"),
    "response_selection": ("encoder", "decoder"),
}

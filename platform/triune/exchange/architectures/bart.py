"""BART (Lewis et al. 2020): an encoder-decoder with post-norm, normalised embeddings, and in each tower learned positions that begin
at row 2 of their table."""

from __future__ import annotations

from typing import Any

from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures import _seq2seq
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import LearnedPosition, ModelConfig, NormConfig


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `BartConfig`. The first release's files also say how norms and positions stand."""
    for key, value in (("normalize_before", False), ("add_final_layer_norm", False), ("normalize_embedding", True)):
        settings.only(key, value)
    settings.only("static_position_embeddings", False)
    norm = NormConfig(placement="post", embedding=True)
    return _seq2seq.read(settings, vocabulary=50265, norm=norm, position=LearnedPosition(offset=2))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `BartConfig`."""
    return _seq2seq.write(config)


def classes(config: ModelConfig) -> Classes:
    """`BartForConditionalGeneration`."""
    return Classes(auto="AutoModelForSeq2SeqLM", concrete="BartForConditionalGeneration")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="bart",
        family="encoder_decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=_seq2seq.mapping,
        classes=classes,
        prefix="model.",
        objective="denoising",
        extra=_seq2seq.start,
    ),
    sequence=TaskHead(
        concrete="BartForSequenceClassification",
        dense="classification_head.dense",
        scores="classification_head.out_proj",
        pool="last",
        dropout="classifier_dropout",
    ),
    span=TaskHead(concrete="BartForQuestionAnswering", scores="qa_outputs"),
)

"""Pegasus (Zhang et al. 2020): an encoder-decoder with pre-norm, a final norm in each tower, and sines and cosines in halves."""

from __future__ import annotations

from functools import partial
from typing import Any

from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures import _seq2seq
from triune.models.config import ModelConfig, NormConfig, SinusoidalPosition


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `PegasusConfig`. Older files also say how norms and positions stand."""
    for key in ("normalize_before", "add_final_layer_norm", "static_position_embeddings"):
        settings.only(key, True)
    settings.only("normalize_embedding", False)
    position = SinusoidalPosition(layout="halves")
    return _seq2seq.read(settings, vocabulary=50265, norm=NormConfig(placement="pre"), position=position)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `PegasusConfig`."""
    return _seq2seq.write(config)


def classes(config: ModelConfig) -> Classes:
    """`PegasusForConditionalGeneration`."""
    return Classes(auto="AutoModelForSeq2SeqLM", concrete="PegasusForConditionalGeneration")


ARCHITECTURE = Architecture(
    model_type="pegasus",
    family="encoder_decoder",
    read_config=read_config,
    write_config=write_config,
    mapping=partial(_seq2seq.mapping, tables=True),
    classes=classes,
    prefix="model.",
    objective="translation",
    extra=_seq2seq.start,
)

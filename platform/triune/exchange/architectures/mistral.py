"""Mistral (Jiang et al. 2023): Llama with a sliding window in every layer, or, from version 0.2 on, without one."""

from __future__ import annotations

import dataclasses
from typing import Any

from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._windows import FULL, SLIDING, pattern_of, read_window, windows
from triune.exchange.architectures.llama import mapping, read_shared, write_shared
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import ModelConfig


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `MistralConfig`, whose class has no biases, and one window for all layers whatever `layer_types` says."""
    config = read_shared(settings, num_key_value_heads=8, intermediate_size=14336, max_position_embeddings=131072)
    keys = read_window(settings)
    if settings.has("layer_types"):
        settings.only("layer_types", [FULL if keys is None else SLIDING] * config.layers)
    attention = dataclasses.replace(config.attention, pattern=pattern_of([keys]))
    return dataclasses.replace(config, attention=attention)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `MistralConfig`; of several windows the first layer's."""
    return write_shared(config) | {"sliding_window": windows(config)[0]}


def classes(config: ModelConfig) -> Classes:
    """`MistralForCausalLM`."""
    return Classes(auto="AutoModelForCausalLM", concrete="MistralForCausalLM")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="mistral",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="model.",
    ),
    sequence=TaskHead(concrete="MistralForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(concrete="MistralForTokenClassification", scores="score", dropout="classifier_dropout", rate=0.1),
    span=TaskHead(concrete="MistralForQuestionAnswering", scores="qa_outputs"),
)

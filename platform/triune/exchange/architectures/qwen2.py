"""Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases of queries, keys and values, and a sliding window in layers that are listed."""

from __future__ import annotations

import dataclasses
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._windows import read_layer_types, write_layer_types
from triune.exchange.architectures.llama import mapping, read_shared, write_shared
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import ModelConfig

#: What both versions' configs have where a key is absent.
DEFAULTS = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `Qwen2Config`."""
    config = read_shared(settings, **DEFAULTS)
    pattern, dropout = read_layer_types(settings, config.layers), settings.number("attention_dropout", 0.0)
    return dataclasses.replace(config, attention=AttentionConfig(pattern=pattern, dropout=dropout), qkv_bias=True)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `Qwen2Config`."""
    return write_shared(config) | write_layer_types(config)


def classes(config: ModelConfig) -> Classes:
    """`Qwen2ForCausalLM`."""
    return Classes(auto="AutoModelForCausalLM", concrete="Qwen2ForCausalLM")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="qwen2",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="model.",
    ),
    sequence=TaskHead(concrete="Qwen2ForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(concrete="Qwen2ForTokenClassification", scores="score", dropout="classifier_dropout", rate=0.1),
    span=TaskHead(concrete="Qwen2ForQuestionAnswering", scores="qa_outputs", prefix="transformer."),
)

"""Qwen 3 (Yang et al. 2025): Llama with RMS norms on queries and keys, heads of any width, and Qwen 2's sliding window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures import llama
from triune.exchange.architectures._windows import read_layer_types, write_layer_types
from triune.exchange.architectures.qwen2 import DEFAULTS
from triune.exchange.mapping import Entry, TensorMapping, each_layer, module
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import ModelConfig


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `Qwen3Config`; its `attention_bias` is of the output too, which ours has with the feed-forward's only."""
    settings.only("attention_bias", False)
    config = llama.read_shared(settings, **DEFAULTS, head_dim=128)
    pattern, dropout = read_layer_types(settings, config.layers), settings.number("attention_dropout", 0.0)
    return dataclasses.replace(config, attention=AttentionConfig(pattern=pattern, dropout=dropout, qk_norm=True))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `Qwen3Config`."""
    return llama.write_shared(config) | {"attention_bias": False} | write_layer_types(config)


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `Qwen3ForCausalLM`."""
    shared = llama.mapping(config)
    return dataclasses.replace(shared, entries=(*shared.entries, *each_layer(config.layers, _norms())))


def _norms() -> Iterator[Entry]:
    for name, theirs in (("query", "q"), ("key", "k")):
        ours = f"stack.blocks.{{layer}}.attention.{name}_norm"
        yield from module(ours, f"model.layers.{{layer}}.self_attn.{theirs}_norm", bias=False)


def classes(config: ModelConfig) -> Classes:
    """`Qwen3ForCausalLM`."""
    return Classes(auto="AutoModelForCausalLM", concrete="Qwen3ForCausalLM")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="qwen3",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="model.",
    ),
    sequence=TaskHead(concrete="Qwen3ForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(concrete="Qwen3ForTokenClassification", scores="score", dropout="classifier_dropout", rate=0.1),
    span=TaskHead(concrete="Qwen3ForQuestionAnswering", scores="qa_outputs", prefix="transformer."),
)

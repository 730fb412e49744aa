"""Llama 2 to 3.x (Touvron et al. 2023; Dubey et al. 2024): a decoder with RMS norms, rotary positions, SwiGLU and grouped keys.

`read_shared`, `write_shared`, `blocks` and `mapping` serve the architectures that differ from it in a few settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._rotary import read_rotary, write_rotary
from triune.exchange.mapping import Entry, Ignored, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, ModelConfig, NormConfig
from triune.units import Count


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `LlamaConfig`; biases of attention and feed-forward come together, as in ours."""
    width, heads = settings.whole("hidden_size", 4096), settings.whole("num_attention_heads", 32)
    if heads < 1 or width % heads:
        raise settings.refusal("num_attention_heads", heads, f"it must divide hidden_size = {width}")
    bias = settings.flag("mlp_bias", False)
    settings.only("attention_bias", bias, default=False)
    return dataclasses.replace(read_shared(settings), bias=bias)


def read_shared(settings: Settings, **defaults: Any) -> ModelConfig:
    """The settings that Llama's kin name as it does, without biases.

    Args:
        settings: the whole config.
        defaults: values of keys that a config may leave out, where their class has others than `LlamaConfig`.
    """
    settings = Settings({**defaults, **settings.values}, place=settings.place, names=settings.names)
    width, heads = settings.whole("hidden_size", 4096), settings.whole("num_attention_heads", 32)
    return ModelConfig(
        family="decoder",
        vocabulary=Count(settings.whole("vocab_size", 32000)),
        context=Count(settings.whole("max_position_embeddings", 2048)),
        width=width,
        layers=settings.whole("num_hidden_layers", 32),
        heads=heads,
        key_value_heads=settings.whole("num_key_value_heads", heads),
        head_width=settings.whole("head_dim", width // max(heads, 1)),
        attention=AttentionConfig(dropout=settings.number("attention_dropout", 0.0)),
        position=read_rotary(settings),
        norm=NormConfig(kind="rms", epsilon=settings.number("rms_norm_eps", 1e-6)),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_act", "silu", gated=True),
            width=settings.whole("intermediate_size", 11008),
        ),
        bias=False,
        tie_embeddings=settings.flag("tie_word_embeddings", False),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `LlamaConfig`."""
    return write_shared(config) | {"attention_bias": config.bias, "mlp_bias": config.bias}


def write_shared(config: ModelConfig) -> dict[str, Any]:
    """The settings that Llama's kin name as it does."""
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.resolved_key_value_heads,
        "head_dim": config.resolved_head_width,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "silu", gated=True),
        "rms_norm_eps": config.norm.epsilon,
        "attention_dropout": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rotary(config),
    }


def blocks(config: ModelConfig) -> Iterator[Entry]:
    """The entries of one layer, shared by the architectures that name their tensors as Llama does."""
    layer, block = "model.layers.{layer}", "stack.blocks.{layer}"
    query = config.heads * config.resolved_head_width
    key = config.resolved_key_value_heads * config.resolved_head_width
    attention = {f"{layer}.self_attn.{name}_proj": rows for name, rows in (("q", query), ("k", key), ("v", key))}
    inner = config.feed_forward.inner_width(config.width)
    gated = {f"{layer}.mlp.gate_proj": inner, f"{layer}.mlp.up_proj": inner}
    yield from module(f"{block}.attention_residual.norm_before", f"{layer}.input_layernorm", bias=False)
    yield from module(f"{block}.attention.query_key_value", attention, bias=config.resolved_qkv_bias)
    yield from module(f"{block}.attention.output", f"{layer}.self_attn.o_proj", bias=config.bias)
    yield from module(f"{block}.feed_forward_residual.norm_before", f"{layer}.post_attention_layernorm", bias=False)
    yield from module(f"{block}.feed_forward.up", gated, bias=config.bias)
    yield from module(f"{block}.feed_forward.down", f"{layer}.mlp.down_proj", bias=config.bias)


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `LlamaForCausalLM`."""
    tied = config.tie_embeddings
    return TensorMapping(
        entries=(
            tensor("embedding.weight", "model.embed_tokens.weight", *["lm_head.weight"] * tied),
            *each_layer(config.layers, blocks(config)),
            *module("stack.norm", "model.norm", bias=False),
            *([] if tied else [tensor("head.weight", "lm_head.weight")]),
        ),
        ignored=(
            Ignored(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "frequencies, which older files hold"),
        ),
    )


def classes(config: ModelConfig) -> Classes:
    """`LlamaForCausalLM`."""
    return Classes(auto="AutoModelForCausalLM", concrete="LlamaForCausalLM")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="llama",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="model.",
    ),
    sequence=TaskHead(concrete="LlamaForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(concrete="LlamaForTokenClassification", scores="score", dropout="classifier_dropout", rate=0.1),
    span=TaskHead(concrete="LlamaForQuestionAnswering", scores="qa_outputs", prefix="transformer."),
)

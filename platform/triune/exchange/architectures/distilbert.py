"""DistilBERT (Sanh et al. 2019): BERT's encoder without token types; with its masked-LM head, a task's, or bare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, vocabulary_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import position_ids
from triune.exchange.mapping import Entry, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, HeadConfig, LearnedPosition, ModelConfig, NormConfig
from triune.units import Count


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `DistilBertConfig`; `sinusoidal_pos_embds` says how the table of positions started, not what is in it."""
    bare = "DistilBertModel" in (settings.values.get("architectures") or ())
    activation = read_activation(settings, "activation", "gelu")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 30522)),
        context=Count(settings.whole("max_position_embeddings", 512)),
        width=settings.whole("dim", 768),
        layers=settings.whole("n_layers", 6),
        heads=settings.whole("n_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_dropout", 0.1)),
        position=LearnedPosition(),
        norm=NormConfig(placement="post", epsilon=1e-12, embedding=True),
        feed_forward=FeedForwardConfig(kind=activation, width=settings.whole("hidden_dim", 3072)),
        head=HeadConfig() if bare else HeadConfig(transform=True, activation=activation, bias=True),
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("dropout", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `DistilBertConfig`."""
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "hidden_dim": config.feed_forward.inner_width(config.width),
        "activation": write_activation(config.feed_forward, "gelu"),
        "dropout": config.dropout,
        "attention_dropout": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `DistilBertForMaskedLM`, or of `DistilBertModel` under the same names."""
    tables, output = "distilbert.embeddings", "vocab_projector"
    headed = vocabulary_head(config).transform
    tied = config.tie_embeddings
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *[f"{output}.weight"] * (tied and headed)),
            *module("input.positions", f"{tables}.position_embeddings", bias=False),
            *module("input.norm", f"{tables}.LayerNorm"),
            *each_layer(config.layers, _blocks(config)),
            *(_head(output, tied=tied) if headed else ()),
        ),
        fixed=(position_ids(tables, int(config.context)),),
    )


def _blocks(config: ModelConfig) -> Iterator[Entry]:
    layer, block = "distilbert.transformer.layer.{layer}", "stack.blocks.{layer}"
    attention = {f"{layer}.attention.{name}_lin": config.width for name in ("q", "k", "v")}
    yield from module(f"{block}.attention.query_key_value", attention)
    yield from module(f"{block}.attention.output", f"{layer}.attention.out_lin")
    yield from module(f"{block}.attention_residual.norm_sum", f"{layer}.sa_layer_norm")
    yield from module(f"{block}.feed_forward.up", f"{layer}.ffn.lin1")
    yield from module(f"{block}.feed_forward.down", f"{layer}.ffn.lin2")
    yield from module(f"{block}.feed_forward_residual.norm_sum", f"{layer}.output_layer_norm")


def _head(output: str, *, tied: bool) -> Iterator[Entry]:
    yield from module("head.dense", "vocab_transform")
    yield from module("head.norm", "vocab_layer_norm")
    yield from module("head", output, weight=not tied)


def classes(config: ModelConfig) -> Classes:
    """`DistilBertForMaskedLM`, or `DistilBertModel` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="DistilBertForMaskedLM")
    return Classes(auto="AutoModel", concrete="DistilBertModel", bare=True)


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="distilbert",
        family="encoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="distilbert.",
    ),
    sequence=TaskHead(
        concrete="DistilBertForSequenceClassification",
        dense="pre_classifier",
        scores="classifier",
        pool="first",
        activation="relu",
        dropout="seq_classif_dropout",
        rate=0.2,
    ),
    tokens=TaskHead(concrete="DistilBertForTokenClassification", scores="classifier", rate=None),
    span=TaskHead(concrete="DistilBertForQuestionAnswering", scores="qa_outputs", dropout="qa_dropout", rate=0.1),
)

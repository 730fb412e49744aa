"""BERT (Devlin et al. 2019): an encoder with post-norm, learned positions and token types; with its masked-LM head, a task's, or bare."""

from __future__ import annotations

from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import bert_layers, position_ids
from triune.exchange.mapping import Echo, Ignored, TensorMapping, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, HeadConfig, LearnedPosition, ModelConfig, NormConfig
from triune.units import Count


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `BertConfig`; a file without the masked-LM head becomes an encoder without it."""
    settings.only("is_decoder", False)
    settings.only("add_cross_attention", False)
    settings.only("position_embedding_type", "absolute")
    bare = "BertModel" in (settings.values.get("architectures") or ())
    activation = read_activation(settings, "hidden_act", "gelu")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 30522)),
        context=Count(settings.whole("max_position_embeddings", 512)),
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.1)),
        token_types=settings.whole("type_vocab_size", 2),
        position=LearnedPosition(),
        norm=NormConfig(placement="post", epsilon=settings.number("layer_norm_eps", 1e-12), embedding=True),
        feed_forward=FeedForwardConfig(kind=activation, width=settings.whole("intermediate_size", 3072)),
        head=HeadConfig() if bare else HeadConfig(transform=True, activation=activation, bias=True),
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `BertConfig`."""
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "gelu"),
        "type_vocab_size": max(1, config.token_types),
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `BertForMaskedLM`, or of `BertModel` under the same names."""
    table = "bert.embeddings.word_embeddings.weight"
    output = "cls.predictions.decoder.weight"
    return TensorMapping(
        entries=(
            tensor("embedding.weight", table, *[output] * (config.tie_embeddings and config.head.transform)),
            *module("input.positions", "bert.embeddings.position_embeddings", bias=False),
            *module("input.token_types", "bert.embeddings.token_type_embeddings", bias=False),
            *module("input.norm", "bert.embeddings.LayerNorm"),
            *bert_layers(config, "bert.encoder.layer.{layer}"),
            *_head(config, output),
        ),
        fixed=(position_ids("bert.embeddings", int(config.context)),),
        echoes=() if config.tie_embeddings or not config.head.transform else (_UNREAD,),
        ignored=(
            Ignored(
                r"bert\.pooler\..*",
                "reads the first token for next-sentence prediction and classification, not for masked tokens",
            ),
            Ignored(r"cls\.seq_relationship\..*", "next-sentence prediction"),
        ),
    )


_UNREAD = Echo(
    "cls.predictions.bias", "cls.predictions.decoder.bias", "an untied vocabulary adds the bias of its own layer"
)


def _head(config: ModelConfig, output: str) -> Any:
    if not config.head.transform:
        return
    yield from module("head.dense", "cls.predictions.transform.dense")
    yield from module("head.norm", "cls.predictions.transform.LayerNorm")
    if config.tie_embeddings:
        yield tensor("head.bias", "cls.predictions.bias", "cls.predictions.decoder.bias")
    else:
        yield from module("head", "cls.predictions.decoder")


def classes(config: ModelConfig) -> Classes:
    """`BertForMaskedLM`, or `BertModel` without a head."""
    if config.head.transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="BertForMaskedLM")
    return Classes(auto="AutoModel", concrete="BertModel", bare=True)


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="bert",
        family="encoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="bert.",
    ),
    sequence=TaskHead(
        concrete="BertForSequenceClassification",
        dense="bert.pooler.dense",
        scores="classifier",
        pool="first",
        dropout="classifier_dropout",
        rate=None,
    ),
    tokens=TaskHead(
        concrete="BertForTokenClassification", scores="classifier", dropout="classifier_dropout", rate=None
    ),
    span=TaskHead(concrete="BertForQuestionAnswering", scores="qa_outputs"),
)

"""ELECTRA (Clark et al. 2020): BERT's encoder on narrow embeddings; the generator predicts masked tokens, the discriminator says of each
token whether it was replaced. One `model_type`, told apart by the class that `architectures` names, or else by the head in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import bert_layers, position_ids
from triune.exchange.mapping import Entry, TensorMapping, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import (
    ClassHeadConfig,
    FeedForwardConfig,
    HeadConfig,
    LearnedPosition,
    ModelConfig,
    NormConfig,
)
from triune.units import Count

_GENERATOR, _DISCRIMINATOR, _BARE = "ElectraForMaskedLM", "ElectraForPreTraining", "ElectraModel"
_AUTO = {_GENERATOR: "AutoModelForMaskedLM", _DISCRIMINATOR: "AutoModelForPreTraining", _BARE: "AutoModel"}


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `ElectraConfig`."""
    settings.only("is_decoder", False)
    settings.only("add_cross_attention", False)
    settings.only("position_embedding_type", "absolute")
    kind, activation = _kind(settings), read_activation(settings, "hidden_act", "gelu")
    narrow, width = settings.whole("embedding_size", 128), settings.whole("hidden_size", 256)
    if kind == _BARE and narrow != width:
        raise settings.refusal("embedding_size", narrow, _NO_WAY_BACK.format(width=width))
    heads: dict[str, HeadConfig | ClassHeadConfig] = {
        _GENERATOR: HeadConfig(transform=True, bias=True),
        _DISCRIMINATOR: ClassHeadConfig(labels=1, pool="none", transform=True, activation=activation),
        _BARE: HeadConfig(),
    }
    types = settings.whole("type_vocab_size", 2)
    if types < 1:
        raise settings.refusal("type_vocab_size", types, "it must be at least 1: the first is added to every token")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 30522)),
        context=Count(settings.whole("max_position_embeddings", 512)),
        width=width,
        embedding_width=narrow,
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 4),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.1)),
        token_types=types,
        position=LearnedPosition(),
        norm=NormConfig(placement="post", epsilon=settings.number("layer_norm_eps", 1e-12), embedding=True),
        feed_forward=FeedForwardConfig(kind=activation, width=settings.whole("intermediate_size", 1024)),
        head=heads[kind],
        tie_embeddings=kind == _BARE or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


_NO_WAY_BACK = (
    "the file has no head that leads back from hidden_size = {width} to it, and triune's model needs one: "
    "take the file of ElectraForMaskedLM or ElectraForPreTraining"
)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `ElectraConfig`."""
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "embedding_size": config.resolved_embedding_width,
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
    """Tensors of `ElectraForMaskedLM`, `ElectraForPreTraining`, or `ElectraModel` under the same names."""
    tables, kind = "electra.embeddings", classes(config).concrete
    shared = kind == _GENERATOR and config.tie_embeddings
    projected = config.resolved_embedding_width != config.width
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *["generator_lm_head.weight"] * shared),
            *module("input.positions", f"{tables}.position_embeddings", bias=False),
            *module("input.token_types", f"{tables}.token_type_embeddings", bias=False),
            *module("input.norm", f"{tables}.LayerNorm"),
            *(module("input.projection", "electra.embeddings_project") if projected else ()),
            *bert_layers(config, "electra.encoder.layer.{layer}"),
            *_head(kind, tied=config.tie_embeddings),
        ),
        fixed=(position_ids(tables, int(config.context)),),
    )


def classes(config: ModelConfig) -> Classes:
    """The class with the head that the model has."""
    if isinstance(config.head, ClassHeadConfig):
        found = _DISCRIMINATOR
    else:
        found = _GENERATOR if config.head.transform else _BARE
    return Classes(auto=_AUTO[found], concrete=found, bare=found == _BARE)


def _kind(settings: Settings) -> str:
    named = [name for name in settings.values.get("architectures") or () if name in _AUTO]
    if named:
        return str(named[0])
    if any(str(name).startswith("ElectraFor") for name in settings.values.get("architectures") or ()):
        return _GENERATOR  # a task's head, which leads back from `hidden_size` no more than it must
    if any(name.startswith("discriminator_predictions.") for name in settings.names):
        return _DISCRIMINATOR
    return _GENERATOR if any(name.startswith("generator_") for name in settings.names) else _BARE


def _head(kind: str, *, tied: bool) -> Iterator[Entry]:
    if kind == _DISCRIMINATOR:
        yield from module("head.dense", "discriminator_predictions.dense")
        yield from module("head", "discriminator_predictions.dense_prediction")
    elif kind == _GENERATOR:
        yield from module("head.dense", "generator_predictions.dense")
        yield from module("head.norm", "generator_predictions.LayerNorm")
        yield from module("head", "generator_lm_head", weight=not tied)


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="electra",
        family="encoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        heads=("vocabulary", "classes"),
        prefix="electra.",
    ),
    sequence=TaskHead(
        concrete="ElectraForSequenceClassification",
        dense="classifier.dense",
        scores="classifier.out_proj",
        pool="first",
        activation="gelu",
        dropout="classifier_dropout",
        rate=None,
    ),
    tokens=TaskHead(
        concrete="ElectraForTokenClassification", scores="classifier", dropout="classifier_dropout", rate=None
    ),
    span=TaskHead(concrete="ElectraForQuestionAnswering", scores="qa_outputs"),
)

"""RoBERTa (Liu et al. 2019): BERT's encoder, whose positions are counted from the id of padding plus one; with its masked-LM head, or bare.

`relative` makes the architectures that are the same under another name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, vocabulary_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import bert_layers, position_ids
from triune.exchange.architectures._offset import read_offset, write_offset
from triune.exchange.mapping import Echo, Entry, Ignored, TensorMapping, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from triune.units import Count


def read_config(settings: Settings, *, vocabulary: int, bare: str) -> ModelConfig:
    """Settings of `RobertaConfig`.

    Args:
        settings: the whole config.
        vocabulary: the class's size of the vocabulary where the config has none.
        bare: name of the class without a head; its file becomes an encoder without one.
    """
    settings.only("is_decoder", False)
    settings.only("add_cross_attention", False)
    settings.only("position_embedding_type", "absolute")
    headless = bare in (settings.values.get("architectures") or ())
    context, position = read_offset(settings, rows=512)
    types = settings.whole("type_vocab_size", 2)
    if types < 1:
        raise settings.refusal("type_vocab_size", types, "it must be at least 1: the first is added to every token")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", vocabulary)),
        context=context,
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.1)),
        token_types=types,
        position=position,
        norm=NormConfig(placement="post", epsilon=settings.number("layer_norm_eps", 1e-12), embedding=True),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_act", "gelu"), width=settings.whole("intermediate_size", 3072)
        ),
        head=HeadConfig() if headless else HeadConfig(transform=True, bias=True),
        tie_embeddings=headless or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `RobertaConfig`."""
    return {
        "vocab_size": config.vocabulary,
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
        **write_offset(config),
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `RobertaForMaskedLM`, or of `RobertaModel` under the same names."""
    tables, output = "roberta.embeddings", "lm_head.decoder"
    headed = vocabulary_head(config).transform
    tied = config.tie_embeddings
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *[f"{output}.weight"] * (tied and headed)),
            *module("input.positions", f"{tables}.position_embeddings", bias=False),
            *module("input.token_types", f"{tables}.token_type_embeddings", bias=False),
            *module("input.norm", f"{tables}.LayerNorm"),
            *bert_layers(config, "roberta.encoder.layer.{layer}"),
            *(_head(output, tied=tied) if headed else ()),
        ),
        fixed=(position_ids(tables, write_offset(config)["max_position_embeddings"]),),
        echoes=() if tied or not headed else (_UNREAD,),
        ignored=(Ignored(r"roberta\.pooler\..*", "reads the first token for classification, not for masked tokens"),),
    )


_UNREAD = Echo("lm_head.bias", "lm_head.decoder.bias", "an untied vocabulary adds the bias of its own layer")


def _head(output: str, *, tied: bool) -> Iterator[Entry]:
    yield from module("head.dense", "lm_head.dense")
    yield from module("head.norm", "lm_head.layer_norm")
    if tied:
        yield tensor("head.bias", "lm_head.bias", f"{output}.bias")
    else:
        yield from module("head", output)


def classes(config: ModelConfig, *, stem: str) -> Classes:
    """`<stem>ForMaskedLM`, or `<stem>Model` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete=f"{stem}ForMaskedLM")
    return Classes(auto="AutoModel", concrete=f"{stem}Model", bare=True)


def relative(model_type: str, stem: str, *, vocabulary: int, twin: bool = True) -> Architecture:
    """RoBERTa under another name.

    Args:
        model_type: as their config.json names it.
        stem: what the names of its classes begin with.
        vocabulary: the class's default size of the vocabulary.
        twin: as in `Architecture`.
    """
    return with_tasks(
        Architecture(
            model_type=model_type,
            family="encoder",
            read_config=partial(read_config, vocabulary=vocabulary, bare=f"{stem}Model"),
            write_config=write_config,
            mapping=mapping,
            classes=partial(classes, stem=stem),
            prefix="roberta.",
            twin=twin,
        ),
        sequence=TaskHead(
            concrete=f"{stem}ForSequenceClassification",
            dense="classifier.dense",
            scores="classifier.out_proj",
            pool="first",
            dropout="classifier_dropout",
            rate=None,
        ),
        tokens=TaskHead(
            concrete=f"{stem}ForTokenClassification", scores="classifier", dropout="classifier_dropout", rate=None
        ),
        span=TaskHead(concrete=f"{stem}ForQuestionAnswering", scores="qa_outputs"),
    )


ARCHITECTURE = relative("roberta", "Roberta", vocabulary=50265, twin=False)

"""BigBird (Zaheer et al. 2020): BERT in its tensors, read with full attention.

`original_full` is just that. So is `block_sparse` for rows of up to (5 + 2 x num_random_blocks) x block_size tokens, 704 in the published
models: theirs turns to full attention there by itself, and stays with it. For longer rows theirs has no twin, since what it attends to
depends on mode and batch: in evaluation it draws no blocks but counts the first one 1 + num_random_blocks times, in training
it draws them for each head and length from NumPy's global generator, and its last global block is that of the padded rows. The nearest
pattern is that of configs/model/bigbird-base.yaml; docs/parity-sparse.md has what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, vocabulary_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import bert_layers, position_ids
from triune.exchange.mapping import Echo, Entry, Fixed, Ignored, TensorMapping, module, tensor
from triune.models.config import FeedForwardConfig, HeadConfig, LearnedPosition, ModelConfig, NormConfig
from triune.units import Count

#: Activations of the feed-forward that the head of ours has too, since theirs shares one setting for both.
_OF_HEAD = ("gelu", "gelu_tanh", "relu", "silu")


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `BigBirdConfig`; a file without the masked-LM head becomes an encoder without it."""
    settings.only("is_decoder", False)
    settings.only("add_cross_attention", False)
    settings.choice("attention_type", {"original_full": None, "block_sparse": None}, default="block_sparse")
    bare = "BigBirdModel" in (settings.values.get("architectures") or ())
    activation = read_activation(settings, "hidden_act", "gelu_new")
    if not bare and activation not in _OF_HEAD:
        raise settings.refusal("hidden_act", settings.values.get("hidden_act"), "triune's masked-LM head has no such")
    types = settings.whole("type_vocab_size", 2)
    if types < 1:
        raise settings.refusal("type_vocab_size", types, "it must be at least 1: the first is added to every token")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 50358)),
        context=Count(settings.whole("max_position_embeddings", 4096)),
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.1)),
        qkv_bias=settings.flag("use_bias", True),
        token_types=types,
        scale_embeddings=settings.flag("rescale_embeddings", False),
        position=LearnedPosition(),
        norm=NormConfig(placement="post", epsilon=settings.number("layer_norm_eps", 1e-12), embedding=True),
        feed_forward=FeedForwardConfig(kind=activation, width=settings.whole("intermediate_size", 3072)),
        head=HeadConfig() if bare else HeadConfig(transform=True, activation=activation, bias=True),
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `BigBirdConfig`."""
    return {
        "attention_type": "original_full",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "gelu"),
        "type_vocab_size": max(1, config.token_types),
        "rescale_embeddings": config.scale_embeddings,
        "use_bias": config.resolved_qkv_bias,
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `BigBirdForMaskedLM`, or of `BigBirdModel` under the same names."""
    tables, output = "bert.embeddings", "cls.predictions.decoder"
    headed, tied = vocabulary_head(config).transform, config.tie_embeddings
    layers = bert_layers(config, "bert.encoder.layer.{layer}")
    unbiased = () if config.resolved_qkv_bias else (".attention.query_key_value.bias",)
    rows = int(config.context)
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *[f"{output}.weight"] * (tied and headed)),
            *module("input.positions", f"{tables}.position_embeddings", bias=False),
            *module("input.token_types", f"{tables}.token_type_embeddings", bias=False),
            *module("input.norm", f"{tables}.LayerNorm"),
            *(entry for entry in layers if not entry.ours.endswith(unbiased)),
            *(_head(output, tied=tied) if headed else ()),
        ),
        fixed=(
            position_ids(tables, rows),
            Fixed(f"{tables}.token_type_ids", lambda: torch.zeros(1, rows, dtype=torch.int64)),
        ),
        echoes=(*(_POOLER if headed else ()), *(() if tied or not headed else (_UNREAD,))),
        ignored=(
            Ignored(r"bert\.pooler\..*", "reads the first token for next-sentence prediction, not for masked tokens"),
            Ignored(r"cls\.seq_relationship\..*", "next-sentence prediction"),
        ),
    )


_UNREAD = Echo(
    "cls.predictions.bias", "cls.predictions.decoder.bias", "an untied vocabulary adds the bias of its own layer"
)
_POOLER = tuple(
    Echo(
        f"bert.pooler.{kind}",
        f"cls.predictions.transform.dense.{kind}",
        "BigBirdForMaskedLM has a pooler, whose output goes nowhere",
    )
    for kind in ("weight", "bias")
)


def _head(output: str, *, tied: bool) -> Iterator[Entry]:
    yield from module("head.dense", "cls.predictions.transform.dense")
    yield from module("head.norm", "cls.predictions.transform.LayerNorm")
    if tied:
        yield tensor("head.bias", "cls.predictions.bias", f"{output}.bias")
    else:
        yield from module("head", output)


def classes(config: ModelConfig) -> Classes:
    """`BigBirdForMaskedLM`, or `BigBirdModel` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="BigBirdForMaskedLM")
    return Classes(auto="AutoModel", concrete="BigBirdModel", bare=True)


def caveat(values: Mapping[str, Any]) -> str:
    """How long rows may be for the two to be one function."""
    if values["attention_type"] != "block_sparse":
        return ""
    longest = (5 + 2 * values["num_random_blocks"]) * values["block_size"]
    return (
        f"their block_sparse attention is read as full attention: the same function for rows of up to {longest} tokens, another one "
        "for longer rows"
    )


ARCHITECTURE = Architecture(
    model_type="big_bird",
    family="encoder",
    read_config=read_config,
    write_config=write_config,
    mapping=mapping,
    classes=classes,
    prefix="bert.",
    caveat=caveat,
)

"""ESM-2 (Lin et al. 2023) and ESM-1b (Rives et al. 2021): pre-norm encoders of proteins, with rotary positions or with RoBERTa's, whose mask
tokens are dropped; with their masked-LM head, or bare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, vocabulary_head
from triune.exchange.architectures._bert_layers import PRE, bert_layers, position_ids
from triune.exchange.architectures._offset import read_offset, write_offset
from triune.exchange.mapping import Blank, Entry, Fixed, Ignored, TensorMapping, module, tensor
from triune.models.checks import rotary_bases
from triune.models.config import (
    FeedForwardConfig,
    HeadConfig,
    LearnedPosition,
    ModelConfig,
    NormConfig,
    PositionConfig,
    RotaryPosition,
    TokenDropoutConfig,
)
from triune.units import Count

_RATE = 0.12  # of 15% of the tokens, 80% are replaced by the mask; theirs has no setting for it
_BASE = 10000.0
_SPARE = 2  # rows


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `EsmConfig`; ESMFold is refused. Activations are exact GELUs, whatever `hidden_act` says."""
    settings.only("is_decoder", False)
    settings.only("add_cross_attention", False)
    settings.only("is_folding_model", False)
    bare = "EsmModel" in (settings.values.get("architectures") or ())
    context, position = _positions(settings)
    dropped = settings.flag("token_dropout", False)
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size")),
        context=context,
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.1)),
        position=position,
        norm=NormConfig(
            epsilon=settings.number("layer_norm_eps", 1e-12), embedding=settings.flag("emb_layer_norm_before", False)
        ),
        feed_forward=FeedForwardConfig(kind="gelu", width=settings.whole("intermediate_size", 3072)),
        head=HeadConfig() if bare else HeadConfig(transform=True, bias=True),
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        token_dropout=TokenDropoutConfig(mask=settings.whole("mask_token_id"), rate=_RATE) if dropped else None,
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


def _positions(settings: Settings) -> tuple[Count, PositionConfig]:
    """The longest row, and positions; rotary ones have no table, but `max_position_embeddings` counts the two rows of ESM-1b's padding."""
    kind = settings.choice("position_embedding_type", {"rotary": "rotary", "absolute": "absolute"}, default="absolute")
    if kind == "absolute":
        return read_offset(settings, rows=1026)
    rows = settings.whole("max_position_embeddings", 1026)
    if rows <= _SPARE:
        raise settings.refusal("max_position_embeddings", rows, f"it must be above {_SPARE}")
    return Count(rows - _SPARE), RotaryPosition(base=float(settings.number("rope_theta", _BASE)))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `EsmConfig`."""
    absolute, dropped = isinstance(config.position, LearnedPosition), config.token_dropout
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
        "position_embedding_type": "absolute" if absolute else "rotary",
        "rope_theta": _base(config),
        "emb_layer_norm_before": config.norm.embedding,
        "token_dropout": dropped is not None,
        **({} if dropped is None else {"mask_token_id": dropped.mask}),
        "tie_word_embeddings": config.tie_embeddings,
        **write_offset(config),
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `EsmForMaskedLM`, or of `EsmModel` under the same names."""
    tables, output = "esm.embeddings", "lm_head.decoder.weight"
    headed, tied = vocabulary_head(config).transform, config.tie_embeddings
    learned = isinstance(config.position, LearnedPosition)
    unread = [_POOLER] if learned else [_POOLER, _TABLE]
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *[output] * (tied and headed)),
            *(module("input.positions", f"{tables}.position_embeddings", bias=False) if learned else ()),
            *(module("input.norm", f"{tables}.layer_norm") if config.norm.embedding else ()),
            *bert_layers(config, "esm.encoder.layer.{layer}", PRE),
            *module("stack.norm", "esm.encoder.emb_layer_norm_after"),
            *(_head(output, tied=tied) if headed else ()),
        ),
        fixed=(
            position_ids(tables, write_offset(config)["max_position_embeddings"]),
            *(() if learned else _frequencies(config)),
        ),
        blanks=(
            Blank("esm.contact_head.regression.weight", (1, config.layers * config.heads), _CONTACTS),
            Blank("esm.contact_head.regression.bias", (1,), _CONTACTS),
        ),
        ignored=tuple(unread),
    )


_POOLER = Ignored(r"esm\.pooler\..*", "reads the first token for classification, not for masked tokens")
_TABLE = Ignored(
    r"esm\.embeddings\.position_embeddings\.weight", "rotary positions have no table, though files hold one"
)
_CONTACTS = (
    "a regression from attention weights to contacts of residues, which neither the hidden states nor the logits read"
)


def _head(output: str, *, tied: bool) -> Iterator[Entry]:
    yield from module("head.dense", "lm_head.dense")
    yield from module("head.norm", "lm_head.layer_norm")
    yield tensor("head.bias", "lm_head.bias")
    if not tied:
        yield tensor("head.weight", output)


def _frequencies(config: ModelConfig) -> Iterator[Fixed]:
    """Radians a position: in one place, or in each layer of older files."""
    width, base = config.resolved_head_width, _base(config)

    def made() -> Tensor:
        return 1.0 / base ** (torch.arange(0, width, 2).float() / width)  # in the order that gives their bytes

    yield Fixed("esm.rotary_embeddings.inv_freq", made, written=True)
    for layer in (*range(config.layers), "*"):  # transformers 5.23 spells the star out when it saves
        yield Fixed(f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq", made)


def _base(config: ModelConfig) -> float:
    return rotary_bases(config)[0] if isinstance(config.position, RotaryPosition) else _BASE


def classes(config: ModelConfig) -> Classes:
    """`EsmForMaskedLM`, or `EsmModel` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="EsmForMaskedLM")
    return Classes(auto="AutoModel", concrete="EsmModel", bare=True)


ARCHITECTURE = Architecture(
    model_type="esm",
    family="encoder",
    read_config=read_config,
    write_config=write_config,
    mapping=mapping,
    classes=classes,
    prefix="esm.",
)

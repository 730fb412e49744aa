"""What BART, Marian and Pegasus share: the names of fairseq's encoder-decoder, in their settings and in their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Settings, TokenIds
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.mapping import Entry, Fixed, Ignored, TensorMapping, Viewed, each_layer, module, tensor
from triune.models.config import (
    FeedForwardConfig,
    HeadConfig,
    LearnedPosition,
    ModelConfig,
    NormConfig,
    SinusoidalPosition,
)
from triune.models.layers.position import sinusoidal
from triune.units import Count

_SIDES = ("encoder", "decoder")
_BIAS = "final_logits_bias"


def read(
    settings: Settings, *, vocabulary: int, norm: NormConfig, position: LearnedPosition | SinusoidalPosition
) -> ModelConfig:
    """Settings of a config of this family.

    Args:
        settings: theirs.
        vocabulary: default of `vocab_size`, which differs.
        norm: where norms stand: no key says so.
        position: how positions are told apart: no key says so.

    Raises UserError for towers that differ in more than depth, or that have tables of their own.
    """
    settings.only("is_decoder", False)
    settings.only("is_encoder_decoder", True)
    _check_one_table(settings)
    for key, default in (("attention_heads", 16), ("ffn_dim", 4096)):
        reading, writing = (settings.whole(f"{side}_{key}", default) for side in _SIDES)
        if reading != writing:
            raise settings.refusal(
                f"decoder_{key}", writing, f"triune's towers are alike but for their depth: encoder_{key} is {reading}"
            )
    return ModelConfig(
        family="encoder_decoder",
        vocabulary=Count(settings.whole("vocab_size", vocabulary)),
        context=Count(settings.whole("max_position_embeddings", 1024)),
        width=settings.whole("d_model", 1024),
        layers=settings.whole("encoder_layers", 12),
        decoder_layers=settings.whole("decoder_layers", 12),
        heads=settings.whole("encoder_attention_heads", 16),
        attention=AttentionConfig(dropout=settings.number("attention_dropout", 0.0)),
        position=position,
        norm=norm,
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "activation_function", "gelu"),
            width=settings.whole("encoder_ffn_dim", 4096),
            dropout=settings.number("activation_dropout", 0.0),
        ),
        head=HeadConfig(bias=_BIAS in settings.names),
        scale_embeddings=settings.flag("scale_embedding", False),
        dropout=settings.number("dropout", 0.1),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Settings of ours for a config of this family."""
    heads, inner = config.heads, config.feed_forward.inner_width(config.width)
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "d_model": config.width,
        "encoder_layers": config.layers,
        "decoder_layers": config.resolved_decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "activation_function": write_activation(config.feed_forward, "gelu"),
        "scale_embedding": config.scale_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.attention.dropout,
        "activation_dropout": config.feed_forward.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }


def start(ids: TokenIds) -> dict[str, Any]:
    """Ids of generation. No last token is forced: their configs' own default is an id of the published vocabulary."""
    return {"decoder_start_token_id": ids.decoder_start, "forced_eos_token_id": None}


def mapping(config: ModelConfig, *, tables: bool = False) -> TensorMapping:
    """Tensors of the class with the vocabulary.

    Args:
        config: ours.
        tables: a file of theirs holds the tables of sines and cosines, which ours computes.
    """
    return TensorMapping(
        entries=(
            tensor("embedding.weight", *_TABLES, "lm_head.weight"),
            *(entry for side in _SIDES for entry in _tower(config, side)),
            *([_bias(config)] if _biased(config) else []),
        ),
        fixed=(*_positions(config, written=tables), *([] if _biased(config) else [_no_bias(config)])),
        ignored=(Ignored(r"model\.(en|de)coder\.version", "a number that files of the first release hold"),),
    )


_TABLES = ("model.shared.weight", *(f"model.{side}.embed_tokens.weight" for side in _SIDES))


def _check_one_table(settings: Settings) -> None:
    for key in ("tie_word_embeddings", "share_encoder_decoder_embeddings"):
        if not settings.flag(key, True):
            why = (
                "triune's encoder-decoder has one table, for sources, for targets and for scores; theirs has three then"
            )
            raise settings.refusal(key, False, why)


def _biased(config: ModelConfig) -> bool:
    return isinstance(config.head, HeadConfig) and config.head.bias


def _bias(config: ModelConfig) -> Entry:
    words = int(config.vocabulary or 0)
    return tensor("head.bias", _BIAS, reshape=Viewed(ours=(words,), theirs=(1, words)))


def _no_bias(config: ModelConfig) -> Fixed:
    return Fixed(_BIAS, lambda: torch.zeros(1, int(config.vocabulary or 0)), written=True)


def _positions(config: ModelConfig, *, written: bool) -> Iterator[Fixed]:
    position = config.position
    if not isinstance(position, SinusoidalPosition):
        return

    def table() -> Tensor:
        return sinusoidal(torch.arange(int(config.context)), config.width, position.base, position.layout)

    for side in _SIDES:
        yield Fixed(f"model.{side}.embed_positions.weight", table, written=written)


def _tower(config: ModelConfig, side: str) -> Iterator[Entry]:
    theirs = f"model.{side}"
    if isinstance(config.position, LearnedPosition):
        yield from module(f"{side}_input.positions", f"{theirs}.embed_positions", bias=False)
    if config.norm.embedding:
        yield from module(f"{side}_input.norm", f"{theirs}.layernorm_embedding")
    decoder = side == "decoder"
    yield from each_layer(
        config.resolved_decoder_layers if decoder else config.layers, _block(config, side, cross=decoder)
    )
    if config.final_norm:
        yield from module(f"{side}.norm", f"{theirs}.layer_norm")


def _block(config: ModelConfig, side: str, *, cross: bool) -> Iterator[Entry]:
    layer, block, width = f"model.{side}.layers.{{layer}}", f"{side}.blocks.{{layer}}", config.width
    norm = "norm_sum" if config.norm.placement == "post" else "norm_before"
    itself, across = f"{layer}.self_attn", f"{layer}.encoder_attn"
    pairs: dict[str, str | dict[str, int]] = {
        f"{block}.attention.query_key_value": {f"{itself}.{name}_proj": width for name in "qkv"},
        f"{block}.attention.output": f"{itself}.out_proj",
        f"{block}.attention_residual.{norm}": f"{itself}_layer_norm",
        f"{block}.feed_forward.up": f"{layer}.fc1",
        f"{block}.feed_forward.down": f"{layer}.fc2",
        f"{block}.feed_forward_residual.{norm}": f"{layer}.final_layer_norm",
    }
    if cross:
        pairs |= {
            f"{block}.cross_attention.query": f"{across}.q_proj",
            f"{block}.cross_attention.key_value": {f"{across}.{name}_proj": width for name in "kv"},
            f"{block}.cross_attention.output": f"{across}.out_proj",
            f"{block}.cross_residual.{norm}": f"{across}_layer_norm",
        }
    for ours, theirs in pairs.items():
        yield from module(ours, theirs)

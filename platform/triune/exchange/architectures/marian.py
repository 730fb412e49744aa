"""Marian (Junczys-Dowmunt et al. 2018): the 2017 Transformer as Helsinki-NLP's translators are, with sines and cosines in halves."""

from __future__ import annotations

from typing import Any

from triune.exchange.architecture import Architecture, Classes, Settings, TokenIds
from triune.exchange.architectures import _seq2seq
from triune.models.config import ModelConfig, NormConfig, SinusoidalPosition


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `MarianConfig`. Older files also say how norms and positions stand."""
    for key in ("normalize_before", "add_final_layer_norm", "normalize_embedding"):
        settings.only(key, False)
    settings.only("static_position_embeddings", True)
    words = settings.whole("vocab_size", 58101)
    if settings.whole("decoder_vocab_size", words) != words:
        raise settings.refusal(
            "decoder_vocab_size",
            settings.values["decoder_vocab_size"],
            f"triune's encoder-decoder has one vocabulary, of vocab_size = {words}",
        )
    position = SinusoidalPosition(layout="halves")
    return _seq2seq.read(settings, vocabulary=58101, norm=NormConfig(placement="post"), position=position)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `MarianConfig`."""
    return _seq2seq.write(config) | {
        "decoder_vocab_size": config.vocabulary,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
    }


def _start(ids: TokenIds) -> dict[str, Any]:
    """Their config takes no null for the token that a decoder starts from."""
    found = _seq2seq.start(ids)
    return found if ids.decoder_start is not None else found | {"decoder_start_token_id": 0}


def classes(config: ModelConfig) -> Classes:
    """`MarianMTModel`."""
    return Classes(auto="AutoModelForSeq2SeqLM", concrete="MarianMTModel")


ARCHITECTURE = Architecture(
    model_type="marian",
    family="encoder_decoder",
    read_config=read_config,
    write_config=write_config,
    mapping=_seq2seq.mapping,
    classes=classes,
    prefix="model.",
    objective="translation",
    extra=_start,
)

"""Tiny Marians."""

from typing import Any

import torch

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "d_model": 30,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 41,
    "pad_token_id": 66,
    "decoder_start_token_id": 66,
    "activation_function": "swish",
    "scale_embedding": True,
}


def bias(model: Any) -> None:
    """Translators that Marian trained have a bias of the scores, here a buffer."""
    model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))


CASES = [
    Case(name="swish, scaled embeddings, biased scores", model="MarianMTModel", settings=SHAPE, prepare=bias),
    Case(
        name="relu, not scaled, 3 heads, 1 and 4 layers, bias 0",
        model="MarianMTModel",
        settings=SHAPE
        | {
            "activation_function": "relu",
            "scale_embedding": False,
            "encoder_layers": 1,
            "decoder_layers": 4,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "pad_token_id": 5,
            "eos_token_id": 9,
            "decoder_start_token_id": 3,
            "forced_eos_token_id": 9,
        },
    ),
]

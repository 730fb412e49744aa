"""Tiny Pegasus models."""

from typing import Any

import torch

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "d_model": 30,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 41,
    "activation_function": "relu",
    "scale_embedding": True,
}


def bias(model: Any) -> None:
    """The bias of the scores is a buffer, which training leaves at 0; other tools may have filled it."""
    model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))


CASES = [
    Case(name="relu, scaled, 2 and 3 layers", model="PegasusForConditionalGeneration", settings=SHAPE),
    Case(
        name="gelu, not scaled, biased scores, one head, 2 and 1 layers",
        model="PegasusForConditionalGeneration",
        settings=SHAPE
        | {
            "activation_function": "gelu",
            "scale_embedding": False,
            "decoder_layers": 1,
            "encoder_attention_heads": 1,
            "decoder_attention_heads": 1,
            "pad_token_id": 5,
            "eos_token_id": 9,
            "decoder_start_token_id": 5,
            "forced_eos_token_id": None,
        },
        prepare=bias,
    ),
]

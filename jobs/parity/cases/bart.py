"""Tiny BARTs."""

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
    "max_position_embeddings": 37,
}
MODEL = "BartForConditionalGeneration"


def bias(model: Any) -> None:
    """The bias of the scores is a buffer, which training leaves at 0; other tools may have filled it."""
    model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))


CASES = [
    Case(name="5 heads of 6, 2 and 3 layers", model=MODEL, settings=SHAPE),
    Case(
        name="scaled embeddings, relu, biased scores, 3 and 1 layers, other special tokens",
        model=MODEL,
        settings=SHAPE
        | {
            "max_position_embeddings": 21,
            "scale_embedding": True,
            "activation_function": "relu",
            "encoder_layers": 3,
            "decoder_layers": 1,
            "pad_token_id": 7,
            "bos_token_id": 11,
            "eos_token_id": 13,
            "decoder_start_token_id": 11,
            "forced_bos_token_id": 17,
            "forced_eos_token_id": None,
        },
        prepare=bias,
    ),
    Case(
        name="several classes of a text",
        model="BartForSequenceClassification",
        settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    Case(name="the ends of an answer", model="BartForQuestionAnswering", settings=SHAPE),
]

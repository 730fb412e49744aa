"""Tiny T5s."""

from typing import Any

import torch
from torch import nn

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 69,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 44,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "decoder_start_token_id": 0,
    "n_positions": 40,
}


def _untie(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(0.2 * torch.randn_like(model.lm_head.weight))


CASES = [
    Case(name="1.0: tied and scaled, 5 heads of 6 on width 32", model="T5ForConditionalGeneration", settings=SHAPE),
    Case(
        name="1.1: gated, untied, not scaled",
        model="T5ForConditionalGeneration",
        settings=SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        prepare=_untie,
        warning="both are present in the checkpoints with different values",  # of every T5 1.1, the published ones too
    ),
    Case(
        name="gated, tied, not scaled",
        model="T5ForConditionalGeneration",
        settings=SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1},
    ),
    Case(
        name="a class of a text, named",
        model="T5ForSequenceClassification",
        settings=SHAPE
        | {"pad_token_id": 0, "eos_token_id": 1}
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
]

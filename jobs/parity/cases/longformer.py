"""Tiny Longformers: windows far below the context, so that they show; first tokens global where the config says so."""

from typing import Any

from triune.exchange.proof import Case

SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 51,
    "attention_window": 6,
}


def _echo(model: Any) -> None:
    """Nothing reads this bias of an untied model, so that an export can only repeat the other one in its place."""
    model.lm_head.bias.copy_(model.lm_head.decoder.bias)


CASES = [
    Case(name="window 3, 5 heads of 6, tied, no global token", model="LongformerForMaskedLM", settings=SHAPE),
    Case(
        name="first token global, windows 2 and 6, one token type, tanh GELU, padding is 4",
        model="LongformerForMaskedLM",
        settings=SHAPE
        | {
            "attention_window": [4, 12],
            "type_vocab_size": 1,
            "hidden_act": "gelu_new",
            "pad_token_id": 4,
            "triune": {"global_tokens": 1},
        },
    ),
    Case(
        name="first 3 tokens global, windows 2, 4, 2, untied, relu, epsilon 1e-5",
        model="LongformerForMaskedLM",
        settings=SHAPE
        | {
            "num_hidden_layers": 3,
            "attention_window": [4, 8, 4],
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "triune": {"global_tokens": 3},
        },
        prepare=_echo,
    ),
]

"""Tiny BigBirds: full attention, and block-sparse ones whose rows are so short that theirs turns to full attention."""

from typing import Any

from triune.exchange.proof import Case

SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 53,
    "attention_type": "original_full",
    "sep_token_id": 3,
}


def _echo(model: Any) -> None:
    """Nothing reads the pooler, nor this bias of an untied model, so that an export can only repeat another tensor in their place."""
    predictions = model.cls.predictions
    predictions.bias.copy_(predictions.decoder.bias)
    model.bert.pooler.load_state_dict(predictions.transform.dense.state_dict())


CASES = [
    Case(name="full, 5 heads of 6, tied", model="BigBirdForMaskedLM", settings=SHAPE, prepare=_echo),
    Case(
        name="full, untied, no biases of queries, scaled embeddings, 3 token types, relu",
        model="BigBirdForMaskedLM",
        settings=SHAPE
        | {
            "tie_word_embeddings": False,
            "use_bias": False,
            "rescale_embeddings": True,
            "type_vocab_size": 3,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "num_hidden_layers": 3,
        },
        prepare=_echo,
    ),
    Case(
        name="block_sparse with rows of up to (5 + 2 x 1) x 8 tokens, one head",
        model="BigBirdForMaskedLM",
        settings=SHAPE
        | {"attention_type": "block_sparse", "block_size": 8, "num_random_blocks": 1, "num_attention_heads": 1},
        prepare=_echo,
    ),
]

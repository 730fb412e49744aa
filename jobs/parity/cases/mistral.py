"""Tiny Mistrals, whose rows (and texts written greedily) are longer than the window."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 79,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 44,
    "sliding_window": 7,
}
CASES = [
    Case(name="6 heads, 2 of keys, window of 7 in rows of 44", model="MistralForCausalLM", settings=SHAPE),
    Case(
        name="no window, tied, 5 heads of 10 on width 36, one of keys, rotary base 1e6",
        model="MistralForCausalLM",
        settings=SHAPE
        | {
            "sliding_window": None,
            "tie_word_embeddings": True,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    Case(
        name="window of 2, the smallest, 3 layers, exact GELU, epsilon 1e-5",
        model="MistralForCausalLM",
        settings=SHAPE | {"sliding_window": 2, "num_hidden_layers": 3, "hidden_act": "gelu", "rms_norm_eps": 1e-5},
    ),
    Case(
        name="window of 44, as long as the rows; rotary scaling yarn",
        model="MistralForCausalLM",
        settings=SHAPE
        | {
            "sliding_window": 44,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 11,
            },
        },
    ),
    Case(
        name="a class of a text, named",
        model="MistralForSequenceClassification",
        settings=SHAPE
        | {"pad_token_id": 0}
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="a class of each token",
        model="MistralForTokenClassification",
        settings=SHAPE | {"pad_token_id": 0} | {"num_labels": 5},
    ),
    Case(name="the ends of an answer", model="MistralForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
]

"""Tiny Qwen 2s, with biases of queries, keys and values, and windows in some layers."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 83,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 44,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 6}
CASES = [
    Case(name="6 heads, 2 of keys, a window that is not used", model="Qwen2ForCausalLM", settings=SHAPE | {"sliding_window": 6}),
    Case(
        name="window of 6 from layer 1 on, tied",
        model="Qwen2ForCausalLM",
        settings=SHAPE | WINDOW | {"max_window_layers": 1, "tie_word_embeddings": True},
    ),
    Case(
        name="layers listed: window of 5, full, window; 5 heads of 8 on width 36, one of keys",
        model="Qwen2ForCausalLM",
        settings=SHAPE
        | {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rms_norm_eps": 1e-5,
        },
    ),
    Case(
        name="window in every layer, rotary scaling yarn, tanh GELU",
        model="Qwen2ForCausalLM",
        settings=SHAPE
        | WINDOW
        | {
            "max_window_layers": 0,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 11,
            },
        },
    ),
    Case(name="the ends of an answer", model="Qwen2ForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
    Case(name="a class of a text, named", model="Qwen2ForSequenceClassification", settings=SHAPE | {"pad_token_id": 0} | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}}),
]  # fmt: skip

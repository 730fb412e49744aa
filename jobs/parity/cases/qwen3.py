"""Tiny Qwen 3s: norms on queries and keys, heads that are wider or narrower than width / heads."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 87,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 14,
    "max_position_embeddings": 44,
}
CASES = [
    Case(name="6 heads of 14 on width 36, 3 of keys, tied", model="Qwen3ForCausalLM", settings=SHAPE | {"tie_word_embeddings": True}),
    Case(
        name="5 heads of 4 on width 36, one of keys, untied, epsilon 1e-5, rotary scaling linear",
        model="Qwen3ForCausalLM",
        settings=SHAPE
        | {
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.5},
        },
    ),
    Case(
        name="window of 6 from layer 1 of 3 on",
        model="Qwen3ForCausalLM",
        settings=SHAPE | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    Case(name="the ends of an answer", model="Qwen3ForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
    Case(name="several classes of a text", model="Qwen3ForSequenceClassification", settings=SHAPE | {"pad_token_id": 0} | {"num_labels": 4, "problem_type": "multi_label_classification"}),
]  # fmt: skip

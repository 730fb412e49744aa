"""Tiny Llamas."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 73,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}


def _scaled(kind: str, **more: float) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0, **more}}


CASES = [
    Case(name="6 heads, 2 of keys, untied", model="LlamaForCausalLM", settings=SHAPE),
    Case(
        name="3 heads of 10 on width 36, one of keys, tied, biases, 3 layers",
        model="LlamaForCausalLM",
        settings=SHAPE
        | {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "num_hidden_layers": 3,
        },
    ),
    Case(name="rotary scaling linear", model="LlamaForCausalLM", settings=SHAPE | _scaled("linear")),
    Case(
        name="rotary scaling llama3, tied",
        model="LlamaForCausalLM",
        settings=SHAPE
        | {"tie_word_embeddings": True}
        | _scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12),
    ),
    Case(
        name="rotary scaling yarn, every head its keys",
        model="LlamaForCausalLM",
        settings=SHAPE | {"num_key_value_heads": 6} | _scaled("yarn", original_max_position_embeddings=12),
    ),
    Case(
        name="a class of a text, named",
        model="LlamaForSequenceClassification",
        settings=SHAPE
        | {"pad_token_id": 0}
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="a class of each token",
        model="LlamaForTokenClassification",
        settings=SHAPE | {"pad_token_id": 0} | {"num_labels": 5},
    ),
    Case(name="the ends of an answer", model="LlamaForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
    Case(
        name="numbers of a text, without a pad",
        model="LlamaForSequenceClassification",
        settings=SHAPE | {"num_labels": 2, "problem_type": "regression"} | {"tie_word_embeddings": True},
    ),
]

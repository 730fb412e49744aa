"""Tiny Pythias and GPT-NeoXs."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 89,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 43,
}


def _turned(fraction: float, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": fraction, **more}}


CASES = [
    Case(name="parallel, 5 heads of 8, of which 2 numbers are turned, untied", model="GPTNeoXForCausalLM", settings=SHAPE),
    Case(
        name="sequential, half of each head turned, tied, 3 layers, fast GELU, epsilon 1e-6",
        model="GPTNeoXForCausalLM",
        settings=SHAPE
        | {
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "hidden_act": "gelu_fast",
            "layer_norm_eps": 1e-6,
        }
        | _turned(0.5),
    ),
    Case(
        name="parallel, tied, one head of 40, turned in whole, relu",
        model="GPTNeoXForCausalLM",
        settings=SHAPE | {"tie_word_embeddings": True, "num_attention_heads": 1, "hidden_act": "relu"} | _turned(1.0),
    ),
    Case(
        name="sequential, untied, half of each head turned, rotary scaling linear",
        model="GPTNeoXForCausalLM",
        settings=SHAPE | {"use_parallel_residual": False} | _turned(0.5, rope_type="linear", factor=3.0),
    ),
    Case(name="a class of a text, named", model="GPTNeoXForSequenceClassification", settings=SHAPE | {"pad_token_id": 0} | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}}),
    Case(name="a class of each token", model="GPTNeoXForTokenClassification", settings=SHAPE | {"pad_token_id": 0} | {"num_labels": 5}),
    Case(name="the ends of an answer", model="GPTNeoXForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
]  # fmt: skip

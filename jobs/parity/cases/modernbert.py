"""Tiny ModernBERTs: windows far below the context, so that they show."""

from typing import Any

from triune.exchange.proof import Case

SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 30,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "max_position_embeddings": 47,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}

CASES = [
    Case(name="full, 3, 3, full; 5 heads of 6, tied", model="ModernBertForMaskedLM", settings=SHAPE),
    Case(
        name="window 5 first, 3 layers, untied, biases everywhere, tanh GELU, own bases",
        model="ModernBertForMaskedLM",
        settings=SHAPE
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "local_attention": 11,
            "hidden_activation": "gelu_pytorch_tanh",
            "classifier_activation": "silu",
            "norm_eps": 1e-3,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 700.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
            **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
        },
    ),
    Case(
        name="no bias in the head, windows only, SwiGLU, one head",
        model="ModernBertForMaskedLM",
        settings=SHAPE
        | {
            "num_attention_heads": 1,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention"] * 2,
            "decoder_bias": False,
            "hidden_activation": "silu",
            "classifier_activation": "relu",
        },
    ),
    Case(
        name="rotary scaling yarn in both kinds of layers",
        model="ModernBertForMaskedLM",
        settings=SHAPE
        | {
            "max_position_embeddings": 48,
            "rope_parameters": {
                "full_attention": _SCALED | {"rope_theta": 500.0},
                "sliding_attention": _SCALED | {"rope_theta": 40.0},
            },
        },
    ),
    Case(name="without a head", model="ModernBertModel", settings=SHAPE | {"num_hidden_layers": 2}),
    Case(
        name="a class of a text, named",
        model="ModernBertForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="several classes of a text",
        model="ModernBertForSequenceClassification",
        settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    Case(name="a class of each token", model="ModernBertForTokenClassification", settings=SHAPE | {"num_labels": 5}),
    Case(name="the ends of an answer", model="ModernBertForQuestionAnswering", settings=SHAPE),
    Case(
        name="the mean of a text, own activation and a bias",
        model="ModernBertForSequenceClassification",
        settings=SHAPE
        | {"num_labels": 4, "problem_type": "multi_label_classification"}
        | {"classifier_pooling": "mean", "classifier_activation": "silu", "classifier_bias": True},
    ),
]

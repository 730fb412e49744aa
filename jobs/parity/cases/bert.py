"""Tiny BERTs."""

from typing import Any

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 37,
}


def _echo(model: Any) -> None:
    """Nothing reads this bias of an untied model, so that an export can only repeat the other one in its place."""
    model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)


CASES = [
    Case(name="5 heads of 6, tied, 2 token types", model="BertForMaskedLM", settings=SHAPE),
    Case(
        name="untied, 3 token types, tanh GELU, 3 layers",
        model="BertForMaskedLM",
        settings=SHAPE
        | {"tie_word_embeddings": False, "type_vocab_size": 3, "hidden_act": "gelu_new", "num_hidden_layers": 3},
        prepare=_echo,
    ),
    Case(name="relu, one head, epsilon 1e-5", model="BertForMaskedLM",
        settings=SHAPE | {"hidden_act": "relu", "num_attention_heads": 1, "layer_norm_eps": 1e-5}),
    Case(name="a class of a text, named", model="BertForSequenceClassification", settings=SHAPE | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}}),
    Case(name="several classes of a text", model="BertForSequenceClassification", settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"}),
    Case(name="a class of each token", model="BertForTokenClassification", settings=SHAPE | {"num_labels": 5}),
    Case(name="the ends of an answer", model="BertForQuestionAnswering", settings=SHAPE),
    Case(name="numbers of a text, 3 token types", model="BertForSequenceClassification", settings=SHAPE | {"num_labels": 2, "problem_type": "regression"} | {"type_vocab_size": 3}),
]  # fmt: skip

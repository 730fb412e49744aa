"""Tiny RoBERTas. Positions begin at pad_token_id + 1, so that a table of 39 rows serves 37 tokens where that id is 1."""

from typing import Any

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 39,
    "type_vocab_size": 1,
}


def _echo(model: Any) -> None:
    """Nothing reads this bias of an untied model, so that an export can only repeat the other one in its place."""
    model.lm_head.bias.copy_(model.lm_head.decoder.bias)


CASES = [
    Case(name="5 heads of 6, tied, one token type, offset 2", model="RobertaForMaskedLM", settings=SHAPE),
    Case(
        name="untied, 2 token types, tanh GELU below an exact one in the head, offset 6, epsilon 1e-5, 3 layers",
        model="RobertaForMaskedLM",
        settings=SHAPE
        | {"tie_word_embeddings": False, "type_vocab_size": 2, "hidden_act": "gelu_new", "num_hidden_layers": 3}
        | {"pad_token_id": 5, "layer_norm_eps": 1e-5},
        prepare=_echo,
    ),
    Case(
        name="relu, one head, offset 1",
        model="RobertaForMaskedLM",
        settings=SHAPE | {"hidden_act": "relu", "num_attention_heads": 1, "pad_token_id": 0, "bos_token_id": 1},
    ),
    Case(
        name="a class of a text, named",
        model="RobertaForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="several classes of a text",
        model="RobertaForSequenceClassification",
        settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    Case(name="a class of each token", model="RobertaForTokenClassification", settings=SHAPE | {"num_labels": 5}),
    Case(name="the ends of an answer", model="RobertaForQuestionAnswering", settings=SHAPE),
]

"""Tiny DistilBERTs."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "dim": 30,
    "n_layers": 2,
    "n_heads": 5,
    "hidden_dim": 44,
    "max_position_embeddings": 37,
}
CASES = [
    Case(name="5 heads of 6, tied", model="DistilBertForMaskedLM", settings=SHAPE),
    Case(
        name="untied, tanh GELU, 3 layers, positions that began as sinusoids",
        model="DistilBertForMaskedLM",
        settings=SHAPE
        | {"tie_word_embeddings": False, "activation": "gelu_new", "n_layers": 3, "sinusoidal_pos_embds": True},
    ),
    Case(
        name="relu, one head, padding with 3",
        model="DistilBertForMaskedLM",
        settings=SHAPE | {"activation": "relu", "n_heads": 1, "pad_token_id": 3},
    ),
    Case(name="no head", model="DistilBertModel", settings=SHAPE),
    Case(
        name="a class of a text, named",
        model="DistilBertForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="several classes of a text",
        model="DistilBertForSequenceClassification",
        settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    Case(name="a class of each token", model="DistilBertForTokenClassification", settings=SHAPE | {"num_labels": 5}),
    Case(name="the ends of an answer", model="DistilBertForQuestionAnswering", settings=SHAPE),
]

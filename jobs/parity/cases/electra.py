"""Tiny ELECTRAs: generators and discriminators."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 67,
    "embedding_size": 18,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 37,
}
CASES = [
    Case(name="generator: embeddings of 18 on width 30, tied", model="ElectraForMaskedLM", settings=SHAPE),
    Case(
        name="generator: embeddings as wide, untied, 3 token types, relu below an exact GELU in the head, 3 layers",
        model="ElectraForMaskedLM",
        settings=SHAPE
        | {"embedding_size": 30, "tie_word_embeddings": False, "type_vocab_size": 3}
        | {"hidden_act": "relu", "num_hidden_layers": 3, "layer_norm_eps": 1e-5},
    ),
    Case(
        name="generator: embeddings wider than the stream, untied, one token type",
        model="ElectraForMaskedLM",
        settings=SHAPE | {"embedding_size": 42, "tie_word_embeddings": False, "type_vocab_size": 1},
    ),
    Case(name="discriminator: embeddings of 18 on width 30", model="ElectraForPreTraining", settings=SHAPE),
    Case(
        name="discriminator: embeddings as wide, one head, tanh GELU in the head too",
        model="ElectraForPreTraining",
        settings=SHAPE | {"embedding_size": 30, "num_attention_heads": 1, "hidden_act": "gelu_new"},
    ),
    Case(
        name="discriminator: relu, untied in name, one token type, 3 layers",
        model="ElectraForPreTraining",
        settings=SHAPE
        | {"hidden_act": "relu", "tie_word_embeddings": False, "type_vocab_size": 1, "num_hidden_layers": 3},
    ),
    Case(name="no head, embeddings as wide", model="ElectraModel", settings=SHAPE | {"embedding_size": 30}),
    Case(
        name="a class of a text, named",
        model="ElectraForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="several classes of a text",
        model="ElectraForSequenceClassification",
        settings=SHAPE | {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    Case(name="a class of each token", model="ElectraForTokenClassification", settings=SHAPE | {"num_labels": 5}),
    Case(name="the ends of an answer", model="ElectraForQuestionAnswering", settings=SHAPE),
]

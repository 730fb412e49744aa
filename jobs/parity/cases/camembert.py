"""A tiny CamemBERT."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 7,
    "intermediate_size": 46,
    "max_position_embeddings": 35,
    "type_vocab_size": 1,
    "bos_token_id": 5,
    "eos_token_id": 6,
}
CASES = [
    Case(name="7 heads of 4, tied", model="CamembertForMaskedLM", settings=SHAPE),
    Case(
        name="a class of a text, named",
        model="CamembertForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
]

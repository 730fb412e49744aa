"""A tiny XLM-RoBERTa."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 83,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 43,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
CASES = [
    Case(name="3 heads of 12, tied", model="XLMRobertaForMaskedLM", settings=SHAPE),
    Case(
        name="a class of a text, named",
        model="XLMRobertaForSequenceClassification",
        settings=SHAPE
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
]

"""Tiny GPT-2s."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 71,
    "n_embd": 30,
    "n_layer": 2,
    "n_head": 5,
    "n_positions": 41,
    "bos_token_id": 3,
    "eos_token_id": 3,
}
CASES = [
    Case(name="5 heads of 6, tied", model="GPT2LMHeadModel", settings=SHAPE),
    Case(
        name="untied, inner width 50, exact GELU, 3 layers",
        model="GPT2LMHeadModel",
        settings=SHAPE | {"tie_word_embeddings": False, "n_inner": 50, "activation_function": "gelu", "n_layer": 3},
    ),
    Case(
        name="a class of a text, named",
        model="GPT2ForSequenceClassification",
        settings=SHAPE
        | {"pad_token_id": 0}
        | {"id2label": {"0": "yes", "1": "no", "2": "perhaps"}, "label2id": {"yes": 0, "no": 1, "perhaps": 2}},
    ),
    Case(
        name="a class of each token",
        model="GPT2ForTokenClassification",
        settings=SHAPE | {"pad_token_id": 0} | {"num_labels": 5},
    ),
    Case(name="the ends of an answer", model="GPT2ForQuestionAnswering", settings=SHAPE | {"pad_token_id": 0}),
]

"""Tiny ESM-2s and ESM-1bs. Ids of masks are among the random ones, in another share of each row.

They are saved under the names of their class: transformers 5.23 saves norms as gamma and beta else, which it and triune read as well.
"""

from typing import Any

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 33,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "max_position_embeddings": 39,
    "position_embedding_type": "rotary",
    "pad_token_id": 1,
    "mask_token_id": 4,
    "token_dropout": True,
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
}


def _no_contacts(model: Any) -> None:
    """Ours has no part for the regression from attention weights to contacts, and an export holds zeros in its place."""
    for parameter in model.esm.contact_head.parameters():
        parameter.zero_()


SAVING = {"save_original_format": False}
CASES = [
    Case(name="ESM-2: 5 heads of 6, tied", model="EsmForMaskedLM", settings=SHAPE, prepare=_no_contacts, saving=SAVING),
    Case(
        name="rotary, another base, masks kept, embeddings normalised, untied, 3 layers, padding with 3",
        model="EsmForMaskedLM",
        settings=SHAPE
        | {"rope_theta": 500.0, "token_dropout": False, "emb_layer_norm_before": True, "tie_word_embeddings": False}
        | {"num_hidden_layers": 3, "pad_token_id": 3},
        prepare=_no_contacts,
        saving=SAVING,
    ),
    Case(
        name="ESM-1b: positions of offset 2, embeddings normalised",
        model="EsmForMaskedLM",
        settings=SHAPE | {"position_embedding_type": "absolute", "emb_layer_norm_before": True},
        prepare=_no_contacts,
        saving=SAVING,
    ),
    Case(
        name="absolute positions of offset 6, one head, untied",
        model="EsmForMaskedLM",
        settings=SHAPE
        | {"position_embedding_type": "absolute", "pad_token_id": 5, "num_attention_heads": 1, "layer_norm_eps": 1e-12}
        | {"tie_word_embeddings": False},
        prepare=_no_contacts,
        saving=SAVING,
    ),
]

"""Longformer of `transformers`, with its projections for global tokens, against ours: see test_models_parity_more.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sparse_peers import gradients, same_gradients, tied
from test_models_parity import close, fused, ids, load, peer, put, two
from test_models_parity_encoders import ELECTRA, bert_layers
from test_models_parity_more import LAYERS, SHAPE, Weights, agree, padded

from triune.attention.layout import SequenceLayout
from triune.models.factory import build


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def longformer(w: Weights) -> Weights:
    ours = {
        "embedding.weight": w["embeddings.word_embeddings.weight"],
        "input.positions.weight": w["embeddings.position_embeddings.weight"],
        "input.token_types.weight": w["embeddings.token_type_embeddings.weight"],
    }
    put(ours, "input.norm", two("embeddings.LayerNorm", w))
    bert_layers(ours, "encoder.layer", w)
    for i in range(LAYERS):
        names = [f"encoder.layer.{i}.attention.self.{name}_global" for name in ("query", "key", "value")]
        put(ours, f"stack.blocks.{i}.attention.global_query_key_value", fused(w, names))
    return ours


PAD, WINDOW = 1, 4


def longformers(pattern: str, backend: str) -> tuple[Any, Any]:
    config = transformers.LongformerConfig(
        **SHAPE, attention_window=2 * WINDOW, max_position_embeddings=64 + PAD + 1, type_vocab_size=2, pad_token_id=PAD,
        layer_norm_eps=1e-12,
    )  # fmt: skip
    theirs = peer(transformers.LongformerModel, config)
    model = build(
        ELECTRA, context=64, position={"kind": "learned", "offset": PAD + 1},
        attention={"pattern": pattern, "global_projections": True, "backend": backend},
    ).eval()  # fmt: skip
    load(model, tied(longformer(theirs.state_dict())))
    return theirs, model


@pytest.mark.parametrize("backend", ["reference", "blocked", "auto"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_longformer_with_global_projections(tokens: int, backend: str) -> None:
    theirs, model = longformers(f"window({WINDOW}, {WINDOW}) | global_tokens(first={tokens})", backend)
    x, mask, layout = padded(43, PAD)
    marks = torch.zeros_like(mask)
    marks[:, :tokens] = 1
    answer = theirs(x, attention_mask=mask, global_attention_mask=marks).last_hidden_state
    real = mask.bool()
    agree(model(x, layout), answer, real)
    expected = longformer(gradients(theirs))
    expected["embedding.weight"][PAD] = 0
    same_gradients(model, expected)


def test_longformer_with_marks_of_each_row() -> None:
    """Global tokens anywhere, another number of them in each row, and none in one."""
    theirs, model = longformers(f"window({WINDOW}, {WINDOW})", "reference")
    x, mask, _ = padded(43, PAD)
    x, mask = torch.cat([x, ids(1, 43)]), torch.cat([mask, torch.ones(1, 43, dtype=torch.long)])
    marks = torch.zeros_like(mask)
    marks[0, [0, 9, 10, 42]] = 1
    marks[1, 20] = 1
    documents, positions = np.where(mask.numpy(), 0, -1), np.where(mask.numpy(), np.arange(43), 0)
    layout = SequenceLayout.from_arrays(documents, positions, landmarks=marks.bool().numpy())
    answer = theirs(x, attention_mask=mask, global_attention_mask=marks).last_hidden_state
    agree(model(x, layout), answer, mask.bool())
    expected = longformer(gradients(theirs))
    expected["embedding.weight"][PAD] = 0
    same_gradients(model, expected)


def test_global_projections_do_nothing_where_no_token_is_global() -> None:
    theirs, model = longformers(f"window({WINDOW}, {WINDOW})", "reference")
    x = ids(2, 40)
    with torch.no_grad():
        close(model(x), theirs(x, attention_mask=torch.ones_like(x)).last_hidden_state)


def test_global_tokens_ask_within_their_document() -> None:
    """Two documents in a row are what each is alone; each has its own first tokens."""
    _, model = longformers(f"window({WINDOW}, {WINDOW}) | global_tokens(first=2)", "reference")
    first, second = ids(1, 15), ids(1, 20)
    with torch.no_grad():
        together = model(torch.cat([first, second], dim=1), SequenceLayout.packed([[15, 20]], 35))
        close(together, torch.cat([model(first), model(second)], dim=1))

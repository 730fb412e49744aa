"""BERT's relatives and ESM-2 of `transformers` against ours: see test_models_parity_more.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from sparse_peers import tied
from test_models_parity import close, fused, ids, load, peer, put, two
from test_models_parity_more import INNER, LAYERS, OURS, SHAPE, H, M, T, V, Weights, agree, padded, same_model_gradients

from triune.attention.layout import SequenceLayout
from triune.models.factory import build

E = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def bert_layers(ours: Weights, prefix: str, w: Weights) -> None:
    """Layers that have BERT's names, post-norm."""
    for i in range(LAYERS):
        a, b = f"{prefix}.{i}", f"stack.blocks.{i}"
        qkv = fused(w, [f"{a}.attention.self.{name}" for name in ("query", "key", "value")])
        put(ours, f"{b}.attention.query_key_value", qkv)
        put(ours, f"{b}.attention.output", two(f"{a}.attention.output.dense", w))
        put(ours, f"{b}.attention_residual.norm_sum", two(f"{a}.attention.output.LayerNorm", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.intermediate.dense", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.output.dense", w))
        put(ours, f"{b}.feed_forward_residual.norm_sum", two(f"{a}.output.LayerNorm", w))


def electra(w: Weights) -> Weights:
    tables = "electra.embeddings"
    ours = {
        "embedding.weight": w[f"{tables}.word_embeddings.weight"],
        "input.positions.weight": w[f"{tables}.position_embeddings.weight"],
        "input.token_types.weight": w[f"{tables}.token_type_embeddings.weight"],
    }
    put(ours, "input.norm", two(f"{tables}.LayerNorm", w))
    if "electra.embeddings_project.weight" in w:
        put(ours, "input.projection", two("electra.embeddings_project", w))
    bert_layers(ours, "electra.encoder.layer", w)
    if "generator_lm_head.bias" in w:
        put(ours, "head.dense", two("generator_predictions.dense", w))
        put(ours, "head.norm", two("generator_predictions.LayerNorm", w))
        ours["head.bias"] = w["generator_lm_head.bias"]
    else:
        put(ours, "head.dense", two("discriminator_predictions.dense", w))
        put(ours, "head", two("discriminator_predictions.dense_prediction", w))
    return ours


ELECTRA: dict[str, Any] = {
    **OURS, "family": "encoder", "context": 32, "position": {"kind": "learned"}, "token_types": 2,
    "norm": {"placement": "post", "epsilon": 1e-12, "embedding": True}, "feed_forward": {"kind": "gelu", "width": INNER},
}  # fmt: skip


@pytest.mark.parametrize("width", [E, M])
def test_electra_generator(width: int) -> None:
    config = transformers.ElectraConfig(**SHAPE, embedding_size=width, max_position_embeddings=32)
    theirs = peer(transformers.ElectraForMaskedLM, config)
    model = build(ELECTRA, embedding_width=width, head={"transform": True, "bias": True}).eval()
    load(model, tied(electra(theirs.state_dict())))
    x, mask, layout = padded(T)
    types = torch.randint(0, 2, x.shape)
    answer = theirs(x, attention_mask=mask, token_type_ids=types).logits
    agree(model.head.logits(model(x, layout, token_types=types)), answer, mask.bool())
    same_model_gradients(model, theirs, electra)


def test_electra_discriminator() -> None:
    """The hidden activation, which is that of its dense layer as well, is BigBird's GELU here, so that the option counts."""
    config = transformers.ElectraConfig(**SHAPE, embedding_size=E, max_position_embeddings=32, hidden_act="gelu_new")
    theirs = peer(transformers.ElectraForPreTraining, config)
    model = build(
        ELECTRA, embedding_width=E, feed_forward={"kind": "gelu_tanh", "width": INNER},
        head={"kind": "classes", "labels": 1, "pool": "none", "transform": True, "activation": "gelu_tanh"},
    ).eval()  # fmt: skip
    load(model, electra(theirs.state_dict()))
    x, mask, layout = padded(T)
    replaced = torch.randint(0, 2, x.shape)
    answer = theirs(x, attention_mask=mask, labels=replaced)
    hidden = model(x, layout)
    real = mask.bool()
    close(model.head.logits(hidden).squeeze(-1)[real], answer.logits.detach()[real])
    loss = model.head.loss(hidden, replaced, mask.float())
    close(loss.total / loss.weight, answer.loss.detach())
    assert loss.correct == ((answer.logits > 0) == (replaced == 1))[real].sum()
    (loss.total / loss.weight).backward()
    answer.loss.backward()
    same_model_gradients(model, theirs, electra)


def bert_head(w: Weights) -> Weights:
    base, transform = "bert.embeddings", "cls.predictions.transform"
    ours = {
        "embedding.weight": w[f"{base}.word_embeddings.weight"],
        "input.positions.weight": w[f"{base}.position_embeddings.weight"],
        "input.token_types.weight": w[f"{base}.token_type_embeddings.weight"],
        "head.bias": w["cls.predictions.bias"],
    }
    put(ours, "input.norm", two(f"{base}.LayerNorm", w))
    put(ours, "head.dense", two(f"{transform}.dense", w))
    put(ours, "head.norm", two(f"{transform}.LayerNorm", w))
    bert_layers(ours, "bert.encoder.layer", w)
    return ours


@pytest.mark.parametrize(("theirs_act", "ours_act"), [("gelu_new", "gelu_tanh"), ("silu", "silu"), ("relu", "relu")])
def test_the_activation_of_the_vocabulary_head(theirs_act: str, ours_act: str) -> None:
    """BERT's head has the hidden activation (BigBird's release: gelu_new)."""
    config = transformers.BertConfig(**SHAPE, max_position_embeddings=32, hidden_act=theirs_act)
    theirs = peer(transformers.BertForMaskedLM, config)
    model = build(
        ELECTRA, feed_forward={"kind": ours_act, "width": INNER}, head={"transform": True, "bias": True, "activation": ours_act}
    ).eval()  # fmt: skip
    load(model, tied(bert_head(theirs.state_dict())))
    x = ids(2, T)
    agree(model.head.logits(model(x)), theirs(x).logits)
    same_model_gradients(model, theirs, bert_head)


def distilbert(w: Weights) -> Weights:
    tables = "distilbert.embeddings"
    ours = {
        "embedding.weight": w[f"{tables}.word_embeddings.weight"],
        "input.positions.weight": w[f"{tables}.position_embeddings.weight"],
        "head.bias": w["vocab_projector.bias"],
    }
    put(ours, "input.norm", two(f"{tables}.LayerNorm", w))
    put(ours, "head.dense", two("vocab_transform", w))
    put(ours, "head.norm", two("vocab_layer_norm", w))
    for i in range(LAYERS):
        a, b = f"distilbert.transformer.layer.{i}", f"stack.blocks.{i}"
        put(ours, f"{b}.attention.query_key_value", fused(w, [f"{a}.attention.{name}_lin" for name in "qkv"]))
        put(ours, f"{b}.attention.output", two(f"{a}.attention.out_lin", w))
        put(ours, f"{b}.attention_residual.norm_sum", two(f"{a}.sa_layer_norm", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.ffn.lin1", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.ffn.lin2", w))
        put(ours, f"{b}.feed_forward_residual.norm_sum", two(f"{a}.output_layer_norm", w))
    return ours


def test_distilbert() -> None:
    shape = {"vocab_size": V, "dim": M, "n_layers": LAYERS, "n_heads": H, "hidden_dim": INNER}
    theirs = peer(
        transformers.DistilBertForMaskedLM, transformers.DistilBertConfig(**shape, max_position_embeddings=32)
    )
    model = build(ELECTRA, token_types=0, head={"transform": True, "bias": True}).eval()
    load(model, tied(distilbert(theirs.state_dict())))
    x, mask, layout = padded(T)
    agree(model.head.logits(model(x, layout)), theirs(x, attention_mask=mask).logits, mask.bool())
    same_model_gradients(model, theirs, distilbert)


def esm(w: Weights) -> Weights:
    ours = {"embedding.weight": w["esm.embeddings.word_embeddings.weight"], "head.bias": w["lm_head.bias"]}
    put(ours, "stack.norm", two("esm.encoder.emb_layer_norm_after", w))
    put(ours, "head.dense", two("lm_head.dense", w))
    put(ours, "head.norm", two("lm_head.layer_norm", w))
    for i in range(LAYERS):
        a, b = f"esm.encoder.layer.{i}", f"stack.blocks.{i}"
        qkv = fused(w, [f"{a}.attention.self.{name}" for name in ("query", "key", "value")])
        put(ours, f"{b}.attention.query_key_value", qkv)
        put(ours, f"{b}.attention.output", two(f"{a}.attention.output.dense", w))
        put(ours, f"{b}.attention_residual.norm_before", two(f"{a}.attention.LayerNorm", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.intermediate.dense", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.output.dense", w))
        put(ours, f"{b}.feed_forward_residual.norm_before", two(f"{a}.LayerNorm", w))
    return ours


MASK = 2


def our_esm() -> Any:
    return build(
        OURS, family="encoder", context=32, position={"kind": "rotary"}, token_dropout={"mask": MASK},
        feed_forward={"kind": "gelu", "width": INNER}, head={"transform": True, "bias": True},
    ).eval()  # fmt: skip


def test_esm() -> None:
    """Another share of masks in each row, of its real tokens only; none in the third."""
    config = transformers.EsmConfig(
        **SHAPE, max_position_embeddings=34, position_embedding_type="rotary", token_dropout=True, mask_token_id=MASK,
        pad_token_id=1, layer_norm_eps=1e-5, emb_layer_norm_before=False,
    )  # fmt: skip
    theirs = peer(transformers.EsmForMaskedLM, config)
    model = our_esm()
    load(model, tied(esm(theirs.state_dict())))
    lengths = [T, 7, T - 1]
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    x = ids(3, T).masked_fill(mask == 0, 1)
    x[0, [1, 5, 11]] = MASK
    x[1, 3] = MASK
    answer = theirs(x, attention_mask=mask).logits
    agree(model.head.logits(model(x, SequenceLayout.from_lengths(lengths, T))), answer, mask.bool())
    same_model_gradients(model, theirs, esm)


def test_the_share_of_masks_is_a_documents() -> None:
    """Documents packed into a row are scaled as each alone; a row without padding as any other. Bound: one row's sums, reordered."""
    model = our_esm()
    first, second = ids(1, 5), ids(1, 7)
    first[0, 2] = MASK
    second[0, [0, 3, 4, 6]] = MASK
    with torch.no_grad():
        together = model(torch.cat([first, second], dim=1), SequenceLayout.packed([[5, 7]], T))
        close(together, torch.cat([model(first), model(second)], dim=1))
        close(model(first), model(first, SequenceLayout.from_lengths([5], 5)))
        masked = torch.full((1, 4), MASK)
        assert torch.isfinite(model(masked)).all()  # of nothing but masks nothing is left to scale


def test_bert_pooler_and_classes() -> None:
    """A classifier of rows: BERT's is dense + tanh on the first token, then the classes; the loss is that of the scores."""
    config = transformers.BertConfig(**SHAPE, max_position_embeddings=32, num_labels=3)
    theirs = peer(transformers.BertForSequenceClassification, config)

    def mapped(w: Weights) -> Weights:
        base = "bert.embeddings"
        ours = {
            "embedding.weight": w[f"{base}.word_embeddings.weight"],
            "input.positions.weight": w[f"{base}.position_embeddings.weight"],
            "input.token_types.weight": w[f"{base}.token_type_embeddings.weight"],
        }
        put(ours, "input.norm", two(f"{base}.LayerNorm", w))
        put(ours, "head.dense", two("bert.pooler.dense", w))
        put(ours, "head", two("classifier", w))
        bert_layers(ours, "bert.encoder.layer", w)
        return ours

    model = build(ELECTRA, head={"kind": "classes", "labels": 3, "transform": True}).eval()
    load(model, mapped(theirs.state_dict()))
    x, mask, layout = padded(T)
    labels = torch.tensor([2, 0])
    answer = theirs(x, attention_mask=mask, labels=labels)
    hidden = model(x, layout)
    close(model.head.logits(hidden, layout), answer.logits.detach())
    loss = model.head.loss(hidden, labels, torch.ones(2), layout=layout)
    close(loss.total / 2, F.cross_entropy(answer.logits, labels).detach())
    (loss.total / 2).backward()
    answer.loss.backward()
    same_model_gradients(model, theirs, mapped)

"""`transformers`' Reformer, a whole model, against ours with the same weights, in fp32: outputs and all gradients.

Its reversible stack is ours: two streams that start as the embedding. Its model ends with a norm over both streams side by
side, ours with their mean, so the mean of its streams before that norm is compared. Its feed-forward is chunked as ours. Its
attention has no biases; ours get zeros. Both kinds of its attention: `local` sees the own chunk and the one before, the first
chunk the last one; `lsh` is lsh(...) with the same seed (all its layers share one), both ways, in rows that hold whole chunks.
Its causal `lsh` is another rule than ours (docs/routed-attention.md).
Tolerances: test_models_parity.py for outputs, sparse_peers.py for gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from sparse_peers import LAYERS, Blocks, F, H, M, V, backward, gradients, same_gradients, tied
from test_models_parity import close, load, peer, put, two
from torch import Tensor

from triune.attention import causal
from triune.attention.layout import SequenceLayout
from triune.models.factory import build

LENGTH, CHUNK = 24, 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


BUCKETS, ROUNDS, SEED = 4, 2, 3
LSH = f"lsh(buckets={BUCKETS}, chunk={CHUNK}, causal=False, rounds={ROUNDS}, seed={SEED})"


def their_model(kind: str, causal_: bool) -> Any:
    config = transformers.ReformerConfig(
        vocab_size=V, hidden_size=M, num_attention_heads=H, attention_head_size=M // H, feed_forward_size=F,
        hidden_act="gelu", attn_layers=[kind] * LAYERS, local_attn_chunk_length=CHUNK,
        lsh_attn_chunk_length=CHUNK, num_hashes=ROUNDS, num_buckets=BUCKETS, hash_seed=SEED, is_decoder=causal_,
        axial_pos_embds=False, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, chunk_size_feed_forward=6,
        local_attention_probs_dropout_prob=0.0, lsh_attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
    )  # fmt: skip
    return peer(transformers.ReformerModel, config)


def streams(theirs: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """[B, T, M]: the mean of both streams before the last norm."""
    seen = []
    hook = theirs.encoder.layer_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    theirs(ids, attention_mask=mask)
    hook.remove()
    return (seen[0][..., :M] + seen[0][..., M:]) / 2


def mapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of theirs under the names of ours."""
    ours = {
        "embedding.weight": tensors["embeddings.word_embeddings.weight"],
        "input.positions.weight": tensors["embeddings.position_embeddings.embedding.weight"],
    }
    for i in range(LAYERS):
        a, b = f"encoder.layers.{i}", f"stack.blocks.{i}"
        heads = [f"{a}.attention.self_attention.{name}.weight" for name in ("query", "key", "query_key", "value")]
        ours[f"{b}.attention.query_key_value.weight"] = torch.cat([tensors[name] for name in heads if name in tensors])
        ours[f"{b}.attention.output.weight"] = tensors[f"{a}.attention.output.dense.weight"]
        put(ours, f"{b}.attention_residual.norm_before", two(f"{a}.attention.layer_norm", tensors))
        put(ours, f"{b}.feed_forward_residual.norm_before", two(f"{a}.feed_forward.layer_norm", tensors))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.feed_forward.dense.dense", tensors))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.feed_forward.output.dense", tensors))
    return ours


def our_model(theirs: Any, kind: str, causal_: bool, reversible: bool = True, backend: str = "reference") -> Any:
    model = build(
        {}, family="encoder", vocabulary=V, context=LENGTH, width=M, layers=LAYERS, heads=H, reversible=reversible,
        position={"kind": "learned"}, feed_forward={"kind": "gelu", "width": F, "chunk": 5},
        norm={"placement": "pre", "epsilon": 1e-12, "final": False},
        attention={"pattern": LSH if kind == "lsh" else "full()", "backend": backend},
    ).eval()  # fmt: skip
    zeros = {
        f"stack.blocks.{i}.attention.{name}.bias": torch.zeros(size)
        for i in range(LAYERS)
        for name, size in (("query_key_value", (2 if kind == "lsh" else 3) * M), ("output", M))
    }
    load(model, tied(mapped(theirs.state_dict()) | zeros))
    chunks = LENGTH // CHUNK
    pattern = Blocks(CHUNK, tuple(((chunk - 1) % chunks, chunk) for chunk in range(chunks)))
    for block in model.stack.blocks if kind == "local" else ():
        block.attention.pattern = pattern & causal() if causal_ else pattern
    return model


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    ("kind", "causal_", "lengths"),
    [("local", False, [24, 17]), ("local", True, [24, 17]), ("lsh", False, [24, 24])],
    ids=["local", "local, causal", "lsh"],
)
def test_reversible_stack(kind: str, causal_: bool, lengths: list[int], backend: str) -> None:
    theirs = their_model(kind, causal_).train()  # it recomputes in training mode only; nothing is dropped
    ours = our_model(theirs, kind, causal_, backend=backend)
    ids = torch.randint(3, V, (2, LENGTH))
    real = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    answer = streams(theirs, ids, real.long())
    hidden = ours(ids, SequenceLayout.from_lengths(lengths, LENGTH))
    close(hidden[real], answer.detach()[real])
    backward(hidden, answer, real)
    same_gradients(ours, mapped(gradients(theirs)))


def test_one_stream_is_another_function() -> None:
    """The same weights without `reversible` give something else, so that the test above tells them apart."""
    theirs = their_model("local", False).train()
    ids = torch.randint(3, V, (1, LENGTH))
    with torch.no_grad():
        answer = streams(theirs, ids, torch.ones_like(ids))
        hidden = our_model(theirs, "local", False, reversible=False)(ids)
    assert float((hidden - answer).abs().max()) > 0.01 * float(answer.abs().max())

"""Our LSH attention layer against transformers' Reformer layer with the same weights and rotations.

Legend: B batch, T length, H heads, D head width, M model width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from triune.attention.layout import SequenceLayout
from triune.attention.routed.patterns import lsh
from triune.models.factory import resolve
from triune.models.layers.attention import MultiHeadAttention, Surroundings

torch.set_num_threads(1)
M, H, D = 32, 4, 8
#: Both compute in fp32: 40 products a projection and 8 a score, scores below 30, 100 terms a row: 30 x 2 x 2^-24 x sqrt(100) =
#: 4e-5 of values below 5. A token in another bucket would change outputs by 1e-2 and more.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def theirs(*, buckets: int, chunk: int, rounds: int, seed: int, decoder: bool = False) -> LSHSelfAttention:
    config = ReformerConfig(
        hidden_size=M,
        num_attention_heads=H,
        attention_head_size=D,
        num_buckets=buckets,
        num_hashes=rounds,
        lsh_attn_chunk_length=chunk,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        hash_seed=seed,
        is_decoder=decoder,
    )
    layer = LSHSelfAttention(config, layer_idx=0).eval()
    for weight in layer.parameters():
        nn.init.normal_(weight, 0.0, 0.3)
    return layer


def ours(peer: LSHSelfAttention, *, causal: bool = False, backend: str = "auto") -> MultiHeadAttention:
    """The layer with the peer's weights, and an output projection that does nothing."""
    config = resolve(
        {"width": M, "heads": H, "position": {"kind": "none"}, "bias": False, "attention": {"backend": backend}}
    )
    settings = peer.config
    pattern = lsh(
        buckets=settings.num_buckets,
        chunk=settings.lsh_attn_chunk_length,
        rounds=settings.num_hashes,
        causal=causal,
        seed=settings.hash_seed,
    )
    layer = MultiHeadAttention(config, pattern).eval()
    with torch.no_grad():
        layer.query_key_value.weight.copy_(torch.cat([peer.query_key.weight, peer.value.weight]))
        layer.output.weight.copy_(torch.eye(M))
    return layer


def run(layer: Any, hidden: Tensor, **options: Any) -> Tensor:
    if isinstance(layer, LSHSelfAttention):
        return layer(hidden, **options).hidden_states
    layout = SequenceLayout.plain_rows(*hidden.shape[:2]) if not options else options["layout"]
    return layer(hidden, Surroundings(query_layout=layout, key_layout=layout))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("buckets", "chunk", "rounds", "length"),
    [(4, 8, 1, 32), (4, 8, 2, 64), (8, 4, 4, 48), (2, 16, 3, 32), (16, 8, 3, 96), (6, 8, 2, 8), (4, 50, 2, 20)],
)
def test_outputs_and_gradients_equal_transformers_both_ways(
    backend: str, buckets: int, chunk: int, rounds: int, length: int
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        peer = theirs(buckets=buckets, chunk=chunk, rounds=rounds, seed=seed)
        layer = ours(peer, backend=backend)
        hidden, weights = torch.randn(2, length, M), torch.randn(2, length, M)
        results = []
        for each in (peer, layer):
            leaf = hidden.clone().requires_grad_()
            output = run(each, leaf)
            (output * weights).sum().backward()
            results.append((output, leaf.grad))
        torch.testing.assert_close(results[1][0], results[0][0], **CLOSE)
        # sums over 3 M products of gradients with weights of 0.3, some 10 times the outputs
        torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-3)
        mine = layer.query_key_value.weight.grad
        their = torch.cat([peer.query_key.weight.grad, peer.value.weight.grad])
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-3)


def test_padding_equals_transformers() -> None:
    """Padding has a bucket of its own, sorted last, in both; as much of it as fills the last chunk, as their model has it."""
    torch.manual_seed(0)
    peer = theirs(buckets=4, chunk=8, rounds=2, seed=3)
    hidden = torch.randn(2, 40, M)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[:, 35:] = 0
    layout = SequenceLayout.from_lengths([35, 35], 40)
    want = run(peer, hidden, attention_mask=mask)[:, :35]
    torch.testing.assert_close(run(ours(peer), hidden, layout=layout)[:, :35], want, **CLOSE)


def changes(layer: Any, hidden: Tensor, j: int) -> float:
    """How much outputs before j change when token j does."""
    other = hidden.clone()
    other[:, j] = torch.randn_like(other[:, j]) * 3
    with torch.no_grad():
        return float((run(layer, hidden) - run(layer, other))[:, :j].abs().max())


def test_transformers_causal_layer_looks_ahead_and_ours_does_not() -> None:
    """A later token moves the borders of their chunks, and so which earlier tokens meet. Why ours differs, causal."""
    torch.manual_seed(0)
    peer = theirs(buckets=4, chunk=8, rounds=2, seed=0, decoder=True)
    layer = ours(peer, causal=True)
    hidden = torch.randn(2, 64, M)
    assert max(changes(peer, hidden, j) for j in range(32, 64)) > 0.1
    # ours: the same terms in another order, 16 terms of values below 5: 16 x 2^-24 x 5 x 4 = 2e-5
    assert max(changes(layer, hidden, j) for j in range(1, 64)) < 2e-5

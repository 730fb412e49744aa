"""What jobs/bench/attention_cost.py sets beside each other: ours and its peers, each as one forward pass over plain rows.

Every contender is a function of keyword arguments that JSON can carry (a process of its own measures its memory) and gives
a `Work`. All are fp32, batch 1, in training mode with nothing dropped, unpadded, and start from torch's seed.
Legend: T length, H heads, D head width, M model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BigBirdConfig, BigBirdModel, LongformerConfig, ReformerConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.big_bird.modeling_big_bird import BigBirdLayer
from transformers.models.longformer.modeling_longformer import LongformerLayer
from transformers.models.reformer.modeling_reformer import ReformerEncoder, ReformerLayer

from triune.attention import SequenceLayout, attend, parse
from triune.models.factory import build

WIDTH, HEADS = 384, 6  # of a layer
ATTENTION_HEADS, HEAD_WIDTH = 8, 64  # of attention alone
_SHAPE = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH, "hidden_act": "gelu"}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True, eq=False)
class Work:
    """One forward pass; `leaves` are its inputs and parameters, `gradient` is what comes back, of the output's shape."""

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    gradient: Tensor

    def step(self) -> None:
        """Forward and backward; gradients add up in the leaves."""
        self.forward().backward(self.gradient)

    def forget(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def touch(self) -> None:
        """Gradients in memory before anything is measured: what is measured then are activations and working space."""
        for leaf in self.leaves:
            leaf.grad = torch.ones_like(leaf)


def _of_module(module: nn.Module, length: int, forward: Callable[[Tensor], Tensor]) -> Work:
    """A layer over hidden states [1, T, M]."""
    module.train()
    hidden = torch.randn(1, length, WIDTH).requires_grad_()
    return Work(lambda: forward(hidden), (hidden, *module.parameters()), torch.randn(1, length, WIDTH))


def _heads(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and the output's gradient, [1, H, T, D]."""
    query, key, value = (torch.randn(1, ATTENTION_HEADS, length, HEAD_WIDTH).requires_grad_() for _ in range(3))
    return query, key, value, torch.randn(1, ATTENTION_HEADS, length, HEAD_WIDTH)


def attention(*, length: int, pattern: str, backend: str) -> Work:
    """Ours, attention alone."""
    query, key, value, gradient = _heads(length)
    chosen = parse(pattern)
    return Work(
        lambda: attend(query, key, value, pattern=chosen, training=True, backend=backend),
        (query, key, value),
        gradient,
    )


def dense_attention(*, length: int, causal: bool = False) -> Work:
    """torch's dense attention without a mask, attention alone."""
    query, key, value, gradient = _heads(length)
    return Work(
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal), (query, key, value), gradient
    )


def layer(
    *, length: int, pattern: str, backend: str, layers: int = 1, norm: str = "post", reversible: bool = False
) -> Work:
    """Ours: `layers` blocks (attention, feed-forward, norms) of an encoder, or of a decoder where the pattern is causal."""
    model = build(
        {}, family="decoder" if parse(pattern).is_causal else "encoder", vocabulary=64, context=length, width=WIDTH,
        layers=layers, heads=HEADS, position={"kind": "none"}, attention={"pattern": pattern, "backend": backend},
        norm={"placement": norm, "final": False}, feed_forward={"kind": "gelu", "width": 4 * WIDTH}, reversible=reversible,
    )  # fmt: skip
    layout = SequenceLayout.plain_rows(1, length)
    return _of_module(model.stack, length, lambda hidden: model.stack(hidden, layout))  # type: ignore[union-attr]


def longformer(*, length: int, window: int, tokens: int) -> Work:
    """transformers' LongformerLayer; `window` in all, the first `tokens` global (with projections of their own)."""
    config = LongformerConfig(**_SHAPE, **_NO_DROPOUT, attention_window=[window], num_hidden_layers=1)
    module = LongformerLayer(config)
    mask = torch.zeros(1, length)
    mask[:, :tokens] = torch.finfo(torch.float32).max  # as its model marks them
    marks = {
        "attention_mask": mask,
        "is_index_masked": mask < 0,
        "is_index_global_attn": mask > 0,
        "is_global_attn": True,
    }
    return _of_module(module, length, lambda hidden: module(hidden, **marks)[0])


def bigbird(*, length: int, block: int, random: int) -> Work:
    """transformers' BigBirdLayer, block_sparse: a band of 3 blocks, the first and the last global, `random` drawn."""
    config = BigBirdConfig(
        **_SHAPE,
        **_NO_DROPOUT,
        attention_type="block_sparse",
        block_size=block,
        num_random_blocks=random,
        max_position_embeddings=max(length, 4096),
    )
    module = BigBirdLayer(config, seed=0)
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, length), block)
    masks = {"band_mask": band, "from_mask": rows, "to_mask": columns, "blocked_encoder_mask": blocked}
    return _of_module(module, length, lambda hidden: module(hidden, **masks))


def bert(*, length: int) -> Work:
    """transformers' BertLayer over torch's dense attention."""
    config = BertConfig(**_SHAPE, **_NO_DROPOUT)
    config._attn_implementation = "sdpa"
    module = BertLayer(config)

    def forward(hidden: Tensor) -> Tensor:
        found = module(hidden)
        return found[0] if isinstance(found, tuple) else found

    return _of_module(module, length, forward)


def _reformer_config(length: int, chunk: int, rounds: int, buckets: int, causal: bool, layers: int) -> ReformerConfig:
    """With `buckets` as its model would factor them: over twice the chunk in two factors."""
    bits = buckets.bit_length() - 1
    assert buckets == 2**bits
    return ReformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_head_size=WIDTH // HEADS, feed_forward_size=4 * WIDTH,
        hidden_act="gelu", attn_layers=["lsh"] * layers, lsh_attn_chunk_length=chunk, num_hashes=rounds,
        num_buckets=[2 ** (bits // 2), 2 ** (bits - bits // 2)] if buckets > 2 * chunk else buckets, is_decoder=causal,
        axial_pos_embds=False, max_position_embeddings=length, hidden_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def reformer(*, length: int, chunk: int, rounds: int, buckets: int, causal: bool) -> Work:
    """transformers' ReformerLayer as an ordinary layer: its attention and feed-forward, each with its norm and residual.

    Its own `forward` records no graph (it is made for the reversible walk, `reversible_reformer`).
    """
    module = ReformerLayer(_reformer_config(length, chunk, rounds, buckets, causal, 1))

    def forward(hidden: Tensor) -> Tensor:
        hidden = hidden + module.attention(hidden).hidden_states
        return hidden + module.feed_forward(hidden)

    return _of_module(module, length, forward)


def reversible_reformer(*, length: int, chunk: int, rounds: int, buckets: int, causal: bool, layers: int) -> Work:
    """transformers' ReformerEncoder: reversible layers and a norm over both streams, of which the first M are given back."""
    module = ReformerEncoder(_reformer_config(length, chunk, rounds, buckets, causal, layers))
    return _of_module(module, length, lambda hidden: module(hidden).hidden_states[..., :WIDTH])


CONTENDERS: dict[str, Callable[..., Work]] = {
    made.__name__: made
    for made in (attention, dense_attention, layer, longformer, bigbird, bert, reformer, reversible_reformer)
}


@dataclass(frozen=True)
class Case:
    """A contender with its arguments, and what the tables call it."""

    label: str
    contender: str
    arguments: tuple[tuple[str, Any], ...]

    def make(self, **changed: Any) -> Work:
        torch.manual_seed(0)
        return CONTENDERS[self.contender](**(dict(self.arguments) | changed))


def case(label: str, contender: Callable[..., Work], **arguments: Any) -> Case:
    return Case(label, contender.__name__, tuple(arguments.items()))


def bigbird_pattern(length: int, block: int, random: int) -> str:
    """Ours nearest to BigBird's: as many keys of a band and as many random blocks; the first and the last block global.

    Its random blocks spare the band and the global blocks, ours may meet them.
    """
    last = list(range(length - block, length))
    among = 2 ** (-(-length // block) - 1).bit_length()
    return (
        f"window({3 * block // 2}, {3 * block // 2 - 1}) | global_tokens(first={block}) | global_tokens(indices={last}) | "
        f"random_blocks({block}, {random}, among={among})"
    )

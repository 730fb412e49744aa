"""What BERT's relatives share: the names of a layer's tensors, and the buffer of position ids."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from triune.exchange.mapping import Entry, Fixed, each_layer, module
from triune.models.config import ModelConfig

POST = ("norm_sum", "attention.output.LayerNorm", "output.LayerNorm")
PRE = ("norm_before", "attention.LayerNorm", "LayerNorm")


def bert_layers(config: ModelConfig, layer: str, norms: tuple[str, str, str] = POST) -> Iterator[Entry]:
    """The entries of all layers.

    Args:
        config: the model.
        layer: their prefix of a layer, with `{layer}` for its number.
        norms: our name of each sublayer's norm, their name of attention's, and of the feed-forward's: `POST` or ESM's `PRE`.
    """
    block, (ours, first, second) = "stack.blocks.{layer}", norms
    attention = {f"{layer}.attention.self.{name}": config.width for name in ("query", "key", "value")}
    entries = [
        *module(f"{block}.attention.query_key_value", attention),
        *module(f"{block}.attention.output", f"{layer}.attention.output.dense"),
        *module(f"{block}.attention_residual.{ours}", f"{layer}.{first}"),
        *module(f"{block}.feed_forward.up", f"{layer}.intermediate.dense"),
        *module(f"{block}.feed_forward.down", f"{layer}.output.dense"),
        *module(f"{block}.feed_forward_residual.{ours}", f"{layer}.{second}"),
    ]
    return each_layer(config.layers, entries)


def position_ids(embeddings: str, rows: int) -> Fixed:
    """0, 1, ... [1, rows], which older files hold."""
    return Fixed(f"{embeddings}.position_ids", lambda: torch.arange(rows).unsqueeze(0))

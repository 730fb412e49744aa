"""Decoder-only transformers (GPT-2, Llama). Legend: B batch, T length, M model width."""

from __future__ import annotations

from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import ModelConfig
from triune.models.heads import build_head
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.embedding import InputEmbedding, embed, plain_rows
from triune.models.stack import Stack


class Decoder(nn.Module):
    """A stack in which every position sees itself and the past."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = embed(config)
        self.input = InputEmbedding(config)
        self.stack = Stack(config, layers=config.layers, decoder=True)
        self.head = build_head(config, self.embedding)

    def forward(
        self,
        inputs: Tensor,
        layout: SequenceLayout | None = None,
        *,
        token_types: Tensor | None = None,
        source: Tensor | None = None,
        source_layout: SequenceLayout | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """[B, T] int64 ids -> [B, T, M] hidden states after the final norm.

        Args:
            inputs: ids; with a cache, those that follow the ones it holds.
            layout: where each token belongs; None is one unpadded document a row or, with a cache, its continuation.
            token_types: [B, T] int64 segment of each token; None is segment 0.
            source: refused, as is its layout: a decoder reads one row.
            source_layout: see `source`.
            cache: keys and values of the tokens before, to which these are added.
        """
        if source is not None or source_layout is not None:
            raise UserError("a decoder reads one row: it takes no source (use family: encoder_decoder)")
        seen = 0 if cache is None else cache.length
        if cache is not None:
            layout = cache.extend(layout, inputs)
        layout = layout or plain_rows(inputs)
        return self.stack(self.input(self.embedding(inputs), layout, token_types, seen), layout, cache=cache)

    def new_cache(self, batch: int, capacity: int = 0) -> KeyValueCache:
        """An empty cache for `batch` rows, with room for `capacity` tokens a row before it has to grow."""
        return self.stack.new_cache(batch, capacity)

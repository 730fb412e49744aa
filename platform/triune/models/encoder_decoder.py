"""Encoder-decoder transformers (2017, T5, BART). Legend: B batch, T target length, S source length, M model width."""

from __future__ import annotations

from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.models.config import ModelConfig
from triune.models.heads import build_head
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.embedding import InputEmbedding, embed, plain_rows
from triune.models.stack import Stack


class EncoderDecoder(nn.Module):
    """A stack that reads the source both ways, and one that writes the target left to right while attending to it.

    Both share the token table. A document of the target sees the document of the same number in the source.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = embed(config)
        self.encoder_input = InputEmbedding(config)
        self.encoder = Stack(config, layers=config.layers, decoder=False)
        self.decoder_input = InputEmbedding(config)
        self.decoder = Stack(config, layers=config.resolved_decoder_layers, decoder=True, cross=True)
        self.head = build_head(config, self.embedding)

    def encode(self, source: Tensor, source_layout: SequenceLayout | None = None) -> Tensor:
        """[B, S] int64 ids -> [B, S, M] memory for the decoder."""
        source_layout = source_layout or plain_rows(source)
        return self.encoder(self.encoder_input(self.embedding(source), source_layout), source_layout)

    def forward(
        self,
        inputs: Tensor,
        layout: SequenceLayout | None = None,
        *,
        source: Tensor | None = None,
        source_layout: SequenceLayout | None = None,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """[B, T] int64 ids of the target -> [B, T, M] hidden states after the final norm.

        Args:
            inputs: target ids, shifted right; with a cache, those that follow the ones it holds.
            layout: where each target token belongs; None is one unpadded document a row or, with a cache, its continuation.
            source: [B, S] int64 ids that the encoder reads.
            source_layout: where each source token belongs; None is one unpadded document a row.
            memory: [B, S, M] what `encode` gave, in place of `source`; not needed again once a cache has seen it.
            cache: keys and values of the target tokens before and of the memory.

        Raises ValueError unless exactly one of source, memory or a used cache says what to attend to.
        """
        remembered = cache is not None and cache.source_layout is not None
        if (source is not None) + (memory is not None) + remembered != 1:
            raise ValueError("give exactly one of source, memory or a cache that has seen the memory")
        if cache is not None and cache.source_layout is not None:
            source_layout = cache.source_layout
        elif source is not None:
            source_layout = source_layout or plain_rows(source)
            memory = self.encode(source, source_layout)
        elif memory is not None:
            source_layout = source_layout or plain_rows(memory)
        seen = 0 if cache is None else cache.length
        if cache is not None:
            cache.source_layout = source_layout
            layout = cache.extend(layout, inputs)
        layout = layout or plain_rows(inputs)
        hidden = self.decoder_input(self.embedding(inputs), layout, seen=seen)
        return self.decoder(hidden, layout, memory=memory, memory_layout=source_layout, cache=cache)

    def new_cache(self, batch: int, capacity: int = 0) -> KeyValueCache:
        """An empty cache for `batch` rows, with room for `capacity` target tokens a row before it has to grow."""
        return self.decoder.new_cache(batch, capacity)

"""Encoder-only transformers (BERT, RoBERTa, ModernBERT, ViT). Legend: B batch, T length, M model width, C channels."""

from __future__ import annotations

from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import ModelConfig
from triune.models.heads import build_head
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.embedding import InputEmbedding, drop_masked, embed, plain_rows
from triune.models.stack import Stack


class Encoder(nn.Module):
    """A stack in which every position sees both ways."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = embed(config)
        self.input = InputEmbedding(config)
        self.stack = Stack(config, layers=config.layers, decoder=False)
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
        """[B, T] int64 ids, or [B, C, height, width] images, -> [B, T, M] hidden states after the final norm.

        Args:
            inputs: ids; with model.input.kind patches images, which make T positions: the class token, then the patches.
            layout: where each token belongs; None is one unpadded document a row.
            token_types: [B, T] int64 segment of each token (BERT); None is segment 0.
            source: refused, as is its layout: an encoder reads one row.
            source_layout: see `source`.
            cache: refused: every token sees those after it, so that none can be computed ahead of them.
        """
        if source is not None or source_layout is not None or cache is not None:
            raise UserError(
                "an encoder reads one row at once: it takes no source (use family: encoder_decoder) and no cache"
            )
        vectors = self.embedding(inputs)
        layout = layout or plain_rows(vectors)
        dropped = self.config.token_dropout
        if dropped is not None and dropped.mask is not None:
            vectors = drop_masked(vectors, inputs == dropped.mask, layout, dropped.rate)
        return self.stack(self.input(vectors, layout, token_types), layout)

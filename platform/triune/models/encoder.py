"""Encoder-only transformers (BERT, RoBERTa, ModernBERT). Legend: B batch, T length, M model width."""

from __future__ import annotations

from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import ModelConfig
from triune.models.heads import VocabularyHead
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.embedding import InputEmbedding, TokenEmbedding, plain_rows
from triune.models.stack import Stack


class Encoder(nn.Module):
    """A stack in which every position sees both ways."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocabulary is not None
        self.config = config
        self.embedding = TokenEmbedding(config.vocabulary, config.width)
        self.input = InputEmbedding(config)
        self.stack = Stack(config, layers=config.layers, decoder=False)
        self.head = VocabularyHead(config, self.embedding.weight if config.tie_embeddings else None)

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
            inputs: ids.
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
        layout = layout or plain_rows(inputs)
        return self.stack(self.input(self.embedding(inputs), layout, token_types), layout)

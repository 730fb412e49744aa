"""What the first block reads. Legend: B batch, T length, M model width."""

from __future__ import annotations

from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import LearnedPosition, ModelConfig, SinusoidalPosition
from triune.models.layers.norm import build_norm
from triune.models.layers.position import sinusoidal


class TokenEmbedding(nn.Embedding):
    """The token table [V, M]; towers and the head may share it."""

    weight: nn.Parameter


class InputEmbedding(nn.Module):
    """Token vectors, scaled, plus positions, plus token types, normalised, with dropout: what a stack reads.

    The token table itself belongs to the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = int(config.context)  # torch 2.11 compiles no comparison of a subclass of int
        self.position = config.position
        self.scale = config.width**0.5 if config.scale_embeddings else 1.0
        self.offset = config.position.offset if isinstance(config.position, LearnedPosition) else 0
        learned = isinstance(config.position, LearnedPosition)
        self.positions = nn.Embedding(config.context + self.offset, config.width) if learned else None
        self.token_types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = build_norm(config.norm, config.width) if config.norm.embedding else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, vectors: Tensor, layout: SequenceLayout, token_types: Tensor | None = None, seen: int = 0
    ) -> Tensor:
        """[B, T, M] token vectors -> [B, T, M].

        Args:
            vectors: rows of the token table.
            layout: where each token belongs.
            token_types: [B, T] int64 segment of each token; None is segment 0.
            seen: tokens of the row that a cache holds already.

        Raises UserError where a row is longer than the learned position table.
        """
        hidden = vectors * self.scale if self.scale != 1.0 else vectors
        where = layout.positions[:1] if layout.plain else layout.positions  # [1, T] or [B, T]
        if self.positions is not None:
            self._check_length(seen + vectors.shape[1])
            hidden = hidden + self.positions(where + self.offset)
        elif isinstance(self.position, SinusoidalPosition):
            hidden = hidden + sinusoidal(where, vectors.shape[-1], self.position.base).to(hidden.dtype)
        if self.token_types is not None:
            hidden = hidden + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        elif token_types is not None:
            raise UserError("token types were given to a model without them: set model.token_types (BERT: 2)")
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.dropout(hidden)

    def _check_length(self, length: int) -> None:
        if length > self.context:
            raise UserError(
                f"a row of {length} tokens is longer than model.context = {self.context}, the size of the learned "
                "position table: give shorter rows, or a model with a larger context or another kind of position"
            )


def plain_rows(tokens: Tensor) -> SequenceLayout:
    """The layout of [B, T] ids, or [B, T, M] vectors, of one unpadded document a row."""
    return SequenceLayout.plain_rows(tokens.shape[0], tokens.shape[1], tokens.device)

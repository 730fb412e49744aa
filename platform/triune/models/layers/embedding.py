"""What the first block reads. Legend: B batch, T length, M model width, E embedding width, N patches, C channels, P patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import LearnedPosition, ModelConfig, PatchInput, SinusoidalPosition
from triune.models.layers.linear import Linear
from triune.models.layers.norm import build_norm
from triune.models.layers.position import sinusoidal


class TokenEmbedding(nn.Embedding):
    """The token table [V, E]; towers and the head may share it."""

    weight: nn.Parameter


class PatchEmbedding(nn.Module):
    """Projected square patches of an image, row by row, after a learned class token (Dosovitskiy et al. 2021, 3.1).

    A patch is read channel by channel, each row by row, so that the weight [M, C P P] is that of a convolution of stride P
    flattened.
    """

    def __init__(self, config: PatchInput, width: int) -> None:
        super().__init__()
        self.patch = config.patch
        self.shape = (config.channels, config.image, config.image)
        self.projection = Linear(config.channels * config.patch**2, width)
        self.class_token = nn.Parameter(torch.empty(width)) if config.class_token else None

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, height, width] numbers -> [B, N, M], or [B, 1 + N, M] with a class token. UserError for another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"images are {list(images.shape)}, but model.input reads [batch, channels, height, width] = "
                f"[batch, {', '.join(map(str, self.shape))}]: resize them, or set model.input.image and channels"
            )
        grid = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)  # [B, C, rows, columns, P, P]
        patches = grid.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, N, C P P]
        vectors = self.projection(patches).to(self.projection.weight.dtype)  # the stream stays wide under autocast
        if self.class_token is None:
            return vectors
        return torch.cat([self.class_token.expand(len(images), 1, -1), vectors], dim=1)


def embed(config: ModelConfig) -> TokenEmbedding | PatchEmbedding:
    """What turns a model's inputs into vectors."""
    if isinstance(config.input, PatchInput):
        return PatchEmbedding(config.input, config.width)
    assert config.vocabulary is not None
    return TokenEmbedding(config.vocabulary, config.resolved_embedding_width)


def drop_masked(vectors: Tensor, masked: Tensor, layout: SequenceLayout, rate: float) -> Tensor:
    """Vectors of masked tokens are 0, others times (1 - rate) / (1 - share of masked tokens in their document).

    So that their sum is what it was in training, whatever the share of masks (ESM-2's release; Lin et al. 2023).

    Args:
        vectors: [B, T, E].
        masked: [B, T] bool.
        layout: where each token belongs.
        rate: share of masked tokens in training.
    """
    tokens, kept = torch.ones_like(masked, dtype=torch.long), (~masked).long()
    if layout.plain:
        tokens, kept = tokens.sum(1, keepdim=True), kept.sum(1, keepdim=True)  # [B, 1]
    else:
        place = layout.documents.long() + 1  # [B, T], padding is 0
        none = place.new_zeros(place.shape[0], place.shape[1] + 1)
        tokens, kept = (none.scatter_add(1, place, ones).gather(1, place) for ones in (tokens, kept))  # [B, T]
    wide = torch.promote_types(vectors.dtype, torch.float32)
    scale = (1 - rate) * tokens.to(wide) / kept.clamp(min=1)
    return vectors.masked_fill(masked.unsqueeze(-1), 0.0) * scale.unsqueeze(-1).to(vectors.dtype)


class InputEmbedding(nn.Module):
    """Token vectors, scaled, plus positions, plus token types, normalised, with dropout, projected: what a stack reads.

    The token table itself belongs to the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.resolved_embedding_width
        self.context = int(config.context)  # torch 2.11 compiles no comparison of a subclass of int
        self.position = config.position
        self.scale = width**0.5 if config.scale_embeddings else 1.0
        self.offset = config.position.offset if isinstance(config.position, LearnedPosition) else 0
        learned = isinstance(config.position, LearnedPosition)
        self.positions = nn.Embedding(config.context + self.offset, width) if learned else None
        self.token_types = nn.Embedding(config.token_types, width) if config.token_types else None
        self.norm = build_norm(config.norm, width) if config.norm.embedding else None
        self.dropout = nn.Dropout(config.dropout)
        self.projection = Linear(width, config.width) if width != config.width else None

    def forward(
        self, vectors: Tensor, layout: SequenceLayout, token_types: Tensor | None = None, seen: int = 0
    ) -> Tensor:
        """[B, T, E] token vectors -> [B, T, M].

        Args:
            vectors: rows of the token table, or projected patches.
            layout: where each token belongs.
            token_types: [B, T] int64 segment of each token; None is segment 0.
            seen: tokens of the row that a cache holds already.

        Raises UserError where a row is longer than the learned position table.
        """
        hidden = vectors * self.scale if self.scale != 1.0 else vectors
        where = layout.positions[:1] if layout.plain else layout.positions  # [1, T] or [B, T]
        if self.positions is not None:
            self._check_length(seen + vectors.shape[1], where)
            hidden = hidden + self.positions(where + self.offset)
        elif isinstance(self.position, SinusoidalPosition):
            table = sinusoidal(where, vectors.shape[-1], self.position.base, self.position.layout)
            hidden = hidden + table.to(hidden.dtype)
        if self.token_types is not None:
            hidden = hidden + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        elif token_types is not None:
            raise UserError("token types were given to a model without them: set model.token_types (BERT: 2)")
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)
        return hidden if self.projection is None else self.projection(hidden).to(hidden.dtype)

    def _check_length(self, length: int, where: Tensor) -> None:
        """A longer row may hold several documents, each of which counts from 0 and is short enough."""
        if length > self.context and int(where.max()) >= self.context:
            raise UserError(
                f"a row of {length} tokens is longer than model.context = {self.context}, the size of the learned "
                "position table: give shorter rows, or a model with a larger context or another kind of position"
            )


def plain_rows(tokens: Tensor) -> SequenceLayout:
    """The layout of [B, T] ids, or [B, T, M] vectors, of one unpadded document a row."""
    return SequenceLayout.plain_rows(tokens.shape[0], tokens.shape[1], tokens.device)

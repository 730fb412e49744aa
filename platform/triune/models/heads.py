"""What turns hidden states into scores, over the vocabulary or of classes, and into a loss.

Legend: B batch, T length, M model width, E embedding width, V vocabulary, L labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.models.layers.activation import ACTIVATIONS
from triune.models.layers.embedding import PatchEmbedding, TokenEmbedding
from triune.models.layers.linear import Linear
from triune.models.layers.norm import build_norm
from triune.models.loss import LossOutput, linear_cross_entropy, select


class VocabularyHead(nn.Module):
    """scale * transform(hidden) @ weight.T + bias, for masked and for next-token prediction.

    With `config.head.transform`, transform(h) = norm(gelu(h D + d)) (Devlin et al. 2019, as their release has it), of the
    embeddings' width.

    Args:
        config: the model; `config.head` and the vocabulary count here.
        embedding: [V, E] the token table to share (Press & Wolf 2017), or None for a table of the head's own.
    """

    def __init__(self, config: ModelConfig, embedding: nn.Parameter | None) -> None:
        super().__init__()
        head, width = config.head, config.vocabulary_width
        assert config.vocabulary is not None
        assert isinstance(head, HeadConfig)
        self.scale = head.scale
        self.chunk = config.loss_chunk
        self.dense = Linear(config.width, width, bias=head.transform_bias) if head.transform else None
        self.activation = ACTIVATIONS[head.activation]
        self.norm = build_norm(config.norm, width) if head.transform else None
        self.tied = embedding is not None
        self.weight = nn.Parameter(torch.empty(config.vocabulary, width)) if embedding is None else embedding
        self.bias = nn.Parameter(torch.zeros(config.vocabulary)) if head.bias else None

    def transform(self, hidden: Tensor) -> Tensor:
        """[..., M] -> [..., M], with a transform [..., E]: what is multiplied with the vocabulary."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.dense(hidden)))
        return hidden if self.scale is None else hidden * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., M] -> [..., V]."""
        return F.linear(self.transform(hidden), self.weight, self.bias)

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        selected: int | None = None,
    ) -> LossOutput:
        """Weighted sums of the loss over tokens, without ever holding all logits; see `linear_cross_entropy`.

        Args:
            hidden: [B, T, M].
            targets: [B, T] int64; any number where the weight is 0.
            weights: [B, T] at least 0; positions of weight 0 pass neither through the transform nor the vocabulary.
            label_smoothing: share of the target's probability spread evenly over the vocabulary.
            z_loss: weight of the squared log-normaliser.
            selected: number of weights above 0 (`Batch.predicted`), known on the host; without it a GPU passes every position; see `select`.
        """
        hidden, targets, weights = select(hidden, targets, weights, selected)
        return linear_cross_entropy(
            self.transform(hidden),
            self.weight,
            targets,
            weights,
            bias=self.bias,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            chunk=self.chunk,
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, vocabulary={self.weight.shape[0]}, tied={self.tied}"


class ClassHead(nn.Module):
    """transform(pooled hidden) @ weight.T + bias: scores of a row's classes, or with pool none of each token's.

    With `config.head.transform`, transform(h) = activation(h D + d) (BERT's pooler, ELECTRA's discriminator). One label is a
    yes-or-no score s, of which sigmoid(s) is the probability: the scores 0 and s of two classes. Without labels there are no scores:
    `logits` gives transform(pooled hidden) as it is.

    Args:
        config: the model; `config.head` counts here.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.head
        assert isinstance(head, ClassHeadConfig)
        self.width, self.labels = config.width, head.labels
        self.pool = head.pool
        self.chunk = config.loss_chunk
        self.dense = Linear(config.width, config.width) if head.transform else None
        self.activation = ACTIVATIONS[head.activation]
        self.weight = nn.Parameter(torch.empty(head.labels, config.width)) if head.labels else None
        self.bias = nn.Parameter(torch.zeros(head.labels)) if head.labels else None

    def transform(self, hidden: Tensor) -> Tensor:
        """[..., M] -> [..., M]: what is multiplied with the classes."""
        return hidden if self.dense is None else self.activation(self.dense(hidden))

    def pooled(self, hidden: Tensor, layout: SequenceLayout | None = None) -> Tensor:
        """[B, T, M] -> [B, M], or unchanged with pool none. Rows are one document each; ValueError for packed ones.

        Args:
            hidden: hidden states.
            layout: where each token belongs; None is unpadded rows.
        """
        if self.pool == "none":
            return hidden
        if layout is None or layout.plain:
            return hidden.mean(1) if self.pool == "mean" else hidden[:, 0 if self.pool == "first" else -1]
        if not layout.right_padded and bool((layout.documents > 0).any()):
            raise ValueError(
                f"pool: {self.pool} makes one vector of a row, but a row of this layout holds several documents"
            )
        real = ~layout.padding  # [B, T]
        if self.pool == "mean":
            share = real.to(hidden.dtype) / real.sum(1, keepdim=True).clamp(min=1)  # [B, T]
            return torch.einsum("btm,bt->bm", hidden, share)
        order = real.int() if self.pool == "first" else real.cumsum(1)  # argmax gives the first of the greatest
        return hidden[torch.arange(len(hidden), device=hidden.device), order.argmax(1)]

    def logits(self, hidden: Tensor, layout: SequenceLayout | None = None) -> Tensor:
        """[B, T, M] -> [B, L] scores (without labels [B, M]), with pool none [B, T, L]; see `pooled`."""
        vectors = self.transform(self.pooled(hidden, layout))
        return vectors if self.weight is None else F.linear(vectors, self.weight, self.bias)

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        layout: SequenceLayout | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        selected: int | None = None,
    ) -> LossOutput:
        """Weighted sums of the cross-entropy of the scores: of rows, or with pool none of tokens.

        Args:
            hidden: [B, T, M].
            targets: [B] int64 classes, with pool none [B, T]; 0 or 1 where there is one label.
            weights: at least 0, of the shape of `targets`.
            layout: where each token belongs, for the pool.
            label_smoothing: share of the target's probability spread evenly over the classes.
            z_loss: weight of the squared log-normaliser.
            selected: number of weights above 0, known on the host; see `select`.

        Raises UserError for a head without labels.
        """
        if self.weight is None or self.bias is None:
            raise UserError(
                "model.head.labels is 0, so that there is nothing to learn: set it to the number of classes"
            )
        hidden, targets, weights = select(self.pooled(hidden, layout), targets, weights, selected)
        weight, bias = (
            torch.cat([torch.zeros_like(tensor), tensor]) if len(self.weight) == 1 else tensor
            for tensor in (self.weight, self.bias)
        )
        return linear_cross_entropy(
            self.transform(hidden),
            weight,
            targets,
            weights,
            bias=bias,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            chunk=self.chunk,
        )

    def extra_repr(self) -> str:
        return f"{self.width}, labels={self.labels}, pool={self.pool}"


#: what `config.head` may build
Head = VocabularyHead | ClassHead


def build_head(config: ModelConfig, embedding: TokenEmbedding | PatchEmbedding) -> Head:
    """The head of `config.head`; one over the vocabulary shares the token table where `config.tie_embeddings`."""
    if isinstance(config.head, ClassHeadConfig):
        return ClassHead(config)
    table = embedding.weight if isinstance(embedding, TokenEmbedding) else None
    return VocabularyHead(config, table if config.tie_embeddings else None)

"""What turns hidden states into scores, over the vocabulary or of classes (`class_head.py`), and into a loss.

Legend: B batch, T length, M model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.models.class_head import ClassHead
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


#: what `config.head` may build
Head = VocabularyHead | ClassHead


def build_head(config: ModelConfig, embedding: TokenEmbedding | PatchEmbedding) -> Head:
    """The head of `config.head`; one over the vocabulary shares the token table where `config.tie_embeddings`."""
    if isinstance(config.head, ClassHeadConfig):
        return ClassHead(config)
    table = embedding.weight if isinstance(embedding, TokenEmbedding) else None
    return VocabularyHead(config, table if config.tie_embeddings else None)

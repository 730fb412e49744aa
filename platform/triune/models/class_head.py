"""Scores of a few classes, numbers, spans, or vectors to compare. Legend: B batch, T length, M model width, L labels, N examples, D documents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models import class_loss
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.models.layers.activation import ACTIVATIONS
from triune.models.layers.linear import Linear
from triune.models.layers.norm import build_norm
from triune.models.loss import LossOutput, linear_cross_entropy, select


class ClassHead(nn.Module):
    """transform(pooled hidden) @ weight.T + bias: scores of a text's classes, or with pool none of each token's.

    With `config.head.transform`, transform(h) = activation(h D + d) (BERT's pooler, ELECTRA's discriminator), and a norm after it
    (ModernBERT). One label is a yes-or-no score s, of which sigmoid(s) is the probability: the scores 0 and s of two classes.
    Without labels there are no scores: `logits` gives transform(pooled hidden) as it is.

    A batch says in either of two ways what is learned. Targets and weights [B] are of whole rows, each pooled (`logits`). Targets and
    weights [B, T] are of the positions of weight above 0 (`scores`): a position stands for itself, and with pool mean for its
    document, so that a row may hold several texts; pool first and last say where a task sets its targets.

    Args:
        config: the model; `config.head` counts here.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head = config.head
        assert isinstance(head, ClassHeadConfig)
        self.width, self.labels = config.width, head.labels
        self.pool, self.problem, self.scale = head.pool, head.problem, head.scale
        self.chunk = config.loss_chunk
        self.dense = Linear(config.width, config.width, bias=head.transform_bias) if head.transform else None
        self.activation = ACTIVATIONS[head.activation]
        self.norm = build_norm(config.norm, config.width) if head.transform and head.norm else None
        self.dropout = nn.Dropout(head.dropout)
        self.weight = nn.Parameter(torch.empty(head.labels, config.width)) if head.labels else None
        self.bias = nn.Parameter(torch.zeros(head.labels)) if head.labels and head.bias else None

    def transform(self, hidden: Tensor) -> Tensor:
        """[..., M] -> [..., M]: what is multiplied with the classes."""
        if self.dense is not None:
            hidden = self.activation(self.dense(hidden))
            hidden = hidden if self.norm is None else self.norm(hidden)
        return self.dropout(hidden)

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
        return self._scored(self.pooled(hidden, layout))

    def scores(self, hidden: Tensor, weights: Tensor, layout: SequenceLayout | None = None) -> Tensor:
        """[B, T, M] and [B, T] weights -> [N, L] scores of the positions of weight above 0, row by row."""
        return self._scored(self._standing(hidden, layout)[weights > 0])

    def vectors(self, hidden: Tensor, layout: SequenceLayout | None, count: int) -> Tensor:
        """[B, T, M] -> [B, D, M] one vector for each of a row's first D = `count` documents; 0 where a row has fewer."""
        documents = torch.zeros_like(hidden[..., 0], dtype=torch.int64) if layout is None else layout.documents.long()
        wanted = torch.arange(count, device=hidden.device).view(-1, 1)  # [D, 1]
        own = documents.unsqueeze(1) == wanted  # [B, D, T]
        if self.pool == "mean":
            pooled = _document_means(hidden, documents, count)
        else:
            order = own.int() if self.pool == "first" else own.cumsum(2)  # argmax gives the first of the greatest
            pooled = hidden.gather(1, order.argmax(2, keepdim=True).expand(-1, -1, hidden.shape[-1]))
        return self.transform(pooled) * own.any(2, keepdim=True)  # the transform of nothing is not nothing

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        layout: SequenceLayout | None = None,
        values: Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        selected: int | None = None,
    ) -> LossOutput:
        """Weighted sums of the loss that `config.head.problem` names.

        Args:
            hidden: [B, T, M].
            targets: int64, [B] of rows or [B, T] of positions. single_label: classes (0 or 1 where there is one label); multi_label,
                regression: lines of `values`; span: 1 at the start, 2 at the end, 3 where they are one token; match: not read.
            weights: at least 0, of the shape of `targets`; what counts once has weight 1 in all (a span half at each end).
            layout: where each token belongs; None is unpadded rows of one document.
            values: [K, L] 0 or 1 for multi_label, numbers for regression; match: [B, C] numbers above 0 of candidates (see `class_loss.match`).
            label_smoothing: share of the target's probability spread evenly over the classes (single_label).
            z_loss: weight of the squared log-normaliser (single_label).
            selected: number of weights above 0, known on the host; see `select`.

        Raises UserError for a head without labels that matches nothing.
        """
        if self.problem == "match":
            assert values is not None
            vectors = self.vectors(hidden, layout, 1 + values.shape[1])
            return class_loss.match(vectors, values, weights.sum(1), scale=self.scale, across=self.training)
        if self.weight is None:
            raise UserError(
                "model.head.labels is 0, so that there is nothing to learn: set it to the number of classes"
            )
        if self.problem == "span":
            padding = torch.zeros_like(targets, dtype=torch.bool) if layout is None else layout.padding
            return class_loss.span(self._scored(hidden), targets, weights, padding)
        standing = self._standing(hidden, layout) if targets.ndim == 2 else self.pooled(hidden, layout)
        hidden, targets, weights = select(standing, targets, weights, selected)
        if self.problem != "single_label":
            assert values is not None
            measure = class_loss.multi_label if self.problem == "multi_label" else class_loss.regression
            lines = torch.where(weights > 0, targets, 0)
            return measure(self._scored(hidden), values[lines], weights)
        weight, bias = (
            torch.cat([torch.zeros_like(tensor), tensor]) if tensor is not None and len(self.weight) == 1 else tensor
            for tensor in (self.weight, self.bias)
        )
        assert weight is not None
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

    def _scored(self, vectors: Tensor) -> Tensor:
        vectors = self.transform(vectors)
        return vectors if self.weight is None else F.linear(vectors, self.weight, self.bias)

    def _standing(self, hidden: Tensor, layout: SequenceLayout | None) -> Tensor:
        """[B, T, M] -> [B, T, M]: what each position stands for, itself or its document's mean."""
        if self.pool != "mean":
            return hidden
        if layout is None or layout.plain:
            return hidden.mean(1, keepdim=True).expand_as(hidden)
        documents = layout.documents.long().clamp(min=0)
        means = _document_means(hidden, layout.documents.long(), hidden.shape[1])  # [B, T, M]: at most T documents
        return means.gather(1, documents.unsqueeze(-1).expand_as(hidden))

    def extra_repr(self) -> str:
        return f"{self.width}, labels={self.labels}, pool={self.pool}, problem={self.problem}"


def _document_means(hidden: Tensor, documents: Tensor, count: int) -> Tensor:
    """[B, T, M] and [B, T] document of each token (-1: none) -> [B, D, M] means of documents 0 to D - 1; 0 where there is none."""
    place = torch.where(
        (documents >= 0) & (documents < count), documents, count
    )  # what is not asked for goes to a last line
    sums = hidden.new_zeros(len(hidden), count + 1, hidden.shape[-1])
    sums = sums.scatter_add(1, place.unsqueeze(-1).expand_as(hidden), hidden)
    tokens = hidden.new_zeros(len(hidden), count + 1).scatter_add(1, place, torch.ones_like(hidden[..., 0]))
    return (sums / tokens.clamp(min=1).unsqueeze(-1))[:, :count]

"""Settings of how a trained model is fine-tuned: which of its weights move, how fast, and through which adapter. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from triune.errors import UserError


def _everywhere() -> list[str]:
    return ["all"]


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """A low-rank update beside frozen linear layers: W x + s B A x (LoRA: Hu et al. 2022).

    Args:
        kind: lora, or dora, which also learns the length of each row of the updated matrix (Liu et al. 2024).
        rank: rows of A and columns of B, at most the smaller width of a layer.
        alpha: strength of the update: s is alpha / rank.
        rank_stabilised: s is alpha / sqrt(rank) instead, under which large ranks learn as fast as small ones (rsLoRA: Kalajdzievski 2023).
        dropout: probability of dropping an input of A in training.
        targets: layers that get one: all, attention, cross_attention, feed_forward (linear layers of the blocks), head, input, or names of modules, in which `*` stands for anything (`decoder.blocks.*.attention.output`).
    """

    kind: Literal["lora", "dora"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    rank_stabilised: bool = False
    dropout: float = 0.0
    targets: list[str] = field(default_factory=_everywhere)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"adapter.rank: {self.rank} must be 1 or more; 8 is usual")
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"adapter.alpha: {self.alpha:g} must be above 0; 2 x rank is usual")
        if not 0 <= self.dropout < 1:
            raise UserError(f"adapter.dropout: {self.dropout:g} must be 0 or more and below 1")
        if not self.targets:
            raise UserError("adapter.targets: [] leaves nothing to train; [all] is every linear layer of the blocks")

    @property
    def scale(self) -> float:
        """s: what B A is multiplied with."""
        return self.scale_at(self.rank)

    def scale_at(self, rank: int) -> float:
        """s of a layer whose adapter has another rank."""
        return self.alpha / (rank**0.5 if self.rank_stabilised else rank)


#: every adapter there is; they are told apart by `kind`
AdapterConfig = LoraAdapter


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which of a model's own weights train, and how fast.

    Args:
        freeze: what stays as it is: none, embeddings (tables of tokens, positions and token types, with their norm) or backbone (everything but the head).
        freeze_layers: first blocks of each stack that stay as they are; needs `freeze: embeddings`, which lie below them.
        layer_decay: learning rate of each block as a share of that of the block above it; the head has the whole rate, the embeddings the least (ULMFiT: Howard & Ruder 2018; ELECTRA: Clark et al. 2020). 1 is one rate for all.
    """

    freeze: Literal["none", "embeddings", "backbone"] = "none"
    freeze_layers: int = 0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"tuning.layer_decay: {self.layer_decay:g} must be above 0 and at most 1; 0.9 is usual")
        if self.freeze_layers < 0:
            raise UserError(f"tuning.freeze_layers: {self.freeze_layers} must be 0 or more")
        if self.freeze_layers and self.freeze != "embeddings":
            raise UserError(
                f"tuning.freeze_layers: {self.freeze_layers} with tuning.freeze: {self.freeze} would "
                + (
                    "train embeddings below frozen blocks; set tuning.freeze: embeddings"
                    if self.freeze == "none"
                    else "say it twice: backbone freezes all blocks; leave it at 0"
                )
            )

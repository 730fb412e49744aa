"""A frozen linear layer with a trainable low-rank update. Legend: I width in, O width out, R rank."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.models.layers.linear import Linear, product


class AdaptedLinear(Linear):
    """W x + b + s B A x with W, b frozen (LoRA: Hu et al. 2022, 4.1), or its DoRA (Liu et al. 2024, eq. 5).

    DoRA: m ∘ (W + s B A) x / |W + s B A| + b, where |·| is the length [O] of each row and m, trained, starts as |W|. Its gradient
    does not pass through |·| (section 4.3 there, and PEFT).

    A starts as torch's linear layers do (Kaiming, uniform in ± I^-0.5), B as zeros: at first the layer gives what it gave before, to
    the bit. Dropout is on the way into A only.

    The names of weight and bias are those of the plain layer; A, B and m are `lora_a` [R, I], `lora_b` [O, R], `lora_magnitude` [O].

    Args:
        layer: the plain layer, whose parameters are taken, not copied.
        rank: R.
        scale: s.
        dropout: probability of dropping an input of A in training.
        dora: learn the lengths of rows.
    """

    def __init__(self, layer: Linear, *, rank: int, scale: float, dropout: float = 0.0, dora: bool = False) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.dropout = scale, dropout
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.lora_magnitude = nn.Parameter(row_lengths(self.weight)) if dora else None
        self.train(layer.training)

    @property
    def rank(self) -> int:
        """R."""
        return self.lora_a.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        base = product(x, self.weight, self.bias)
        dropped = F.dropout(x, self.dropout) if self.training and self.dropout else x
        low = product(product(dropped, self.lora_a), self.lora_b)
        if self.lora_magnitude is None:
            return base + self.scale * low
        gain = self.lora_magnitude / row_lengths(updated(self.weight, self.lora_a, self.lora_b, self.scale))
        # base + (gain - 1) ..., not gain ...: rounded to bf16, 1.001 would be 1, but 0.001 keeps its digits
        unbiased = base if self.bias is None else base - self.bias.to(base.dtype)
        return base + (gain - 1).to(base.dtype) * unbiased + (self.scale * gain).to(base.dtype) * low

    def plain(self, *, merged: bool) -> Linear:
        """The layer without its adapter, which is folded into the weight or dropped."""
        weight, bias = self.weight, self.bias
        if merged:
            weight = nn.Parameter(folded(weight, self.lora_a, self.lora_b, self.lora_magnitude, self.scale))
        layer = Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        layer.weight, layer.bias = weight, bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        kind = "lora" if self.lora_magnitude is None else "dora"
        return f"{super().extra_repr()}, {kind} of rank {self.rank}, scale={self.scale:g}"


@torch.no_grad()
def row_lengths(weight: Tensor) -> Tensor:
    """[O, I] -> [O] Euclidean lengths, without a gradient; that of a row of zeros is the least number above 0, so that it divides."""
    return torch.linalg.vector_norm(weight, dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


@torch.no_grad()
def updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A, [O, I], without a gradient; under autocast too in the dtype of the weight."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, b, a, alpha=scale)


def folded(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None, scale: float) -> Tensor:
    """The weight [O, I] of a plain layer that gives what the adapted one gives: computed in fp64, rounded once."""
    matrix = updated(weight.double(), a.double(), b.double(), scale)
    if magnitude is not None:
        matrix *= (magnitude.detach().double() / row_lengths(matrix)).unsqueeze(1)
    return matrix.to(weight.dtype)

"""The linear layer of every block. Legend: N tokens, I width in, O width out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.attention.hardware import cpu_multiplies_bfloat16


class Linear(nn.Linear):
    """torch's linear layer, with a quicker kernel for bf16 autocast on CPUs without AMX.

    There a bf16 product takes twice the time of an fp32 one. A bf16 kernel multiplies inputs and weights rounded to bf16,
    sums in fp32 and rounds the result to bf16; this does the same through fp32's kernel, so that the precision is that
    of bf16 and so is the memory kept for the backward pass, but not the time. The gradient of the weight is not rounded.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return product(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, [..., I] -> [..., O], by the kernel of `Linear`."""
    if (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not cpu_multiplies_bfloat16()
    ):
        return _RoundedProduct.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _RoundedProduct(torch.autograd.Function):
    """round(round(x) round(W)^T + round(b)) with sums in fp32, where round is to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rounded = x.to(torch.bfloat16)
        # a frozen weight (adapters) keeps no activation for a gradient that nobody asks for
        ctx.save_for_backward(rounded if ctx.needs_input_grad[1] else None, weight)
        ctx.dtype = x.dtype
        ctx.biased = bias is not None
        with torch.autocast("cpu", enabled=False):
            shift = None if bias is None else bias.to(torch.bfloat16).float()
            return F.linear(rounded.float(), weight.to(torch.bfloat16).float(), shift).to(torch.bfloat16)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            flat = gradient.float().flatten(0, -2)  # [N, O]
            to_x = None
            if needs_x:
                to_x = (flat @ weight.to(torch.bfloat16).float()).to(ctx.dtype).unflatten(0, gradient.shape[:-1])
            to_weight = flat.t() @ x.float().flatten(0, -2) if needs_weight else None
            to_bias = flat.sum(0) if ctx.biased and needs_bias else None
        return to_x, to_weight, to_bias

"""Stochastic depth (Huang et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training, a residual branch is left out for a whole row with `probability`; kept ones are scaled by 1 / (1 - p).

    In evaluation it is the identity.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """[B, T, M] -> [B, T, M]."""
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        kept = torch.empty(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(
            keep
        )  # [B, 1, 1]
        return branch * (kept / keep)

    def extra_repr(self) -> str:
        return f"{self.probability:g}"

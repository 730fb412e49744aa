"""How positions are told apart: the sinusoidal table, rotary angles and T5's learned biases by distance.

ALiBi has no parameters and T5's buckets no model: both are score biases of `triune.attention.bias`.
Sines, cosines and frequencies are computed from positions in each forward pass and never stored, so that no cast or
move of the model can round them. Legend: B batch, T length, D head width, M model width, H heads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triune.attention.bias import T5Bias
from triune.attention.call import bias_scores
from triune.attention.layout import SequenceLayout
from triune.models.config import RotaryPosition, T5Position


def sinusoidal(positions: Tensor, width: int, base: float = 10000.0, layout: str = "interleaved") -> Tensor:
    """PE(pos, 2i) = sin(pos / base^(2i/M)), PE(pos, 2i+1) = cos(the same) (Vaswani et al. 2017, 3.5).

    With the layout "halves" the same columns stand in another order: all sines, then all cosines. Angles are fp64: of fp32 ones
    the sines would be off by 6e-8 x position, which tables of released models (Marian, Pegasus) are not.

    [...] integer -> [..., width] fp32; `width` is even.
    """
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width  # [M/2]
    angle = positions.unsqueeze(-1) * base**-exponent  # [..., M/2]
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1 if layout == "interleaved" else -2)
    return waves.flatten(-2).float()


class Rotation(NamedTuple):
    """The angles of each token, fp32 [B or 1, T, 1, turned width]: cosines twice, sines with signs -, +."""

    cosine: Tensor
    sine: Tensor


class Rotary:
    """Angles of the rotary position embedding (Su et al. 2021) for one base, with a scaling for longer contexts.

    Args:
        config: variant, scaling and fraction.
        base: base of the wavelengths (one of `config.base`).
        head_width: D; the first `fraction` of it is turned.
        context: the model's context, for a null `original_context`.
    """

    def __init__(self, config: RotaryPosition, *, base: float, head_width: int, context: int) -> None:
        self.config = config
        self.base = base
        self.width = int(head_width * config.fraction)
        self.original_context = config.original_context or round(context / config.factor)

    def __call__(self, positions: Tensor) -> Rotation:
        """[B or 1, T] integer -> angles of each token; YaRN's temperature is in them as a factor."""
        angle = (positions.unsqueeze(-1) * self.frequencies(positions.device)).unsqueeze(-2)  # [B or 1, T, 1, D/2]
        magnitude = 0.1 * math.log(self.config.factor) + 1.0 if self.config.scaling == "yarn" else 1.0
        cosine, sine = angle.cos() * magnitude, angle.sin() * magnitude
        return Rotation(torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1))

    def frequencies(self, device: torch.device | str = "cpu") -> Tensor:
        """[D/2] fp32: radians a position, longest wavelength last."""
        factor, scaling = self.config.factor, self.config.scaling
        base = self.base
        if scaling == "ntk":  # the base grows so that the longest wavelength grows by `factor`, the shortest stays
            base = base * factor ** (self.width / (self.width - 2))
        exponent = torch.arange(0, self.width, 2, dtype=torch.float32, device=device) / self.width
        frequency = (
            1.0 / base**exponent
        )  # as releases have it: base**-exponent is another last bit, 2e-4 radians at 2,048
        if scaling == "linear":  # Chen et al. 2023: positions are interpolated
            return frequency / factor
        if scaling == "yarn":
            return torch.lerp(frequency, frequency / factor, self._yarn_ramp(device))
        if scaling == "llama3":
            return torch.lerp(frequency / factor, frequency, self._llama3_ramp(frequency))
        return frequency

    def _yarn_ramp(self, device: torch.device | str) -> Tensor:
        """[D/2] 0 where a pair turns more than 32 times in the original context, 1 where less than once (Peng et al. 2023, 3.2)."""

        def pair(turns: float) -> float:
            return self.width * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), self.width - 1)
        index = torch.arange(self.width // 2, dtype=torch.float32, device=device)
        return ((index - low) / max(high - low, 1e-3)).clamp(0, 1)

    def _llama3_ramp(self, frequency: Tensor) -> Tensor:
        """[D/2] 0 where the wavelength is beyond the original context, 1 where below a quarter of it (Llama 3.1's release)."""
        turns = self.original_context * frequency / (2 * math.pi)
        return ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)


class _Turn(torch.autograd.Function):
    """x cos + swap(x) sin, where swap exchanges the halves of the last dimension. Its gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradients[0], cosine, -sine), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return (x * cosine).add_(x.roll(x.shape[-1] // 2, dims=-1).mul_(sine))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (i, i + turned width / 2) of the last dimension by its token's angle.

    [B, T, heads, D] -> the same shape and dtype; numbers beyond the turned width stay.
    """
    cosine, sine = rotation.cosine.to(x.dtype), rotation.sine.to(x.dtype)
    width = cosine.shape[-1]
    turn = _Turn.apply if torch.is_grad_enabled() else _turn  # a node of autograd costs more than a single token's turn
    if width == x.shape[-1]:
        return turn(x, cosine, sine)
    return torch.cat([turn(x[..., :width], cosine, sine), x[..., width:]], dim=-1)


class RelativeBias(nn.Module):
    """T5's table of one bias a bucket of distance and head, shared by the layers of a stack (Raffel et al. 2020, 2.1)."""

    def __init__(self, config: T5Position, *, heads: int, bidirectional: bool) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(config.buckets, heads))

    def forward(self, queries: SequenceLayout, keys: SequenceLayout) -> Tensor:
        """Scores [B or 1, H, T, S] between the tokens of two layouts (the same object in self-attention)."""
        return bias_scores(self.rule(), queries, keys)

    def rule(self) -> T5Bias:
        """The bias as a rule, for backends that look at some pairs only."""
        return T5Bias(self.weight, bidirectional=self.bidirectional, max_distance=self.max_distance)

    def extra_repr(self) -> str:
        buckets, heads = self.weight.shape
        return f"buckets={buckets}, heads={heads}, max_distance={self.max_distance}, bidirectional={self.bidirectional}"

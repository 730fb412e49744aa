"""Biases added to the attention scores by relative position: ALiBi and T5's buckets.

Legend: B batch, T query length, S key length, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class ScoreBias(Protocol):
    """What is added to the scaled scores before the softmax."""

    @property
    def constant(self) -> bool:
        """True where equal values (`==`, `hash`) give equal scores for ever: no parameter is read, so scores may be kept."""

    def __call__(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Positions [B or 1, T] and [B or 1, S] (integers) -> scores [B or 1, H, T, S], fp32 or the parameter's dtype."""

    def by_distance(self, distance: Tensor) -> Tensor:
        """Distances key - query [N] (integers) -> scores [H, N]: all that a bias by relative position says."""

    def of_heads(self, start: int, stop: int) -> ScoreBias:
        """The same for the heads start .. stop - 1."""


@dataclass(frozen=True)
class AlibiBias:
    """-slope x |key - query|: a penalty linear in the distance (Press et al. 2022, section 3).

    Towards the past it is the paper's; the absolute value extends it to encoders symmetrically.
    Under a causal pattern the paper's code, slope x key, differs by a number a row only, which the softmax ignores.
    """

    heads: int
    part: tuple[int, int] | None = None  # the heads start .. stop - 1 of them only
    constant: ClassVar[bool] = True

    def __call__(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = (key_positions[:, None, None, :] - query_positions[:, None, :, None]).abs()  # [B, 1, T, S]
        return distance * -self._slopes(distance.device)[:, None, None]

    def by_distance(self, distance: Tensor) -> Tensor:
        return distance.abs() * -self._slopes(distance.device)[:, None]

    def of_heads(self, start: int, stop: int) -> AlibiBias:
        first = self.part[0] if self.part else 0
        return AlibiBias(self.heads, (first + start, first + stop))

    def _slopes(self, device: torch.device) -> Tensor:
        start, stop = self.part or (0, self.heads)
        return torch.tensor(alibi_slopes(self.heads)[start:stop], dtype=torch.float32, device=device)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """One slope a head (Press et al. 2022, section 3): the geometric series 2^(-8/n), 2^(-16/n), ... for n heads.

    Where n is no power of two, the authors' rule: the slopes of the power of two below it, then every other slope of the
    power above it, from the first.
    """
    below = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / below) for head in range(below)]
    between = [2 ** (-8 * (head + 1) / (2 * below)) for head in range(0, 2 * below, 2)]
    return tuple(slopes + between[: heads - below])


@dataclass(frozen=True, eq=False)
class T5Bias:
    """A learned number a head and bucket of relative distance (Raffel et al. 2020, section 2.1).

    Args:
        table: [buckets, H], the parameter; gradients flow to it.
        bidirectional: half of the buckets for keys after the query; otherwise those share bucket 0.
        max_distance: distance, in tokens, from which all keys share the last bucket.

    Raises ValueError where the buckets are too few or the distance too short for one logarithmic bucket.
    """

    table: Tensor
    bidirectional: bool
    max_distance: int = 128
    constant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        side = self.table.shape[0] // (2 if self.bidirectional else 1)
        if side < 2 or self.max_distance <= side // 2:
            raise ValueError(
                f"T5 buckets: {self.table.shape[0]} buckets and max_distance {self.max_distance} do not fit: each direction "
                f"needs at least 2 buckets and a max_distance above half of them ({side // 2})"
            )

    def __call__(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        scores = self._look_up(key_positions[:, None, :] - query_positions[:, :, None])  # [B, T, S, H]
        return scores.permute(0, 3, 1, 2).contiguous()  # CUDA's fused kernels take no other

    def by_distance(self, distance: Tensor) -> Tensor:
        return self._look_up(distance).t()

    def of_heads(self, start: int, stop: int) -> T5Bias:
        return T5Bias(self.table[:, start:stop], bidirectional=self.bidirectional, max_distance=self.max_distance)

    def _look_up(self, distance: Tensor) -> Tensor:
        """[...] -> [..., H]."""
        bucket = t5_bucket(
            distance, buckets=self.table.shape[0], max_distance=self.max_distance, bidirectional=self.bidirectional
        )
        return F.embedding(bucket, self.table)


def t5_bucket(distance: Tensor, *, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Bucket (int64, same shape) of each distance key - query: exact up to half of the buckets, logarithmic to max_distance."""
    side = buckets // 2 if bidirectional else buckets
    starts = torch.tensor(_bucket_starts(side, max_distance), dtype=distance.dtype, device=distance.device)
    far = distance.abs() if bidirectional else (-distance).clamp_min(0)
    bucket = torch.bucketize(far, starts, right=True)
    return bucket + side * (distance > 0) if bidirectional else bucket


def _bucket_starts(side: int, max_distance: int) -> tuple[int, ...]:
    """The first distance of buckets 1 .. side - 1.

    With e = side // 2 exact buckets, bucket e + j holds distances from e x (max_distance / e)^(j / (side - e)) on. Whole
    numbers decide it, so that no device's logarithm rounds a distance into a neighbouring bucket.
    """
    exact = side // 2
    logarithmic = side - exact
    starts = list(range(1, exact + 1))
    for j in range(1, logarithmic):
        start = starts[-1]
        while start**logarithmic * exact**j < exact**logarithmic * max_distance**j:
            start += 1
        starts.append(start)
    return tuple(starts)

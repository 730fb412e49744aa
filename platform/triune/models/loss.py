"""Cross-entropy over a vocabulary from hidden states, some rows at a time, so that all logits never exist at once.

Legend: N rows (tokens), C rows of one chunk, M model width, V vocabulary.

The logits of a chunk are turned into their own gradient while they are in the cache, and the gradients of hidden states
and vocabulary are added up in the forward pass; the backward pass only scales them. Logits are thus made once: nothing
is recomputed. (Not to keep logits: Liger Kernel, Hsu et al. 2024; Cut Cross-Entropy, Wijmans et al. 2024.)

Why not torch's own `linear_cross_entropy` (2.13): its chunked form knows no label smoothing, z-loss or weights a token,
and counts no hits, so it could serve no call of this package. Milliseconds forward and backward and MiB at the peak, by
`jobs/bench/loss_memory.py`, N = 2048, M = 384, one thread of a Xeon with AVX-512 and no AMX; "plain" is
`cross_entropy(linear(hidden).float())`, "256" its op in chunks of 256 rows, which do well where its default does not:

    V        precision    plain         torch         torch chunked  torch 256    this module
    8,192    fp32           410   224     407   224      360  109      305  126     321   40
    8,192    bf16 mixed     689   228     705   210      438  197      376  198     315   41
    50,304   fp32         2,647 1,201   2,517 1,202   12,095  234    1,994  231   2,158  184
    50,304   bf16 mixed   4,159 1,228   4,365 1,233   16,728  457    2,799  508   1,998  184
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triune.attention.hardware import cpu_multiplies_bfloat16, has_triton
from triune.models.cost import chunk_rows


class LossOutput(NamedTuple):
    """Weighted sums over tokens, as scalars (fp32; fp64 where the hidden states are).

    Divide by `weight` for means. Only `total` carries a gradient.
    """

    total: Tensor  # the training loss: with label smoothing and z-loss
    nll: Tensor  # negative log-likelihood of the targets, in nats
    correct: Tensor  # weights of the tokens whose target scores above every other entry (a tie is a miss)
    weight: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LossOutput:
    """Weighted sums of cross-entropy of `hidden @ weight.T + bias` against `targets`.

    A token's loss is (1 - e) nll + e mean_v(-log p_v) + z log(Z)^2, with e the label smoothing (Szegedy et al. 2016,
    as `F.cross_entropy` has it), Z the sum of exponentials and z the z-loss (Chowdhery et al. 2022, 5).

    Products are in the autocast dtype, or the common one of `hidden` and `weight`; softmax and sums in fp32.
    A CPU without AMX tiles multiplies bf16 half as fast as fp32, so it uses fp32 there even under autocast.

    Args:
        hidden: [..., M].
        weight: [V, M].
        targets: [...] int64 in 0..V-1; any number where the weight is 0.
        weights: [...] at least 0; tokens of weight 0 add nothing (`select` spares them the vocabulary).
        bias: [V].
        label_smoothing: share of the target's probability spread evenly over the vocabulary.
        z_loss: weight of the squared log-normaliser.
        chunk: rows at a time; None chooses by memory (`triune.models.cost.chunk_rows`).

    `backward` may run once: it scales the stored gradients in place.
    """
    dtype = _compute_dtype(hidden, weight)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)  # [N, M], [N]
    weights = weights.reshape(-1).to(torch.promote_types(dtype, torch.float32))  # [N]
    targets = torch.where(weights > 0, targets, 0)
    rows = chunk or chunk_rows(len(hidden), len(weight), device=hidden.device.type, itemsize=dtype.itemsize)
    settings = _Settings(dtype, rows, label_smoothing, z_loss, torch.is_grad_enabled())
    total, nll, correct = _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, settings)
    return LossOutput(total, nll, correct, weights.sum())


def select(
    hidden: Tensor, targets: Tensor, weights: Tensor, selected: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """[..., M], [...], [...] -> [N, M], [N], [N] of the tokens with weight above 0, as far as that costs no wait.

    Args:
        hidden: hidden states.
        targets: what each predicts.
        weights: at least 0.
        selected: how many weights are above 0 (`Batch.predicted`), known on the host. A CPU counts by itself;
            on another device, which would have to be waited for, None (or 0) lets all tokens stay.
    """
    hidden, targets, weights = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1)
    if weights.device.type == "cpu":
        chosen = weights.nonzero().squeeze(1)
        if len(chosen) == len(weights):
            return hidden, targets, weights
    elif selected and selected < len(weights):
        chosen = weights.argsort(descending=True, stable=True)[:selected]  # of a size known on the host
    else:
        return hidden, targets, weights
    return hidden.index_select(0, chosen), targets.index_select(0, chosen), weights.index_select(0, chosen)


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and dtype.itemsize < 4 and not cpu_multiplies_bfloat16():
        return torch.float32
    return dtype


class _Settings(NamedTuple):
    dtype: torch.dtype
    rows: int
    label_smoothing: float
    z_loss: float
    differentiate: bool


class _LinearCrossEntropy(torch.autograd.Function):
    """Sums (total, nll, correct) over rows; stores the gradients of `total`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = [settings.differentiate and need for need in ctx.needs_input_grad[:3]]
        sums = weights.new_zeros(3)
        gradients = _Gradients(hidden, weight, bias, needed, weights.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            vocabulary = weight.to(settings.dtype)
            shift = None if bias is None else bias.to(settings.dtype)
            reader = _Reader(min(settings.rows, len(hidden)), vocabulary, weights.dtype, settings)
            for start in range(0, len(hidden), settings.rows):
                rows = slice(start, start + settings.rows)
                chunk = hidden[rows].to(settings.dtype)  # [C, M]
                found, gradient = reader(chunk, shift, targets[rows], weights[rows], any(needed))
                sums += found
                if any(needed):
                    gradients.add(rows, chunk, vocabulary, gradient)
        ctx.gradients = gradients.found
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        total, nll, correct = sums.unbind()
        ctx.mark_non_differentiable(nll, correct)
        return total, nll, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy went backward twice: its gradients were scaled in place the first time"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(outputs[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


class _Reader:
    """Turns chunks of hidden states into sums and gradients of their logits, in buffers of its own."""

    def __init__(self, rows: int, vocabulary: Tensor, dtype: torch.dtype, settings: _Settings) -> None:
        self.vocabulary, self.settings = vocabulary, settings
        self.fused = _fuses(vocabulary)
        size = (rows, len(vocabulary))
        self.logits = vocabulary.new_empty(size)
        self.out = self.logits if self.fused else vocabulary.new_empty(size, dtype=dtype)

    def __call__(
        self, chunk: Tensor, shift: Tensor | None, targets: Tensor, weights: Tensor, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        """The chunk's sums (total, nll, correct) and, where asked for, the gradient [C, V] of its logits."""
        logits = _logits(chunk, self.vocabulary, shift, out=self.logits[: len(chunk)])
        if self.fused:
            settings = self.settings
            return _compiled_read()(logits, targets, weights, settings.label_smoothing, settings.z_loss, differentiate)
        out = self.out[: len(chunk)]
        return _read(logits, targets, weights, out, self.settings, differentiate), out


def _fuses(vocabulary: Tensor) -> bool:
    return vocabulary.is_cuda and has_triton()


def _logits(chunk: Tensor, vocabulary: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(chunk, vocabulary.t(), out=out)
    return torch.addmm(bias, chunk, vocabulary.t(), out=out)


def _read(
    logits: Tensor, targets: Tensor, weights: Tensor, out: Tensor, settings: _Settings, differentiate: bool
) -> Tensor:
    """Logits [C, V] -> the chunk's sums (total, nll, correct); leaves in `out` the gradient of the logits where asked.

    Overwrites the logits. Few passes over [C, V], by kernels that are fast: on a CPU softmax and amax are vectorised,
    while exp_, argmax and comparisons take 2 to 6 times as long as a whole softmax.
    """
    where = targets.unsqueeze(1)  # [C, 1]
    scale = weights.unsqueeze(1)  # [C, 1]
    score = logits.gather(1, where).to(out.dtype)  # [C, 1]
    mean = logits.mean(dim=1, keepdim=True, dtype=out.dtype) if settings.label_smoothing else score
    probabilities = torch.softmax(logits, dim=1, dtype=out.dtype, out=out)  # [C, V]
    others = logits.scatter_(1, where, -torch.inf).amax(dim=1, keepdim=True).to(out.dtype)  # [C, 1]
    # the greatest probability is at least 1/V: its logarithm is exact where that of the target's could underflow
    normalizer = torch.maximum(others, score) - probabilities.amax(dim=1, keepdim=True).log()  # [C, 1] log(Z)
    nll = normalizer - score
    loss = nll + settings.label_smoothing * (score - mean) + settings.z_loss * normalizer.square()
    sums = torch.cat([loss, nll, (score > others).to(out.dtype)], dim=1).t() @ weights  # [3]
    if differentiate:
        probabilities.mul_(scale * (1.0 + 2.0 * settings.z_loss * normalizer))
        if settings.label_smoothing:
            probabilities.sub_(scale * (settings.label_smoothing / logits.shape[1]))
        probabilities.scatter_add_(1, where, scale * (settings.label_smoothing - 1.0))
    return sums


def _read_fused(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, z_loss: float, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """What `_read` computes, written for a compiler: three passes over [C, V] in the logits' own dtype, nothing else kept.

    The gradient takes that dtype at once, as the products that read it do.
    """
    wide = logits.to(weights.dtype)
    where, scale = targets.unsqueeze(1), weights.unsqueeze(1)  # [C, 1] each
    target = torch.arange(logits.shape[1], device=logits.device) == where  # [C, V]
    score = wide.gather(1, where)
    others = torch.where(target, -torch.inf, wide).amax(dim=1, keepdim=True)
    normalizer = torch.logsumexp(wide, dim=1, keepdim=True)
    nll = normalizer - score
    loss = nll + z_loss * normalizer.square()
    if smoothing:
        loss = loss + smoothing * (score - wide.mean(dim=1, keepdim=True))
    sums = torch.cat([loss, nll, (score > others).to(wide.dtype)], dim=1).t() @ weights  # [3]
    if not differentiate:
        return sums, logits
    gradient = (wide - normalizer).exp() * (scale * (1.0 + 2.0 * z_loss * normalizer))
    if smoothing:
        gradient = gradient - scale * (smoothing / logits.shape[1])
    return sums, (gradient - torch.where(target, scale * (1.0 - smoothing), 0.0)).to(logits.dtype)


@cache
def _compiled_read() -> Callable[..., tuple[Tensor, Tensor]]:
    """On an H100, 2,731 rows of 50,304 bf16 logits: 0.6 ms, where `_read` takes 2.2."""
    return torch.compile(_read_fused, fullgraph=True, dynamic=True)


class _Gradients:
    """Gradients of hidden states, vocabulary and its bias, added up chunk by chunk; None for those that nobody needs.

    Those of vocabulary and bias are kept in fp32: a 16-bit sum would round at every chunk.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: list[bool], dtype: torch.dtype
    ) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None  # [N, M]
        self.weight = torch.zeros_like(weight, dtype=dtype) if needed[1] else None  # [V, M]
        self.bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needed[2] else None  # [V]

    @property
    def found(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def add(self, rows: slice, chunk: Tensor, vocabulary: Tensor, gradient: Tensor) -> None:
        """Take in the gradient [C, V] of the logits of `chunk` [C, M]."""
        if self.bias is not None:
            self.bias += gradient.sum(dim=0)
        gradient = gradient.to(chunk.dtype)
        if self.hidden is not None:
            if self.hidden.dtype == chunk.dtype:
                torch.mm(gradient, vocabulary, out=self.hidden[rows])
            else:
                self.hidden[rows] = torch.mm(gradient, vocabulary)
        if self.weight is not None:
            if self.weight.dtype == chunk.dtype:
                self.weight.addmm_(gradient.t(), chunk)
            else:
                self.weight += torch.mm(gradient.t(), chunk)

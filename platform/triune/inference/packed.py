"""Weights in the order in which a CPU reads them quickest while a few rows are decoded. Legend: N rows, I width in, O width out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triune.models.decoder import Decoder
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.heads import VocabularyHead
from triune.models.layers.linear import Linear

#: below these, making the copies takes longer than they save, or caches hold the weights whatever their order
LEAST_TOKENS, LEAST_BYTES = 16, 2**25
#: rows from which a product of many is as quick by the ordinary kernel
MOST_ROWS = 64


@contextmanager
def packed(model: Decoder | EncoderDecoder, *, rows: int, tokens: int) -> Iterator[None]:
    """Inside, the linear layers that decode `rows` rows, and the head, multiply by copies of their weights.

    A product with few rows takes as long as its weights take to come from memory, and torch's kernel does not read a matrix [O, I]
    at memory's speed: with one row it dots row by row, with several it copies tiles of the matrix first. The copies are fp32 as
    the weights are, transposed for one row and in oneDNN's own order for several; results differ in the order of sums only.
    They need the memory of the weights once more, and are dropped at the end. Where they don't pay, or that memory is not free,
    nothing happens; nor inside another `packed` of the same model. Parameters must not change inside.

    Args:
        model: in evaluation.
        rows: N, rows that are decoded together.
        tokens: how many each will have at most.
    """
    layers = _layers(model) if _pays(model, rows, tokens) else []
    head = model.head
    try:
        for layer in layers:
            quick = _product(layer.weight, layer.bias, rows)
            layer.forward = partial(_forward, layer, quick)  # type: ignore[method-assign]
        if layers and isinstance(head, VocabularyHead):
            quick = _product(head.weight, head.bias, rows)
            head.logits = partial(_logits, head, quick)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        if layers:
            head.__dict__.pop("logits", None)


def _forward(layer: Linear, quick: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[N, 1, I] -> [N, 1, O]; longer inputs, the prompt's, pass as they did."""
    return quick(x) if x.shape[1] == 1 and not torch.is_grad_enabled() else Linear.forward(layer, x)


def _logits(head: VocabularyHead, quick: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """[N, M] -> [N, V]."""
    return quick(head.transform(hidden).unsqueeze(1)).squeeze(1)


def _product(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """x [N, 1, I] -> x W^T + b, [N, 1, O]."""
    weight = weight.detach()
    outputs, inputs = weight.shape
    if rows > 1:
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, ordered, bias, "none", [], "")
    if outputs < inputs:  # long dots are quick as they are
        return lambda x: F.linear(x, weight, bias)
    transposed = weight.t().contiguous().t()
    return lambda x: F.linear(x, transposed, bias)


def _layers(model: Decoder | EncoderDecoder) -> list[Linear]:
    """What each decoded token passes through: not the encoder, nor the keys of its memory."""
    stack = model.decoder if isinstance(model, EncoderDecoder) else model.stack
    found = [
        module for name, module in stack.named_modules() if type(module) is Linear and not name.endswith(".key_value")
    ]
    return cast("list[Linear]", found)


def _pays(model: nn.Module, rows: int, tokens: int) -> bool:
    size = sum(parameter.nbytes for parameter in model.parameters())
    return (
        torch.backends.mkldnn.is_available()
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        and not torch.is_autocast_enabled("cpu")
        and not any("forward" in module.__dict__ for module in model.modules())
        and rows <= MOST_ROWS
        and tokens >= LEAST_TOKENS
        and LEAST_BYTES <= size <= _free_memory() // 2
    )


def _free_memory() -> int:
    """Bytes that the system says are free; 0 where it does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0

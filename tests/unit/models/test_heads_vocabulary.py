"""The vocabulary head: its formula, its tying, and that logits and loss agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from triune.models import heads as heads_module
from triune.models.factory import resolve
from triune.models.heads import VocabularyHead

torch.set_num_threads(1)


def make(embedding: torch.nn.Parameter | None = None, **overrides: Any) -> VocabularyHead:
    torch.manual_seed(0)
    head = VocabularyHead(resolve({"vocabulary": 23, "width": 12, "heads": 2}, **overrides), embedding)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head.double()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"head.scale": 12**-0.5},
    "bert": {"head.transform": True, "head.bias": True},
    "modernbert": {"head.transform": True, "head.transform_bias": False, "head.bias": True, "norm.bias": False},
    "rms": {"head.transform": True, "norm.kind": "rms"},
    "chunked": {"head.bias": True, "loss_chunk": 2},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_loss_is_the_cross_entropy_of_the_logits(variant: str) -> None:
    head = make(**VARIANTS[variant])
    hidden = torch.randn(2, 5, 12, dtype=torch.float64)
    targets, weights = torch.randint(23, (2, 5)), torch.tensor([[1.0, 0, 2, 0, 0], [0, 0.5, 0, 1, 1]])
    leaves = {"ours": hidden.clone().requires_grad_(), "plain": hidden.clone().requires_grad_()}

    output = head.loss(leaves["ours"], targets, weights, label_smoothing=0.1, z_loss=1e-2)
    ours = torch.autograd.grad(output.total, [leaves["ours"], *head.parameters()])

    logits = head.logits(leaves["plain"])
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=0.1)
    plain = ((each + 1e-2 * logits.logsumexp(-1).flatten() ** 2) * weights.flatten()).sum()
    expected = torch.autograd.grad(plain, [leaves["plain"], *head.parameters()])

    # fp64: 1e-16 an operation, some hundred of them; RMSNorm's statistics are fp32 by its contract
    tolerance = 1e-6 if variant == "rms" else 1e-12
    torch.testing.assert_close(output.total, plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    assert output.weight.item() == 5.5


def test_the_transform_is_berts() -> None:
    """norm(gelu(h D^T + d)) E^T + b, with the exact GELU."""
    head = make(**VARIANTS["bert"])
    hidden = torch.randn(3, 12, dtype=torch.float64)
    inner = hidden @ head.dense.weight.T + head.dense.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    mean, variance = inner.mean(-1, keepdim=True), inner.var(-1, keepdim=True, unbiased=False)
    normal = (inner - mean) / (variance + head.norm.eps).sqrt() * head.norm.weight + head.norm.bias
    torch.testing.assert_close(head.logits(hidden), normal @ head.weight.T + head.bias, rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_the_embedding_itself() -> None:
    table = torch.nn.Parameter(torch.randn(23, 12))
    config = resolve({"vocabulary": 23, "width": 12, "heads": 2})
    head = VocabularyHead(config, table)
    assert head.weight is table
    assert VocabularyHead(config, None).weight is not table
    head.loss(torch.randn(1, 2, 12), torch.tensor([[1, 2]]), torch.ones(1, 2)).total.backward()
    assert table.grad is not None


def test_only_predicted_positions_are_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(**VARIANTS["bert"])
    rows: list[int] = []
    original = heads_module.linear_cross_entropy
    monkeypatch.setattr(
        heads_module, "linear_cross_entropy", lambda *a, **k: rows.append(len(a[0])) or original(*a, **k)
    )
    head.dense.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    weights = torch.zeros(4, 10)
    weights[0, 3] = weights[2, 7] = 1
    head.loss(torch.randn(4, 10, 12, dtype=torch.float64), torch.zeros(4, 10, dtype=torch.int64), weights)
    assert rows == [2, 2]

"""The head of classes: its formula, what it pools, and that scores and loss agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models.factory import build, resolve
from triune.models.heads import ClassHead

torch.set_num_threads(1)
M = 12


def make(**head: Any) -> ClassHead:
    torch.manual_seed(0)
    made = ClassHead(resolve({"width": M, "heads": 2, "head": {"kind": "classes", **head}}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("tanh", torch.tanh),
        ("relu", lambda x: x.clamp(min=0)),
        ("silu", lambda x: x * x.sigmoid()),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
    ],
)
def test_the_transform(activation: str, formula: Any) -> None:
    head = make(labels=4, pool="none", transform=True, activation=activation)
    hidden = random(2, 3, M)
    expected = formula(hidden @ head.dense.weight.T + head.dense.bias) @ head.weight.T + head.bias
    torch.testing.assert_close(head.logits(hidden), expected, rtol=1e-12, atol=1e-12)


LAYOUTS = {
    "plain": None,
    "right": SequenceLayout.from_lengths([5, 3], 5),
    "left": SequenceLayout.from_lengths([2, 4], 5, side="left"),
}
REAL = {"plain": [(0, 5), (0, 5)], "right": [(0, 5), (0, 3)], "left": [(3, 5), (1, 5)]}


@pytest.mark.parametrize("padding", LAYOUTS)
@pytest.mark.parametrize("pool", ["first", "last", "mean", "none"])
def test_what_is_pooled(pool: str, padding: str) -> None:
    head, hidden = make(pool=pool), random(2, 5, M)
    pooled = head.pooled(hidden, LAYOUTS[padding])
    rows = [hidden[index, start:stop] for index, (start, stop) in enumerate(REAL[padding])]
    by_hand = {"first": lambda row: row[0], "last": lambda row: row[-1], "mean": lambda row: row.mean(0)}
    expected = hidden if pool == "none" else torch.stack([by_hand[pool](row) for row in rows])
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)
    assert head.logits(hidden, LAYOUTS[padding]).shape == (*expected.shape[:-1], 2)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_packed_rows_have_no_one_vector(pool: str) -> None:
    layout = SequenceLayout.packed([[2, 3], [4]], 5)
    with pytest.raises(ValueError, match="several documents"):
        make(pool=pool).pooled(random(2, 5, M), layout)
    assert make(pool="none").logits(random(2, 5, M), layout).shape == (2, 5, 2)


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_the_loss_is_the_cross_entropy_of_the_scores(pool: str) -> None:
    head = make(labels=4, pool=pool, transform=True)
    hidden = random(3, 5, M)
    shape = (3,) if pool == "mean" else (3, 5)
    targets, weights = torch.randint(4, shape), torch.rand(shape).double() * (torch.rand(shape) > 0.3)
    leaves = {"ours": hidden.clone().requires_grad_(), "plain": hidden.clone().requires_grad_()}
    output = head.loss(leaves["ours"], targets, weights, label_smoothing=0.1, z_loss=1e-2)
    ours = torch.autograd.grad(output.total, [leaves["ours"], *head.parameters()])
    scores = head.logits(leaves["plain"]).flatten(0, -2)
    each = F.cross_entropy(scores, targets.flatten(), reduction="none", label_smoothing=0.1)
    plain = ((each + 1e-2 * scores.logsumexp(-1) ** 2) * weights.flatten()).sum()
    expected = torch.autograd.grad(plain, [leaves["plain"], *head.parameters()])
    torch.testing.assert_close(output.total, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_one_label_is_a_binary_cross_entropy() -> None:
    head = make(labels=1, pool="none")
    hidden = random(3, 5, M)
    targets, weights = torch.randint(2, (3, 5)), torch.tensor([[1.0, 0, 2, 0, 0]] * 3).double()
    scores = head.logits(hidden)
    assert scores.shape == (3, 5, 1)
    output = head.loss(hidden, targets, weights)
    each = F.binary_cross_entropy_with_logits(scores.squeeze(-1), targets.double(), reduction="none")
    ours = torch.autograd.grad(output.total, list(head.parameters()))
    expected = torch.autograd.grad((each * weights).sum(), list(head.parameters()))
    torch.testing.assert_close(output.nll, (each * weights).sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    right = (scores.squeeze(-1) > 0) == (targets == 1)
    assert output.correct == (weights * right).sum()


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_every_family_can_have_one(family: str) -> None:
    model = build({"vocabulary": 40, "width": 32, "layers": 1, "heads": 4}, family=family, head={"kind": "classes"})
    source = {"source": torch.randint(40, (2, 5))} if family == "encoder_decoder" else {}
    hidden = model(torch.randint(40, (2, 7)), **source)
    model.head.loss(hidden, torch.tensor([0, 1]), torch.ones(2)).total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_images_of_another_shape_are_refused() -> None:
    model = build(
        {"width": 32, "layers": 1, "heads": 4}, family="encoder", context=5, position={"kind": "learned"},
        input={"kind": "patches", "image": 8, "patch": 4}, head={"kind": "classes"},
    )  # fmt: skip
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5, 32)
    for shape in ((2, 3, 8, 4), (2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(UserError, match=r"\[batch, 3, 8, 8\].*model\.input"):
            model(torch.randn(*shape))


def test_patches_are_read_row_by_row_and_channel_by_channel() -> None:
    """By hand: patch (row 1, column 0) is pixels 4..7 x 0..3 of every channel."""
    model = build(
        {"width": 32, "layers": 1, "heads": 4}, family="encoder", context=5,
        input={"kind": "patches", "image": 8, "patch": 4, "channels": 2}, head={"kind": "classes"},
    )  # fmt: skip
    image = torch.randn(1, 2, 8, 8)
    vectors = model.embedding(image)
    pixels = torch.cat([image[0, channel, 4:8, 0:4].reshape(-1) for channel in range(2)])
    weight = model.embedding.projection
    torch.testing.assert_close(vectors[0, 1 + 2], pixels @ weight.weight.T + weight.bias)
    assert torch.equal(vectors[0, 0], model.embedding.class_token)
    convolution = F.conv2d(image, weight.weight.view(32, 2, 4, 4), weight.bias, stride=4)
    torch.testing.assert_close(vectors[:, 1:], convolution.flatten(2).transpose(1, 2))

"""Losses of several labels, numbers, spans and matches against torch's own; what counts, what is right, and packed rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triune.attention.layout import SequenceLayout
from triune.errors import UserError
from triune.models import class_loss
from triune.models.factory import resolve
from triune.models.heads import ClassHead

torch.set_num_threads(1)
M = 12
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # fp64: only the order of sums differs
PACKED = SequenceLayout.packed([[2, 3], [4]], 6)  # rows of 2 + 3 and 4 tokens, then padding


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def head_of(**settings: Any) -> ClassHead:
    made = ClassHead(resolve({"width": M, "heads": 2, "head": {"kind": "classes", **settings}}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ---- several labels, numbers -----------------------------------------------------------------------------------------


def test_several_labels_are_binary_cross_entropies() -> None:
    scores, values, weights = random(5, 3).requires_grad_(), (random(5, 3) > 0).double(), torch.rand(5).double()
    output = class_loss.multi_label(scores, values, weights)
    expected = F.binary_cross_entropy_with_logits(scores, values, weight=weights[:, None], reduction="sum") / 3
    torch.testing.assert_close(output.total, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(output.total, scores), torch.autograd.grad(expected, scores), **EXACT
    )
    torch.testing.assert_close((output.nll, output.weight), (expected.detach(), weights.sum()), **EXACT)


def test_several_labels_are_right_together() -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    values = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert class_loss.multi_label(scores, values, torch.tensor([1.0, 2.0, 4.0])).correct == 5


def test_numbers_are_squared_errors() -> None:
    scores, values, weights = random(5, 2).requires_grad_(), random(5, 2), torch.rand(5).double()
    output = class_loss.regression(scores, values, weights)
    expected = (F.mse_loss(scores, values, reduction="none").mean(1) * weights).sum()
    torch.testing.assert_close(output.total, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(output.total, scores), torch.autograd.grad(expected, scores), **EXACT
    )
    assert (output.correct, output.weight) == (0, weights.sum())


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
@pytest.mark.parametrize("pool", ["first", "mean"])
def test_lines_of_values_belong_to_positions_of_weight(problem: str, pool: str) -> None:
    """Packed rows with targets at some positions, against each document alone; positions of weight 0 may say anything."""
    head, hidden = head_of(problem=problem, pool=pool, labels=3, transform=True), random(2, 6, M).requires_grad_()
    values = (random(3, 3) > 0).double()
    targets, weights = torch.full((2, 6), 99), torch.zeros(2, 6)
    for line, (row, place) in enumerate([(0, 0), (0, 2), (1, 0)]):
        targets[row, place], weights[row, place] = (2, 0, 1)[line], line + 1
    output = head.loss(hidden, targets, weights, layout=PACKED, values=values)
    documents = [hidden[0, :2], hidden[0, 2:5], hidden[1, :4]]
    vectors = torch.stack([one[0] if pool == "first" else one.mean(0) for one in documents])
    scores = head.logits(vectors.unsqueeze(1))
    loss = class_loss.multi_label if problem == "multi_label" else class_loss.regression
    expected = loss(scores, values[[2, 0, 1]], torch.tensor([1.0, 2.0, 3.0]).double())
    torch.testing.assert_close(output, expected, **EXACT)
    leaves = [hidden, *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(output.total, leaves), torch.autograd.grad(expected.total, leaves), **EXACT
    )
    torch.testing.assert_close(head.scores(hidden, weights, PACKED), scores, **EXACT)


def test_selecting_and_not_selecting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that can't count by itself all positions stay, those of weight 0 with lines that aren't there."""
    head, hidden = head_of(problem="regression", labels=2, pool="none"), random(2, 3, M)
    values, weights = random(2, 2), torch.tensor([[0, 1.0, 0], [0, 0, 2.0]])
    targets = torch.tensor([[7, 1, 7], [7, 7, 0]])
    selected = head.loss(hidden, targets, weights, values=values)
    flat = lambda hidden, targets, weights, _: (hidden.flatten(0, 1), targets.flatten(), weights.flatten())  # noqa: E731
    monkeypatch.setattr("triune.models.class_head.select", flat)
    torch.testing.assert_close(head.loss(hidden, targets, weights, values=values), selected, **EXACT)
    scores = torch.stack([head.logits(hidden)[0, 1], head.logits(hidden)[1, 2]])
    expected = class_loss.regression(scores, values[[1, 0]], torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(selected, expected, **EXACT)


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_rows_and_positions_agree(problem: str, pool: str) -> None:
    """Targets [B] of rows of one text are targets [B, T] at its first (or last) token."""
    head, hidden = head_of(problem=problem, pool=pool, labels=3), random(2, 5, M)
    layout = SequenceLayout.from_lengths([5, 3], 5)
    targets = torch.tensor([1, 0])
    values = (random(2, 3) > 0).double() if problem == "multi_label" else None
    row_weights = torch.tensor([1.0, 2.0])
    at = torch.zeros(2, 5, dtype=torch.int64)
    weights = torch.zeros(2, 5)
    for row, place in enumerate([4, 2] if pool == "last" else [0, 0]):
        at[row, place], weights[row, place] = targets[row], row_weights[row]
    rows = head.loss(hidden, targets, row_weights, layout=layout, values=values)
    positions = head.loss(hidden, at, weights, layout=layout, values=values)
    torch.testing.assert_close(rows, positions, **EXACT)
    torch.testing.assert_close(head.scores(hidden, weights, layout), head.logits(hidden, layout), **EXACT)


def test_packed_classes_learn_as_each_text_alone() -> None:
    head, hidden = head_of(pool="mean", labels=4, transform=True), random(2, 6, M).requires_grad_()
    targets, weights = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6)
    alone = []
    for row, start, stop, target, weight in ((0, 0, 2, 3, 1.0), (0, 2, 5, 1, 0.5), (1, 0, 4, 2, 2.0)):
        targets[row, start], weights[row, start] = target, weight
        alone.append(head.loss(hidden[row : row + 1, start:stop], torch.tensor([target]), torch.tensor([weight])))
    packed = head.loss(hidden, targets, weights, layout=PACKED, label_smoothing=0.0)
    expected = [sum(parts) for parts in zip(*alone, strict=True)]
    torch.testing.assert_close(list(packed), expected, **EXACT)
    leaves = [hidden, *head.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(packed.total, leaves), torch.autograd.grad(expected[0], leaves), **EXACT
    )


# ---- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_vectors_of_documents(pool: str) -> None:
    head, hidden = head_of(pool=pool, labels=0, transform=True), random(2, 6, M)
    by_hand = {"first": lambda row: row[0], "last": lambda row: row[-1], "mean": lambda row: row.mean(0)}[pool]
    vectors = head.vectors(hidden, PACKED, 2)
    assert vectors.shape == (2, 2, M)
    for row, number, document in ((0, 0, hidden[0, :2]), (0, 1, hidden[0, 2:5]), (1, 0, hidden[1, :4])):
        torch.testing.assert_close(vectors[row, number], head.transform(by_hand(document)), **EXACT)
    assert (vectors[1, 1] == 0).all()  # it has one document


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_vectors_without_a_layout_are_of_whole_rows(pool: str) -> None:
    head, hidden = head_of(pool=pool, labels=0), random(3, 4, M)
    torch.testing.assert_close(head.vectors(hidden, None, 1)[:, 0], head.pooled(hidden), **EXACT)


# ---- spans -----------------------------------------------------------------------------------------------------------


def spans() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row 0: tokens 1 to 3; row 1 (of 4 tokens): token 2 alone; row 2: nothing to learn."""
    targets, weights = torch.full((3, 6), 3), torch.zeros(3, 6)
    targets[0, 1], targets[0, 3], targets[1, 2] = 1, 2, 3
    weights[0, 1] = weights[0, 3] = 0.5
    weights[1, 2] = 2.0
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    return random(3, 6, 2), targets, weights, padding


def test_a_span_is_two_choices_of_a_token() -> None:
    scores, targets, weights, padding = spans()
    scores.requires_grad_()
    output = class_loss.span(scores, targets, weights, padding)
    first = [F.cross_entropy(scores[0, :, n], torch.tensor(place)) for n, place in ((0, 1), (1, 3))]
    second = [F.cross_entropy(scores[1, :4, n], torch.tensor(2)) for n in (0, 1)]
    expected = (first[0] + first[1]) / 2 + 2 * (second[0] + second[1]) / 2
    torch.testing.assert_close(output.total, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(output.total, scores), torch.autograd.grad(expected, scores), **EXACT
    )
    assert output.weight == 3


def test_a_span_is_right_where_both_ends_are() -> None:
    scores, targets, weights, padding = spans()
    scores.zero_()
    scores[1, 5] = 9.0  # padding, which can't be chosen
    scores[0, 1, 0], scores[0, 3, 1], scores[1, 2] = 1.0, 1.0, 1.0
    assert class_loss.span(scores, targets, weights, padding).correct == 3
    scores[0, 4, 1] = 2.0  # another end
    assert class_loss.span(scores, targets, weights, padding).correct == 2


def test_a_row_of_padding_has_no_span_and_no_gradient() -> None:
    scores, targets, weights, padding = spans()
    padding[2] = True
    scores.requires_grad_()
    class_loss.span(scores, targets, weights, padding).total.backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[2] == 0).all()


def test_the_head_of_spans() -> None:
    _, targets, weights, _ = spans()
    head, hidden = head_of(problem="span", pool="none"), random(3, 6, M)
    layout = SequenceLayout.from_lengths([6, 4, 6], 6)
    output = head.loss(hidden, targets, weights, layout=layout)
    torch.testing.assert_close(output, class_loss.span(head.logits(hidden), targets, weights, layout.padding), **EXACT)


# ---- matches ---------------------------------------------------------------------------------------------------------


def expected_match(vectors: Tensor, rivals: list[list[tuple[int, int]]], weights: Tensor) -> Tensor:
    """Cross-entropy of each row's first candidate among it and its rivals (row, candidate), at scale 5."""
    total = vectors.sum() * 0
    for row, others in enumerate(rivals):
        against = torch.stack([vectors[row, 1], *(vectors[r, 1 + c] for r, c in others)])
        cosines = F.cosine_similarity(vectors[row, :1], against, dim=1)
        total = total + weights[row] * F.cross_entropy(5 * cosines, torch.tensor(0))
    return total


NUMBERS = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 2, 1]]).double()  # row 1 has two; row 2's last is row 0's match
RIVALS = {
    False: [[(0, 1), (0, 2)], [(1, 1)], [(2, 1), (2, 2)]],
    True: [
        [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)],
        [(0, 0), (0, 1), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)],
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)],
    ],
}


@pytest.mark.parametrize("across", [False, True])
def test_a_match_among_its_rivals(across: bool) -> None:
    """Those of its row, or of all rows; what is not there and the match's own text elsewhere are none."""
    vectors, weights = random(3, 1 + 3, M).requires_grad_(), torch.tensor([1.0, 2.0, 0.5]).double()
    output = class_loss.match(vectors, NUMBERS, weights, scale=5.0, across=across)
    expected = expected_match(vectors, RIVALS[across], weights)
    torch.testing.assert_close(output.total, expected, **EXACT)
    ours, theirs = (torch.autograd.grad(each, vectors)[0] for each in (output.total, expected))
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close((output.nll, output.weight), (expected.detach(), weights.sum()), **EXACT)


def test_a_match_is_right_where_it_is_nearest_and_a_tie_is_not() -> None:
    text, other = torch.eye(M)[0], torch.eye(M)[1]
    rows = torch.stack([torch.stack(line) for line in ([text, text, other], [text, other, text], [text, text, text])])
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    output = class_loss.match(rows, numbers, torch.tensor([1.0, 2.0, 4.0]), scale=1.0, across=False)
    assert output.correct == 1


def test_a_row_without_a_match_adds_nothing() -> None:
    vectors, numbers = random(2, 1 + 2, M), torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double()
    vectors[1] = 0
    vectors.requires_grad_()
    output = class_loss.match(vectors, numbers, torch.tensor([1.0, 0.0]).double(), scale=5.0, across=True)
    alone = class_loss.match(vectors[:1], numbers[:1], torch.ones(1).double(), scale=5.0, across=True)
    torch.testing.assert_close(output, alone, **EXACT)
    (gradient,) = torch.autograd.grad(output.total, vectors)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()


def test_the_head_of_matches_competes_across_rows_in_training_only() -> None:
    head, hidden = head_of(problem="match", pool="mean", labels=0, scale=7.0), random(2, 6, M)
    layout = SequenceLayout.packed([[2, 2, 1], [1, 3]], 6)
    values, weights = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 6)
    weights[:, 0] = 1
    for training in (True, False):
        head.train(training)
        output = head.loss(hidden, torch.zeros(2, 6, dtype=torch.int64), weights, layout=layout, values=values)
        vectors = head.vectors(hidden, layout, 3)
        expected = class_loss.match(vectors, values, torch.ones(2), scale=7.0, across=training)
        torch.testing.assert_close(output, expected, **EXACT)


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(UserError, match=r"model\.head\.labels is 0"):
        head_of(labels=0).loss(random(1, 2, M), torch.zeros(1, dtype=torch.int64), torch.ones(1))


@pytest.mark.parametrize("loss", ["multi_label", "regression"])
def test_sums_are_of_fp32_at_least(loss: str) -> None:
    scores, values = torch.full((4096, 1), 0.001, dtype=torch.bfloat16), torch.zeros(4096, 1)
    output = getattr(class_loss, loss)(scores, values, torch.ones(4096))
    assert output.total.dtype == output.weight.dtype == torch.float32
    assert output.weight == 4096

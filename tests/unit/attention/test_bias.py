"""ALiBi's slopes and T5's buckets against their papers."""

import math

import pytest
import torch

from triune.attention import SequenceLayout, causal
from triune.attention.bias import AlibiBias, T5Bias, alibi_slopes, t5_bucket
from triune.attention.call import bias_scores


def test_slopes_of_powers_of_two_are_the_papers():
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(16) == pytest.approx([2 ** (-0.5 * i) for i in range(1, 17)])
    assert alibi_slopes(1) == (2.0**-8,)


def test_slopes_between_powers_of_two_take_every_other_of_the_next():
    assert alibi_slopes(12) == pytest.approx([2.0**-i for i in range(1, 9)] + [2 ** (-0.5 * i) for i in (1, 3, 5, 7)])
    assert alibi_slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    for heads in range(1, 40):
        assert len(set(alibi_slopes(heads))) == heads


def test_alibi_is_symmetric_and_the_papers_up_to_a_number_a_row():
    positions = torch.arange(7, dtype=torch.int32)[None]
    scores = AlibiBias(4)(positions, positions)
    assert scores.shape == (1, 4, 7, 7)
    assert torch.equal(scores, scores.transpose(-1, -2))
    assert scores[0, 0, 5].tolist() == [-0.25 * abs(5 - key) for key in range(7)]
    papers = torch.tensor(alibi_slopes(4))[:, None, None] * torch.arange(7)  # slope x key
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    ours, theirs = (s.masked_fill(hidden, -math.inf).softmax(-1) for s in (scores[0], papers))
    # scores of at most 6 x 0.25, each rounded once or twice: the softmax moves by a few eps
    torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 256), (16, 64), (8, 20), (64, 1000)])
def test_buckets_equal_transformers(bidirectional, buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-1500, 1501)
    ours = t5_bucket(distance, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    theirs = T5Attention._relative_position_bucket(
        distance, bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
    )
    assert torch.equal(ours, theirs)


def test_buckets_by_hand():
    """32 buckets to 128 both ways: 16 a side, 8 exact, then one for each power of sqrt(2) above 8."""

    def bucket(distance, bidirectional=True):
        return t5_bucket(torch.tensor([distance]), buckets=32, max_distance=128, bidirectional=bidirectional).item()

    assert [bucket(-d) for d in (0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 127, 128, 9999)] == [
        0,
        1,
        7,
        8,
        8,
        9,
        9,
        10,
        10,
        11,
        15,
        15,
        15,
    ]
    assert [bucket(d) for d in (1, 8, 9999)] == [17, 24, 31]
    assert [bucket(d, False) for d in (5, 0, -15, -16, -9999)] == [0, 0, 15, 16, 31]


def test_t5_reads_its_table_and_sends_gradients_back():
    table = torch.nn.Parameter(torch.randn(8, 3))
    positions = torch.arange(5)[None]
    scores = T5Bias(table, bidirectional=True, max_distance=16)(positions, positions)
    assert scores.shape == (1, 3, 5, 5)
    assert torch.equal(scores[0, :, 2, 2], table[0])
    assert torch.equal(scores[0, :, 3, 2], table[1])
    assert torch.equal(scores[0, :, 2, 3], table[5])
    scores.sum().backward()
    assert torch.equal(table.grad.sum(0), torch.full((3,), 25.0))


@pytest.mark.parametrize(("buckets", "max_distance"), [(2, 128), (32, 8)])
def test_t5_refuses_what_has_no_buckets(buckets, max_distance):
    with pytest.raises(ValueError, match="max_distance"):
        T5Bias(torch.zeros(buckets, 1), bidirectional=True, max_distance=max_distance)


@pytest.mark.parametrize("side", ["right", "left", "packed"])
def test_the_row_index_serves_for_contiguous_rows(side):
    layout = (
        SequenceLayout.packed([[3, 4], [6]], 9)
        if side == "packed"
        else SequenceLayout.from_lengths([3, 7], 9, side=side)
    )
    for bias in (AlibiBias(2), T5Bias(torch.randn(8, 2), bidirectional=True, max_distance=5)):
        shared = bias_scores(bias, layout)
        assert shared.shape == (1, 2, 9, 9)
        exact = bias(layout.positions, layout.positions)
        mask, dead = layout.allowed(causal(), layout)
        kept = (mask & ~dead).expand_as(exact)
        assert torch.equal(shared.expand_as(exact)[kept], exact[kept])
    tensor = torch.randn(1, 2, 9, 9)
    assert bias_scores(tensor, layout) is tensor


def test_a_part_of_the_heads_and_a_part_of_that():
    positions, distance = torch.arange(6)[None], torch.arange(-5, 6)
    for bias in (AlibiBias(12), T5Bias(torch.randn(8, 12), bidirectional=True, max_distance=5)):
        whole, rule = bias(positions, positions), bias.by_distance(distance)
        part = bias.of_heads(3, 10)
        for some, heads in ((part, slice(3, 10)), (part.of_heads(2, 5), slice(5, 8))):
            assert torch.equal(some(positions, positions), whole[:, heads])
            assert torch.equal(some.by_distance(distance), rule[heads])

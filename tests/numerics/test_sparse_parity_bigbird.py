"""`transformers`' BigBird (block_sparse and original_full) against ours with the same weights, in fp32: outputs and all gradients.

Its pattern: a band of three blocks, the first and the last block of the row global (both ways), and for each head and block of
queries some random blocks of keys, which it draws from NumPy's global generator; here they are read from the model and handed
to ours as a pattern. Its softmax counts a block twice that stands twice in a row's list. It does so in two cases, and there, and
only there, the definitions part:

- in evaluation no block is drawn: all its random blocks are block 0, which is global and counted already;
- at the lengths 1,024, 3,072 and 4,096 an older rule draws blocks, which may be those of the band or the last one.

With log(times counted) added to the scores ours gives the same again, which proves that nothing else differs.
Tolerances: test_models_parity.py for outputs, sparse_peers.py for gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sparse_peers import OURS, SHAPE, Blocks, H, M, V, backward, gradients, mapped, same_gradients, tied
from test_models_parity import close, load, peer
from torch import Tensor

from triune.attention import attend, full, global_tokens, per_head
from triune.attention.layout import SequenceLayout
from triune.attention.patterns import Pattern
from triune.models.factory import build

BLOCK, RANDOM, CONTEXT = 4, 2, 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def counted(attention: Any, length: int) -> np.ndarray:
    """[H, n, n]: how often theirs counts each block of keys for each block of queries, in its present mode."""
    block, heads, count = attention.block_size, attention.num_attention_heads, length // attention.block_size
    np.random.seed(attention.seed)
    if length in (1024, 3072, 4096):
        longest = attention.max_seqlen
        drawn = [
            attention._bigbird_block_rand_mask(
                longest, longest, block, block, attention.num_random_blocks, last_idx=1024
            )[: count - 2]
            for _ in range(heads)
        ]
    else:
        plan = attention._get_rand_attn_plan(length, block, attention.num_random_blocks)
        drawn = attention._bigbird_block_rand_mask_with_head(length, length, block, block, heads, *plan)
    times = np.zeros((heads, count, count), dtype=int)
    times[:, [0, -1]] = 1
    for row in range(1, count - 1):
        times[:, row, sorted({0, row - 1, row, row + 1, count - 1})] = 1
        for head, table in enumerate(drawn):
            np.add.at(times[head, row], table[row - 1], 1)
    return times


def of_blocks(times: np.ndarray, block: int) -> Pattern:
    """A pattern a head: the blocks that are counted at all."""
    tables = [tuple(tuple(map(int, np.flatnonzero(row))) for row in head) for head in times]
    return per_head(*(Blocks(block, table) for table in tables))


def their_model(kind: str = "block_sparse") -> Any:
    config = transformers.BigBirdConfig(
        **SHAPE, attention_type=kind, block_size=BLOCK, num_random_blocks=RANDOM, max_position_embeddings=CONTEXT,
        layer_norm_eps=1e-12, pad_token_id=0,
    )  # fmt: skip
    return peer(transformers.BigBirdModel, config)


def our_model(theirs: Any, patterns: list[Pattern], backend: str = "reference") -> Any:
    """An encoder with the weights of theirs and these patterns, one a layer."""
    model = build(
        {}, **OURS, context=CONTEXT, position={"kind": "learned"}, attention={"pattern": "full()", "backend": backend}
    ).eval()  # fmt: skip
    model_weights = {name: weight for name, weight in theirs.state_dict().items() if not name.startswith("pooler")}
    load(model, tied(mapped(model_weights)))
    for block, pattern in zip(model.stack.blocks, patterns, strict=True):
        block.attention.pattern = pattern
    return model


def batch(lengths: list[int], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids padded on the right, their mask and token types."""
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, V, mask.shape) * mask, mask, torch.randint(0, 2, mask.shape)


@pytest.mark.parametrize("lengths", [[48, 48], [46, 46], [48, 37], [46, 21]], ids=str)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_block_sparse(lengths: list[int], backend: str) -> None:
    """In training mode, nothing dropped. Rows that theirs pads to whole blocks, and rows padded already.

    The last global block is that of the padded row: a shorter document of the batch has none.
    """
    theirs = their_model().train()
    whole = -(-max(lengths) // BLOCK) * BLOCK
    times = [counted(layer.attention.self, whole) for layer in theirs.encoder.layer]
    assert all(table.max() == 1 for table in times)
    assert not np.array_equal(times[0], times[1]), "each layer has a seed of its own"
    ours = our_model(theirs, [of_blocks(table, BLOCK) for table in times], backend)
    ids, mask, types = batch(lengths, max(lengths))
    answer = theirs(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    hidden = ours(ids, SequenceLayout.from_lengths(lengths, max(lengths)), token_types=types)
    real = mask.bool()
    close(hidden[real], answer.detach()[real])
    backward(hidden, answer, real)
    same_gradients(ours, mapped(gradients(theirs)))


def test_its_pattern_is_a_band_two_global_blocks_and_random_ones() -> None:
    """The same pairs as an expression of ours, but for the blocks drawn, which lie in the row's beginning."""
    length = 64
    times = counted(their_model().train().encoder.layer[0].attention.self, length)
    last = [*range(length - BLOCK, length)]
    band = Blocks(BLOCK, tuple(tuple(range(max(row - 1, 0), row + 2)) for row in range(length // BLOCK)))
    ours = band | global_tokens(first=BLOCK) | global_tokens(indices=last)
    known = ours.materialize(range(length), range(length))
    for head in times:
        theirs = np.kron(head > 0, np.ones((BLOCK, BLOCK), dtype=bool))
        assert (theirs >= known).all()
        drawn = (theirs & ~known)[::BLOCK, ::BLOCK]
        assert drawn.sum(1).tolist() == [0, *[RANDOM] * (length // BLOCK - 2), 0]
        assert not drawn[:, 4 + 2 * RANDOM :].any(), "drawn from the row's beginning alone"


@pytest.mark.parametrize("length", [36, 21])
def test_short_rows_are_full(length: int) -> None:
    """Up to 5 + 2 x random blocks theirs silently turns to full attention, and stays there. A pattern of ours never changes."""
    theirs = their_model()
    ids, mask, types = batch([length, 17], length)
    with torch.no_grad():
        answer = theirs(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        hidden = our_model(theirs, [full()] * 2)(
            ids, SequenceLayout.from_lengths([length, 17], length), token_types=types
        )
    assert theirs.attention_type == "original_full"
    close(hidden[mask.bool()], answer[mask.bool()])


def test_original_full() -> None:
    theirs = their_model("original_full")
    ids, mask, types = batch([48, 30], 48)
    answer = theirs(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    ours = our_model(theirs, [full()] * 2)
    hidden = ours(ids, SequenceLayout.from_lengths([48, 30], 48), token_types=types)
    real = mask.bool()
    close(hidden[real], answer.detach()[real])
    backward(hidden, answer, real)
    same_gradients(ours, mapped(gradients(theirs)))


def attended(attention: Any, hidden: Tensor, times: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """One attention layer, [1, T, M]: theirs; and ours over the same blocks, with log(times counted) where `times` is given."""
    length, block = hidden.shape[1], attention.block_size
    masks = transformers.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, length), block)
    blocked, band, rows, columns = masks
    theirs = attention(hidden, band, rows, columns, blocked, blocked)[0]
    heads = [
        getattr(attention, name)(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for name in ("query", "key", "value")
    ]
    own = counted(attention, length)
    bias = None
    if times is not None:
        bias = torch.from_numpy(np.log(np.maximum(times, 1))).float()
        bias = bias.repeat_interleave(block, 1).repeat_interleave(block, 2)[None]
    ours = attend(*heads, pattern=of_blocks(own, block), bias=bias, backend="reference")
    return ours.transpose(1, 2).flatten(2), theirs


def apart(ours: Tensor, theirs: Tensor, block: int) -> list[int]:
    """Blocks of queries whose outputs differ by more than rounding."""
    difference = (ours - theirs).abs().unflatten(1, (-1, block)).amax((0, 2, 3))
    return torch.nonzero(difference > 1e-4 * theirs.abs().max()).flatten().tolist()


def test_evaluation_counts_the_first_block_again_for_each_random_block() -> None:
    """All rows but those of the two global blocks differ, and by that alone."""
    attention = their_model().eval().encoder.layer[0].attention.self
    times = counted(attention, 48)
    assert (times[:, 1:-1, 0] == 1 + RANDOM).all()
    assert times[:, :, 1:].max() == 1
    hidden = torch.randn(1, 48, M)
    with torch.no_grad():
        assert apart(*attended(attention, hidden, None), BLOCK) == [*range(1, 11)]
        close(*attended(attention, hidden, times))


def test_length_1024_counts_drawn_neighbours_twice() -> None:
    """Only the blocks of queries before the last draw from the whole row: 13 and 14 of 16 may get their own neighbours."""
    config = transformers.BigBirdConfig(
        hidden_size=16, num_attention_heads=H, block_size=64, num_random_blocks=3, max_position_embeddings=1024
    )
    attention = transformers.models.big_bird.modeling_big_bird.BigBirdBlockSparseAttention(config, seed=0).train()
    times = counted(attention, 1024)
    twice = sorted(set(np.argwhere(times > 1)[:, 1].tolist()))
    assert twice
    assert set(twice) <= {13, 14}
    hidden = torch.randn(1, 1024, 16)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(attention, name).weight.normal_(0, 0.4)
        assert apart(*attended(attention, hidden, None), 64) == twice
        close(*attended(attention, hidden, times))

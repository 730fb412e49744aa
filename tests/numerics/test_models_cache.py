"""Decoding with a key/value cache against one pass over the whole row.

Tolerance: the cached steps multiply rows one at a time, so sums of up to 32 terms are ordered anew: 2 layers x 10 operations
x 2^-24 x sqrt(32) = 7e-6 of values near 10.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import POSITIONS, after_prompt, decode, ids, tiny

from triune.attention.layout import SequenceLayout

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
everywhere = pytest.mark.parametrize("position", POSITIONS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@everywhere
@pytest.mark.parametrize("steps", [[1] * 12, [7, 1, 1, 1, 1, 1], [5, 4, 3], [12]], ids=str)
def test_cached_equals_full(position: str, steps: list[int]) -> None:
    model = tiny("decoder", position)
    inputs = ids(2, 12)
    with torch.no_grad():
        full = model(inputs)
    torch.testing.assert_close(decode(model, inputs, steps), full, **CLOSE)


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("pattern", ["causal()", "window(3, 0)", ["causal()", "window(2, 0)"]])
@pytest.mark.parametrize("capacity", [0, 3, 12])
def test_cached_equals_full_for_grouped_heads_windows_and_room(
    key_value_heads: int, pattern: Any, capacity: int
) -> None:
    model = tiny("decoder", key_value_heads=key_value_heads, attention={"pattern": pattern, "qk_norm": True})
    inputs = ids(2, 12)
    with torch.no_grad():
        full = model(inputs)
    got = decode(model, inputs, [4, 1, 1, 3, 3], cache=model.new_cache(2, capacity))
    torch.testing.assert_close(got, full, **CLOSE)


@everywhere
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_prompts_go_on_at_their_own_positions(position: str, side: str) -> None:
    model = tiny("decoder", position)
    lengths, room, more = [3, 7, 1], 7, 5
    inputs = ids(3, room + more)
    got = decode(model, inputs, [room, 1, 1, 3], SequenceLayout.from_lengths(lengths, room, side))
    for row, length in enumerate(lengths):
        expected = after_prompt(model, inputs, row, length, room, side)
        torch.testing.assert_close(got[row : row + 1, room:], expected, **CLOSE)


@everywhere
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_decoder_computes_cross_keys_once(position: str, padded: bool) -> None:
    model = tiny("encoder_decoder", position, decoder_layers=3)
    source, inputs = ids(2, 9), ids(2, 10)
    source_layout = SequenceLayout.from_lengths([9, 4], 9) if padded else None
    with torch.no_grad():
        full = model(inputs, source=source, source_layout=source_layout)
        memory = model.encode(source, source_layout)
    calls: list[int] = []
    for block in model.decoder.blocks:
        block.cross_attention.key_value.register_forward_hook(lambda *_: calls.append(1))
    got = decode(model, inputs, [4, 1, 1, 4], memory=memory, source_layout=source_layout)
    torch.testing.assert_close(got, full, **CLOSE)
    assert len(calls) == 3  # once a layer
    from_source = decode(model, inputs, [4, 1, 1, 4], source=source, source_layout=source_layout)
    torch.testing.assert_close(from_source, full, **CLOSE)


def test_encoder_decoder_continues_unequal_targets() -> None:
    model = tiny("encoder_decoder")
    source, inputs = ids(2, 9), ids(2, 8)
    layout = SequenceLayout.from_lengths([2, 5], 5, side="left")
    got = decode(model, inputs, [5, 1, 2], layout, source=source)
    for row, length in enumerate([2, 5]):
        with torch.no_grad():
            full = model(inputs[row : row + 1, 5 - length :], source=source[row : row + 1])
        torch.testing.assert_close(got[row : row + 1, 5:], full[:, length:], **CLOSE)


def test_a_packed_row_goes_on_with_its_last_document() -> None:
    model = tiny("decoder")
    inputs = ids(1, 12)
    got = decode(model, inputs, [9, 3], SequenceLayout.packed([[4, 5]], 9))
    with torch.no_grad():
        full = model(inputs[:, 4:])
    torch.testing.assert_close(got[:, 4:], full, **CLOSE)


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_reorder_keeps_the_chosen_rows(family: str) -> None:
    """As beam search does: rows are dropped, doubled and exchanged in the middle."""
    model = tiny(family)
    inputs, more, rows = ids(3, 6), ids(4, 3), torch.tensor([2, 0, 2, 1])
    source = {"source": ids(3, 7), "source_layout": SequenceLayout.from_lengths([7, 2, 5], 7)}
    first = source if family == "encoder_decoder" else {}
    layout = SequenceLayout.from_lengths([6, 2, 4], 6, side="left")
    cache = model.new_cache(3)
    with torch.no_grad():
        model(inputs, layout, cache=cache, **first)
        cache.reorder(rows)
        got = model(more, cache=cache)
        for new, old in enumerate(rows.tolist()):
            length = [6, 2, 4][old]
            alone = torch.cat([inputs[old : old + 1, 6 - length :], more[new : new + 1]], dim=1)
            extra = {}
            if first:
                extra = {"source": source["source"][old : old + 1, : [7, 2, 5][old]]}
            torch.testing.assert_close(got[new : new + 1], model(alone, **extra)[:, length:], **CLOSE)


def test_a_cache_refuses_gradients_and_other_batches() -> None:
    model = tiny("decoder")
    with pytest.raises(RuntimeError, match="no_grad"):
        model(ids(2, 4), cache=model.new_cache(2))
    with torch.no_grad(), pytest.raises(ValueError, match="made for 3 rows"):
        model(ids(2, 4), cache=model.new_cache(3))


def test_cache_knows_its_length_and_positions() -> None:
    model = tiny("decoder")
    cache = model.new_cache(2, capacity=8)
    assert cache.length == 0
    with torch.no_grad():
        model(ids(2, 4), SequenceLayout.from_lengths([2, 4], 4, side="left"), cache=cache)
        model(ids(2, 2), cache=cache)
    assert cache.length == 6
    assert cache.layout.positions.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert cache.layout.documents.tolist() == [[-1, -1, 0, 0, 0, 0], [0] * 6]
    assert cache.layers[0].keys.shape[2] == 8


def test_encoder_decoder_wants_exactly_one_thing_to_attend_to() -> None:
    model = tiny("encoder_decoder")
    inputs, source = ids(1, 3), ids(1, 4)
    with pytest.raises(ValueError, match="exactly one"):
        model(inputs)
    with pytest.raises(ValueError, match="exactly one"):
        model(inputs, source=source, memory=model.encode(source))
    cache = model.new_cache(1)
    with torch.no_grad():
        model(inputs, source=source, cache=cache)
        with pytest.raises(ValueError, match="exactly one"):
            model(inputs, source=source, cache=cache)

"""Decoding over a window's ring: equal to one pass over the whole row for every pattern, in constant memory.

Tolerance as in test_models_cache.py: sums of up to 32 terms ordered anew, 2 layers x 10 operations x 2^-24 x sqrt(32) = 7e-6
of values near 10.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import POSITIONS, after_prompt, decode, ids, tiny
from torch import Tensor

from triune.attention.expression import parse
from triune.attention.layout import SequenceLayout
from triune.models import cost
from triune.models.factory import resolve
from triune.models.layers.cache import KeyValueCache
from triune.models.layers.ring import Everything, Ring

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
PATTERNS: dict[str, Any] = {
    "window": "window(3, 0)",
    "least": "window(1, 0)",
    "sinks": "window(3, 0) | (prefix(2) & causal())",
    "sinks only": "prefix(3) & causal()",
    "hole": "window(5, 0) & ~window(2, 0) | window(0, 0)",
    "global first": "(window(2, 0) | global_tokens(first=2)) & causal()",
    "dilated": "dilated(2, 0, 3)",
    "block local": "block_local(4) & causal()",
    "per head": "per_head(window(1, 0), window(5, 0))",
    "alternating": ["window(2, 0)", "causal()"],
    "two windows": ["window(2, 0)", "window(6, 0)"],
}
RINGS = sorted(set(PATTERNS) - {"alternating"})
every_pattern = pytest.mark.parametrize("pattern", sorted(PATTERNS))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def windowed(pattern: str, position: str = "rotary", family: str = "decoder") -> Any:
    chosen = PATTERNS[pattern]
    if family == "decoder":
        return tiny("decoder", position, attention={"pattern": chosen})
    model = tiny(family, position)  # whose option speaks of the encoder: its decoder gets the pattern here
    for index, block in enumerate(model.decoder.blocks):
        block.attention.pattern = parse(chosen if isinstance(chosen, str) else chosen[index % len(chosen)])
    return model


def held(cache: KeyValueCache) -> int:
    """Bytes of all keys and values, and of the tables beside them."""
    stores = {id(layer.store): layer.store for layer in cache.layers}.values()
    tables = [t for s in stores if isinstance(s, Ring) for t in (s.documents, s.positions)]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) + sum(t.nbytes for t in tables)


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        *((p, q) for p in sorted(PATTERNS) for q in ("rotary", "t5", "alibi")),
        *(("sinks", q) for q in sorted(POSITIONS)),
    ],
)
def test_ring_equals_one_pass(pattern: str, position: str) -> None:
    """40 tokens are 5 to 40 turns of these rings; pieces shorter and longer than a ring, and single tokens."""
    model = windowed(pattern, position)
    inputs = ids(2, 40)
    with torch.no_grad():
        full = model(inputs)
    for steps in ([1] * 40, [13, 1, 1, 2, 1, 9, 1, 5, *[1] * 7]):
        got = decode(model, inputs, steps)
        torch.testing.assert_close(got, full, **CLOSE)


@every_pattern
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", ["rotary", "t5"])
def test_rows_of_unequal_prompts(pattern: str, side: str, position: str) -> None:
    """Row by row equal to the row alone; a right-padded row keeps its window though padding came after it."""
    model = windowed(pattern, position)
    lengths, room, more = [3, 11, 1, 7], 11, 14
    inputs = ids(4, room + more)
    got = decode(model, inputs, [room, 1, 1, 3, *[1] * 9], SequenceLayout.from_lengths(lengths, room, side))
    for row, length in enumerate(lengths):
        expected = after_prompt(model, inputs, row, length, room, side)
        torch.testing.assert_close(got[row : row + 1, room:], expected, **CLOSE)


@every_pattern
def test_encoder_decoder_target(pattern: str) -> None:
    model = windowed(pattern, family="encoder_decoder")
    source, inputs = ids(2, 9), ids(2, 22)
    with torch.no_grad():
        full = model(inputs, source=source)
    cache = model.new_cache(2)
    got = decode(model, inputs, [5, 1, 4, *[1] * 12], cache=cache, source=source)
    torch.testing.assert_close(got, full, **CLOSE)
    assert all(isinstance(layer.store, Ring) for layer in cache.layers) == (pattern in RINGS)
    got = decode(model, inputs, [5, *[1] * 17], SequenceLayout.from_lengths([5, 2], 5, "left"), source=source)
    with torch.no_grad():
        full = model(inputs[1:, 3:], source=source[1:])
    torch.testing.assert_close(got[1:, 5:], full[:, 2:], **CLOSE)


@every_pattern
def test_a_conversation_goes_on_with_new_documents(pattern: str) -> None:
    """Packed rows, a second turn whose rows differ in length, and single tokens between, against one packed pass."""
    model = windowed(pattern)
    inputs = ids(2, 30)
    second = layout_of(
        [[1] * 3 + [2] * 5, [0] * 2 + [3] * 4 + [-1] * 2], [[7, 8, 9, *range(5)], [11, 12, *range(4), 0, 0]]
    )
    turns = [(9, SequenceLayout.packed([[4, 5], [9]], 9)), (1, None), (1, None), (8, second), (1, None), (2, None)]
    turns += [(1, None)] * 8
    cache, pieces, start = model.new_cache(2), [], 0
    with torch.no_grad():
        for length, layout in turns:
            pieces.append(model(inputs[:, start : start + length], layout, cache=cache))
            start += length
    documents = [[0] * 4 + [1] * 10 + [2] * 16, [0] * 13 + [3] * 4 + [-1] * 2 + [3] * 11]
    positions = [[*range(4), *range(10), *range(16)], [*range(13), *range(4), 0, 0, *range(4, 15)]]
    with torch.no_grad():
        full = model(inputs[:, :start], layout_of(documents, positions))
    real = torch.tensor(documents) >= 0
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real[:, :start]], full[real[:, :start]], **CLOSE)


@every_pattern
def test_plain_rows_become_unequal(pattern: str) -> None:
    """A second turn with padding after rows that were alike, for which one table of slots had served all."""
    model = windowed(pattern)
    inputs = ids(4, 22)
    turn = layout_of(
        [[0] * 4, [-1] * 2 + [0] * 2, [1] * 3 + [-1], [-1] * 4],
        [[9, 10, 11, 12], [0, 0, 9, 10], [0, 1, 2, 0], [0] * 4],
    )
    cache = model.new_cache(4)
    with torch.no_grad():
        pieces = [model(inputs[:, :8], cache=cache), model(inputs[:, 8:9], cache=cache)]
        pieces.append(model(inputs[:, 9:13], turn, cache=cache))
        pieces += [model(inputs[:, i : i + 1], cache=cache) for i in range(13, 22)]
        got = torch.cat(pieces, dim=1)
        goes_on = list(range(13, 22))
        rows = [[*range(22)], [*range(9), 11, 12, *goes_on], [9, 10, 11, *goes_on], [*range(9), *goes_on]]
        for row, real in enumerate(rows):
            torch.testing.assert_close(got[row, real], model(inputs[row : row + 1, real])[0], **CLOSE)


def test_positions_may_start_anywhere() -> None:
    """A document's later part alone: slots go by position, so that room must be made up to the largest."""
    model = tiny("decoder", attention={"pattern": "window(15, 0)"})
    inputs, places = ids(1, 14), layout_of([[0] * 14], [[*range(9, 23)]])
    with torch.no_grad():
        full = model(inputs, places)
    got = decode(model, inputs, [4, *[1] * 10], layout_of([[0] * 4], [[9, 10, 11, 12]]))
    torch.testing.assert_close(got, full, **CLOSE)


def layout_of(documents: list[list[int]], positions: list[list[int]]) -> SequenceLayout:
    return SequenceLayout(
        documents=torch.tensor(documents, dtype=torch.int32), positions=torch.tensor(positions, dtype=torch.int32)
    )


@pytest.mark.parametrize("padded", [False, True])
def test_reorder_keeps_the_chosen_rows(padded: bool) -> None:
    model = windowed("sinks")
    inputs, more, rows = ids(3, 8), ids(4, 9), torch.tensor([2, 0, 2, 1])
    lengths = [8, 2, 5] if padded else [8, 8, 8]
    cache = model.new_cache(3)
    with torch.no_grad():
        model(inputs, SequenceLayout.from_lengths(lengths, 8, "left"), cache=cache)
        cache.reorder(rows)
        got = torch.cat([model(more[:, i : i + 1], cache=cache) for i in range(9)], dim=1)
        for new, old in enumerate(rows.tolist()):
            alone = torch.cat([inputs[old : old + 1, 8 - lengths[old] :], more[new : new + 1]], dim=1)
            torch.testing.assert_close(got[new : new + 1], model(alone)[:, lengths[old] :], **CLOSE)


@pytest.mark.parametrize("pattern", RINGS)
@pytest.mark.parametrize("padded", [False, True])
def test_memory_is_constant_in_tokens(pattern: str, padded: bool) -> None:
    model = windowed(pattern)
    cache = model.new_cache(2, capacity=1000)
    layout = SequenceLayout.from_lengths([20, 12], 20, "left") if padded else None
    with torch.no_grad():
        model(ids(2, 20), layout, cache=cache)
        before, sizes = held(cache), set()
        for _ in range(30):
            model(ids(2, 1), cache=cache)
            sizes.add(held(cache))
    assert sizes == {before}
    slots = [sum(block.attention.pattern.retained()) for block in model.stack.blocks]
    assert [layer.keys.shape[2] for layer in cache.layers] == [
        max(count, 1 + block.attention.pattern.retained().first)
        for count, block in zip(slots, model.stack.blocks, strict=True)
    ]
    assert cost.key_value_bytes(model.config, 50, itemsize=4) * 2 == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
    )


@pytest.mark.parametrize("pattern", ["window", "sinks"])
def test_a_token_of_plain_rows_meets_no_mask(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in the ring, and before it is full, the kernel gets neither mask nor triangle."""
    model = windowed(pattern)
    seen: list[Any] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((key.shape[2], options["attn_mask"], options["is_causal"]))
        return kernel(query, key, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    retained = model.stack.blocks[0].attention.pattern.retained()
    decode(model, ids(2, 12), [1] * 12)
    assert seen[2::2] == [(min(token, sum(retained)), None, False) for token in range(2, 13)]


def test_layers_have_caches_of_their_own_size_and_share_layouts() -> None:
    model = tiny(
        "decoder", layers=4, attention={"pattern": ["window(2, 0)", "window(2, 0)", "window(4, 0)", "causal()"]}
    )
    cache = model.new_cache(1)
    decode(model, ids(1, 20), [10, *[1] * 10], cache=cache)
    assert [layer.keys.shape[2] for layer in cache.layers][:3] == [3, 3, 5]
    assert cache.layers[0].store is cache.layers[1].store
    assert isinstance(cache.layers[3].store, Everything)
    assert cache.layout is cache.layers[3].store.layout


def test_a_buffer_grows_with_short_rows_up_to_the_window() -> None:
    model = tiny("decoder", attention={"pattern": "window(15, 0)"})
    cache = model.new_cache(1)
    sizes = []
    with torch.no_grad():
        for length in (3, 1, 1, 4, 1, 1, 1, 1, 9, 1):
            model(ids(1, length), cache=cache)
            sizes.append(cache.layers[0].keys.shape[2])
    assert sizes == [3, 6, 6, 12, 12, 12, 12, 16, 16, 16]


@pytest.mark.parametrize("mark", ["prefix", "landmarks"])
def test_marked_tokens_stay(mark: str) -> None:
    model = windowed("window")
    inputs, documents = ids(1, 24), torch.zeros(1, 24, dtype=torch.int32)
    marks = (torch.arange(24) < 3)[None]
    positions = torch.arange(24, dtype=torch.int32)[None]
    with torch.no_grad():
        full = model(inputs, SequenceLayout(documents=documents, positions=positions, **{mark: marks}))
    first = SequenceLayout(documents=documents[:, :8], positions=positions[:, :8], **{mark: marks[:, :8]})
    cache = model.new_cache(1)
    got = decode(model, inputs, [8, *[1] * 16], first, cache=cache)
    torch.testing.assert_close(got, full, **CLOSE)
    assert cache.layers[0].keys.shape[2] >= 24


def test_what_a_ring_has_let_go_is_not_asked_for() -> None:
    model = windowed("window")

    def after_ten(layout: SequenceLayout) -> None:
        cache = model.new_cache(1)
        with torch.no_grad():
            model(ids(1, 10), SequenceLayout.packed([[6, 4]], 10), cache=cache)
            model(ids(1, 2), layout, cache=cache)

    after_ten(layout_of([[1, 1]], [[4, 5]]))
    after_ten(layout_of([[2, 2]], [[0, 1]]))
    after_ten(layout_of([[-1, 1]], [[0, 4]]))
    for documents, positions in (
        ([[0, 0]], [[6, 7]]),
        ([[1, 1]], [[3, 4]]),
        ([[2, 1]], [[0, 4]]),
        ([[1, 1]], [[4, 4]]),
    ):
        with pytest.raises(ValueError, match="goes back"):
            after_ten(layout_of(documents, positions))
    with pytest.raises(ValueError, match="marks"):
        after_ten(
            SequenceLayout(
                documents=torch.ones(1, 2, dtype=torch.int32),
                positions=torch.tensor([[4, 5]], dtype=torch.int32),
                prefix=torch.tensor([[True, False]]),
            )
        )


def test_unordered_rows_keep_all() -> None:
    """A row that goes back to a document is still right where it is so from the first: nothing is let go then."""
    model = windowed("window")
    layout = layout_of([[0, 0, 1, 1, 1, 1, 0, 0]], [[0, 1, 0, 1, 2, 3, 2, 3]])
    inputs = ids(1, 14)
    whole = layout_of([[0, 0, 1, 1, 1, 1, *[0] * 8]], [[0, 1, 0, 1, 2, 3, *range(2, 10)]])
    with torch.no_grad():
        full = model(inputs, whole)
    got = decode(model, inputs, [8, *[1] * 6], layout)
    torch.testing.assert_close(got, full, **CLOSE)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_any_prompts_pieces_and_windows(data: st.DataObject) -> None:
    torch.manual_seed(0)
    first, last = data.draw(st.integers(0, 3)), data.draw(st.integers(2, 6))
    pattern = f"window({last - 1}, 0)" + (f" | prefix({first}) & causal()" if first else "")
    model = tiny("decoder", attention={"pattern": [pattern, "window(1, 0)"]})
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))
    steps = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    side = data.draw(st.sampled_from(["left", "right"]))
    room = max(lengths)
    inputs = ids(len(lengths), room + sum(steps))
    got = decode(model, inputs, [room, *steps], SequenceLayout.from_lengths(lengths, room, side))
    for row, length in enumerate(lengths):
        expected = after_prompt(model, inputs, row, length, room, side)
        torch.testing.assert_close(got[row : row + 1, room:], expected, **CLOSE)


def test_bytes_of_a_cache_follow_the_patterns() -> None:
    base = {"vocabulary": 40, "width": 32, "layers": 4, "heads": 4, "key_value_heads": 2, "context": 64}
    token = 2 * 2 * 8 * 2  # keys and values, K = 2, D = 8, two bytes
    dense = resolve(base)
    mixed = resolve(base, attention={"pattern": ["window(7, 0)", "window(7, 0)", "window(7, 0)", "causal()"]})
    assert cost.key_value_bytes(dense, 100) == 4 * 100 * token == 100 * cost.key_value_bytes_per_token(dense)
    assert cost.key_value_bytes(mixed, 100) == (3 * 8 + 100) * token
    assert cost.key_value_bytes(mixed, 5) == 4 * 5 * token
    seq2seq = resolve(base, family="encoder_decoder", decoder_layers=3)
    assert cost.key_value_bytes(seq2seq, 10, source_length=20) == 3 * 30 * token

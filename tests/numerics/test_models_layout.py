"""Packing and padding: what stands beside a document in its row must not be seen, by any family and position method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import POSITIONS, V, ids, tiny
from torch import Tensor

from triune.attention.layout import SequenceLayout

FAMILIES = ["encoder", "decoder", "encoder_decoder"]
everywhere = pytest.mark.parametrize("position", POSITIONS)
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@torch.no_grad()
def run(model: Any, inputs: Tensor, layout: Any, source: Tensor | None, source_layout: Any) -> tuple[Tensor, Tensor]:
    """Hidden states and logits."""
    extra = {} if source is None else {"source": source, "source_layout": source_layout}
    hidden = model(inputs, layout, **extra)
    return hidden, model.head.logits(hidden)


@everywhere
@families
def test_changing_a_document_leaves_its_neighbours_bit_equal(family: str, position: str) -> None:
    model = tiny(family, position)
    layout = SequenceLayout.packed([[6, 5, 4], [3, 12]], 16)
    inputs = ids(2, 16)
    source = source_layout = None
    if family == "encoder_decoder":
        source, source_layout = ids(2, 14), SequenceLayout.packed([[4, 6, 3], [5, 7]], 14)
    before = run(model, inputs, layout, source, source_layout)
    for document in (0, 1):
        mine = layout.documents == document
        changed = torch.where(mine, (inputs + 1 + ids(2, 16) % (V - 1)) % V, inputs)
        other_source = source
        if source is not None and source_layout is not None:
            other_source = torch.where(source_layout.documents == document, (source + 7) % V, source)
        after = run(model, changed, layout, other_source, source_layout)
        neighbours = ~mine & ~layout.padding
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[neighbours], new[neighbours])
            assert not torch.equal(old[mine], new[mine])


@families
def test_changing_only_a_documents_source_leaves_its_neighbours_bit_equal(family: str) -> None:
    if family != "encoder_decoder":
        pytest.skip("only an encoder-decoder has a source")
    model = tiny(family)
    layout, source_layout = SequenceLayout.packed([[6, 5]], 12), SequenceLayout.packed([[4, 6]], 10)
    inputs, source = ids(1, 12), ids(1, 10)
    before = run(model, inputs, layout, source, source_layout)[0]
    changed = torch.where(source_layout.documents == 1, (source + 3) % V, source)
    after = run(model, inputs, layout, changed, source_layout)[0]
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:11], after[:, 6:11])


@everywhere
@families
def test_packed_equals_unpacked(family: str, position: str) -> None:
    """Each document of a packed row against the document alone. The kernels split other shapes in other places, so that
    sums of up to 32 terms are ordered anew: 2 layers x 10 operations x 2^-24 x sqrt(32) = 7e-6 of values near 10."""
    model = tiny(family, position)
    lengths, source_lengths = [6, 5, 4], [4, 6, 3]
    inputs, layout = ids(1, 16), SequenceLayout.packed([lengths], 16)
    cross = family == "encoder_decoder"
    source = ids(1, 14) if cross else None
    source_layout = SequenceLayout.packed([source_lengths], 14) if cross else None
    packed = run(model, inputs, layout, source, source_layout)
    for number in range(3):
        start, end = sum(lengths[:number]), sum(lengths[: number + 1])
        first, last = sum(source_lengths[:number]), sum(source_lengths[: number + 1])
        alone = run(model, inputs[:, start:end], None, source[:, first:last] if cross else None, None)
        for one, other in zip(packed, alone, strict=True):
            torch.testing.assert_close(one[:, start:end], other, rtol=1e-4, atol=1e-4)


@everywhere
@families
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(family: str, position: str, side: str) -> None:
    """A row alone, and beside longer ones with padding on either side; same tolerance as for packing."""
    model = tiny(family, position)
    lengths, room = [5, 9, 1], 12
    inputs = ids(3, room)
    cross = family == "encoder_decoder"
    source, source_lengths = (ids(3, 8), [8, 3, 2]) if cross else (None, [0, 0, 0])
    source_layout = SequenceLayout.from_lengths(source_lengths, 8, side) if cross else None
    padded = run(model, inputs, SequenceLayout.from_lengths(lengths, room, side), source, source_layout)
    for row, (length, source_length) in enumerate(zip(lengths, source_lengths, strict=True)):
        real = slice(room - length, room) if side == "left" else slice(0, length)
        read = slice(8 - source_length, 8) if side == "left" else slice(0, source_length)
        alone = run(model, inputs[row : row + 1, real], None, source[row : row + 1, read] if cross else None, None)
        for one, other in zip(padded, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1, real], other, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(padded[0]).all()


@families
def test_what_stands_in_the_padding_is_never_seen(family: str) -> None:
    model = tiny(family)
    layout = SequenceLayout.from_lengths([5, 9], 12)
    inputs = ids(2, 12)
    cross = family == "encoder_decoder"
    source = ids(2, 8) if cross else None
    source_layout = SequenceLayout.from_lengths([4, 8], 8) if cross else None
    before = run(model, inputs, layout, source, source_layout)[0]
    noise = torch.where(layout.padding, ids(2, 12), inputs)
    if source is not None and source_layout is not None:
        source = torch.where(source_layout.padding, ids(2, 8), source)
    after = run(model, noise, layout, source, source_layout)[0]
    assert torch.equal(before[~layout.padding], after[~layout.padding])


@pytest.mark.parametrize("pattern", [None, "window(3, 0)", "causal() | prefix(2)", ["causal()", "window(2, 0)"]])
def test_a_decoder_does_not_see_the_future(pattern: Any) -> None:
    model = tiny("decoder", attention={"pattern": pattern})
    inputs = ids(1, 16)
    changed = inputs.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % V
    before, after = (run(model, x, None, None, None)[0] for x in (inputs, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_an_encoder_decoders_decoder_is_causal_and_its_pattern_is_the_encoders() -> None:
    model = tiny("encoder_decoder", attention={"pattern": "window(1, 1)"})
    assert {str(block.attention.pattern) for block in model.encoder.blocks} == {"window(1, 1)"}
    assert {str(block.attention.pattern) for block in model.decoder.blocks} == {"causal()"}
    source, inputs = ids(1, 12), ids(1, 10)
    changed = torch.cat([inputs[:, :5], (inputs[:, 5:] + 1) % V], 1)
    before, after = (run(model, x, None, source, None)[0] for x in (inputs, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    memory = model.encode(source)
    far = model.encode(torch.cat([source[:, :8], (source[:, 8:] + 1) % V], 1))
    assert torch.equal(memory[:, :6], far[:, :6])  # 2 layers of window 1 reach 2 tokens
    assert not torch.equal(memory[:, 6:8], far[:, 6:8])


def test_prefix_marks_are_seen_by_their_whole_document() -> None:
    model = tiny("decoder")
    prefix = torch.zeros(1, 10, dtype=torch.bool)
    prefix[:, :4] = True
    plain = SequenceLayout.plain_rows(1, 10)
    marked = SequenceLayout(documents=plain.documents, positions=plain.positions, prefix=prefix)
    inputs = ids(1, 10)
    changed = inputs.clone()
    changed[:, 3] = (changed[:, 3] + 1) % V
    assert torch.equal(
        run(model, inputs, plain, None, None)[0][:, :3], run(model, changed, plain, None, None)[0][:, :3]
    )
    assert not torch.equal(
        run(model, inputs, marked, None, None)[0][:, 0], run(model, changed, marked, None, None)[0][:, 0]
    )


@families
def test_the_same_call_gives_the_same_bits(family: str) -> None:
    model = tiny(family)
    source = ids(2, 8) if family == "encoder_decoder" else None
    inputs = ids(2, 12)
    first, second = (run(model, inputs, None, source, None)[0] for _ in range(2))
    assert torch.equal(first, second)


@families
def test_one_pattern_and_one_rotary_base_a_layer_repeat_to_the_depth(family: str) -> None:
    model = tiny(
        family,
        layers=5,
        attention={"pattern": ["causal()", "window(2, 0)"]},
        **{"position.base": [100.0, 10.0, 10.0]},
    )
    stack = model.encoder if family == "encoder_decoder" else model.stack
    assert [str(block.attention.pattern) for block in stack.blocks] == [
        "causal()", "window(2, 0)", "causal()", "window(2, 0)", "causal()",
    ]  # fmt: skip
    around, _ = stack._surroundings(SequenceLayout.plain_rows(1, 4), None, None)
    bases = [around[index % len(around)].rotation.cosine[0, 1, 0, 1] for index in range(5)]
    expected = [torch.tensor(base ** (-2 / 8)).cos() for base in (100.0, 10.0, 10.0, 100.0, 10.0)]  # D = 8, pair 1
    torch.testing.assert_close(torch.stack(bases), torch.stack(expected))

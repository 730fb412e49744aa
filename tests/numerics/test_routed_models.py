"""Models with routed attention: decoding with a cache, packing, gradients, and every family.

Tolerance: fp64 everywhere, where 2 layers of sums of up to 64 terms of values below 100 err by less than 1e-11. fp64 also keeps
hashes and routes from flipping between two ways of computing the same vector.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import after_prompt, decode, ids, tiny
from torch import Tensor

from triune.attention.layout import SequenceLayout

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
LSH = "lsh(buckets=4, chunk=4, rounds=2, causal=True)"
MOBA = "moba(block=3, top=2)"
NSA = "nsa(compress=4, stride=2, select=4, top=3, window=3)"
BOTH_WAYS = "lsh(buckets=4, chunk=4, rounds=2, causal=False)"
MIXED = ["window(3, 0)", LSH]
causal_patterns = pytest.mark.parametrize("pattern", [LSH, MOBA, NSA, MIXED], ids=["lsh", "moba", "nsa", "mixed"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def model_of(pattern: Any, family: str = "decoder", **settings: Any) -> Any:
    heads = None if "lsh" in str(pattern) else 2
    attention = {"pattern": pattern, "qk_norm": True}
    return tiny(family, key_value_heads=heads, attention=attention, **settings).double()


@causal_patterns
@pytest.mark.parametrize("steps", [[1] * 20, [13, 1, 1, 1, 4], [20]], ids=str)
def test_cached_equals_full(pattern: Any, steps: list[int]) -> None:
    model = model_of(pattern)
    inputs = ids(2, 20)
    with torch.no_grad():
        full = model(inputs)
    torch.testing.assert_close(decode(model, inputs, steps), full, **CLOSE)


@causal_patterns
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_prompts_go_on_at_their_own_positions(pattern: Any, side: str) -> None:
    model = model_of(pattern)
    lengths, room, more = [3, 11, 1], 11, 6
    inputs = ids(3, room + more)
    got = decode(model, inputs, [room, 1, 1, 4], SequenceLayout.from_lengths(lengths, room, side))
    for row, length in enumerate(lengths):
        expected = after_prompt(model, inputs, row, length, room, side)
        torch.testing.assert_close(got[row : row + 1, room:], expected, **CLOSE)


@causal_patterns
def test_a_packed_row_goes_on_with_its_last_document_and_rows_may_be_reordered(pattern: Any) -> None:
    model = model_of(pattern)
    inputs = ids(2, 16)
    cache = model.new_cache(2)
    with torch.no_grad():
        model(inputs[:, :12], SequenceLayout.packed([[4, 8], [5, 7]], 12), cache=cache)
        cache.reorder(torch.tensor([1, 0, 1]))
        got = model(inputs[[1, 0, 1], 12:], cache=cache)
        for row, start in ((1, 5), (0, 4)):
            full = model(inputs[row : row + 1, start:])
            torch.testing.assert_close(got[1 - row][None], full[:, 12 - start :], **CLOSE)


@causal_patterns
def test_packed_rows_equal_documents_alone(pattern: Any) -> None:
    model = model_of(pattern)
    inputs = ids(1, 24)
    with torch.no_grad():
        packed = model(inputs, SequenceLayout.packed([[9, 13]], 24))
        torch.testing.assert_close(packed[:, :9], model(inputs[:, :9]), **CLOSE)
        torch.testing.assert_close(packed[:, 9:22], model(inputs[:, 9:22]), **CLOSE)


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("encoder", BOTH_WAYS), ("encoder_decoder", BOTH_WAYS), *(("decoder", pattern) for pattern in (LSH, MOBA, NSA))],
)
def test_padding_changes_nothing_and_every_parameter_learns(family: str, pattern: str) -> None:
    model = model_of(pattern, family)
    inputs, target = ids(2, 15), ids(2, 6)
    outputs = []
    for side in ("right", "left"):
        row = torch.zeros(2, 20, dtype=torch.long)
        row[:, slice(0, 15) if side == "right" else slice(5, 20)] = inputs
        layout = SequenceLayout.from_lengths([15, 15], 20, side)
        if family == "encoder_decoder":
            outputs.append(model(target, source=row, source_layout=layout))
        else:
            outputs.append(model(row, layout)[~layout.padding])
    torch.testing.assert_close(outputs[0], outputs[1], **CLOSE)
    outputs[0].square().sin().sum().backward()
    lazy = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in lazy if not name.startswith("head.")] == []


@causal_patterns
@pytest.mark.parametrize("option", ["reversible", "activation_checkpointing"])
def test_recomputed_activations_give_the_true_gradients(pattern: Any, option: str) -> None:
    """Against the slope of the loss along a random direction of the weights: routes are constant near a point.

    Central differences over 1e-6 err by its square times third derivatives, and by 1e-16 / 1e-6 x loss.
    """
    model = model_of(pattern, **{option: True}).train()
    inputs = ids(2, 20)

    def loss() -> Tensor:
        return model(inputs).square().mean()

    loss().backward()
    directions = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), directions, strict=True) if p.grad is not None)
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(model.parameters(), directions, strict=True):
                p += step * d
            ends.append(loss())
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-5, atol=1e-6)


def test_layers_of_a_list_may_hash_differently() -> None:
    model = model_of([LSH, LSH.replace(")", ", seed=1)")])
    seeds = [block.attention.pattern.seed for block in model.stack.blocks]
    assert seeds == [0, 1]

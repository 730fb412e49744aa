"""Mappings as data: each reshape moves the numbers where its definition says, and there and back is the identity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.exchange.mapping import (
    TRANSPOSED,
    Echo,
    Entry,
    Fixed,
    HeadsApart,
    Ignored,
    Part,
    RotaryPairs,
    TensorMapping,
    Viewed,
    check_shapes,
    each_layer,
    module,
    tensor,
    to_ours,
    to_theirs,
)


def test_heads_apart_is_gpt_neox_s_order():
    heads, width = 3, 2
    ours = torch.arange(3 * heads * width)  # row = part * heads * width + head * width + number
    theirs = HeadsApart(heads).to_theirs(ours)
    for head in range(heads):
        for part in range(3):
            for number in range(width):
                row = head * 3 * width + part * width + number
                assert theirs[row] == part * heads * width + head * width + number


def test_rotary_pairs_are_neighbours_there_and_halves_here():
    ours = torch.arange(2 * 6)  # two heads of 6: pairs (0, 3), (1, 4), (2, 5)
    assert RotaryPairs(2).to_theirs(ours).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@settings(max_examples=40, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 4), columns=st.integers(0, 3), data=st.data())
def test_there_and_back_is_the_identity(heads, half, columns, data):
    rows = heads * 2 * half
    shape = (3 * rows, columns) if columns else (3 * rows,)
    ours = torch.randn(shape)
    reshapes = [HeadsApart(heads), RotaryPairs(3 * heads), TRANSPOSED, Viewed(shape, (1, *shape))]
    reshape = data.draw(st.sampled_from(reshapes))
    theirs = reshape.to_theirs(ours)
    assert torch.equal(reshape.to_ours(theirs), ours)
    assert torch.equal(reshape.to_theirs(reshape.to_ours(theirs)), theirs)


def example():
    """Of every kind of rule one."""
    blocks = [
        *module("b.{layer}.qkv", {"l.{layer}.q": 4, "l.{layer}.k": 2, "l.{layer}.v": 2}),
        *module("b.{layer}.up", "l.{layer}.up", bias=False, reshape=TRANSPOSED),
    ]
    return TensorMapping(
        entries=(
            tensor("table", "in.weight", "out.weight"),
            *each_layer(2, blocks),
            Entry("qk", (Part(("gguf.q",), 4, RotaryPairs(2)), Part(("gguf.k",), 2, RotaryPairs(1)))),
            tensor("bias", "logits", reshape=Viewed((5,), (1, 5))),
        ),
        fixed=(
            Fixed("positions", lambda: torch.arange(3)),
            Fixed("sines", lambda: torch.arange(3.0).sin(), written=True),
        ),
        echoes=(Echo("dead", "in.weight", "nothing reads it"),),
        ignored=(Ignored(r"pooler\..*", "no part"),),
    )


def ours():
    torch.manual_seed(0)
    shapes = {"table": (5, 4), "qk": (6, 3), "bias": (5,)}
    shapes |= {f"b.{i}.qkv.{kind}": shape for i in range(2) for kind, shape in (("weight", (8, 4)), ("bias", (8,)))}
    shapes |= {f"b.{i}.up.weight": (7, 4) for i in range(2)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def shapes_of(tensors):
    return {name: tuple(value.shape) for name, value in tensors.items()}


def test_a_whole_mapping_both_ways():
    mapping, mine = example(), ours()
    theirs = to_theirs(mapping, mine)
    assert shapes_of(theirs)["l.1.k.weight"] == (2, 4)
    assert shapes_of(theirs)["l.0.up.weight"] == (4, 7)
    assert torch.equal(theirs["l.0.v.bias"], mine["b.0.qkv.bias"][6:])
    assert torch.equal(theirs["dead"], theirs["in.weight"])
    assert "sines" in theirs
    assert not {"positions", "out.weight"} & theirs.keys()
    check_shapes(mapping, mine, shapes_of(theirs), place="here")
    back = to_ours(mapping, theirs)
    assert back.keys() == mine.keys()
    assert all(torch.equal(back[name], mine[name]) for name in mine)


def test_tied_tensors_may_stand_under_any_of_their_names():
    mapping, mine = example(), ours()
    theirs = to_theirs(mapping, mine)
    theirs["out.weight"] = theirs.pop("in.weight").clone()
    check_shapes(mapping, mine, shapes_of(theirs), place="here")
    assert torch.equal(to_ours(mapping, theirs)["table"], mine["table"])
    theirs["in.weight"] = theirs["out.weight"].clone()
    assert torch.equal(to_ours(mapping, theirs)["table"], mine["table"])
    theirs["in.weight"][2, 2] += 1
    with pytest.raises(UserError, match=r"in\.weight and out\.weight are one tensor"):
        to_ours(mapping, theirs)


def test_leftover_missing_and_wrong_shapes_are_listed_together():
    mapping, mine = example(), ours()
    shapes = shapes_of(to_theirs(mapping, mine))
    shapes |= {"pooler.dense": (9, 9), "stranger": (1,), "l.0.q.bias": (5,)}
    del shapes["l.1.up.weight"], shapes["sines"]
    with pytest.raises(UserError) as caught:
        check_shapes(mapping, mine, shapes, place="file")
    said = str(caught.value)
    assert "file: 3 tensors" in said
    assert "l.1.up.weight: missing, expected [4, 7]" in said
    assert "l.0.q.bias: [5], expected [4]" in said
    assert "stranger: left over, [1]" in said
    assert "sines" not in said  # ours computes them
    assert "pooler" not in said


def test_what_ours_computes_is_checked_where_a_file_holds_it():
    mapping, mine = example(), ours()
    theirs = to_theirs(mapping, mine) | {"positions": torch.arange(3)}
    to_ours(mapping, theirs)
    for bad in (torch.tensor([0, 1, 3]), torch.arange(4)):
        with pytest.raises(UserError, match="positions"):
            to_ours(mapping, theirs | {"positions": bad})


def test_a_mapping_that_forgets_a_tensor_of_ours_says_so():
    mine = ours()
    with pytest.raises(UserError, match="stray: this model has it, the mapping does not"):
        to_theirs(example(), mine | {"stray": torch.zeros(1)})
    del mine["bias"]
    with pytest.raises(UserError, match="bias: the mapping has it, this model does not"):
        to_theirs(example(), mine)

"""Weights carried to another context and other patterns: every tensor, what the table says of it, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.exchange.model_directory import Saved
from triune.models.factory import build, resolve
from triune.training.config import InitConfig
from triune.training.conversion_plan import plan_conversion
from triune.training.conversion_rows import PositionRows
from triune.training.towers import Source
from triune.training.weights import Start

PLACE = Path("runs/pretrain/dense")
BASE = {"vocabulary": 64, "context": 16, "width": 16, "layers": 2, "heads": 2, "attention": {"backend": "reference"}}
POSITIONS = {
    "learned": {"kind": "learned"},
    "learned with an offset": {"kind": "learned", "offset": 2},
    "sinusoidal": {"kind": "sinusoidal"},
    "rotary": {"kind": "rotary"},
    "alibi": {"kind": "alibi"},
    "t5": {"kind": "t5", "buckets": 8, "max_distance": 12},
    "none": {"kind": "none"},
}
FAMILIES = ("encoder", "decoder", "encoder_decoder")


def tree(**changes):
    """BASE with changes; `pattern` is short for the one in `attention`."""
    found = {**BASE, **changes}
    if "pattern" in found:
        found["attention"] = {**BASE["attention"], "pattern": found.pop("pattern")}
    return found


def planned(source, model):
    return plan_conversion([Source(option="init.from", place=PLACE, model=resolve(source))], resolve(model))


def trained(source):
    """A model whose every parameter differs from every start, biases and norms included."""
    torch.manual_seed(3)
    model = build(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def converted(source_model, model):
    """(a model of `model`'s settings that starts from `source_model`, the conversion)."""
    saved = Saved(
        path=PLACE,
        model=source_model.config,
        objective="causal",
        tokenizer="same",
        tensors={n: p.detach().clone() for n, p in source_model.named_parameters(remove_duplicate=False)},
    )
    torch.manual_seed(4)
    fresh = build(model)
    done = Start(init=InitConfig(from_="dense"), saved={"init.from": saved}).fill(fresh, None)
    return fresh.eval(), done


@settings(deadline=None, max_examples=60, derandomize=True)
@given(offset=st.integers(0, 3), before=st.integers(1, 12), after=st.integers(1, 50))
def test_position_rows_repeat_the_trained_ones_and_the_words_say_just_that(offset, before, after):
    rows = PositionRows(offset=offset, before=before, after=after)
    table = torch.arange(offset + before)
    carried = table[torch.tensor(rows.index())].tolist()
    assert carried[:offset] == list(range(offset))
    assert carried[offset:] == [offset + position % before for position in range(after)]

    words, told = str(rows), []
    first, last, times = re.match(r"positions (\d+)-(\d+) copied(?: (\d+) times? in a row)?", words).groups()
    told += list(range(int(first), int(last) + 1)) * int(times or 1)
    if rest := re.search(r", then 0-(\d+)", words):
        told += range(int(rest[1]) + 1)
    assert told == [position % before for position in range(after)]
    left_out = re.search(r"the other (\d+) left out", words)
    assert (int(left_out[1]) if left_out else 0) == max(0, before - after)
    assert (f"the rows before position 0 ({offset}) as they were" in words) == (offset > 0)


@pytest.mark.parametrize("context", [16, 40, 64, 5], ids=lambda c: f"context {c}")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_arrives(family, position, context):
    source = trained(tree(family=family, position=POSITIONS[position]))
    pattern = "window(3, 0)" if family == "decoder" else "window(3, 3)"
    model, done = converted(source, tree(family=family, position=POSITIONS[position], context=context, pattern=pattern))
    old, new = dict(source.named_parameters()), dict(model.named_parameters())
    assert old.keys() == new.keys() == {fate.name for fate in done.fates}
    for name, parameter in new.items():
        if name.endswith("positions.weight"):
            offset = POSITIONS[position].get("offset", 0)
            where = [*range(offset), *(offset + p % 16 for p in range(context))]
            assert torch.equal(parameter, torch.stack([old[name][row] for row in where])), name
        else:
            assert torch.equal(parameter, old[name]), name


def hidden(model, family, ids):
    with torch.no_grad():
        return model(ids, source=ids.flip(1)) if family == "encoder_decoder" else model(ids)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_over_the_old_context_computes_what_the_dense_model_did(family, position):
    """On rows no longer than the source's context. Bit-equal: the reference reads the same mask and the same numbers."""
    source = trained(tree(family=family, position=POSITIONS[position]))
    covering = "window(15, 0)" if family == "decoder" else "window(15, 15)"
    cutting = covering.replace("15", "14")  # one token short of it
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = hidden(source, family, ids)
    same = {"family": family, "position": POSITIONS[position], "context": 40}
    longer, _ = converted(source, tree(**same, pattern=covering))
    assert torch.equal(hidden(longer, family, ids), expected)
    shorter, _ = converted(source, tree(**same, pattern=cutting))
    assert not torch.equal(hidden(shorter, family, ids), expected)


def test_the_table_to_the_letter():
    source = tree(
        family="encoder", layers=3, position={"kind": "learned", "offset": 2}, bias=False, norm={"bias": False}
    )
    model = source | {
        "context": 40,
        "dropout": 0.1,
        "attention": {"pattern": ["window(4, 4)", "full()", "window(4, 4)"], "backend": "auto"},
    }
    assert (
        str(planned(source, model))
        == """\
weights from runs/pretrain/dense
  embedding.weight                                             64 x 16             copied
  input.positions.weight                                       18 x 16 -> 42 x 16  positions 0-15 copied 2 times in a row, then 0-7
                                                                                   the rows before position 0 (2) as they were
  stack.blocks.*.attention.query_key_value.weight (3)          48 x 16             copied
  stack.blocks.*.attention.output.weight (3)                   16 x 16             copied
  stack.blocks.*.attention_residual.norm_before.weight (3)     16                  copied
  stack.blocks.*.feed_forward.up.weight (3)                    64 x 16             copied
  stack.blocks.*.feed_forward.down.weight (3)                  16 x 64             copied
  stack.blocks.*.feed_forward_residual.norm_before.weight (3)  16                  copied
  stack.norm.weight                                            16                  copied
  21 tensors: 20 copied, 1 grown

  pattern of stack, layers 0, 2  full() -> window(4, 4)  other pairs of tokens
  pattern of stack, layer 1      full()                  as it was
  model.context                  16 -> 40                rows of up to so many tokens
  model.position                 learned                 a table: see its tensors
  model.dropout                  0.0 -> 0.1              counts in training only"""
    )


def test_two_spellings_of_one_model_differ_in_nothing():
    spelled = {
        "key_value_heads": 2,
        "head_width": 8,
        "qkv_bias": True,
        "norm": {"final": True},
        "feed_forward": {"width": 64, "chunk": 4},
        "attention": {"pattern": "causal()", "backend": "sdpa"},
        "activation_checkpointing": True,
        "initialization": {"std": 0.5},
    }
    plan = planned(BASE, BASE | spelled)
    assert [(line.name, line.meaning) for line in plan.settings] == [
        ("pattern of stack, layers 0-1", "as it was"),
        ("model.context", "as it was"),
        ("model.position", "as it was"),
    ]
    assert {fate.words for fate in plan.fates} == {"copied"}


@pytest.mark.parametrize(
    ("before", "after", "change", "says"),
    [
        ({}, {"context": 64}, "rotary, scaling none",
         "positions 16 to 63 were never trained (plain extrapolation); "
         "model.position.scaling=linear or yarn with model.position.factor=4 would rescale them (ntk wants a larger factor)"),
        ({}, {"context": 8}, "rotary, scaling none", "as it was"),
        ({}, {"context": 64, "position": {"scaling": "linear", "factor": 4}}, "rotary, scaling none -> linear x 4 of 16",
         "positions divided by the factor (Chen et al. 2023)"),
        ({}, {"context": 64, "position": {"scaling": "ntk", "factor": 2, "original_context": 16}},
         "rotary, scaling none -> ntk x 2 of 16", "positions from 32 on lie beyond original_context x factor"),
        ({}, {"context": 64, "position": {"scaling": "yarn", "factor": 8, "original_context": 8}},
         "rotary, scaling none -> yarn x 8 of 8", "original_context is 8, but the source was trained at 16"),
        ({}, {"position": {"base": 5e5}}, "rotary, scaling none, base 10000.0 -> 500000.0", "another base changes every angle"),
        ({"context": 64, "position": {"scaling": "yarn", "factor": 4}},
         {"context": 128, "position": {"scaling": "yarn", "factor": 8}}, "rotary, scaling yarn x 4 of 16 -> yarn x 8 of 16",
         "long waves stretched by the factor, short ones left, scores sharpened (Peng et al. 2023)"),
        ({"context": 64, "position": {"scaling": "yarn", "factor": 4}},
         {"context": 64, "position": {"scaling": "yarn", "factor": 4, "original_context": 16}}, "rotary, scaling yarn x 4 of 16",
         "as it was"),
        ({"position": {"original_context": 8}}, {"context": 64, "position": {"scaling": "linear", "factor": 4}},
         "rotary, scaling none -> linear x 4 of 16", "positions divided by the factor (Chen et al. 2023)"),
        ({"context": 64, "position": {"scaling": "yarn", "factor": 4}}, {"context": 64},
         "rotary, scaling yarn x 4 of 16 -> none", "the weights were trained with that scaling, and lose it"),
    ],
)  # fmt: skip
def test_what_happens_to_rotary_positions_is_said(before, after, change, says):
    def rotary(changes):
        return tree(**{**changes, "position": {"kind": "rotary", **changes.get("position", {})}})

    line = next(s for s in planned(rotary(before), rotary(after)).settings if s.name == "model.position")
    assert line.change == change
    assert says in line.meaning
    assert ("as it was" in line.meaning) == ("as it was" in says)


@pytest.mark.parametrize(
    ("position", "change", "says"),
    [
        ({"kind": "alibi"}, {}, "as it was: slopes over the distance"),
        ({"kind": "none"}, {}, "as it was: there are none"),
        ({"kind": "sinusoidal"}, {}, "positions 16 to 39 were never trained"),
        ({"kind": "sinusoidal"}, {"base": 50.0}, "other waves"),
        ({"kind": "t5", "max_distance": 20}, {}, "as it was: distances from 20 on share the last bucket"),
        ({"kind": "t5", "max_distance": 20}, {"max_distance": 30}, "other buckets than in training"),
    ],
)
def test_what_happens_to_positions_without_a_table_is_said(position, change, says):
    plan = planned(tree(position=position), tree(position=position | change, context=40))
    assert says in next(s.meaning for s in plan.settings if s.name == "model.position")


def test_a_reversible_stack_is_said_to_be_another_function():
    line = planned(BASE, tree(reversible=True)).settings[-1]
    assert line[:2] == ("model.reversible", "False -> True")
    assert "another function" in line.meaning


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"family": "encoder_decoder"}, ["family decoder and has one stack", "model.family is encoder_decoder", "init.encoder="]),
        ({}, {"heads": 4}, ["model.heads: 4 here, 2 in runs/pretrain/dense", "set model.heads=2"]),
        ({}, {"position": {"kind": "learned"}}, ["model.position.kind: learned here, rotary in", "set model.position.kind=rotary"]),
        ({"position": {"kind": "learned", "offset": 2}}, {"position": {"kind": "learned"}}, ["model.position.offset: 0 here, 2 in"]),
        ({}, {"position": {"kind": "rotary", "fraction": 0.5}}, ["model.position.fraction: 0.5 here, 1.0 in"]),
        ({}, {"tie_embeddings": False}, ["model.tie_embeddings: False here, True in"]),
        ({"tie_embeddings": False}, {}, ["model.tie_embeddings: True here, False in"]),
        ({}, {"width": 32, "head_width": 8}, ["model.width: 32 here, 16 in", "every tensor is of that width", "set model.width=16"]),
        ({"position": {"kind": "learned"}}, {"position": {"kind": "learned"}, "context": 32, "width": 32},
         ["model.width: 32 here", "model.head_width: 16 here, 8 in"]),
        ({}, {"feed_forward": {"width": 32}}, ["do not fit", "stack.blocks.0.feed_forward.up.weight: 64 x 16 there, 32 x 16 here"]),
        ({}, {"norm": {"final": False}}, ["do not fit", "stack.norm.weight: 16 there, none here"]),
        ({}, {"token_types": 2}, ["do not fit", "input.token_types.weight: none there, 2 x 16 here"]),
        ({}, {"layers": 3}, ["model.layers: 3 here, 2 in", "init.layers=spread, first, last or a list of 3"]),
        ({}, {"layers": 1}, ["model.layers: 1 here, 2 in", "or model.layers=2"]),
        ({}, {"context": 64, "position": {"kind": "rotary", "scaling": "yarn", "factor": 2}},
         ["model.position.factor: 2 with model.context=64", "trained at 32 positions", "trained at 16",
          "set model.position.factor=4, or model.position.original_context=16"]),
    ],
)  # fmt: skip
def test_what_would_break_the_weights_is_refused_in_words(before, after, says):
    with pytest.raises(UserError) as error:
        planned(tree(**before), tree(**after))
    for words in says:
        assert words in str(error.value)


NSA = "nsa(compress=4, stride=4, select=4, top=3, window=16)"


def test_a_patterns_own_tensors_are_new_and_its_branches_start_from_the_trained_keys_and_values():
    source = trained(BASE)
    model, done = converted(source, tree(pattern=["causal()", NSA]))
    torch.manual_seed(4)
    drawn = dict(build(model.config).named_parameters())  # what `converted` started from
    old, new = dict(source.named_parameters()), dict(model.named_parameters())
    own = [name for name in new if ".native_sparse." in name]
    assert own == [fate.name for fate in done.fates if fate.before is None]
    assert all(torch.equal(new[name], drawn[name]) for name in own)
    for part in ("weight", "bias"):
        query, key, value = old[f"stack.blocks.1.attention.query_key_value.{part}"].split(16)
        expected = torch.cat([query, key, key, key, value, value, value])
        assert torch.equal(new[f"stack.blocks.1.attention.query_key_value.{part}"], expected)
        assert torch.equal(*(p[f"stack.blocks.0.attention.query_key_value.{part}"] for p in (old, new)))
    lines = str(done).splitlines()
    at = next(i for i, line in enumerate(lines) if "{1}.attention.query_key_value.weight (1)" in line)
    assert "48 x 16 -> 112 x 16" in lines[at]
    assert lines[at].endswith("queries copied")
    assert lines[at + 1].strip() == "keys and values copied to each of the pattern's 3 branches"
    gate = next(line for line in lines if "native_sparse.gate.weight" in line)
    assert gate.split()[0] == "stack.blocks.*.attention.native_sparse.gate.weight"
    assert "fresh: a part of the pattern" in gate


def test_the_sliding_branch_alone_is_the_dense_layer():
    """Gates at 0, 0 and 1: what is left is the window, which covers the row. One softmax over the same pairs, by tiles or whole:
    sums of 16 terms in another order, 1e-6 of numbers of order 1, through two layers."""
    source = trained(BASE)
    model, _ = converted(source, tree(pattern=NSA))
    with torch.no_grad():
        for block in model.stack.blocks:
            gate = block.attention.native_sparse.gate
            gate.weight.zero_()
            gate.bias.copy_(torch.tensor([-200.0, -200.0, 200.0]).repeat(2))
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden(model, "decoder", ids), hidden(source, "decoder", ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"),
    [({"pattern": NSA}, {}), ({"pattern": NSA}, {"pattern": "lsh(buckets=4, chunk=8, causal=True)"})],
    ids=["three branches to one layer", "three branches to shared keys"],
)
def test_branches_start_only_from_a_dense_layer_of_the_same_heads(before, after):
    with pytest.raises(UserError, match="do not fit") as error:
        planned(tree(**before), tree(**after))
    assert "stack.blocks.1.attention.query_key_value.weight" in str(error.value)


@pytest.mark.parametrize("width", [{}, {"attention": {"qk_norm": True}}], ids=["", "query and key norms"])
def test_a_pattern_with_other_projections_is_refused(width):
    """Shared queries and keys (Kitaev et al. 2020): no trained projection stands for theirs."""
    lsh = tree(**width)
    lsh["attention"] = {**lsh["attention"], "pattern": "lsh(buckets=4, chunk=8, causal=True)"}
    with pytest.raises(UserError, match=r"model\.attention\.pattern: lsh\(.*\) has other projections") as error:
        planned(tree(**width), lsh)
    assert "stack.blocks.1.attention.query_key_value.weight: 48 x 16 there, 32 x 16 here" in str(error.value)
    with pytest.raises(UserError, match="do not fit"):
        planned(lsh, tree(**width))
    assert {fate.words for fate in planned(lsh, lsh).fates} == {"copied"}


def test_damaged_weights_are_refused_before_anything_is_written():
    source = trained(BASE)
    plan = planned(BASE, BASE)
    model = build(BASE)
    before = [parameter.clone() for parameter in model.parameters()]
    tensors = dict(source.named_parameters())
    del tensors["stack.norm.weight"]
    tensors["stack.norm.bias"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"stack\.norm\.weight: missing, not \(16,\)\n  stack\.norm\.bias: \(1,\), not"):
        plan.apply(model, {"init.from": tensors})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_planning_draws_no_random_number():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    planned(BASE, tree(context=64, pattern="window(3, 0)"))
    assert torch.equal(torch.get_rng_state(), before)

"""Models that start from weights of other families, other depths and two sources: what they compute, the table, what is refused."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.errors import UserError
from triune.exchange.model_directory import Saved
from triune.models.factory import build, resolve
from triune.models.layers.attention import Surroundings
from triune.training.config import InitConfig
from triune.training.conversion_plan import plan_conversion
from triune.training.towers import Source, spread
from triune.training.weights import Start

BASE = {"vocabulary": 64, "context": 16, "width": 16, "layers": 2, "heads": 2, "attention": {"backend": "reference"}}
POSITIONS = {
    "learned": {"kind": "learned", "offset": 2},
    "sinusoidal": {"kind": "sinusoidal"},
    "rotary": {"kind": "rotary", "fraction": 0.5},
    "alibi": {"kind": "alibi"},
    "none": {"kind": "none"},
}
PARTS = {"from": "from_", "encoder": "encoder", "decoder": "decoder"}
IDS = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))


def tree(**changes):
    """BASE with changes; `pattern` is short for the one in `attention`."""
    found = {**BASE, **changes}
    if "pattern" in found:
        found["attention"] = {**BASE["attention"], **found.get("attention", {}), "pattern": found.pop("pattern")}
    return found


def trained(seed=3, **changes):
    """A model whose every parameter differs from every start, biases and norms included."""
    torch.manual_seed(seed)
    model = build(tree(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def saved(model, name="source"):
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
    return Saved(path=Path("runs") / name, model=model.config, objective="causal", tokenizer="same", tensors=tensors)


def started(sources, settings, **init):
    """(a model of `settings` that starts from `sources` by part, what happened to each tensor)."""
    init = InitConfig(**{PARTS[part]: part for part in sources}, **init)
    start = Start(init=init, saved={f"init.{part}": saved(model, part) for part, model in sources.items()})
    torch.manual_seed(4)
    model = build(settings)
    done = start.fill(model, None)
    return model.eval(), done


def drawn(settings):
    """What a model started by `started` was before it was filled."""
    torch.manual_seed(4)
    return dict(build(settings).named_parameters())


def parameters(model):
    return dict(model.named_parameters())


def hidden(model, **arguments):
    with torch.no_grad():
        return model(IDS, **arguments)


def cut_cross_attention(model):
    """Cross-attention that adds nothing, so that the decoder of an encoder_decoder is a decoder."""
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.cross_attention.output.weight.zero_()
            block.cross_attention.output.bias.zero_()
    return model


# One stack from one of another family


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("families", [("decoder", "encoder"), ("encoder", "decoder")], ids=" to ".join)
def test_under_one_pattern_the_families_compute_the_same(families, position):
    """To the bit: the same tensors, pairs and backend. Without its mask the decoder's weights compute something else."""
    before, after = families
    source = trained(family=before, position=POSITIONS[position], pattern="causal()")
    settings = tree(family=after, position=POSITIONS[position], pattern="causal()")
    model, done = started({"from": source}, settings)
    assert torch.equal(hidden(model), hidden(source))
    assert {fate.kind for fate in done.fates} == {"copied"}
    if after == "encoder":
        unmasked, _ = started({"from": source}, tree(family="encoder", position=POSITIONS[position]))
        assert not torch.equal(hidden(unmasked), hidden(source))
        assert torch.equal(
            unmasked.stack.blocks[1].attention.output.weight, model.stack.blocks[1].attention.output.weight
        )


@pytest.mark.parametrize("position", [*POSITIONS, "t5"])
def test_each_half_of_an_encoder_decoder_starts_its_own_family(position):
    kind = {**POSITIONS, "t5": {"kind": "t5", "buckets": 8, "max_distance": 12}}[position]
    source = cut_cross_attention(trained(family="encoder_decoder", position=kind, decoder_layers=3))
    encoder, done = started({"from": source}, tree(family="encoder", position=kind))
    with torch.no_grad():
        assert torch.equal(hidden(encoder), source.encode(IDS))
    decoder, _ = started({"from": source}, tree(family="decoder", position=kind, layers=3))
    assert torch.equal(hidden(decoder), hidden(source, source=IDS.flip(1)))
    left = {left.origin.name for left in done.left}
    assert left == {n for n in parameters(source) if n.startswith(("decoder.", "decoder_input."))}


@pytest.mark.parametrize("tied", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_a_tied_table_becomes_two_and_the_scores_stay(tied):
    before, after = tied
    source = trained(family="decoder", tie_embeddings=before, head={"bias": True})
    settings = tree(family="encoder", tie_embeddings=after, head={"bias": True}, pattern="causal()")
    model, done = started({"from": source}, settings)
    with torch.no_grad():
        same = torch.equal(model.head.logits(hidden(model)), source.head.logits(hidden(source)))
    assert same == (before or not after)  # of two tables one is left out
    assert [left.origin.name for left in done.left] == (["head.weight"] if not before and after else [])


def test_a_head_that_the_source_lacks_is_drawn_anew():
    settings = tree(family="encoder", head={"transform": True, "bias": True})
    source = trained(family="decoder", head={"bias": True})
    model, done = started({"from": source}, settings)
    fresh = [fate.name for fate in done.fates if fate.kind == "fresh"]
    assert fresh == ["head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"]
    assert all(torch.equal(parameters(model)[name], drawn(settings)[name]) for name in fresh)
    assert torch.equal(model.head.bias, source.head.bias)
    back, done = started({"from": model}, tree(family="decoder", head={"bias": True}))
    assert [left.origin.name for left in done.left] == fresh
    assert torch.equal(hidden(back), hidden(source))


def test_a_classifying_head_never_becomes_a_vocabulary():
    """64 classes have the shape of 64 tokens."""
    source = trained(family="encoder", head={"kind": "classes", "labels": 64})
    settings = tree(family="decoder", tie_embeddings=False, head={"bias": True})
    model, done = started({"from": source}, settings)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(parameters(model)[name], drawn(settings)[name])
    assert [left.origin.name for left in done.left] == ["head.weight", "head.bias"]


# An encoder_decoder from two


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    "kinds", [("encoder", "decoder"), ("decoder", "encoder"), ("decoder", "decoder")], ids=" and ".join
)
def test_both_halves_compute_what_their_sources_did(kinds, position):
    """The token table is one, so each half is held against its source under the table that `init.embeddings` takes."""
    place = POSITIONS[position]
    first = trained(3, family=kinds[0], position=place, pattern="full()" if kinds[0] == "encoder" else None)
    second = trained(5, family=kinds[1], position=place, pattern="causal()", layers=3)
    settings = tree(family="encoder_decoder", position=place, decoder_layers=3)
    sources = {"encoder": first, "decoder": second}
    if kinds[0] == "decoder":  # its weights where each token sees all
        first, _ = started({"from": first}, tree(family="encoder", position=place))
    model, _ = started(sources, settings)
    with torch.no_grad():
        assert torch.equal(model.encode(IDS), hidden(first))
    assert not torch.equal(hidden(cut_cross_attention(model), source=IDS), hidden(second))
    model, _ = started(sources, settings, embeddings="decoder")
    assert torch.equal(hidden(cut_cross_attention(model), source=IDS), hidden(second))


def test_the_scores_are_the_decoders_where_the_tables_are_two():
    first = trained(3, family="encoder", head={"transform": True})
    second = trained(5, family="decoder", head={"bias": True})
    model, done = started(
        {"encoder": first, "decoder": second}, tree(family="encoder_decoder", tie_embeddings=False, head={"bias": True})
    )
    assert torch.equal(model.embedding.weight, first.embedding.weight)
    assert torch.equal(model.head.weight, second.embedding.weight)
    assert torch.equal(model.head.bias, second.head.bias)
    note = next(fate.words for fate in done.fates if fate.name == "head.weight")
    assert note == "copied from embedding.weight, which was both (init.decoder)"


@pytest.mark.parametrize("given", ["encoder", "decoder"])
def test_one_half_may_start_afresh(given):
    settings = tree(family="encoder_decoder")
    source = trained(family="decoder")
    model, done = started({given: source}, settings)
    assert torch.equal(model.embedding.weight, source.embedding.weight)
    fresh = {fate.name for fate in done.fates if fate.kind == "fresh"}
    other = {"encoder": "decoder", "decoder": "encoder"}[given]
    names = {name for name in parameters(model) if name.startswith(other) or (".cross_" in name)}
    assert fresh == names
    assert all(torch.equal(parameters(model)[name], drawn(settings)[name]) for name in fresh)


def test_both_halves_may_start_from_one_run():
    source = trained(family="encoder_decoder")
    model, done = started({"encoder": source, "decoder": source}, tree(family="encoder_decoder"))
    assert torch.equal(hidden(model, source=IDS.flip(1)), hidden(source, source=IDS.flip(1)))
    assert {fate.kind for fate in done.fates} == {"copied"}


# Cross-attention


@pytest.mark.parametrize(
    "heads", [{}, {"key_value_heads": 1}, {"attention": {"qk_norm": True}}], ids=["", "grouped", "normed"]
)
def test_cross_attention_from_self_attention_computes_what_that_did(heads):
    """Where the memory is the decoder's own hidden states, without positions or mask, the two are one function; cross-attention
    makes queries apart from keys and values, and a product of fewer rows may sum in another order: 16 terms of order 1."""
    source = trained(family="decoder", position={"kind": "none"}, **heads)
    settings = tree(family="encoder_decoder", position={"kind": "none"}, **heads)
    model, done = started({"decoder": source}, settings, cross_attention="self_attention")
    assert not [fate.name for fate in done.fates if fate.kind == "fresh" and fate.name.startswith("decoder")]
    states = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    without_mask = build(tree(family="encoder", position={"kind": "none"}, **heads))
    for ours, theirs, there in zip(model.decoder.blocks, source.stack.blocks, without_mask.stack.blocks, strict=True):
        there.attention.load_state_dict(theirs.attention.state_dict())
        with torch.no_grad():
            found = ours.cross_attention(states, Surroundings(), memory=states)
            torch.testing.assert_close(found, there.attention(states, Surroundings()), rtol=0, atol=16 * 6e-7)
        norms = (ours.cross_residual.norm_before.weight, theirs.attention_residual.norm_before.weight)
        assert torch.equal(*norms)
    kinds = {fate.kind for fate in done.fates if ".cross_attention.query.weight" in fate.name}
    assert kinds == {"reshaped"}


def test_fresh_cross_attention_is_as_drawn():
    settings = tree(family="encoder_decoder")
    model, done = started({"encoder": trained(family="encoder"), "decoder": trained(family="decoder")}, settings)
    fresh = {fate.name for fate in done.fates if fate.kind == "fresh"}
    assert fresh == {name for name in parameters(model) if ".cross_" in name}
    assert all(torch.equal(parameters(model)[name], drawn(settings)[name]) for name in fresh)


@pytest.mark.parametrize("cross", ["fresh", "self_attention"])
def test_cross_attention_that_the_source_has_is_kept(cross):
    source = trained(family="encoder_decoder")
    settings = tree(family="encoder_decoder")
    model, _ = started({"encoder": trained(family="decoder"), "decoder": source}, settings, cross_attention=cross)
    names = [name for name in parameters(model) if ".cross_" in name]
    assert len(names) == 16
    assert all(torch.equal(parameters(model)[name], parameters(source)[name]) for name in names)


@pytest.mark.parametrize(
    "pattern", ["lsh(buckets=4, chunk=8, causal=True)", "nsa(compress=4, stride=4, select=4, top=3, window=16)"]
)
def test_cross_attention_does_not_start_from_routed_projections(pattern):
    source = trained(family="decoder", pattern=pattern)
    with pytest.raises(UserError, match="do not fit") as error:
        started({"decoder": source}, tree(family="encoder_decoder"), cross_attention="self_attention")
    assert "decoder.blocks.0.cross_attention.query.weight" in str(error.value)


# Layers


def test_spread_takes_the_layers_that_the_field_took():
    assert spread(12, 6) == [0, 2, 4, 7, 9, 11]  # DistilBERT
    assert spread(12, 3) == [0, 6, 11]
    assert spread(2, 4) == [0, 0, 1, 1]
    assert spread(5, 1) == [0]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(before=st.integers(1, 40), after=st.integers(1, 40))
def test_spread_is_even(before, after):
    layers = spread(before, after)
    assert len(layers) == after
    assert layers[0] == 0
    steps = [b - a for a, b in pairwise(layers)]
    if after > 1:
        assert layers[-1] == before - 1
        even = (before - 1) / (after - 1)
        assert all(abs(step - even) < 1 for step in steps)
    if after >= before:
        assert set(layers) == set(range(before))
    if after == before:
        assert layers == [*range(before)]


@pytest.mark.parametrize(
    ("rule", "before", "after", "expected"),
    [
        ("first", 4, 2, [0, 1]),
        ("last", 4, 2, [2, 3]),
        ("spread", 4, 2, [0, 3]),
        ("first", 2, 4, [0, 1, None, None]),
        ("last", 2, 4, [None, None, 0, 1]),
        ("spread", 2, 4, [0, 0, 1, 1]),
        ([0, 1, 0, 1], 2, 4, [0, 1, 0, 1]),
        ([1, None, 0], 2, 3, [1, None, 0]),
        ("last", 2, 2, [0, 1]),
    ],
)
@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_layers_are_those_of_the_map(family, rule, before, after, expected):
    source = trained(family=family, layers=before)
    settings = tree(family=family, layers=after)
    model, done = started({"from": source}, settings, layers=rule)
    stacks = ["encoder", "decoder"] if family == "encoder_decoder" else ["stack"]
    for stack in stacks:
        for place, layer in enumerate(expected):
            found = getattr(model, stack).blocks[place].state_dict()
            if layer is None:
                prefix = f"{stack}.blocks.{place}."
                there = {n.removeprefix(prefix): p for n, p in drawn(settings).items() if n.startswith(prefix)}
            else:
                there = getattr(source, stack).blocks[layer].state_dict()
            assert all(torch.equal(found[name], there[name]) for name in found)
        assert torch.equal(getattr(model, stack).norm.weight, getattr(source, stack).norm.weight)
    assert bool(done.left) == (not set(range(before)) <= set(expected))


def test_each_half_may_have_a_map_of_its_own():
    source = trained(family="encoder_decoder", layers=3, decoder_layers=4)
    settings = tree(family="encoder_decoder", layers=2, decoder_layers=2)
    model, _ = started({"from": source}, settings, layers="last", decoder_layers=[3, 0])
    for stack, layers in (("encoder", [1, 2]), ("decoder", [3, 0])):
        for place, layer in enumerate(layers):
            ours, theirs = (getattr(m, stack).blocks[i] for m, i in ((model, place), (source, layer)))
            assert torch.equal(ours.feed_forward.up.weight, theirs.feed_forward.up.weight)
    twice, _ = started({"from": source}, settings, layers="first")
    assert torch.equal(twice.decoder.blocks[1].feed_forward.up.weight, source.decoder.blocks[1].feed_forward.up.weight)


def test_a_shallower_model_is_the_first_layers_of_the_deeper():
    """With the identity behind them: a pre-norm block whose branches are 0 adds nothing."""
    source = trained(layers=4)
    with torch.no_grad():
        for block in source.stack.blocks[2:]:
            for linear in (block.attention.output, block.feed_forward.down):
                linear.weight.zero_()
                linear.bias.zero_()
    model, _ = started({"from": source}, tree(layers=2), layers="first")
    assert torch.equal(hidden(model), hidden(source))
    other, _ = started({"from": source}, tree(layers=2), layers="last")
    assert not torch.equal(hidden(other), hidden(source))


@pytest.mark.parametrize(
    ("rule", "fresh", "left"),
    [([0, 0], True, None), ([1, 1], False, None), ([0, 1], False, False), ([1, 0], True, True)],
)
def test_the_norm_that_a_first_layer_may_lack(rule, fresh, left):
    """ModernBERT's first layer has none before its attention. Left None: its whole layer is left out or used twice."""
    norm, name = {"skip_first": True, "bias": False}, "stack.blocks.1.attention_residual.norm_before.weight"
    source = trained(norm=norm)
    model, done = started({"from": source}, tree(norm=norm), layers=rule)
    assert [fate.name for fate in done.fates if fate.kind == "fresh"] == ([name] if fresh else [])
    expected = torch.ones(16) if fresh else parameters(source)[name]
    assert torch.equal(parameters(model)[name], expected)
    if left is not None:
        assert [item.origin.name for item in done.left] == ([name] if left else [])


# Vocabularies of one tokenizer, other tensors


@pytest.mark.parametrize("entries", [48, 64, 96])
def test_a_table_of_another_size_keeps_the_ids(entries):
    source = trained(tie_embeddings=False, head={"bias": True})
    model, done = started({"from": source}, tree(vocabulary=entries, tie_embeddings=False, head={"bias": True}))
    both = min(entries, 64)
    for name in ("embedding.weight", "head.weight", "head.bias"):
        ours, theirs = parameters(model)[name], parameters(source)[name]
        assert torch.equal(ours[:both], theirs[:both])
        # a mean of 64 numbers of order 1 in fp32
        torch.testing.assert_close(ours[both:], theirs.mean(0).expand_as(ours[both:]), rtol=0, atol=64 * 6e-8)
        kind = next(fate.kind for fate in done.fates if fate.name == name)
        assert kind == {48: "reshaped", 64: "copied", 96: "grown"}[entries]


def test_projections_of_global_tokens_start_from_the_layers_own():
    """Beltagy et al. 2020, 3.1."""
    attention = {"global_projections": True}
    settings = tree(
        family="encoder", pattern="window(4, 4) | global_tokens(first=1)", attention={**BASE["attention"], **attention}
    )
    source = trained(family="encoder")
    model, _ = started({"from": source}, settings)
    for ours, theirs in zip(model.stack.blocks, source.stack.blocks, strict=True):
        assert torch.equal(ours.attention.global_query_key_value.weight, theirs.attention.query_key_value.weight)
        assert torch.equal(ours.attention.global_query_key_value.bias, theirs.attention.query_key_value.bias)
    again, done = started({"from": model}, settings)
    assert torch.equal(hidden(again), hidden(model))
    assert {fate.words for fate in done.fates} == {"copied"}


# The table


def planned(sources, model, **init):
    found = [
        Source(option=f"init.{part}", place=Path("runs") / part, model=resolve(tree(**s)))
        for part, s in sources.items()
    ]
    return plan_conversion(found, resolve(tree(**model)), InitConfig(**init))


def test_the_table_to_the_letter():
    plain = {"bias": False, "norm": {"bias": False}}
    sources = {
        "encoder": {
            "family": "encoder",
            "layers": 4,
            "position": {"kind": "learned"},
            "head": {"transform": True},
            **plain,
        },
        "decoder": {"family": "decoder", "position": {"kind": "learned"}, **plain},
    }
    model = {
        "family": "encoder_decoder",
        "position": {"kind": "learned"},
        "context": 24,
        "decoder_layers": 3,
        "tie_embeddings": False,
        **plain,
    }
    plan = planned(sources, model, layers="spread", decoder_layers=[0, 1, None], cross_attention="self_attention")
    assert str(plan) == (Path(__file__).parent / "cross_family_table.txt").read_text().rstrip("\n")


# What is refused


@pytest.mark.parametrize(
    ("sources", "model", "init", "says"),
    [
        ({"from": {}}, {"family": "encoder_decoder"}, {}, ["init.from: runs/from is of family decoder and has one stack", "init.encoder=runs/from init.decoder=…"]),
        ({"encoder": {}}, {}, {}, ["init.encoder: starts one half of an encoder_decoder, but model.family is decoder; give init.from=runs/encoder"]),
        ({"encoder": {}, "decoder": {"width": 32, "head_width": 8}}, {"family": "encoder_decoder"}, {},
         ["model.width: 16 here, 32 in runs/decoder, and every tensor is of that width"]),
        ({"decoder": {"heads": 4}}, {"family": "encoder_decoder"}, {}, ["model.heads: 2 here, 4 in runs/decoder", "model.head_width: 8 here, 4 in runs/decoder"]),
        ({"decoder": {"key_value_heads": 1}}, {"family": "encoder_decoder"}, {}, ["model.key_value_heads: 2 here, 1 in runs/decoder, and each head is a fixed slice"]),
        ({"from": {}}, {"family": "encoder", "position": {"kind": "learned"}}, {}, ["model.position.kind: learned here, rotary in runs/from"]),
        ({"from": {"position": {"kind": "t5"}}}, {"family": "encoder", "position": {"kind": "t5"}}, {}, ["init.from: the t5 distances that runs/from learned in a decoder"]),
        ({"from": {"layers": 5}}, {}, {}, ["model.layers: 2 here, 5 in runs/from; set init.layers=spread, first, last or a list of 2", "model.layers=5"]),
        ({"decoder": {"layers": 5}}, {"family": "encoder_decoder"}, {}, ["model.decoder_layers: 2 here, 5 in runs/decoder; set init.layers="]),
        ({"from": {}}, {}, {"layers": [0, 7]}, ["init.layers: 7 is no layer of runs/from, which has 2; use 0 to 1"]),
        ({"from": {}}, {}, {"layers": [0, -1]}, ["init.layers: -1 is no layer"]),
        ({"from": {}}, {}, {"layers": [0]}, ["init.layers: names 1 layers, but model.layers is 2"]),
        ({"decoder": {}}, {"family": "encoder_decoder"}, {"layers": "first", "decoder_layers": [2, 0]}, ["init.decoder_layers: 2 is no layer of runs/decoder"]),
        ({"decoder": {"feed_forward": {"kind": "swiglu"}}}, {"family": "encoder_decoder"}, {},
         ["init.decoder: the weights of runs/decoder do not fit `model:`", "decoder.blocks.0.feed_forward.up.weight: 128 x 16 there, 64 x 16 here"]),
        ({"encoder": {"family": "encoder", "input": {"kind": "patches", "image": 8, "patch": 2}, "context": 17, "position": {"kind": "learned"}}},
         {"family": "encoder_decoder", "position": {"kind": "learned"}}, {}, ["model.input.kind: tokens here, patches in runs/encoder"]),
        ({"from": {"family": "encoder", "token_types": 2}}, {}, {}, ["input.token_types.weight: 2 x 16 there, none here"]),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_refused_in_a_sentence(sources, model, init, says):
    with pytest.raises(UserError) as error:
        planned(sources, model, **init)
    for words in says:
        assert words in str(error.value)


def test_damaged_weights_of_one_of_two_are_named():
    sources = {"encoder": trained(family="encoder"), "decoder": trained(family="decoder")}
    kept = {f"init.{part}": saved(model, part) for part, model in sources.items()}
    del kept["init.decoder"].tensors["stack.norm.weight"]
    model = build(tree(family="encoder_decoder"))
    before = [parameter.clone() for parameter in model.parameters()]
    start = Start(init=InitConfig(encoder="a", decoder="b"), saved=kept)
    with pytest.raises(
        UserError, match=r"init\.decoder: the weights of runs/decoder .*\n  stack\.norm\.weight: missing"
    ):
        start.fill(model, None)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

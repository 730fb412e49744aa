"""What each objective refuses before anything starts: the message names option, value, constraint and fix."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
from objective_cases import CONFIGS, VOCABULARY, document

from triune.errors import UserError
from triune.objectives.batch import Segment, Vocabulary
from triune.objectives.build import build
from triune.objectives.config import (
    FAMILY,
    CausalObjective,
    DenoisingObjective,
    FillInTheMiddleObjective,
    MaskedObjective,
    ObjectiveConfig,
    PrefixObjective,
    SpanCorruptionObjective,
    TranslationObjective,
)
from triune.objectives.seeding import generator

FAMILIES = {"encoder", "decoder", "encoder_decoder"}


def refusal(config, family=None, vocabulary=VOCABULARY, context=64) -> str:
    with pytest.raises(UserError) as caught:
        build(config, vocabulary, context).check(family or FAMILY[config.kind])
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_serves_its_own_family_only(name):
    config = CONFIGS[name]
    objective = build(config, VOCABULARY, 64)
    assert objective.kind == config.kind
    assert objective.families == {FAMILY[config.kind]}
    for family in objective.families:
        objective.check(family)
    for family in FAMILIES - objective.families:
        assert f"objective.kind: '{config.kind}' serves family {FAMILY[config.kind]}, not {family}; use '" in refusal(
            config, family
        )


def test_every_kind_of_the_config_can_be_built_and_has_a_family():
    kinds = {
        field.default for variant in get_args(ObjectiveConfig) for field in fields(variant) if field.name == "kind"
    }
    assert kinds == set(FAMILY)
    assert {build(variant(), VOCABULARY, 64).kind for variant in get_args(ObjectiveConfig)} == kinds


def test_the_message_lists_what_would_serve():
    assert refusal(MaskedObjective(), "decoder") == (
        "objective.kind: 'masked' serves family encoder, not decoder; use 'causal', 'prefix' or 'fill_in_the_middle'"
    )
    assert refusal(CausalObjective(), "encoder").endswith("not encoder; use 'masked'")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MaskedObjective(rate=0.0), r"objective.rate: 0.0 is a share and must lie in \(0, 1\)"),
        (MaskedObjective(rate=1.0), "objective.rate: 1.0"),
        (MaskedObjective(rate=float("nan")), "objective.rate: nan"),
        (MaskedObjective(mask_share=1.1), "objective.mask_share: 1.1"),
        (MaskedObjective(mask_share=0.9, random_share=0.2), "objective.random_share: 0.2 and objective.mask_share 0.9"),
        (MaskedObjective(mean_span=0.5), "objective.mean_span: 0.5 is below 1 token"),
        (MaskedObjective(label_smoothing=1.0), "objective.label_smoothing: 1.0"),
        (CausalObjective(z_loss=-1.0), "objective.z_loss: -1.0 is negative"),
        (PrefixObjective(minimum=-0.1), "objective.minimum: -0.1"),
        (PrefixObjective(maximum=1.5), "objective.maximum: 1.5"),
        (PrefixObjective(minimum=0.8, maximum=0.2), "objective.minimum: 0.8 is above objective.maximum, 0.2"),
        (FillInTheMiddleObjective(rate=0.0), "objective.rate: 0.0"),
        (FillInTheMiddleObjective(suffix_first=2.0), "objective.suffix_first: 2.0"),
        (SpanCorruptionObjective(rate=1.0), "objective.rate: 1.0"),
        (SpanCorruptionObjective(mean_span=0.0), "objective.mean_span: 0.0"),
        (DenoisingObjective(infill_rate=1.0), "objective.infill_rate: 1.0"),
        (DenoisingObjective(permute_sentences=1.5), "objective.permute_sentences: 1.5"),
        (DenoisingObjective(rotate=-1.0), "objective.rotate: -1.0"),
        (DenoisingObjective(delete_rate=1.0), "objective.delete_rate: 1.0"),
        (DenoisingObjective(mean_span=0.9), "objective.mean_span: 0.9"),
        (TranslationObjective(label_smoothing=-0.1), "objective.label_smoothing: -0.1"),
    ],
)
def test_values_out_of_range(config, message):
    with pytest.raises(UserError, match=message):
        build(config, VOCABULARY, 64).check(FAMILY[config.kind])


@pytest.mark.parametrize(
    "config",
    [
        MaskedObjective(rate=0.99, mask_share=1.0, random_share=0.0, mean_span=1.0),
        MaskedObjective(mask_share=0.0, random_share=1.0),
        PrefixObjective(minimum=0.0, maximum=1.0),
        FillInTheMiddleObjective(rate=1.0, suffix_first=0.0),
        DenoisingObjective(infill_rate=0.0, permute_sentences=0.0, rotate=1.0, delete_rate=0.0),
    ],
)
def test_values_at_the_edge_are_accepted(config):
    build(config, VOCABULARY, 64).check(FAMILY[config.kind])


@pytest.mark.parametrize(
    ("config", "lacking", "message"),
    [
        (MaskedObjective(), {"mask": None}, "'masked' needs a token for the role mask, and the tokenizer has none"),
        (DenoisingObjective(), {"mask": None}, "role mask"),
        (FillInTheMiddleObjective(), {"fim_suffix": None}, "role fim_suffix"),
        (SpanCorruptionObjective(), {"sentinels": ()}, "set data.tokenizer.sentinels=100"),
        (CausalObjective(), {"bos": None, "eos": None}, "role eos"),
        (MaskedObjective(whole_word=True), {"continues_word": None}, "set objective.whole_word=false"),
        (DenoisingObjective(), {"ends_sentence": None}, "set objective.permute_sentences=0"),
    ],
)
def test_tokens_that_the_tokenizer_lacks(config, lacking, message):
    assert message in refusal(config, vocabulary=replace(VOCABULARY, **lacking))


def test_what_is_not_used_is_not_asked_for():
    bare = Vocabulary(size=64, pad=0, eos=2)
    for config in (
        CausalObjective(),
        PrefixObjective(),
        TranslationObjective(),
        MaskedObjective(mask_share=0.0),
        DenoisingObjective(infill_rate=0.0, permute_sentences=0.0, rotate=0.5),
    ):
        objective = build(config, bare, 64)
        objective.check(FAMILY[config.kind])
        objective([Segment(document(30), split=10)], generator(0, 0, 0))


def test_too_few_sentinels_are_refused():
    """512 tokens hold a document of 568, of which 85 are hidden in 28 spans."""
    message = refusal(SpanCorruptionObjective(), context=512)
    assert "28 spans" in message
    assert "16 sentinels" in message
    assert "data.tokenizer.sentinels=28 or objective.mean_span=5.7" in message


@pytest.mark.parametrize("context", [200, 512, 513, 2048])
@pytest.mark.parametrize("rate", [0.15, 0.5, 0.8])
def test_both_ways_out_of_too_few_sentinels_lead_out(context, rate):
    config = SpanCorruptionObjective(rate=rate, mean_span=1.5)
    sentinels, mean_span = re.findall(
        r"sentinels=(\d+) or objective.mean_span=([\d.]+)$", refusal(config, context=context)
    )[0]
    build(replace(config, mean_span=float(mean_span)), VOCABULARY, context).check("encoder_decoder")
    enough = replace(VOCABULARY, sentinels=tuple(range(int(sentinels))))
    build(config, enough, context).check("encoder_decoder")


@pytest.mark.parametrize(
    ("config", "least"), [(CausalObjective(), 2), (MaskedObjective(), 3), (FillInTheMiddleObjective(), 5)]
)
def test_a_row_without_room_for_text(config, least):
    assert f"data.rows.length: a row of {least - 1} tokens" in refusal(config, context=least - 1)
    build(config, VOCABULARY, least).check(FAMILY[config.kind])


def test_translation_of_a_text_that_is_no_pair():
    with pytest.raises(UserError, match="set target_column on every source"):
        build(TranslationObjective(), VOCABULARY, 64)([Segment(document(5))], generator(0, 0, 0))


def test_bits_per_byte_is_for_the_causal_objective_alone():
    """Only there is each token predicted once, from the text before it."""
    measured = {
        kind
        for kind in FAMILY
        for config in CONFIGS.values()
        if config.kind == kind and build(config, VOCABULARY, 64).measures_bits_per_byte
    }
    assert measured == {"causal"}


def test_bos_and_eos_stand_in_for_each_other():
    no_bos, no_eos = replace(VOCABULARY, bos=None), replace(VOCABULARY, eos=None)
    assert (no_bos.opening, no_bos.closing, no_bos.decoder_start) == (VOCABULARY.eos, VOCABULARY.eos, VOCABULARY.pad)
    assert (no_eos.opening, no_eos.closing, no_eos.decoder_start) == (VOCABULARY.bos, VOCABULARY.bos, VOCABULARY.bos)
    segments = [Segment(np.array([30, 31]))]
    row = build(CausalObjective(), no_bos, 64)(segments, generator(0, 0, 0))
    assert row.inputs.tolist() == [VOCABULARY.eos, 30, 31]
    row = build(DenoisingObjective(infill_rate=0, permute_sentences=0), no_bos, 64)(segments, generator(0, 0, 0))
    assert row.source.tolist() == [30, 31, VOCABULARY.eos]
    assert row.inputs.tolist() == [VOCABULARY.pad, 30, 31]
    with pytest.raises(ValueError, match="neither a bos nor an eos"):
        _ = Vocabulary(size=4, pad=0).opening

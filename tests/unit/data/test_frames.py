"""The special tokens around a text: a tokenizer's own template, or that of our objectives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

from triune.data.frames import frame_of
from triune.errors import UserError
from triune.objectives.batch import Vocabulary
from triune.objectives.text import Frame

TOKENS = {"<pad>": 0, "<s>": 1, "</s>": 2, "[CLS]": 3, "[SEP]": 4, "a": 5, "b": 6}
VOCABULARY = Vocabulary(size=7, pad=0, bos=1, eos=2)


def frame(processor: Any, family: str, vocabulary: Vocabulary = VOCABULARY) -> Frame:
    backend = Backend(models.WordLevel(TOKENS, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if processor is not None:
        backend.post_processor = processor
    return frame_of(json.loads(backend.to_str()), backend, vocabulary, family)


def template(single: str, pair: str) -> TemplateProcessing:
    special = [(token, TOKENS[token]) for token in TOKENS if token not in "ab"]
    return TemplateProcessing(single=single, pair=pair, special_tokens=special)


BERT = Frame(before=(3,), after=(4,), pair_before=(3,), between=(4,), pair_after=(4,), segments=True)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), BERT),
        (BertProcessing(("[SEP]", 4), ("[CLS]", 3)), BERT),
        (
            RobertaProcessing(("</s>", 2), ("<s>", 1)),
            Frame(before=(1,), after=(2,), pair_before=(1,), between=(2, 2), pair_after=(2,)),
        ),
        (template("$A </s>", "$A </s> $B </s>"), Frame(after=(2,), between=(2,), pair_after=(2,))),  # T5
        (template("<s> $A", "<s> $A <s> $B:1"), Frame(before=(1,), pair_before=(1,), between=(1,), segments=True)),
        (template("$A", "$A $B"), Frame()),  # GPT-2 in effect
    ],
)
@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_a_template_of_its_own_is_taken_for_every_family(processor: Any, expected: Frame, family: str) -> None:
    assert frame(processor, family) == expected


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("encoder", Frame(before=(1,), after=(2,), pair_before=(1,), between=(2,), pair_after=(2,))),
        ("decoder", Frame(before=(1,), pair_before=(1,))),
        ("encoder_decoder", Frame(after=(2,), between=(2,), pair_after=(2,))),
    ],
)
def test_without_one_it_is_that_of_our_objectives(family: str, expected: Frame) -> None:
    assert frame(None, family) == expected


def test_one_special_token_stands_for_both() -> None:
    assert frame(None, "encoder", Vocabulary(size=7, pad=0, eos=2)).before == (2,)


def test_a_template_that_turns_the_texts_round_is_refused() -> None:
    with pytest.raises(UserError, match="second text before the first"):
        frame(template("$A", "$B $A"), "encoder")

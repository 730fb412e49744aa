"""The special tokens around texts: those that tasks set are those that the exported tokenizer sets, for a text and for a pair."""

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.exchange.tokenizer_files import write_tokenizer
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.units import Count

TEXTS = ["a river", "people talk and talk"]
OWN = {
    "encoder": ([1, "A", 2], [1, "A", 2, "B", 2]),
    "decoder": ([1, "A"], [1, "A", "B"]),
    "encoder_decoder": (["A", 2], ["A", 2, "B", 2]),
}
SPECIAL = [("<s>", 1), ("</s>", 2)]
DECLARED = {
    "template": processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", SPECIAL),
    "bert": processors.BertProcessing(("</s>", 2), ("<s>", 1)),
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
    "begins": processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", SPECIAL),
}
PAIRS = {"roberta": [1, "A", 2, 2, "B", 2], "begins": [1, "A", 1, "B"]}


@pytest.fixture(scope="module")
def plain():
    return train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=300, sentinels=2), TEXTS)


def declared(plain, place, processor, **more):
    """The tokenizer with a frame of its own."""
    plain.save(place)
    definition = json.loads((place / "tokenizer.json").read_text())
    definition["post_processor"] = json.loads(processor.__getstate__())
    (place / "tokenizer.json").write_text(json.dumps(definition | more))
    return Tokenizer.load(place)


def filled(pattern, tokenizer):
    ids = dict(zip("AB", tokenizer.encode_batch(TEXTS), strict=True))
    return [number for part in pattern for number in (ids[part].tolist() if isinstance(part, str) else [part])]


def exported(tokenizer, place, **model):
    place.mkdir()
    write_tokenizer(tokenizer, place, ModelConfig(context=Count(64), **model))
    return AutoTokenizer.from_pretrained(place)


@pytest.mark.parametrize("family", OWN)
def test_the_frame_of_the_objectives_is_exported(family, plain, tmp_path):
    frame, opened = plain.frame(family), exported(plain, tmp_path / "out", family=family)
    for asked, pattern in zip((TEXTS[:1], TEXTS), OWN[family], strict=True):
        ids = filled(pattern, plain)
        assert frame(*plain.encode_batch(asked)).ids.tolist() == ids
        assert opened(*asked).input_ids == ids
        assert "token_type_ids" not in opened(*asked)
    assert Tokenizer.load(tmp_path / "out").frame(family) == frame  # now declared


@pytest.mark.parametrize("kind", DECLARED)
@pytest.mark.parametrize("padded", [False, True])
def test_a_frame_of_its_own_is_read_and_kept(kind, padded, plain, tmp_path):
    """MiniLM's tokenizer also pads each text to a length, which is no part of the frame."""
    padding = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None}
    more = {"padding": padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}} if padded else {}
    tokenizer = declared(plain, tmp_path / "own", DECLARED[kind], **more)
    frame = tokenizer.frame("encoder")
    framed = frame(*tokenizer.encode_batch(TEXTS))
    assert framed.ids.tolist() == filled(PAIRS.get(kind, [1, "A", 2, "B", 2]), tokenizer)
    assert frame.segments == (kind in ("template", "bert"))
    opened = exported(tokenizer, tmp_path / "out", family="encoder", token_types=2)(*TEXTS, padding=False)
    assert opened.input_ids == framed.ids.tolist()
    assert opened.get("token_type_ids", [0] * len(framed.ids)) == framed.token_types.tolist()


def test_a_model_without_segments_is_given_none(plain, tmp_path):
    tokenizer = declared(plain, tmp_path / "own", DECLARED["bert"])
    assert "token_type_ids" not in exported(tokenizer, tmp_path / "out", family="encoder")(*TEXTS)


def test_a_tokenizer_that_pads_with_nothing_is_given_a_pad_where_classes_are_asked_of_batches(plain, tmp_path):
    plain.save(tmp_path / "own")
    settings = json.loads((tmp_path / "own" / "tokenizer_config.json").read_text())
    for name in ("pad_token", "bos_token"):
        del settings[name]
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "</s>"}))
    (tmp_path / "own" / "special_roles.json").unlink()
    tokenizer = Tokenizer.load(tmp_path / "own")  # as GPT-2's: it fills rows with its eos
    assert exported(tokenizer, tmp_path / "words", family="decoder").pad_token is None
    opened = exported(tokenizer, tmp_path / "classes", family="decoder", head=ClassHeadConfig(pool="last"))
    assert opened.pad_token_id == tokenizer.vocabulary.pad == 2

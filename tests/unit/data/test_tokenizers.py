"""Tokenizers trained and loaded: determinism, round trips, special tokens kept out of texts, files others can open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import triune.data.tokenizers as under_test
from triune.data.config import TokenizerConfig
from triune.data.special_tokens import standard
from triune.data.tokenizer_training import canonical_pieces
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError

KINDS = ["byte_bpe", "wordpiece", "unigram"]
WORDS = "the quick brown fox jumps over a lazy dog. She isn't going! Was he there? hello world again < > / _ [ ] | 3"
TEXTS = [" ".join(np.random.default_rng(i).permutation(WORDS.split())) + "\nnext line" for i in range(60)]
TEXTS.append("rare ones once: Z Q & # $ % ^ * ~ ` { } + = @ X")
ENTRIES = 420


def config(kind: str, **options: Any) -> TokenizerConfig:
    return TokenizerConfig(kind=kind, **({"vocabulary": ENTRIES, "sentinels": 10} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {
        kind: train_tokenizer(config(kind, vocabulary=ENTRIES if kind != "unigram" else 120), TEXTS) for kind in KINDS
    }


def foreign(family: str, folder: Path) -> Path:
    """A small tokenizer of another make, saved as transformers saves it."""
    models, trainers, pre = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    sentinels = [f"<extra_id_{i}>" for i in range(3)]
    special, roles, backend, trainer = {
        "gpt2": (
            ["<|endoftext|>"],
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
            tokenizers.Tokenizer(models.BPE()),
            trainers.BpeTrainer,
        ),
        "bert": (
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            {f"{r}_token": f"[{r.upper()}]" for r in ("pad", "unk", "cls", "sep", "mask")},
            tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]")),
            trainers.WordPieceTrainer,
        ),
        "t5": (
            ["<pad>", "</s>", "<unk>", *sentinels],
            {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": sentinels},
            tokenizers.Tokenizer(models.Unigram()),
            trainers.UnigramTrainer,
        ),
    }[family]
    backend.pre_tokenizer = {
        "gpt2": pre.ByteLevel(add_prefix_space=False),
        "bert": pre.WhitespaceSplit(),
        "t5": pre.Metaspace(),
    }[family]
    backend.decoder = {
        "gpt2": tokenizers.decoders.ByteLevel(),
        "bert": tokenizers.decoders.WordPiece(),
        "t5": tokenizers.decoders.Metaspace(),
    }[family]
    options: dict[str, Any] = {"unk_token": "<unk>"} if family == "t5" else {}
    if family == "gpt2":
        options["initial_alphabet"] = pre.ByteLevel.alphabet()
    size = 90 if family == "t5" else 300
    backend.train_from_iterator(TEXTS, trainer(vocab_size=size, special_tokens=special, show_progress=False, **options))
    if family == "bert":  # a template that adds special tokens: encoding must not follow it
        backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {f: Tokenizer.load(foreign(f, tmp_path_factory.mktemp(f))) for f in ("gpt2", "bert", "t5")}


@pytest.fixture(scope="module")
def everyone(trained: dict[str, Tokenizer], loaded: dict[str, Tokenizer]) -> dict[str, Tokenizer]:
    return trained | loaded


ALL = [*KINDS, "gpt2", "bert", "t5"]


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode_batch([text])[0]


@given(st.text())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_byte_bpe_gives_back_any_text(trained: dict[str, Tokenizer], text: str) -> None:
    tokenizer = trained["byte_bpe"]
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert not set(ids.tolist()) & tokenizer.vocabulary.special


def test_unigram_gives_back_its_alphabet_with_spaces_and_line_ends(trained: dict[str, Tokenizer]) -> None:
    for text in [*TEXTS[:5], " a  b\n\nthe ", "\nthe"]:
        assert trained["unigram"].decode(encode(trained["unigram"], text)) == text


@pytest.mark.parametrize("name", ALL)
def test_a_text_cannot_spell_a_special_token(everyone: dict[str, Tokenizer], name: str) -> None:
    tokenizer = everyone[name]
    vocabulary = tokenizer.vocabulary
    dangerous = vocabulary.special - {vocabulary.unknown}
    if name == "gpt2":
        dangerous = vocabulary.special  # byte level: nothing is unknown
    spelled = tokenizer.roles.tokens
    assert spelled
    for token in spelled:
        for text in (
            token,
            f"the {token} fox",
            f"the{token}fox",
            f" {token}{token} ",
            f"\n{token}\n",
            token.upper(),
            "\0special 0\0",
        ):
            ids = set(encode(tokenizer, text).tolist())
            assert not ids & dangerous, (text, ids)
            assert ids


@pytest.mark.parametrize("name", ["byte_bpe", "unigram", "gpt2", "t5"])
def test_a_literal_special_token_survives_as_text(everyone: dict[str, Tokenizer], name: str) -> None:
    tokenizer = everyone[name]
    text = f"the {tokenizer.roles.pad} fox"
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("name", ALL)
def test_ids_equal_those_of_transformers_without_special_tokens(
    everyone: dict[str, Tokenizer], name: str, tmp_path: Path
) -> None:
    tokenizer = everyone[name]
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:10]:
        assert theirs(text, add_special_tokens=False).input_ids == encode(tokenizer, text).tolist()
    vocabulary = tokenizer.vocabulary
    assert len(theirs) == vocabulary.size
    assert theirs.eos_token_id == vocabulary.eos or theirs.sep_token_id == vocabulary.eos
    if name in KINDS:
        roles = (
            theirs.pad_token_id,
            theirs.bos_token_id,
            theirs.eos_token_id,
            theirs.unk_token_id,
            theirs.mask_token_id,
        )
        assert (
            roles
            == (vocabulary.pad, vocabulary.bos, vocabulary.eos, vocabulary.unknown, vocabulary.mask)
            == (0, 1, 2, 3, 4)
        )
        assert theirs.convert_tokens_to_ids("<extra_id_9>") == vocabulary.sentinels[9]
        assert set(theirs.all_special_ids) == vocabulary.special


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_is_the_same_tokenizer(everyone: dict[str, Tokenizer], name: str, tmp_path: Path) -> None:
    tokenizer = everyone[name]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.roles == tokenizer.roles
    assert again.vocabulary == tokenizer.vocabulary
    assert [ids.tolist() for ids in again.encode_batch(TEXTS)] == [
        ids.tolist() for ids in tokenizer.encode_batch(TEXTS)
    ]
    again.save(tmp_path / "twice")
    assert Tokenizer.load(tmp_path / "twice").fingerprint == tokenizer.fingerprint


_TRAIN = """
import sys, json
from triune.data.config import TokenizerConfig
from triune.data.tokenizers import train_tokenizer
texts = json.load(open(sys.argv[1]))
for kind, size in (("byte_bpe", 420), ("wordpiece", 420), ("unigram", 120)):
    print(train_tokenizer(TokenizerConfig(kind=kind, vocabulary=size, sentinels=10), texts).fingerprint)
"""


def test_training_is_the_same_in_every_process(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """The trainers' hash tables are seeded anew in each process: their order must not show."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    for seed in "12":
        command = [sys.executable, "-c", _TRAIN, str(tmp_path / "texts.json")]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        assert done.stdout.split() == [trained[kind].fingerprint for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_as_large_as_asked_and_carries_every_role(trained: dict[str, Tokenizer], kind: str) -> None:
    vocabulary = trained[kind].vocabulary
    assert vocabulary.size <= ENTRIES
    assert vocabulary.sentinels == tuple(range(8, 18))
    assert (vocabulary.fim_prefix, vocabulary.fim_middle, vocabulary.fim_suffix) == (5, 6, 7)
    assert vocabulary.special == frozenset(range(18))
    assert trained[kind].dtype == np.uint16


def test_roles_of_foreign_tokenizers(loaded: dict[str, Tokenizer]) -> None:
    gpt2, bert, t5 = (loaded[name].vocabulary for name in ("gpt2", "bert", "t5"))
    assert (gpt2.pad, gpt2.bos, gpt2.eos, gpt2.mask, gpt2.sentinels) == (0, 0, 0, None, ())
    assert (bert.pad, bert.unknown, bert.bos, bert.eos, bert.mask) == (0, 1, 2, 3, 4)
    assert (t5.pad, t5.eos, t5.unknown, t5.bos, t5.sentinels) == (0, 1, 2, 0, (3, 4, 5))


def token(tokenizer: Tokenizer, text: str) -> int:
    number = tokenizer._backend.token_to_id(text)
    assert number is not None, text
    return number


def test_word_and_sentence_borders(everyone: dict[str, Tokenizer]) -> None:
    for name in ("byte_bpe", "gpt2"):
        vocabulary = everyone[name].vocabulary
        assert vocabulary.continues_word is not None
        assert vocabulary.ends_sentence is not None
        for text, continues, ends in [
            ("Ġthe", 0, 0),
            ("a", 1, 0),
            (".", 0, 1),
            ("Ċ", 0, 1),
            ("!", 0, 1),
            ("©", 1, 0),
            (",", 0, 0),
        ]:
            number = token(everyone[name], text)
            assert (vocabulary.continues_word[number], vocabulary.ends_sentence[number]) == (continues, ends), text
    for name, start, inside in [
        ("wordpiece", "quick", "##o"),
        ("bert", "quick", "##o"),
        ("t5", "▁", "o"),
        ("unigram", "▁", "o"),
    ]:
        vocabulary = everyone[name].vocabulary
        assert vocabulary.continues_word is not None
        assert not vocabulary.continues_word[token(everyone[name], start)]
        assert vocabulary.continues_word[token(everyone[name], inside)]
        assert not vocabulary.continues_word[list(vocabulary.special)].any()


def test_whole_words_are_found_back(trained: dict[str, Tokenizer]) -> None:
    for name in ("byte_bpe", "wordpiece"):
        tokenizer = trained[name]
        assert tokenizer.vocabulary.continues_word is not None
        ids = encode(tokenizer, "the jumping unquick dogs were going")
        assert len(ids) > 6
        assert np.count_nonzero(~tokenizer.vocabulary.continues_word[ids[1:]]) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_long_documents_are_encoded_in_pieces_without_a_seam(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = 15 * ["\n", "\n\n", "  ", "\n  ", " \n"]
    text = "".join(text + gap for text, gap in zip(TEXTS, gaps, strict=False))
    tokenizer = train_tokenizer(config(kind, vocabulary=130 if kind == "unigram" else 460), [text])
    whole = encode(tokenizer, text)
    with monkeypatch.context() as patch:
        patch.setattr(under_test, "_PIECE", 5)  # cuts fall on every kind of gap
        assert len(list(under_test.pieces(text))) > 10
        assert "".join(under_test.pieces(text)) == text
        assert encode(tokenizer, text).tolist() == whole.tolist()


def test_order_of_restored_characters_does_not_show() -> None:
    """Two runs of the Unigram trainer that dealt out the scores of dropped characters in another order."""
    special = standard(1)
    first = [["the", -2.0], ["a", -3.0], ["q", -9.0], ["z", -9.0 + 1e-4], ["é", -9.0 + 2e-4], ["low", -9.0]]
    second = [["é", -9.0], ["the", -2.0 + 1e-12], ["low", -9.0], ["q", -9.0 + 2e-4], ["z", -9.0 + 1e-4], ["a", -3.0]]
    pieces = canonical_pieces(first, special)
    assert pieces == canonical_pieces(second, special)
    assert [piece for piece, _ in pieces] == [*special.tokens, "the", "a", "é", "z", "low", "q"]


def test_decode_shows_special_tokens_when_asked(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["byte_bpe"]
    ids = [1, *encode(tokenizer, "the fox").tolist(), 2]
    assert tokenizer.decode(ids) == "the fox"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>the fox</s>"


def test_lowercase(trained: dict[str, Tokenizer]) -> None:
    folded = train_tokenizer(config("wordpiece", lowercase=True), TEXTS)
    assert encode(folded, "THE Fox").tolist() == encode(folded, "the fox").tolist()
    assert encode(trained["wordpiece"], "She").tolist() != encode(trained["wordpiece"], "she").tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_room_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"data.tokenizer.vocabulary: 30 is too small"):
        train_tokenizer(config(kind, vocabulary=30), TEXTS)


def test_loading_a_bare_file_and_failures(
    loaded: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded["bert"].save(tmp_path / "bert")
    bare = Tokenizer.load(tmp_path / "bert" / "tokenizer.json")
    assert bare.vocabulary == loaded["bert"].vocabulary
    assert (
        train_tokenizer(TokenizerConfig(kind="pretrained", path=str(tmp_path / "bert")), []).fingerprint
        == loaded["bert"].fingerprint
    )
    (tmp_path / "bert" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.load(tmp_path / "bert")
    (tmp_path / "bad.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for wrong in (tmp_path / "bad.json", tmp_path):
        with pytest.raises(UserError, match=r"data\.tokenizer\.path"):
            Tokenizer.load(wrong)

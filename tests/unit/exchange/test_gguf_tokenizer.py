"""Tokenizers inside GGUF files: the same ids as the tokenizer that was put in, and as the reading of `transformers`."""

import json

import pytest
import tokenizers
import transformers
from gguf_writing import byte_level_of, definition_of, write_gguf
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from triune.data.config import TokenizerConfig
from triune.data.tokenizers import Tokenizer, train_tokenizer
from triune.errors import UserError
from triune.exchange.tokenizer_files import write_tokenizer
from triune.models.config import ModelConfig
from triune.units import Count

TEXTS = [
    "The river that runs through the city is wide; it isn't deep, they'LL say.",
    "In 2024, 1234567 people paid $12.50 (about 11,30 €) - 3x more!",
    "  two spaces, a\ttab,\n\n\nthree line ends and a trailing one \n",
    "naïve café, Ünïcode: Привет, мир! 你好\uff0c世界。 日本語 ١٢٣ ²³ Ⅷ",
    "def f(x):\n    return x**2  # comment\r\n\r\n",
    "emoji 👩‍👩‍👧 and \u00a0 spaces \u3000 of other kinds <|x|> </s> <s>",
    "",
    " ",
    "'s 'T don't DON'T ''",
]
CORPUS = TEXTS * 3 + ["the quick brown fox jumps over 13 lazy dogs; 1999 and 2000, 12 12 12 123 123 123 1234"] * 5
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ROLES = ["<s>", "</s>", "<pad>"]


def before(cut):
    """The cut into words, as the tokenizer.json of a model with that `tokenizer.ggml.pre` has it."""
    if cut == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if cut == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = LLAMA3 if cut == "llama-bpe" else LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(cut):
    """A byte-level tokenizer with that cut, some of whose words would not come of its merges alone."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = before(cut), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=ROLES, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def saved(backend, directory):
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    return directory


def file_of(keys, path):
    # AutoTokenizer reads the model's settings too
    llama = {
        f"llama.{key}": 1
        for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
    }
    return write_gguf(path, {"general.architecture": "llama"} | llama | keys, {})


def ids_of(words, texts=TEXTS):
    return [list(map(int, ids)) for ids in words.encode_batch(texts)]


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_gives_the_ids_of_the_tokenizer_that_was_put_in(cut, tmp_path):
    backend = trained(cut)
    keys = byte_level_of(definition_of(saved(backend, tmp_path / "words")), pre=cut)
    file = file_of(keys, tmp_path / "m.gguf")
    words = Tokenizer.load(file)
    backend.encode_special_tokens = True  # text that spells a special token stays text, as in ours
    expected = [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    plain = [i for i, text in enumerate(TEXTS) if "<s>" not in text]
    assert [ids_of(words)[i] for i in plain] == [expected[i] for i in plain]
    for text, ids in zip(TEXTS, ids_of(words), strict=True):
        assert words.decode(ids) == text
    assert (words.roles.bos, words.roles.eos, words.roles.pad) == tuple(ROLES)
    assert words.vocabulary.bos == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    numbered = "smollm" if cut == "smollm" else ""  # transformers does not know that digits stand alone there
    for i in plain:
        if not (numbered and any(letter.isnumeric() for letter in TEXTS[i])):
            assert theirs(TEXTS[i], add_special_tokens=False).input_ids == expected[i]


def test_each_cut_is_a_different_one(tmp_path):
    backend = trained("gpt-2")
    saved(backend, tmp_path / "words")
    found = set()
    for cut in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        keys = byte_level_of(definition_of(tmp_path / "words"), pre=cut)
        found.add(json.dumps(ids_of(Tokenizer.load(file_of(keys, tmp_path / f"{cut}.gguf")))))
    assert len(found) == 4


def test_a_word_that_is_a_token_is_taken_whole_where_llama3_does(tmp_path):
    keys = byte_level_of(definition_of(saved(trained("gpt-2"), tmp_path / "words")), pre="gpt-2")
    keys["tokenizer.ggml.tokens"].append("xyzzy")  # no merge leads to it
    keys["tokenizer.ggml.token_type"].append(1)
    whole = {}
    for cut in ("gpt-2", "llama-bpe"):
        file = file_of(keys | {"tokenizer.ggml.pre": cut}, tmp_path / f"{cut}.gguf")
        whole[cut] = ids_of(Tokenizer.load(file), ["xyzzy"])[0] == [len(keys["tokenizer.ggml.tokens"]) - 1]
    assert whole == {"gpt-2": False, "llama-bpe": True}


def test_special_and_user_defined_tokens(tmp_path):
    keys = byte_level_of(definition_of(saved(trained("gpt-2"), tmp_path / "words")), pre="gpt-2")
    keys["tokenizer.ggml.tokens"] += ["<|turn|>", "<think>", "[PAD422]"]
    keys["tokenizer.ggml.token_type"] += [3, 4, 5]
    keys |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ messages }}"}
    file = file_of(keys, tmp_path / "m.gguf")
    words = Tokenizer.load(file)
    think = keys["tokenizer.ggml.tokens"].index("<think>")
    assert think in ids_of(words, ["a <think> b"])[0]
    assert 0 not in ids_of(words, ["a <s> b"])[0]  # text never spells a special token
    assert words.size == think + 2
    words.save(tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("a cat").input_ids == [0, *ids_of(words, ["a cat"])[0]]
    assert again("a", "b").input_ids == [0, *ids_of(words, ["a"])[0], 0, *ids_of(words, ["b"])[0]]
    assert again.decode([0, think, 5], skip_special_tokens=True).startswith("<think>")
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (0, 1, 2)
    assert again.chat_template == "{{ messages }}"
    turn = think - 1  # plays no role, but is a special token all the same
    assert turn not in ids_of(words, ["a <|turn|> b"])[0]
    assert turn in words.vocabulary.special
    assert turn in again("a <|turn|> b").input_ids
    assert Tokenizer.load(tmp_path / "out").fingerprint == words.fingerprint


@pytest.mark.parametrize(
    ("keys", "added"),
    [
        ({}, []),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [0]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, []),
        ({"tokenizer.ggml.add_bos_token": True}, [0]),
    ],
)
def test_a_text_begins_as_the_file_says(keys, added, tmp_path):
    own = byte_level_of(definition_of(saved(trained("gpt-2"), tmp_path / "words")), pre="gpt-2")
    words = Tokenizer.load(file_of(own | keys, tmp_path / "m.gguf"))
    (tmp_path / "out").mkdir()
    write_tokenizer(words, tmp_path / "out", ModelConfig(context=Count(64)))  # an export: it keeps the file's own frame
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened("cat").input_ids == [*added, *ids_of(words, ["cat"])[0]]
    ended = Tokenizer.load(file_of(own | keys | {"tokenizer.ggml.add_eos_token": True}, tmp_path / "e.gguf"))
    ended.save(tmp_path / "ended")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ended")
    assert opened("cat").input_ids == [*added, *ids_of(words, ["cat"])[0], 1]


def sentence_piece(directory):
    """A tokenizer as Llama 2's tokenizer.json is one: a BPE of the text with bytes for the rest."""
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training only: no piece across words
    letters = sorted(set("".join(CORPUS[-5:])) - set(" 日本語"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *bytes_], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(CORPUS[-5:], trainer)
    definition = json.loads(backend.to_str())
    definition["pre_tokenizer"] = None
    definition["added_tokens"] = definition["added_tokens"][:3]
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    return backend, definition_of(saved(backend, directory))


def sentence_piece_keys(definition):
    """The file's keys: pieces are scored by their rank, as SentencePiece does with its BPE."""
    numbers = {number: token for token, number in definition["model"]["vocab"].items()}
    tokens = [numbers[i] for i in range(len(numbers))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_sentence_pieces_of_llama2(tmp_path):
    backend, definition = sentence_piece(tmp_path / "words")
    file = file_of(sentence_piece_keys(definition), tmp_path / "m.gguf")
    words = Tokenizer.load(file)
    texts = [text for text in TEXTS if "<s>" not in text]
    assert ids_of(words, texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert any(3 <= i < 259 for i in ids_of(words, ["語"])[0])
    for text in texts:
        assert words.decode(ids_of(words, [text])[0]) == text
    words.save(tmp_path / "out")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened("the fox").input_ids == [1, *ids_of(words, ["the fox"])[0]]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in texts:
        if text.strip() == text != "":  # transformers' reading leaves out the space before a space
            assert theirs(text, add_special_tokens=False).input_ids == ids_of(words, [text])[0]


@pytest.mark.parametrize(("scores", "pieces"), [((-2.0, -1.0), ["a", "bc"]), ((-1.0, -2.0), ["ab", "c"])])
def test_the_piece_of_the_better_score_is_joined_first(scores, pieces, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "c", "ab", "bc"]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, *scores],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    words = Tokenizer.load(file_of(keys, tmp_path / "m.gguf"))
    assert [tokens[i] for i in ids_of(words, ["abc"])[0]] == ["\u2581", *pieces]


def test_without_the_space_before_a_text(tmp_path):
    _, definition = sentence_piece(tmp_path / "words")
    keys = sentence_piece_keys(definition) | {"tokenizer.ggml.add_space_prefix": False}
    words = Tokenizer.load(file_of(keys, tmp_path / "m.gguf"))
    for text in ("the fox", " the fox"):
        assert words.decode(ids_of(words, [text])[0]) == text
    tokens = keys["tokenizer.ggml.tokens"]
    assert "".join(tokens[i] for i in ids_of(words, ["the fox"])[0]) == "the\u2581fox"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is bert"),
        ({"tokenizer.ggml.pre": "smolm"}, "did you mean 'smollm'?"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre is default"),
        ({"tokenizer.ggml.tokens": 3}, "tokenizer.ggml.tokens is int"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "must differ"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type (2)"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "tokenizer.ggml.merges is damaged"),
        ({"tokenizer.ggml.merges": ["azz"]}, "tokenizer.ggml.merges is damaged"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id is 1000000"),
    ],
)
def test_what_is_damaged_or_unknown_is_said(change, said, tmp_path):
    words = train_tokenizer(TokenizerConfig(kind="byte_bpe", vocabulary=300, sentinels=2), CORPUS)
    words.save(tmp_path / "words")
    keys = byte_level_of(definition_of(tmp_path / "words")) | change
    file = file_of(keys, tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"m\.gguf: tokenizer\.ggml\.") as error:
        Tokenizer.load(file)
    assert said in str(error.value)
    assert "--tokenizer" in str(error.value)

"""Train byte-level BPE, WordPiece and Unigram with `tokenizers`, so that the same text gives the same file every time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from triune.data.config import TokenizerConfig
from triune.data.special_tokens import SpecialTokens
from triune.errors import UserError

_BATCH = 256  # texts handed over at a time


def train(config: TokenizerConfig, texts: Iterable[str], special: SpecialTokens) -> Backend:
    """A tokenizer of at most `config.vocabulary` entries, the special tokens first.

    byte_bpe cuts words as GPT-2 does (Radford et al. 2019), wordpiece as BERT (Devlin et al. 2019), unigram as
    SentencePiece (Kudo 2018) except that it keeps spaces and line ends as they are.
    Raises UserError where the vocabulary has no room for the special tokens and the alphabet.
    """
    trained = {"byte_bpe": _byte_bpe, "wordpiece": _wordpiece, "unigram": _unigram}[config.kind](config, texts, special)
    if trained.get_vocab_size() > config.vocabulary:
        raise _too_small(config, f"{trained.get_vocab_size():,} special tokens and single characters")
    return trained


def _too_small(config: TokenizerConfig, why: str) -> UserError:
    return UserError(
        f"data.tokenizer.vocabulary: {int(config.vocabulary):,} is too small for {why}; "
        f"raise it, or lower data.tokenizer.sentinels ({config.sentinels})"
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, _BATCH)):
        yield batch


def _byte_bpe(config: TokenizerConfig, texts: Iterable[str], special: SpecialTokens) -> Backend:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if len(special.tokens) + len(alphabet) > config.vocabulary:
        raise _too_small(config, f"{len(special.tokens)} special tokens and 256 bytes")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special.tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_batches(texts), trainer)
    return backend


def _wordpiece(config: TokenizerConfig, texts: Iterable[str], special: SpecialTokens) -> Backend:
    """The trainer numbers "##x" pieces in the order of a randomly seeded hash table, and ties are broken by number.
    Naming them up front, as if they were special, fixes that order; so does choosing the alphabet here."""
    texts = list(texts)
    backend = Backend(models.WordPiece(unk_token=special.unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    alphabet = _alphabet(backend, texts, limit=config.vocabulary // 4)
    inside = [f"##{letter}" for letter in alphabet if _joins_words(backend, letter)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special.tokens + inside,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_batches(texts), trainer)
    definition = json.loads(backend.to_str())
    named = set(special.tokens)
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in named]
    return Backend.from_str(json.dumps(definition))


def _alphabet(backend: Backend, texts: list[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation (the rest become unknown), sorted."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for letter, count in raw.items():
        for normal in backend.normalizer.normalize_str(letter):
            counts[normal] += 0 if normal.isspace() else count
    return sorted(sorted(+counts, key=lambda letter: (-counts[letter], letter))[:limit])


def _joins_words(backend: Backend, letter: str) -> bool:
    """Whether `letter` can stand inside a word (punctuation and ideographs are words of their own)."""
    normal = backend.normalizer.normalize_str(f"a{letter}")
    return len(backend.pre_tokenizer.pre_tokenize_str(normal)) == 1


def _unigram(config: TokenizerConfig, texts: Iterable[str], special: SpecialTokens) -> Backend:
    backend = Backend(models.Unigram())
    fold: list[Any] = [normalizers.NFKC()] + [normalizers.Lowercase()] * config.lowercase
    backend.normalizer = normalizers.Sequence(fold)
    # "never": no space is invented at the start of a text, so that pieces of a document join without seams
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special.tokens,
        unk_token=special.unknown,
        show_progress=False,
    )
    try:
        backend.train_from_iterator(_batches(texts), trainer)
    except Exception as error:  # the only class that the trainer raises
        raise _too_small(config, f"this text ({error})") from error
    definition = json.loads(backend.to_str())
    definition["model"]["vocab"] = canonical_pieces(definition["model"]["vocab"], special)
    return Backend.from_str(json.dumps(definition))


def canonical_pieces(pieces: list[list[Any]], special: SpecialTokens) -> list[list[Any]]:
    """The pieces in an order, and with scores, that do not depend on the trainer's randomly seeded hash tables.

    Those leave two traces. Sums run in another order, which moves scores in the last digits: rounded away. And
    characters that EM dropped come back with the lowest score plus 0, 1, 2... times 1e-4 in table order: dealt out
    anew in the order of the characters.
    """
    scores = {piece: score for piece, score in pieces if piece not in set(special.tokens)}
    lowest = min(scores.values())
    letters = sorted(piece for piece in scores if len(piece) == 1)
    steps = {letter: (scores[letter] - lowest) / 1e-4 for letter in letters}
    restored = [x for x in letters if steps[x] < len(letters) and abs(steps[x] - round(steps[x])) < 1e-3]
    scores.update(zip(restored, sorted(scores[letter] for letter in restored), strict=True))
    ordered = sorted((-round(score, 6), piece) for piece, score in scores.items())
    return [[token, 0.0] for token in special.tokens] + [[piece, -score] for score, piece in ordered]

"""The tokenizer: trained here or loaded from Hugging Face, one class either way."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer as Backend

from triune.data.config import TokenizerConfig
from triune.data.frames import frame_of
from triune.data.gguf_tokenizer import gguf_tokenizer
from triune.data.special_tokens import SpecialTokens, disarmed, roles_of, standard
from triune.data.tokenizer_training import train
from triune.errors import UserError
from triune.gguf_file import GgufFile, is_gguf

if TYPE_CHECKING:
    from triune.objectives.batch import Vocabulary
    from triune.objectives.text import Frame

_DEFINITION = "tokenizer.json"
_ROLES = "special_roles.json"  # beside tokenizer.json in what `save` writes: which token plays which role
_ROLE_NAMES = {"pad": "pad_token", "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "mask": "mask_token"}
_DECLARED = (*_ROLE_NAMES.values(), "cls_token", "sep_token")
_PIECE = 1_000_000  # characters; longer documents are encoded in pieces, so that they are spread over the cores
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_IDEOGRAPHS = re.compile(r"[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u2019\u201d\xbb]*\s*$|\n")


class Tokenizer:
    """Text to ids and back.

    Encoding adds no special token and finds none in the text: a document that spells "<pad>" does not get its id.

    Args:
        files: the tokenizer's files by name, `tokenizer.json` among them.
        roles: which token plays which role.
    """

    def __init__(self, files: dict[str, bytes], roles: SpecialTokens) -> None:
        definition = json.loads(files[_DEFINITION])
        self.roles = roles
        self._files = files
        self._backend = Backend.from_str(json.dumps(definition))
        self._encoder = Backend.from_str(json.dumps(disarmed(definition, roles)))
        self._encoder.encode_special_tokens = True
        self.size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self.dtype = np.dtype("<u2" if self.size <= 2**16 else "<u4")
        canonical = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a directory that `save` wrote, any Hugging Face directory, a tokenizer.json, a GGUF file, or a Hugging Face name.

        Raises UserError where nothing can be read there.
        """
        folder = Path(path)
        if is_gguf(folder):
            return cls(*gguf_tokenizer(GgufFile(folder)))
        if (folder / _ROLES).is_file():
            try:
                files = {file.name: file.read_bytes() for file in folder.iterdir() if _is_part(file)}
                roles = json.loads(files.pop(_ROLES))
                return cls(files, SpecialTokens(**roles | {"sentinels": tuple(roles["sentinels"])}))
            except Exception as error:  # `tokenizers` raises plain Exception
                raise UserError(f"tokenizer '{path}' is damaged ({error}); write it again") from error
        return _from_huggingface(folder, str(path))

    def save(self, directory: str | Path) -> None:
        """Write files that `transformers.AutoTokenizer.from_pretrained` and `Tokenizer.load` open."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        (folder / _ROLES).write_text(json.dumps(asdict(self.roles), indent=2) + "\n", encoding="utf-8")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids (uint16, or uint32 beyond 65,536 entries) a text, on all cores.

        A text beyond a million characters is encoded in pieces cut at line ends, which changes no id with the tokenizers
        trained here; a foreign one that sets a space before each text may differ at these cuts.
        """
        cut = [list(pieces(text)) for text in texts]
        encodings = self._encoder.encode_batch_fast(
            [piece for parts in cut for piece in parts], add_special_tokens=False
        )
        arrays = iter(np.array(encoding.ids, dtype=self.dtype) for encoding in encodings)
        joined = [[next(arrays) for _ in parts] for parts in cut]
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in joined]

    def encode_aligned(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its ids, as `encode_batch` gives them, and which characters each stands for: (ids [n], offsets [n, 2]).

        A token stands for text[start:end] without white space at its ends: the blank that byte-level BPE and SentencePiece
        put before a word is not counted, and a token of nothing but blanks has start = end. Tokens that share a character
        (bytes of an emoji) each stand for all of it, and an accent that normalisation drops belongs to its letter.
        """
        cut = [list(pieces(text)) for text in texts]
        encodings = iter(self._encoder.encode_batch([p for parts in cut for p in parts], add_special_tokens=False))
        return [self._aligned(text, parts, encodings) for text, parts in zip(texts, cut, strict=True)]

    def _aligned(self, text: str, parts: list[str], encodings: Iterator[Any]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets, before = [], [], 0
        for part, encoding in zip(parts, encodings, strict=False):
            ids.append(np.array(encoding.ids, dtype=self.dtype))
            offsets.append(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + before)
            before += len(part)
        return np.concatenate(ids), _spans(np.concatenate(offsets), text)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; with `skip_special_tokens` without the special ones."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Size and special tokens, and how each token stands to words and sentences (as far as the token alone tells)."""
        from triune.objectives.batch import Vocabulary  # brings torch along

        numbers = self.tokens
        ids = {role: numbers.get(token) for role, token in asdict(self.roles).items() if isinstance(token, str)}
        continues, ends = self._words()
        return Vocabulary(
            size=self.size,
            sentinels=tuple(numbers[token] for token in self.roles.sentinels),
            special=self._special,
            continues_word=continues,
            ends_sentence=ends,
            **{"pad": 0} | {role: number for role, number in ids.items() if number is not None},  # type: ignore[arg-type]
        )

    def frame(self, family: str) -> Frame:
        """The special tokens that stand around a text, and a pair of texts, for a model of `family`; see `frame_of`."""
        return frame_of(json.loads(self._files[_DEFINITION]), self._backend, self.vocabulary, family)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool) -> str:
        """A conversation as the tokenizer's own chat template writes it, special tokens spelled out.

        Args:
            messages: each with a `role` and its `content`.
            reply: whether to end with what stands before a reply of the assistant.

        Raises UserError where the tokenizer brings no template, or its template refuses these messages.
        """
        from jinja2 import TemplateError

        if self._chat.chat_template is None:
            raise UserError("this tokenizer brings no chat template; set objective.template to chatml or speakers")
        try:
            chat = [dict(message) for message in messages]
            return str(self._chat.apply_chat_template(chat, tokenize=False, add_generation_prompt=reply))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"the tokenizer's chat template refuses turns of {roles}: {error}") from error

    @cached_property
    def _chat(self) -> Any:
        """The tokenizer as `transformers` opens it, for its chat template."""
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return transformers.AutoTokenizer.from_pretrained(folder)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Every token as the vocabulary spells it, special ones included -> its id."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @cached_property
    def _special(self) -> frozenset[int]:
        special = {self.tokens[token] for token in self.roles.tokens if token in self.tokens}
        return frozenset(
            special | {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        )

    @cached_property
    def surfaces(self) -> dict[int, str]:
        """Id of each token that is not special -> the text that it adds inside a sentence, such as " the" or "ing".

        Each token is decoded behind a plain letter, so that the tokenizer's own decoder says whether a space comes
        between: "##ing" and byte-level "ing" give "aing", "ing" of WordPiece and "Ġing" give "a ing". Empty where no token is
        a plain letter.
        """
        ordinary = [i for i in range(self.size) if i not in self._special]
        alone = self._backend.decode_batch([[i] for i in ordinary], skip_special_tokens=False)
        letter = next(((i, t.strip()) for i, t in zip(ordinary, alone, strict=True) if _is_letter(t)), None)
        if letter is None:
            return {}
        behind = self._backend.decode_batch([[letter[0], i] for i in ordinary], skip_special_tokens=False)
        return {i: text.lstrip()[len(letter[1]) :] for i, text in zip(ordinary, behind, strict=True)}

    def _words(self) -> tuple[np.ndarray, np.ndarray]:
        """([V] continues_word, [V] ends_sentence)."""
        continues, ends = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        for i, text in self.surfaces.items():
            continues[i] = _continues_word(text)
            ends[i] = _SENTENCE_END.search(text) is not None
        return continues, ends


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `config` asks for: trained on `texts`, or loaded (then `texts` is not read)."""
    if config.kind == "pretrained":
        return Tokenizer.load(str(config.path))
    roles = standard(config.sentinels)
    backend = train(config, (piece for text in texts for piece in pieces(text)), roles)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {name: getattr(roles, role) for role, name in _ROLE_NAMES.items()}
    settings["extra_special_tokens"] = [t for t in roles.tokens if t not in settings.values()]
    files = {_DEFINITION: backend.to_str(pretty=True), "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}
    return Tokenizer({name: content.encode() for name, content in files.items()}, roles)


def _from_huggingface(path: Path, name: str) -> Tokenizer:
    import transformers

    try:
        loaded: Any
        if path.is_file():
            loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            loaded = transformers.AutoTokenizer.from_pretrained(name)
        with tempfile.TemporaryDirectory() as folder:
            loaded.save_pretrained(folder)
            files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if _is_part(file)}
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, ImportError, JSONDecodeError and plain Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data.tokenizer.path: no tokenizer can be loaded from '{name}': {reason}\n"
            "Give a directory that a tokenizer was saved to, a tokenizer.json, or (with a network) a Hugging Face name."
        ) from error
    if _DEFINITION not in files:
        raise UserError(f"data.tokenizer.path: '{name}' has no fast tokenizer (tokenizer.json), which triune needs")
    declared = {role: getattr(loaded, role, None) for role in _DECLARED}
    vocabulary = loaded.get_vocab()
    if path.is_file():  # a bare tokenizer.json declares no roles: go by the customary spellings
        declared = _customary(vocabulary)
    return Tokenizer(files, roles_of(declared, vocabulary))


def _customary(vocabulary: dict[str, int]) -> dict[str, str | None]:
    spellings = {
        "pad_token": ("<pad>", "[PAD]"),
        "bos_token": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
        "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
        "unk_token": ("<unk>", "[UNK]"),
        "mask_token": ("<mask>", "[MASK]"),
        "cls_token": ("[CLS]",),
        "sep_token": ("[SEP]",),
    }
    return {role: next((form for form in forms if form in vocabulary), None) for role, forms in spellings.items()}


def _is_part(file: Path) -> bool:
    """Whether a file of a tokenizer's directory belongs to the tokenizer (a model may lie beside it)."""
    known = file.name.startswith(("tokenizer", "special_", "added_tokens", "chat_template", "vocab", "merges"))
    return file.is_file() and known


def pieces(text: str) -> Iterator[str]:
    """`text` cut behind single line ends into pieces of about a million characters (one piece where it is shorter)."""
    start = 0
    while len(text) - start > _PIECE and (match := _LINE_END.search(text, start + _PIECE)):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def _spans(offsets: np.ndarray, text: str) -> np.ndarray:
    """`offsets` [n, 2] into `text` without the white space at the ends of each, and with the accents left over behind it."""
    places = np.arange(len(text) + 1)
    blank = np.array([letter.isspace() for letter in text], dtype=bool)
    behind = np.maximum.accumulate(np.append(0, np.where(blank, 0, places[1:])))  # behind the last one before a place
    starts = np.minimum(_next(~blank)[offsets[:, 0]], offsets[:, 1])
    ends = np.maximum(behind[offsets[:, 1]], starts)
    covers = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(covers, starts, 1)
    np.add.at(covers, ends, -1)
    loose = np.array([unicodedata.category(letter)[0] == "M" for letter in text], dtype=bool)
    loose &= np.cumsum(covers)[:-1] == 0
    return np.stack([starts, np.where(ends > starts, _next(~loose)[ends], ends)], axis=1)


def _next(wanted: np.ndarray) -> np.ndarray:
    """[n + 1] the first place at or behind each that is `wanted` [n], or n."""
    places = np.append(np.where(wanted, np.arange(len(wanted)), len(wanted)), len(wanted))
    return np.minimum.accumulate(places[::-1])[::-1]


def _is_letter(text: str) -> bool:
    text = text.strip()
    return len(text) == 1 and text.isascii() and text.isalpha()


def _continues_word(text: str) -> bool:
    """Whether a token that reads `text` belongs to the word before it: it begins inside a word, with a letter, a digit,
    a combining mark or a part of a character; an ideograph is a word of its own."""
    first = text[:1]
    if not first or _IDEOGRAPHS.match(first):
        return False
    return first.isalnum() or first == "\ufffd" or unicodedata.category(first).startswith("M")

"""The tokenizer inside a GGUF file, as the files that `tokenizers` and `transformers` read.

A GGUF file has the vocabulary, the merges or scores, what kind each token is, and the name that llama.cpp gives to the way a text is
cut into words (its src/llama-vocab.cpp says which name cuts how); the rest of a tokenizer.json follows from these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from triune.data.special_tokens import SpecialTokens, roles_of
from triune.errors import UserError, nearest
from triune.gguf_file import GgufFile

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # kinds of token, of tokenizer.ggml.token_type
_SPACE = "\u2581"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENDINGS + _WORDS + r"\p{N}{1,3}|" + _REST
_QWEN2 = _ENDINGS + _WORDS + r"\p{N}|" + _REST
#: tokenizer.ggml.pre -> how words are cut: gpt-2's way, gpt-2's with each digit alone, or at a pattern
_CUTS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), "words"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), "digits"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
}
#: these take a word that is a token whole, whatever the merges say, and begin each text with bos where the file says nothing
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3")
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "mask_token": "mask"}


def gguf_tokenizer(file: GgufFile) -> tuple[dict[str, bytes], SpecialTokens]:
    """(files by name, roles) of the tokenizer in a GGUF file.

    Raises UserError for a kind of tokenizer or a way to cut words that is not known here, or where they are damaged.
    """
    known = file.metadata
    kind = known.get("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentence_piece}.get(str(kind))
    if build is None:
        raise _refusal(file, "model", kind, "triune reads gpt2 (byte-level BPE) and llama (SentencePiece's BPE)")
    tokens, kinds = _list(file, "tokens", str), _list(file, "token_type", int)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise _refusal(
            file,
            "tokens",
            f"a list of {len(tokens):,}",
            f"its entries must differ, and token_type ({len(kinds):,}) match",
        )
    declared = {role: _token(file, tokens, name) for role, name in _ROLES.items()}
    try:
        backend = build(file, tokens, kinds)
    except Exception as error:  # `tokenizers` raises plain Exception: a merge of tokens that are not there
        if isinstance(error, UserError):
            raise
        raise _refusal(file, "merges", "damaged", str(error)) from error
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL]
    )
    backend.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == _USER_DEFINED]
    )
    backend.post_processor = _frame(file, tokens, declared)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {role: token for role, token in declared.items() if token is not None}
    if "tokenizer.chat_template" in known:
        settings["chat_template"] = known["tokenizer.chat_template"]
    written = {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
    files = {name: text.encode() for name, text in written.items()}
    return files, roles_of(declared, {token: i for i, token in enumerate(tokens)})


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int]) -> Backend:
    """GPT-2's kind (Radford et al. 2019): words of bytes that are spelled as letters, joined by ranked merges."""
    name = file.metadata.get("tokenizer.ggml.pre")
    cut = _CUTS.get(str(name))
    if cut is None:
        raise _refusal(file, "pre", name, f"triune knows {', '.join(_CUTS)}{nearest(str(name), _CUTS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in _list(file, "merges", str)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in _WHOLE_WORDS))
    plain = cut in ("words", "digits")
    first: list[Any] = [] if plain else [pre_tokenizers.Split(Regex(cut), behavior="isolated")]
    first += [pre_tokenizers.Digits(individual_digits=True)] if cut == "digits" else []
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, bytewise])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(file: GgufFile, tokens: list[str], kinds: list[int]) -> Backend:
    """Llama 1's and 2's kind (Kudo & Richardson 2018): pieces of the text itself, bytes for what has no piece, no cut into words."""
    scores = _list(file, "scores", float)
    if len(scores) != len(tokens):
        raise _refusal(file, "scores", f"a list of {len(scores):,}", f"there are {len(tokens):,} tokens")
    unknown = _token(file, tokens, "unknown") or next(
        (t for t, k in zip(tokens, kinds, strict=True) if k == _UNKNOWN), None
    )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = {t: s for t, k, s in zip(tokens, kinds, scores, strict=True) if k not in (_UNKNOWN, _CONTROL, _BYTE)}
    merges = sorted(_merges(pieces), key=lambda merge: -pieces[merge[0] + merge[1]])
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in kinds)
    )
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend(_SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoding, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _merges(pieces: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Every way in which two pieces make a third; the one with the better score is joined first."""
    for piece in pieces:
        for cut in range(1, len(piece)):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                yield piece[:cut], piece[cut:]


def _frame(file: GgufFile, tokens: list[str], declared: dict[str, str | None]) -> Any:
    """What stands around each text: bos and eos as the file says, or as llama.cpp has it where it says nothing."""
    known = file.metadata
    byte_level = known["tokenizer.ggml.model"] == "gpt2"
    begins = known.get(
        "tokenizer.ggml.add_bos_token", not byte_level or known.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    )
    before = declared["bos_token"] if begins else None
    after = declared["eos_token"] if known.get("tokenizer.ggml.add_eos_token", False) else None
    if before is None and after is None:
        # it adds nothing; none at all would read as a tokenizer that has no frame yet, and get one when it is exported
        return processors.ByteLevel(trim_offsets=False)

    def around(text: str) -> str:
        return " ".join(part for part in (before, text, after) if part is not None)

    used = [(token, tokens.index(token)) for token in dict.fromkeys((before, after)) if token is not None]
    return processors.TemplateProcessing(
        single=around("$A"), pair=f"{around('$A')} {around('$B:1')}", special_tokens=used
    )


def _list(file: GgufFile, key: str, kind: type) -> list[Any]:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not all(isinstance(value, kind) for value in found):
        raise _refusal(
            file, key, type(found).__name__ if found is not None else None, f"it must be a list of {kind.__name__}"
        )
    return found


def _token(file: GgufFile, tokens: list[str], name: str) -> str | None:
    """The token of a role; None where the file names none."""
    number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise _refusal(file, f"{name}_token_id", number, f"there are {len(tokens):,} tokens")
    return tokens[number]


def _refusal(file: GgufFile, key: str, value: Any, why: str) -> UserError:
    return UserError(
        f"{file.path}: tokenizer.ggml.{key} is {value}, but {why}; a tokenizer beside the model can be given instead (--tokenizer)"
    )

"""The tokenizer of an exported model: files that `AutoTokenizer` opens, framing text as the model was trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triune.data.tokenizers import Tokenizer
from triune.exchange.architecture import Architecture

_DEFINITION = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"


def write_tokenizer(tokenizer: Tokenizer, directory: Path, target: Architecture, *, context: int) -> None:
    """Write the tokenizer's files.

    Tokenizers trained here add no special token, since objectives do. Whoever opens the export has no objective, so that the frame is
    written into `tokenizer.json`: `<s> text </s>` for an encoder, `<s> text` to be continued for a decoder, `text </s>` for what an
    encoder-decoder reads. A tokenizer that has a frame of its own (an imported one) keeps it.
    """
    tokenizer.save(directory)
    file = directory / _DEFINITION
    definition = json.loads(file.read_text(encoding="utf-8"))
    if definition.get("post_processor") is None:
        definition["post_processor"] = _frame(tokenizer, target)
        file.write_text(json.dumps(definition, ensure_ascii=False, indent=2), encoding="utf-8")
    settings_file = directory / _SETTINGS
    settings: dict[str, Any] = {}
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["model_max_length"] = min(context, settings.get("model_max_length", context))
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _frame(tokenizer: Tokenizer, target: Architecture) -> dict[str, Any]:
    """A template of `tokenizers`: which special tokens stand around a text, and around a pair of them."""
    known, roles = tokenizer.vocabulary, tokenizer.roles
    opening = (roles.bos or roles.eos) if target.family != "encoder_decoder" else None
    closing = (roles.eos or roles.bos) if target.family != "decoder" else None

    def piece(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    before = [piece(opening)] if opening else []
    after = [piece(closing)] if closing else []
    numbers = {opening: known.opening, closing: known.closing}
    used = {token: number for token, number in numbers.items() if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*before, text("A"), *after],
        "pair": [*before, text("A"), *after, text("B"), *after],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in used.items()},
    }

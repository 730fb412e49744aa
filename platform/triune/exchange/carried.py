"""What a directory of Hugging Face's says beside settings, weights and tokenizer: how text is written and how images are prepared.

Import keeps it beside our weights, export writes it back. Ours follows the tokens that a decoder starts with and ends with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from triune.exchange.architecture import TokenIds
from triune.exchange.files import CONFIG, read_json
from triune.exchange.model_directory import MODEL_TYPE

_GENERATION = "generation_config.json"
_IMAGES = "preprocessor_config.json"
#: what `transformers` takes from a config.json where there is no generation_config.json beside it
_OF_GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "pad_token_id",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What is kept of a directory.

    Args:
        generation: their settings of generation; empty where there are none.
        images: how their image processor prepares images; empty where it says nothing.
    """

    generation: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Carried:
        """What a directory of theirs, or one of ours that was imported, says; UserError for a file that is no JSON object."""
        generation = _object(directory / _GENERATION)
        if not generation:
            settings = _object(directory / CONFIG)
            if settings.get("model_type") not in (None, MODEL_TYPE):
                generation = {key: settings[key] for key in _OF_GENERATION if settings.get(key) is not None}
        return cls(generation=generation, images=_object(directory / _IMAGES))

    def write(self, directory: Path, *, generates: bool) -> None:
        """Write the files; settings of generation only for a model that generates."""
        if generates and self.generation:
            _write(directory / _GENERATION, self.generation)
        if self.images:
            _write(directory / _IMAGES, self.images)

    def ids(self, ids: TokenIds) -> TokenIds:
        """Ids of special tokens, those that generation names in place of `ids`."""
        named = {role.name: _one(self.generation.get(f"{role.name}_token_id")) for role in fields(ids)}
        return replace(ids, **{name: number for name, number in named.items() if number is not None})

    def opening(self, default: int) -> list[int]:
        """What a decoder beside an encoder starts with: the start token, or `default`, and the first token if one is forced."""
        start, first = (_one(self.generation.get(f"{key}_token_id")) for key in ("decoder_start", "forced_bos"))
        return [_first(start, default), *([] if first is None else [first])]

    def closed(self, written: list[int], room: int) -> list[int]:
        """What a model wrote, with the last token that is forced where it took all the room; each token is chosen by those before it."""
        last = _one(self.generation.get("forced_eos_token_id"))
        return written if last is None or len(written) < room else [*written[:-1], last]


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _first(*candidates: Any) -> Any:
    return next((candidate for candidate in candidates if candidate is not None), None)


def _object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

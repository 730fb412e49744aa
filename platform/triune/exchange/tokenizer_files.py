"""The tokenizer of an exported model: files that `AutoTokenizer` opens, framing text as the model was trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triune.data.tokenizers import Tokenizer
from triune.errors import UserError
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.objectives.text import Frame

_DEFINITION = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"


def write_tokenizer(tokenizer: Tokenizer, directory: Path, config: ModelConfig) -> None:
    """Write the tokenizer's files for a model of `config`.

    Tokenizers trained here add no special token, since objectives do. Whoever opens the export has no objective, so that the frame
    of the objectives (`Tokenizer.frame`) is written into `tokenizer.json`. A tokenizer that has a frame of its own (an imported one)
    keeps it. A head of classes is asked of padded batches, for which GPT-2's tokenizer and its kin name no token: the export does.
    """
    tokenizer.save(directory)
    file = directory / _DEFINITION
    definition = json.loads(file.read_text(encoding="utf-8"))
    if definition.get("post_processor") is None and (tokenizer.roles.bos or tokenizer.roles.eos):
        definition["post_processor"] = _template(tokenizer, tokenizer.frame(config.family))
        file.write_text(json.dumps(definition, ensure_ascii=False, indent=2), encoding="utf-8")
    settings_file = directory / _SETTINGS
    settings: dict[str, Any] = {}
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
    context = int(config.context)
    settings["model_max_length"] = min(context, settings.get("model_max_length", context))
    # what the class of a tokenizer trained here leaves out, whatever the template says
    if _segments(tokenizer, config):
        kinds = ["token_type_ids"] if config.token_types > 1 else []
        settings["model_input_names"] = ["input_ids", *kinds, "attention_mask"]
    padded = isinstance(config.head, ClassHeadConfig) and tokenizer.roles.pad is not None
    if padded and settings.get("pad_token") is None:
        settings["pad_token"] = tokenizer.roles.pad
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _segments(tokenizer: Tokenizer, config: ModelConfig) -> bool:
    """Whether the second text of a pair is a segment of its own."""
    try:
        return tokenizer.frame(config.family).segments
    except (UserError, ValueError):  # a frame that no task reads, or no token to make one of
        return False


def _template(tokenizer: Tokenizer, frame: Frame) -> dict[str, Any]:
    """A frame as `tokenizers` has one: which special tokens stand around a text, and around a pair of them."""
    spelled = {number: token for token, number in tokenizer.tokens.items()}

    def around(numbers: tuple[int, ...], segment: int = 0) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": spelled[number], "type_id": segment}} for number in numbers]

    def text(name: str, segment: int = 0) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    second = int(frame.segments)
    used = {*frame.before, *frame.after, *frame.pair_before, *frame.between, *frame.pair_after}
    return {
        "type": "TemplateProcessing",
        "single": [*around(frame.before), text("A"), *around(frame.after)],
        "pair": [
            *around(frame.pair_before),
            text("A"),
            *around(frame.between),
            text("B", second),
            *around(frame.pair_after, second),
        ],
        "special_tokens": {
            spelled[number]: {"id": spelled[number], "ids": [number], "tokens": [spelled[number]]}
            for number in sorted(used)
        },
    }

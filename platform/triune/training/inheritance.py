"""What fine-tuning takes from the weights it starts from, beside the weights: the model's settings and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triune.training.weights import read_weights, tokenizer_place
from triune.tree import to_tree

#: keys of `init` that name weights for a part of a model, or its layers: then the file says what the model is
_PARTS = ("encoder", "decoder", "layers", "decoder_layers")


def beneath(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings to lie under an experiment's own: the `model` and the tokenizer of `init.from`; none without it.

    A file that names a tokenizer or a part of the model keeps it, since its keys come on top.

    Raises UserError where the weights cannot be read.
    """
    init = data.get("init")
    if not isinstance(init, Mapping) or any(init.get(key) is not None for key in _PARTS):
        return {}
    source = init.get("from")
    if not isinstance(source, str) or _is_whole(data):
        return {}
    saved = read_weights(source)
    settings: dict[str, Any] = {"model": to_tree(saved.model)}
    given = data.get("data")
    if isinstance(given, Mapping) and given.get("tokenizer"):
        settings["model"]["vocabulary"] = None  # that tokenizer says how many entries there are
    elif saved.tokenizer:
        settings["data"] = {"tokenizer": {"kind": "pretrained", "path": str(tokenizer_place(saved.path))}}
    return settings


def _is_whole(data: Mapping[str, Any]) -> bool:
    """Whether the settings say everything already, as those that a run keeps: then its source may be gone."""
    model, given = data.get("model"), data.get("data")
    return (
        isinstance(model, Mapping)
        and {"family", "vocabulary", "context", "width", "layers"} <= set(model)
        and isinstance(given, Mapping)
        and bool(given.get("tokenizer"))
    )

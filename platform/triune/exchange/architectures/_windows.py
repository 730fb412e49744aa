"""Sliding windows of decoders as `config.json` spells them. Theirs of w keys counts the query's own, so that it is `window(w - 1, 0)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from triune.attention.patterns import Pattern, causal, window
from triune.exchange.architecture import Settings
from triune.models.checks import layer_patterns
from triune.models.config import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
_DEFAULT = 4096  # keys of a window, in the configs of Mistral and Qwen that leave it out


def read_window(settings: Settings) -> int | None:
    """Keys that a query sees, its own among them, or None for all: a null is no window, an absent key is theirs of 4,096."""
    if "sliding_window" in settings.values and not settings.has("sliding_window"):
        return None
    keys = settings.whole("sliding_window", _DEFAULT)
    if keys < 2:
        raise settings.refusal(
            "sliding_window", keys, "it counts the query's own key, and must leave another: at least 2"
        )
    return keys


def read_layer_types(settings: Settings, layers: int) -> str | list[str] | None:
    """`attention.pattern` of a config with `use_sliding_window`: its `layer_types`, or all layers from `max_window_layers` on."""
    keys = read_window(settings) if settings.flag("use_sliding_window", False) else None
    if settings.has("layer_types"):
        kinds = settings.values["layer_types"]
    else:
        first = layers if keys is None else settings.whole("max_window_layers", 28)
        kinds = [SLIDING if layer >= first else FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not {*kinds} <= {FULL, SLIDING}:
        raise settings.refusal("layer_types", kinds, f"it must list {FULL} or {SLIDING} for each of {layers} layers")
    if keys is None and SLIDING in kinds:
        raise settings.refusal("layer_types", kinds, f"{SLIDING} needs use_sliding_window and a sliding_window")
    return pattern_of([keys if kind == SLIDING else None for kind in kinds])


def pattern_of(keys: Sequence[int | None]) -> str | list[str] | None:
    """`attention.pattern` of a decoder whose layers see so many keys, None being all: one where they are alike, or else a list."""
    patterns = [str(causal() if seen is None else window(seen - 1, 0)) for seen in keys]
    if any(pattern != patterns[0] for pattern in patterns):
        return patterns
    return None if keys[0] is None else patterns[0]


def windows(config: ModelConfig) -> list[int | None]:
    """Keys that a query of each layer sees, its own among them, None where that is unlimited; of patterns that are no window a bound."""
    return [_keys(pattern) for pattern in layer_patterns(config, config.layers, decoder=True)]


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """`use_sliding_window` and what belongs to it; of several widths the first, as theirs has one."""
    seen = windows(config)
    kinds = [FULL if keys is None else SLIDING for keys in seen]
    return {
        "use_sliding_window": SLIDING in kinds,
        "sliding_window": next((keys for keys in seen if keys is not None), None),
        "max_window_layers": kinds.index(SLIDING)
        if SLIDING in kinds
        else config.layers,  # all that older releases read
        "layer_types": kinds,
    }


def _keys(pattern: object) -> int | None:
    low = pattern.reach().low if isinstance(pattern, Pattern) else -math.inf
    return 1 - int(low) if math.isfinite(low) else None

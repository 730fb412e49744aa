"""Why a model has no twin of an architecture: which setting stands in the way, and what value would export."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triune.attention.patterns import Pattern, causal
from triune.attention.routed.patterns import Routed
from triune.errors import UserError
from triune.exchange.architecture import Architecture, Settings, TokenIds, architecture, known
from triune.models.checks import layer_patterns, rotary_bases
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig, RotaryPosition
from triune.tree import to_tree

#: Settings that count in training, or for speed and memory, but not in what a trained model computes.
_FREE = (
    "dropout",
    "stochastic_depth",
    "activation_checkpointing",
    "loss_chunk",
    "initialization",
    "feed_forward.dropout",
    "feed_forward.chunk",
    "attention.dropout",
    "attention.backend",
    "head.dropout",
)


@dataclass(frozen=True)
class Obstacle:
    """A setting that stands in the way of an export.

    Args:
        setting: dotted path in `model`; empty where the architecture refused the settings as a whole.
        value: what the model has.
        needed: what would export, or why there is nothing.
    """

    setting: str
    value: Any
    needed: Any

    def __str__(self) -> str:
        if not self.setting:
            return str(self.needed)
        return f"model.{self.setting} is {_spelled(self.value)}; {_spelled(self.needed)} would export"


def obstacles(config: ModelConfig, target: Architecture, ids: TokenIds | None = None) -> list[Obstacle]:
    """What of `config` the architecture can't say, found by writing its config and reading that back; empty where all is said.

    Args:
        config: the model.
        target: the architecture.
        ids: special tokens of its tokenizer, which count where positions are counted from one of them (RoBERTa).
    """
    if config.family != target.family:
        return [Obstacle("family", config.family, target.family)]
    if config.head.kind not in target.heads:
        return [Obstacle("head.kind", config.head.kind, " or ".join(target.heads))]
    try:
        written = target.config_json(config, ids or TokenIds())
        back = target.read_config(
            Settings(written, place=f"{target.model_type}'s config.json", names=_names(config, target))
        )
    except UserError as error:
        return [Obstacle("", None, str(error))]
    ours, theirs = meaning(config), meaning(back)
    different = [path for path in dict.fromkeys([*ours, *theirs]) if ours.get(path) != theirs.get(path)]
    return [
        Obstacle(path, ours.get(path), theirs.get(path))
        for path in different
        # of another kind's own settings the kind says enough
        if (path in ours and path in theirs) or f"{path.rpartition('.')[0]}.kind" not in different
    ]


def choose(config: ModelConfig, wanted: str | None = None, ids: TokenIds | None = None) -> Architecture:
    """The architecture to export to: the one wanted, or the first in alphabetical order that has a word for every setting.

    Twins of another one are taken only where they are wanted; `ids` are those of `obstacles`.

    Raises UserError that says what stands in the way, and the nearest exportable settings.
    """
    candidates = [architecture(wanted)] if wanted else [a for a in map(architecture, known()) if not a.twin]
    found = [(obstacles(config, target, ids), target) for target in candidates]
    for against, target in found:
        if not against:
            return target
    against, target = min(
        found, key=lambda pair: (any(o.setting in ("family", "head.kind", "") for o in pair[0]), len(pair[0]))
    )
    lines = "\n  ".join(map(str, against))
    which = f"is no {target.model_type}" if wanted else "has no twin on Hugging Face that triune knows"
    nearest = "" if wanted else f"; the nearest is {target.model_type}"
    raise UserError(f"this model {which}{nearest}. What stands in the way:\n  {lines}")


def meaning(config: ModelConfig) -> dict[str, Any]:
    """Dotted path -> value of what counts in a trained model's function, one spelling for each meaning."""
    resolved = dataclasses.replace(
        config,
        head_width=config.resolved_head_width,
        key_value_heads=config.resolved_key_value_heads,
        qkv_bias=config.resolved_qkv_bias,
        decoder_layers=config.resolved_decoder_layers if config.family == "encoder_decoder" else None,
        norm=dataclasses.replace(
            config.norm, final=config.final_norm, bias=config.norm.bias and config.norm.kind == "layer"
        ),
        feed_forward=dataclasses.replace(config.feed_forward, width=config.feed_forward.inner_width(config.width)),
        position=_position(config),
        head=_head(config.head),
        embedding_width=config.resolved_embedding_width,
        tie_embeddings=config.tie_embeddings or isinstance(config.head, ClassHeadConfig),  # nothing to tie
    )
    found = {path: value for path, value in _leaves(to_tree(resolved)) if not f"{path}.".startswith(_PREFIXES)}
    scale = config.attention.scale
    usual = scale is not None and math.isclose(scale, config.resolved_head_width**-0.5)
    found["attention.scale"] = None if usual else scale
    decoder = config.family == "decoder"
    found["attention.pattern"] = [
        _canonical(p, decoder) for p in layer_patterns(config, config.layers, decoder=decoder)
    ]
    if isinstance(config.position, RotaryPosition):
        bases = rotary_bases(config)
        found["position.base"] = [bases[layer % len(bases)] for layer in range(config.layers)]
    return found


def _head(head: HeadConfig | ClassHeadConfig) -> HeadConfig | ClassHeadConfig:
    """What plays no part without a transform is left at its default."""
    if isinstance(head, ClassHeadConfig):
        head = head if head.problem == "match" else dataclasses.replace(head, scale=ClassHeadConfig.scale)
        head = head if head.labels else dataclasses.replace(head, bias=True)
        return head if head.transform else dataclasses.replace(head, activation="tanh", transform_bias=True)
    scale = 1.0 if head.scale is None else head.scale
    if head.transform:
        return dataclasses.replace(head, scale=scale)
    return dataclasses.replace(head, scale=scale, transform_bias=True, activation="gelu")


_PREFIXES = tuple(f"{path}." for path in _FREE)


def _position(config: ModelConfig) -> Any:
    """Rotary scaling with null resolved; what plays no part without scaling is left at its default."""
    position = config.position
    if not isinstance(position, RotaryPosition):
        return position
    if position.scaling in ("none", "linear", "ntk"):  # these know no original context
        return dataclasses.replace(position, original_context=None)
    return dataclasses.replace(
        position, original_context=position.original_context or round(config.context / position.factor)
    )


def _canonical(pattern: Pattern | Routed, decoder: bool) -> str:
    """A decoder's window with and without `& causal()` is one pattern."""
    if decoder and isinstance(pattern, Pattern) and pattern.is_causal:
        parts = getattr(pattern, "parts", (pattern,))
        rest = [part for part in parts if part != causal()]
        if len(rest) == 1:
            low, _ = rest[0].reach()
            if str(rest[0]).startswith("window("):
                return f"window({-int(low)}, 0)"
    return str(pattern)


def _names(config: ModelConfig, target: Architecture) -> frozenset[str]:
    """The names that a file of the model would hold, for configs that leave something to them."""
    return frozenset(part.names[0] for entry in target.mapping(config).entries for part in entry.theirs)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, tree


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        distinct = list(dict.fromkeys(value))
        return _spelled(distinct[0]) if len(distinct) == 1 else f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)

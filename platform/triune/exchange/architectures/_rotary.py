"""Rotary positions as `config.json` spells them, in the form of today (`rope_parameters`) and that of before (`rope_theta`, `rope_scaling`)."""

from __future__ import annotations

from typing import Any

from triune.exchange.architecture import Settings
from triune.models.config import ModelConfig, RotaryPosition

#: Settings of YaRN and Llama 3's scaling that ours computes with, whatever else the config names.
_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read_rotary(settings: Settings, *, base: float = 10000.0, fraction: float | None = None) -> RotaryPosition:
    """Positions of a config.

    Args:
        settings: the whole config.
        base: the architecture's `rope_theta` where the config has none.
        fraction: the architecture's `partial_rotary_factor` where the config has none; None for one that turns whole heads only.

    Raises UserError for a scaling that ours does not compute (dynamic, longrope), or computes with other constants.
    """
    scaling = settings.section("rope_scaling" if settings.values.get("rope_scaling") else "rope_parameters")
    key = "rope_type" if scaling.has("rope_type") else "type"
    choices = {"default": "none", "linear": "linear", "yarn": "yarn", "llama3": "llama3"}
    kind = scaling.choice(key, choices, default="default")
    context = settings.whole("max_position_embeddings", 2048)
    turned = scaling.number("partial_rotary_factor", settings.number("partial_rotary_factor", fraction or 1.0))
    if fraction is None and turned != 1:
        raise settings.refusal("partial_rotary_factor", turned, "this architecture turns whole heads: 1 only")
    original = None
    if kind in ("yarn", "llama3"):
        for name, value in (_YARN if kind == "yarn" else _LLAMA3).items():
            if scaling.has(name):
                scaling.only(name, value)
        name = "original_max_position_embeddings"  # some configs keep it outside, which theirs prefers
        original = settings.whole(name, scaling.whole(name, context))
    return RotaryPosition(
        base=float(scaling.number("rope_theta", settings.number("rope_theta", base))),
        fraction=float(turned),
        scaling=kind,
        factor=float(scaling.number("factor")) if kind != "none" else 1.0,
        original_context=original,
    )


def write_rotary(config: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` of a model; of several bases the first, and no word for `ntk` or a fraction (few architectures read one)."""
    position = config.position
    if not isinstance(position, RotaryPosition):
        return {}
    base = position.base[0] if isinstance(position.base, list) else position.base
    kind = {"none": "default", "ntk": "default"}.get(position.scaling, position.scaling)
    values: dict[str, Any] = {"rope_type": kind, "rope_theta": base}
    if kind != "default":
        values["factor"] = position.factor
    if kind in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = position.original_context or round(
            config.context / position.factor
        )
    return {"rope_parameters": values | (_LLAMA3 if kind == "llama3" else {})}

"""A model from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from triune.errors import UserError
from triune.models.checks import check
from triune.models.config import ModelConfig, TokenInput
from triune.models.decoder import Decoder
from triune.models.encoder import Encoder
from triune.models.encoder_decoder import EncoderDecoder
from triune.models.initialization import initialize
from triune.tree import construct, load_yaml, merge, to_tree

#: a model of any family
Transformer = Encoder | Decoder | EncoderDecoder

_FAMILIES: dict[str, type[Encoder] | type[Decoder] | type[EncoderDecoder]] = {
    "encoder": Encoder,
    "decoder": Decoder,
    "encoder_decoder": EncoderDecoder,
}


def build(config: ModelConfig | Mapping[str, Any] | str | PathLike[str], **overrides: Any) -> Transformer:
    """A freshly initialized model, drawn from torch's default generator.

    Args:
        config: settings, a mapping of them, or a YAML file (of a model alone, or an experiment with a `model:`).
        overrides: settings on top; a name may be dotted (`**{"attention.pattern": "causal()"}`), a value a mapping.

    Raises UserError for settings that are unknown, wrong or do not fit together.
    """
    resolved = resolve(config, **overrides)
    check(resolved)
    if resolved.vocabulary is None and isinstance(resolved.input, TokenInput):
        raise UserError(
            "model.vocabulary is null, but a model needs its size: give the tokenizer's, or use `triune pretrain`."
        )
    model = _FAMILIES[resolved.family](resolved)
    initialize(model, resolved)
    return model


def resolve(config: ModelConfig | Mapping[str, Any] | str | PathLike[str], **overrides: Any) -> ModelConfig:
    """The settings that `build` reads from the same arguments, not yet checked against one another."""
    if isinstance(config, ModelConfig):
        tree = to_tree(config)
    elif isinstance(config, Mapping):
        tree = config
    else:
        tree = load_yaml(config)
        tree = tree.get("model", tree)
    for name, value in overrides.items():
        for step in reversed(name.split(".")):
            value = {step: to_tree(value)}
        tree = merge(tree, value)
    return construct(ModelConfig, tree, "model")

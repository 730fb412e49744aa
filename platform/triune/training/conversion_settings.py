"""What changed between the settings of trained weights and of a model that starts from them: refused, or said. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from triune.models.config import (
    AlibiPosition,
    LearnedPosition,
    ModelConfig,
    NoPosition,
    RotaryPosition,
    SinusoidalPosition,
    T5Position,
)
from triune.training.towers import Source
from triune.tree import report, to_tree


class Setting(NamedTuple):
    """A line about something that has no tensor of its own."""

    name: str
    change: str
    meaning: str


#: Settings that say what the tensors mean: another value would fit the shapes and break the model without a word.
_KEPT = {
    "width": "every tensor is of that width",
    "heads": "each head is a fixed slice of the projections",
    "key_value_heads": "each head is a fixed slice of the projections",
    "head_width": "each head is a fixed slice of the projections",
    "input.kind": "the weights read nothing else",
    "tie_embeddings": "one table is no two",
    "position.kind": "the weights know positions by it, and by no other",
    "position.offset": "it says which row of the table is position 0",
    "position.fraction": "the weights expect just these numbers of a head to be turned",
}
#: Settings that change neither the function nor its training, and those with a line of their own.
_UNTOLD = (
    "attention.backend",
    "activation_checkpointing",
    "loss_chunk",
    "feed_forward.chunk",
    "initialization",
    "attention.pattern",
    "context",
    "position",
    "family",
    "layers",
    "decoder_layers",
    "vocabulary",
)
_OTHERWISE = "the same tensors, computed with otherwise"
_MEANS = {
    **dict.fromkeys(
        ("dropout", "stochastic_depth", "attention.dropout", "feed_forward.dropout"), "counts in training only"
    ),
    "attention.global_projections": "global tokens ask with projections of their own, which start from the layer's",
    "reversible": "the same tensors, but another function of them: the loss starts anew and has to be trained down",
}


def check_settings(source: Source, model: ModelConfig, *, whole: bool) -> None:
    """Raise UserError where trained weights would mean something else in `model`.

    Every mistake has its option, both values, the constraint and what to do.

    Args:
        source: the weights.
        model: settings of the model that starts from them.
        whole: they are of its family and stand for all of it.
    """
    old, new = _leaves(source.model), _leaves(model)
    problems = [
        f"model.{path}: {new[path]} here, {old[path]} in {source.place}, and {why}; set model.{path}={old[path]}"
        for path, why in _KEPT.items()
        if path in old and path in new and old[path] != new[path] and (whole or path != "tie_embeddings")
    ]
    report([*problems, *_scaling(source, model)])


def changed_settings(source: Source, model: ModelConfig, *, whole: bool) -> Iterator[Setting]:
    """Context and positions always, then every other setting that differs and counts."""
    before = source.model
    said = f" ({source.option})" if source.option != "init.from" else ""
    meaning = "rows of up to so many tokens" if before.context != model.context else "as it was"
    yield Setting(f"model.context{said}", _change(int(before.context), int(model.context)), meaning)
    yield Setting(f"model.position{said}", *_position(before, model))
    old, new = _leaves(before), _leaves(model)
    untold = (
        _UNTOLD if whole else (*_UNTOLD, "head", "tie_embeddings")
    )  # the tensors of the head have lines of their own
    for path in dict.fromkeys([*old, *new]):
        if not f"{path}.".startswith(tuple(f"{prefix}." for prefix in untold)) and old.get(path) != new.get(path):
            change = _change(old.get(path), new.get(path))
            yield Setting(f"model.{path}{said}", change, _MEANS.get(path, _OTHERWISE))


def layers_text(layers: Sequence[int]) -> str:
    """`layers 0-3, 5`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    shown = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {shown}"


def _leaves(config: ModelConfig) -> dict[str, Any]:
    """Dotted path -> value, with what null stands for in place of null, so that two spellings of one model are equal."""
    resolved = dataclasses.replace(
        config,
        head_width=config.resolved_head_width,
        key_value_heads=config.resolved_key_value_heads,
        qkv_bias=config.resolved_qkv_bias,
        decoder_layers=config.resolved_decoder_layers,
        norm=dataclasses.replace(config.norm, final=config.final_norm),
        feed_forward=dataclasses.replace(config.feed_forward, width=config.feed_forward.inner_width(config.width)),
    )
    return dict(_walk(to_tree(resolved)))


def _walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, f"{path}.{key}" if path else key)
    else:
        yield path, tree


def _change(before: Any, after: Any) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def _position(source: ModelConfig, model: ModelConfig) -> tuple[str, str]:
    """(kind and how it changed, what that means)."""
    match model.position:
        case LearnedPosition():
            return "learned", "a table: see its tensors"
        case RotaryPosition():
            return _rotary(source, model)
        case AlibiPosition():
            return "alibi", "as it was: slopes over the distance, at any length"
        case T5Position() as new:
            old = source.position
            assert isinstance(old, T5Position)
            if old.max_distance == new.max_distance:
                return "t5", f"as it was: distances from {new.max_distance} on share the last bucket, at any length"
            change = f"t5, max_distance {old.max_distance} -> {new.max_distance}"
            return change, "the same table, but distances fall into other buckets than in training"
        case SinusoidalPosition() as new:
            old = source.position
            assert isinstance(old, SinusoidalPosition)
            if old.base != new.base:
                return f"sinusoidal, base {old.base:g} -> {new.base:g}", "other waves than the weights were trained on"
            return "sinusoidal", f"as it was: computed for any position{_untrained(source, model)}"
        case NoPosition():
            return "none", "as it was: there are none"


def _untrained(source: ModelConfig, model: ModelConfig) -> str:
    if model.context <= source.context:
        return ""
    return f"; positions {source.context} to {model.context - 1} were never trained"


_SCALING = {
    "none": "the weights were trained with that scaling, and lose it",
    "linear": "positions divided by the factor (Chen et al. 2023)",
    "ntk": "the base grows until the longest wave is longer by the factor; the shortest stays",
    "yarn": "long waves stretched by the factor, short ones left, scores sharpened (Peng et al. 2023)",
    "llama3": "waves beyond the trained context stretched by the factor, short ones left (Llama 3.1)",
}


def _rotary(source: ModelConfig, model: ModelConfig) -> tuple[str, str]:
    old, new = source.position, model.position
    assert isinstance(old, RotaryPosition)
    assert isinstance(new, RotaryPosition)
    scaling = _change(_scaled(source), _scaled(model))
    base = f", base {old.base} -> {new.base}" if old.base != new.base else ""
    words = ["another base changes every angle"] if base else []
    if scaling != _scaled(source):
        words.append(_SCALING[new.scaling])
    trained, reach = _trained(source), _trained(model) * new.factor
    if new.scaling == "none":
        words += _advice(source, model)
    else:
        if _trained(model) != trained:
            words.append(f"original_context is {_trained(model)}, but the source was trained at {trained}")
        if reach < model.context:
            words.append(f"positions from {reach:g} on lie beyond original_context x factor")
    return f"rotary, scaling {scaling}{base}", "; ".join(words or ["as it was"])


def _advice(source: ModelConfig, model: ModelConfig) -> Iterator[str]:
    """What a longer context without scaling means, and the options."""
    if model.context > source.context:
        ratio = model.context / _trained(source)
        yield f"positions {source.context} to {model.context - 1} were never trained (plain extrapolation)"
        yield f"model.position.scaling=linear or yarn with model.position.factor={ratio:g} would rescale them (ntk wants a larger factor)"


def _scaled(config: ModelConfig) -> str:
    """The scaling as it is computed: `yarn x 8 of 512`."""
    position = config.position
    assert isinstance(position, RotaryPosition)
    return "none" if position.scaling == "none" else f"{position.scaling} x {position.factor:g} of {_trained(config)}"


def _trained(config: ModelConfig) -> int:
    """The context that a rotary model's angles were made for, before any scaling."""
    position = config.position
    assert isinstance(position, RotaryPosition)
    if position.scaling == "none":
        return int(config.context)
    return position.original_context or round(config.context / position.factor)


def _scaling(source: Source, model: ModelConfig) -> Iterator[str]:
    """A scaling whose original context nobody named and that is not the source's.

    One that is named is taken at its word, and the table says where it differs: rows may have been shorter than the context.
    """
    if not isinstance(model.position, RotaryPosition) or not isinstance(source.model.position, RotaryPosition):
        return
    position, trained = model.position, _trained(source.model)
    if position.scaling != "none" and position.original_context is None and _trained(model) != trained:
        yield (
            f"model.position.factor: {position.factor:g} with model.context={model.context} speaks of weights trained at "
            f"{_trained(model)} positions, but those of {source.place} were trained at {trained}; set "
            f"model.position.factor={model.context / trained:g}, or model.position.original_context={trained} to keep this factor"
        )

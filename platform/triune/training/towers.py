"""Which stack of trained weights each stack of a model starts from, layer by layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from triune.errors import UserError
from triune.models.config import ModelConfig, T5Position
from triune.training.config import InitConfig
from triune.tree import report

LayerRule = Literal["spread", "first", "last"] | list[int | None] | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Trained weights that a model, or a part of it, starts from.

    Args:
        option: what names them: init.from, init.encoder or init.decoder.
        place: where they are, for the messages.
        model: their settings.
    """

    option: str
    place: Path
    model: ModelConfig


class Tower(NamedTuple):
    """A stack of a model with what it reads through: names of the modules, number of layers."""

    role: Literal["encoder", "decoder"]
    stack: str
    input: str
    layers: int
    cross: bool = False


class Join(NamedTuple):
    """A stack of the model, the one that it starts from, and that one's layer for each of its own; None is a new layer."""

    option: str
    tower: Tower
    origin: Tower
    layers: tuple[int | None, ...]

    @property
    def told(self) -> str:
        """The layers of the source: `0-5 of the 6`, `0, 2, 4 of the 6`, `0, 1, new of the 2`."""
        words = ["new" if layer is None else str(layer) for layer in self.layers]
        if self.layers == tuple(range(len(words))):
            words = [f"0-{len(words) - 1}"] if len(words) > 1 else words
        return ", ".join(words) + f" of the {self.origin.layers}"


def towers(config: ModelConfig) -> list[Tower]:
    """The stacks of a model."""
    match config.family:
        case "encoder_decoder":
            decoder = Tower("decoder", "decoder", "decoder_input", config.resolved_decoder_layers, True)
            return [Tower("encoder", "encoder", "encoder_input", config.layers), decoder]
        case role:
            return [Tower(role, "stack", "input", config.layers)]


def is_whole(sources: Sequence[Source], model: ModelConfig) -> bool:
    """Whether one source of the model's own family stands for all of it, so that nothing may be left over."""
    return len(sources) == 1 and sources[0].option == "init.from" and sources[0].model.family == model.family


def joins(sources: Sequence[Source], model: ModelConfig, init: InitConfig) -> list[Join]:
    """What each stack of the model starts from; stacks that start afresh are not listed.

    Raises UserError for families that do not fit together and layers that are not there.
    """
    report(_families(sources, model))
    found, problems = [], []
    for source in sources:
        origins = towers(source.model)
        for tower in towers(model):
            if source.option not in ("init.from", f"init.{tower.role}"):
                continue
            origin = next((other for other in origins if other.role == tower.role), origins[0])
            try:
                layers = _layers(tower, origin, source, model, init)
            except UserError as error:
                problems.append(str(error))
                continue
            found.append(Join(source.option, tower, origin, layers))
            problems += _buckets(source, tower, origin)
    report(problems)
    return found


def _families(sources: Sequence[Source], model: ModelConfig) -> Iterator[str]:
    for source in sources:
        if source.option != "init.from" and model.family != "encoder_decoder":
            yield (
                f"{source.option}: starts one half of an encoder_decoder, but model.family is {model.family}; "
                f"give init.from={source.place}, or model.family=encoder_decoder"
            )
        elif source.option == "init.from" and model.family == "encoder_decoder" != source.model.family:
            yield (
                f"init.from: {source.place} is of family {source.model.family} and has one stack, but model.family is "
                f"encoder_decoder, which has two; name one for each: init.encoder={source.place} init.decoder=…"
            )


def _buckets(source: Source, tower: Tower, origin: Tower) -> Iterator[str]:
    if isinstance(source.model.position, T5Position) and tower.role != origin.role:
        yield (
            f"{source.option}: the t5 distances that {source.place} learned in a {origin.role} are other ones than "
            f"{'an encoder' if tower.role == 'encoder' else 'a decoder'}'s (a decoder has none to tokens ahead), so that no row "
            f"of its table stands for one here; give weights of {'an encoder' if tower.role == 'encoder' else 'a decoder'}"
        )


def _layers(
    tower: Tower, origin: Tower, source: Source, model: ModelConfig, init: InitConfig
) -> tuple[int | None, ...]:
    """The source's layer for each of the tower's. Raises UserError where the rule does not give one."""
    second = model.family == "encoder_decoder" and tower.role == "decoder"
    own = second and init.decoder_layers is not None
    rule, option = (init.decoder_layers, "init.decoder_layers") if own else (init.layers, "init.layers")
    depth = "model.decoder_layers" if second else "model.layers"
    before, after = origin.layers, tower.layers
    if rule is None:
        if before != after:
            raise UserError(
                f"{depth}: {after} here, {before} in {source.place}; set {option}=spread, first, last or a list of {after} of its "
                f"layers, or {depth}={before}"
            )
        return tuple(range(after))
    if isinstance(rule, str):
        return tuple(spread(before, after) if rule == "spread" else _at_an_end(rule, before, after))
    if len(rule) != after:
        raise UserError(
            f"{option}: names {len(rule)} layers, but {depth} is {after}; name one for each, or null for a new one"
        )
    outside = [layer for layer in rule if layer is not None and not 0 <= layer < before]
    if outside:
        raise UserError(
            f"{option}: {', '.join(map(str, outside))} is no layer of {source.place}, which has {before}; use 0 to {before - 1}"
        )
    return tuple(rule)


def spread(before: int, after: int) -> list[int]:
    """`after` of `before` layers from the first to the last, as evenly as whole numbers go, halves rounded up.

    Of 12 layers 6 are 0, 2, 4, 7, 9, 11: those that DistilBERT's release took (Sanh et al. 2019, section 3 takes one of two).
    Where `after` is the greater, layers repeat in place: 0, 0, 1, 1. One layer is the first.
    """
    if after == 1:
        return [0]
    last = after - 1
    return [(2 * index * (before - 1) + last) // (2 * last) for index in range(after)]


def _at_an_end(rule: str, before: int, after: int) -> list[int | None]:
    kept, new = min(before, after), [None] * max(0, after - before)
    return [*range(kept), *new] if rule == "first" else [*new, *range(before - kept, before)]


def source_of(sources: Collection[str], init: InitConfig) -> tuple[str, str | None]:
    """(option whose token table the model takes, option whose head it takes or None), of the options that are given."""
    if "init.from" in sources:
        return "init.from", "init.from"
    table = f"init.{init.embeddings}"
    head = "init.decoder" if "init.decoder" in sources else None
    return (table if table in sources else next(iter(sources))), head

"""What happens to each tensor between trained weights and a model that starts from them: a list that is applied and printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triune.errors import UserError
from triune.models.factory import Transformer
from triune.training.conversion_rows import Rows
from triune.training.conversion_settings import Setting
from triune.training.outline import Shape
from triune.training.towers import Source

_KINDS = ("copied", "reshaped", "grown", "fresh")


class Origin(NamedTuple):
    """A tensor of a source: the option that names the source, and the tensor's name there."""

    option: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What happens to one tensor of the model.

    Args:
        name: its name in the model.
        before: shape of the source's tensor that it is made of; None where there is none.
        after: its shape in the model.
        rows: how its rows are chosen; None takes the source's tensor as it is.
        origin: what it is made of.
        note: where from, if that is not plain; of a fresh tensor, why it is.
    """

    name: str
    before: Shape | None
    after: Shape
    rows: Rows | None = None
    origin: Origin | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        """copied, reshaped (other rows of the source's, or in another order), grown (more rows) or fresh."""
        if self.before is None:
            return "fresh"
        if self.rows is None:
            return "copied"
        return "grown" if self.after[0] > self.before[0] else "reshaped"

    @property
    def words(self) -> str:
        """What happens, for a person."""
        if self.before is None:
            return f"fresh: {self.note}"
        words = "copied" if self.rows is None else str(self.rows)
        return f"{words}{'; ' if ';' in words else ' '}{self.note}" if self.note else words

    def fill(self, parameter: Tensor, given: Tensor) -> None:
        """Write the source's tensor into the model's."""
        parameter.copy_(given if self.rows is None else self.rows.take(given))


class Left(NamedTuple):
    """A tensor of a source that the model has no place for."""

    origin: Origin
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What happens to every tensor and setting between trained weights and a model that starts from them.

    Args:
        sources: where the weights were found.
        fates: one a tensor, in the order of the model.
        left: what is not taken.
        settings: what has no tensors: stacks, patterns, positions, and whatever differs.
    """

    sources: Sequence[Source]
    fates: Sequence[Fate]
    left: Sequence[Left]
    settings: Sequence[Setting]

    @torch.no_grad()
    def apply(self, model: Transformer, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill `model`, built from the settings this was planned for; fresh tensors stay as drawn.

        Args:
            model: what to fill.
            tensors: option -> tensors of that source by name.

        Raises UserError where a tensor is not what the source's own settings say, before anything is written.
        """
        for source in self.sources:
            self._check(source, tensors[source.option])
        parameters = dict(model.named_parameters())
        for fate in self.fates:
            if fate.origin is not None:
                fate.fill(parameters[fate.name], tensors[fate.origin.option][fate.origin.name])

    def _check(self, source: Source, tensors: Mapping[str, Tensor]) -> None:
        broken = {}
        for fate in self.fates:
            if fate.origin is None or fate.origin.option != source.option:
                continue
            name, found = fate.origin.name, tensors.get(fate.origin.name)
            if found is None or found.shape != fate.before:
                broken[name] = f"{name}: {'missing' if found is None else tuple(found.shape)}, not {fate.before}"
        if broken:
            raise UserError(
                f"{source.option}: the weights of {source.place} are not what its own settings say\n"
                f"  {few(list(broken.values()))}"
            )

    def __str__(self) -> str:
        """The table: tensors of one fate over the layers in a line, how many met which, then the settings."""
        named = [
            f"{source.place}{f' ({source.option})' if source.option != 'init.from' else ''}" for source in self.sources
        ]
        rows = [*_grouped(self.fates), *_left(self.left, several=len(self.sources) > 1)]
        lines = [*_columns(rows), f"  {self._counts()}"]
        return "\n".join([f"weights from {' and '.join(named)}", *lines, "", *_columns(self.settings)])

    def _counts(self) -> str:
        kinds = [fate.kind for fate in self.fates]
        told = [f"{kinds.count(kind)} {kind}" for kind in _KINDS if kind in kinds]
        drawn = " (drawn as model.initialization says)" if "fresh" in kinds else ""
        left = f"; {len(self.left)} of the source{'s' * (len(self.sources) > 1)} left out" if self.left else ""
        return f"{len(kinds)} tensors: {', '.join(told)}{drawn}{left}"


def few(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    return "\n  ".join(lines[:8]) + (f"\n  … and {len(lines) - 8} more" if len(lines) > 8 else "")


def shown(shape: Shape | None) -> str:
    """`64 x 16`."""
    return "none" if shape is None else " x ".join(map(str, shape))


def _grouped(fates: Sequence[Fate]) -> list[tuple[str, str, str]]:
    """(tensors, shape, what happens): tensors of all layers that share a name, a shape and a fate are one line."""
    return _lines(
        (
            fate.name,
            shown(fate.after) if fate.before in (fate.after, None) else f"{shown(fate.before)} -> {shown(fate.after)}",
            fate.words,
        )
        for fate in fates
    )


def _left(left: Sequence[Left], *, several: bool) -> list[tuple[str, str, str]]:
    return _lines(
        (item.origin.name, shown(item.shape), f"left out{f' ({item.origin.option})' if several else ''}")
        for item in left
    )


def _lines(rows: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    sizes: dict[str, int] = {}
    for full, shape, words in rows:
        name, layer = _layerless(full)
        groups.setdefault((name, shape, words), []).append(layer)
        sizes[name] = sizes.get(name, 0) + 1
    lines = []
    for (name, shape, words), layers in groups.items():
        if layers != [""]:
            which = "*" if len(layers) == sizes[name] else f"{{{','.join(layers)}}}"
            name = f"{name.replace('*', which, 1)} ({len(layers)})"
        lines.append((name, shape, words))
    return lines


def _layerless(name: str) -> tuple[str, str]:
    """`stack.blocks.3.output.weight` -> (`stack.blocks.*.output.weight`, `3`)."""
    head, blocks, tail = name.partition(".blocks.")
    layer, _, rest = tail.partition(".")
    return (f"{head}{blocks}*.{rest}", layer) if blocks else (name, "")


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [
        f"  {first if part == 0 else '':{widths[0]}}  {second if part == 0 else '':{widths[1]}}  {words}"
        for first, second, third in rows
        for part, words in enumerate(third.split("; "))
    ]

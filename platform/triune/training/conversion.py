"""From the settings of trained weights to those of a new model: what happens to each tensor, as a list that is applied and printed.

A dense checkpoint becomes a sparse, longer one by its new settings alone: patterns change which pairs are computed, not the
tensors, and positions are carried to the longer context (Beltagy et al. 2020, section 5). The way back works too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from triune.errors import UserError
from triune.models.config import ModelConfig
from triune.models.factory import Transformer, build
from triune.models.layers.attention import MultiHeadAttention
from triune.models.layers.embedding import InputEmbedding
from triune.models.stack import Stack
from triune.training.conversion_settings import Setting, changed_settings, check_settings, layers_text

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PositionRows:
    """A learned position table at another context: the trained positions over and over, the last block cut (Beltagy et al. 2020, 5).

    Args:
        offset: rows before position 0, which stay (RoBERTa, BART: 2).
        before: positions of the source.
        after: positions of the model.
    """

    offset: int
    before: int
    after: int

    def index(self) -> list[int]:
        """The row of the source's table that each row of the model's is."""
        return [*range(self.offset), *(self.offset + position % self.before for position in range(self.after))]

    def __str__(self) -> str:
        index = self.index()
        whole = index.count(self.offset + self.before - 1)  # how often the last trained position is there
        rest = len(index) - self.offset - whole * self.before
        if whole == 0:
            words = f"positions 0-{rest - 1} copied, the other {self.before - rest} left out"
        else:
            words = f"positions 0-{self.before - 1} copied {whole} time{'s' if whole > 1 else ''} in a row"
            words += f", then 0-{rest - 1}" if rest else ""
        return words + (f"; the rows before position 0 ({self.offset}) as they were" if self.offset else "")


@dataclass(frozen=True)
class BranchRows:
    """The projection of a dense layer at the start of `nsa`: each branch has the trained keys and values (Yuan et al. 2025, 3.3).

    Args:
        query: rows of the queries.
        key: rows of the keys, and as many of the values.
        branches: sets of keys and values.
    """

    query: int
    key: int
    branches: int

    def index(self) -> list[int]:
        """The row of the source's projection that each row of the model's is."""
        ends = self.query, self.query + self.key, self.query + 2 * self.key
        keys, values = range(ends[0], ends[1]), range(ends[1], ends[2])
        return [*range(self.query), *[*keys] * self.branches, *[*values] * self.branches]

    def __str__(self) -> str:
        return f"queries copied; keys and values copied to each of the pattern's {self.branches} branches"


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What happens to one tensor.

    Args:
        name: its name, the same in the source and in the model.
        before: its shape in the source; None where the source has none.
        after: its shape in the model.
        rows: how its rows are chosen; None takes it as it is.
    """

    name: str
    before: Shape | None
    after: Shape
    rows: PositionRows | BranchRows | None = None

    @property
    def words(self) -> str:
        """What happens, for a person."""
        if self.before is None:
            return "new, a part of the pattern: drawn as model.initialization says"
        return "copied" if self.rows is None else str(self.rows)

    def fill(self, parameter: Tensor, given: Tensor) -> None:
        """Write the source's tensor into the model's."""
        parameter.copy_(given if self.rows is None else given[torch.tensor(self.rows.index())])


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What happens to every tensor and setting between trained weights and a model that starts from them.

    Args:
        source: where the weights were found.
        fates: one a tensor, in the order of the model.
        settings: what has no tensors: positions, patterns, and whatever differs.
    """

    source: Path
    fates: Sequence[Fate]
    settings: Sequence[Setting]

    @torch.no_grad()
    def apply(self, model: Transformer, tensors: Mapping[str, Tensor]) -> None:
        """Fill `model`, built from the settings this was planned for, with the source's `tensors`; new ones stay as drawn.

        Raises UserError where a tensor is not what the source's own settings say, before anything is written.
        """
        carried = [fate for fate in self.fates if fate.before is not None]
        broken = [
            f"{fate.name}: {tuple(tensors[fate.name].shape) if fate.name in tensors else 'missing'}, not {fate.before}"
            for fate in carried
            if fate.name not in tensors or tensors[fate.name].shape != fate.before
        ]
        if broken:
            raise UserError(
                f"init.from: the weights of {self.source} are not what its own settings say\n  {_few(broken)}"
            )
        parameters = dict(model.named_parameters())
        for fate in carried:
            fate.fill(parameters[fate.name], tensors[fate.name])

    def __str__(self) -> str:
        """The table: tensors of one fate over the layers in a line, then the settings."""
        lines = [*_columns(_grouped(self.fates)), "", *_columns(self.settings)]
        return "\n".join([f"weights from {self.source}", *lines])


def plan_conversion(source: ModelConfig, model: ModelConfig, *, place: Path) -> Conversion:
    """What becomes of weights of `source` in a `model`; nothing is copied, and no weight is read.

    Args:
        source: settings of the trained weights.
        model: settings of the model that starts from them; `vocabulary` is set.
        place: where the weights are, for the messages.

    Raises:
        UserError: settings that give the tensors another meaning, or tensors that do not fit.
    """
    check_settings(source, model, place)
    old, new = _Outline.of(source), _Outline.of(model)
    missing, extra = new.shapes.keys() - old.shapes.keys(), old.shapes.keys() - new.shapes.keys()
    fresh = missing - _Outline.of(_dense(model)).shapes.keys() if missing else set()
    fates: list[Fate] = []
    problems: dict[str, str] = {}
    for name, after in new.shapes.items():
        before = old.shapes.get(name)
        rows = None if before == after else _rows(name, old, new)
        if name in fresh or _fits(before, after, rows):
            fates.append(Fate(name=name, before=before, after=after, rows=rows))
        else:
            problems[name] = f"{name}: {_shown(before)} there, {_shown(after)} here"
    problems |= {
        name: f"{name}: {_shown(shape)} there, none here" for name, shape in old.shapes.items() if name in extra
    }
    if problems:
        raise UserError(_misfit(problems, old, new, model, place))
    return Conversion(
        source=place,
        fates=fates,
        settings=[*_patterns(old, new), *changed_settings(source, model)],
    )


def _fits(before: Shape | None, after: Shape, rows: PositionRows | BranchRows | None) -> bool:
    """Whether the source has the tensor in this shape, or but for its rows, which are chosen."""
    return before is not None and (before == after if rows is None else before[1:] == after[1:])


def _rows(name: str, old: _Outline, new: _Outline) -> PositionRows | BranchRows | None:
    """How the rows of a tensor that may have more or fewer of them are chosen; None for every other."""
    if name in new.tables and name in old.tables:
        return dataclasses.replace(new.tables[name], before=old.tables[name].before)
    if name in new.projections and name in old.projections:
        was, now = old.projections[name], new.projections[name]
        return now if was == dataclasses.replace(now, branches=1) else None
    return None


def _misfit(problems: Mapping[str, str], old: _Outline, new: _Outline, model: ModelConfig, place: Path) -> str:
    """Why the tensors do not fit: the pattern's own projections, or just other shapes."""
    dense = _Outline.of(_dense(model)).shapes
    if all(dense.get(name, ...) == old.shapes.get(name) for name in problems):
        text = ", ".join(dict.fromkeys(text for texts in new.patterns.values() for text in texts))
        head = (
            f"model.attention.pattern: {text} has other projections than the weights of {place}, and none of theirs can "
            "stand for its own; train it from the start, or take a pattern with queries, keys and values of their own"
        )
    else:
        head = f"init.from: the weights of {place} do not fit `model:`; give the same shape"
    return "\n  ".join([head, _few(list(problems.values()))])


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """Names and shapes of a model's tensors (tied ones once), its position tables and its patterns, without memory for weights."""

    shapes: dict[str, Shape]
    tables: dict[str, PositionRows]
    projections: dict[str, BranchRows]  # queries, keys and values, where keys are no queries
    patterns: dict[str, list[str]]  # stack -> one a layer

    @classmethod
    def of(cls, config: ModelConfig) -> _Outline:
        with torch.device("meta"):
            model = build(config)
        modules = dict(model.named_modules())
        return cls(
            shapes={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
            tables={
                f"{name}.positions.weight": PositionRows(module.offset, module.context, module.context)
                for name, module in modules.items()
                if isinstance(module, InputEmbedding) and module.positions is not None
            },
            projections={
                f"{name}.query_key_value.{part}": _projection(module)
                for name, module in modules.items()
                if isinstance(module, MultiHeadAttention) and not module.cross and not module.shared
                for part in ("weight", "bias")
            },
            patterns={
                name: [str(m.pattern) for m in module.modules() if isinstance(m, MultiHeadAttention) and not m.cross]
                for name, module in modules.items()
                if isinstance(module, Stack)
            },
        )


def _dense(config: ModelConfig) -> ModelConfig:
    """The same model with the dense pattern of its family: what it has no tensors for belongs to the pattern."""
    return dataclasses.replace(config, attention=dataclasses.replace(config.attention, pattern=None))


def _projection(module: MultiHeadAttention) -> BranchRows:
    return BranchRows(module.heads * module.head_width, module.key_value_heads * module.head_width, module.branches)


def _patterns(old: _Outline, new: _Outline) -> Iterator[Setting]:
    """One line a stack and pair of patterns."""
    for stack, after in new.patterns.items():
        pairs: dict[tuple[str, str], list[int]] = {}
        for layer, pair in enumerate(zip(old.patterns[stack], after, strict=True)):
            pairs.setdefault(pair, []).append(layer)
        for (was, now), layers in pairs.items():
            change = was if was == now else f"{was} -> {now}"
            meaning = "as it was" if was == now else "other pairs of tokens"
            yield Setting(f"pattern of {stack}, {layers_text(layers)}", change, meaning)


def _grouped(fates: Sequence[Fate]) -> list[tuple[str, str, str]]:
    """(tensors, shape, what happens): tensors of all layers that share a name, a shape and a fate are one line."""
    groups: dict[tuple[str, Shape | None, Shape, str], list[str]] = {}
    sizes: dict[str, int] = {}
    for fate in fates:
        name, layer = _layerless(fate.name)
        groups.setdefault((name, fate.before, fate.after, fate.words), []).append(layer)
        sizes[name] = sizes.get(name, 0) + 1
    lines = []
    for (name, before, after, words), layers in groups.items():
        if layers != [""]:
            which = "*" if len(layers) == sizes[name] else f"{{{','.join(layers)}}}"
            name = f"{name.replace('*', which, 1)} ({len(layers)})"
        shape = _shown(after) if before in (after, None) else f"{_shown(before)} -> {_shown(after)}"
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


def _shown(shape: Shape | None) -> str:
    return "none" if shape is None else " x ".join(map(str, shape))


def _few(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    return "\n  ".join(lines[:8]) + (f"\n  … and {len(lines) - 8} more" if len(lines) > 8 else "")

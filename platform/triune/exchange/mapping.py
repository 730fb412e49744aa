"""Which tensor of ours is which of theirs, as data that the same code reads both ways.

Every reshape is a permutation of numbers, so that reading back what was written is the identity, byte for byte. A mapping needs no
shapes of theirs: `to_theirs` of our empty tensors says what they must be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from triune.errors import UserError

Shape = tuple[int, ...]
_SHOWN = 12  # tensors listed of each kind of mistake


class Reshape(Protocol):
    """A rearrangement of a tensor's numbers, and the way back."""

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Our tensor as theirs."""
        ...

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Their tensor as ours."""
        ...


@dataclass(frozen=True)
class Same:
    """The same numbers in the same places."""

    def to_theirs(self, ours: Tensor) -> Tensor:
        """[...] -> [...]."""
        return ours

    to_ours = to_theirs


@dataclass(frozen=True)
class Transposed:
    """A matrix that theirs keeps as [in, out] (GPT-2's Conv1D); a vector stays."""

    def to_theirs(self, ours: Tensor) -> Tensor:
        """[O, I] -> [I, O]."""
        return ours.t()

    to_ours = to_theirs


@dataclass(frozen=True)
class Viewed:
    """The same numbers in the same order under another shape (BART's bias [1, V], a convolution's kernel).

    Args:
        ours: our shape.
        theirs: their shape.
    """

    ours: Shape
    theirs: Shape

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Our shape -> theirs."""
        return ours.reshape(self.theirs)

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Their shape -> ours."""
        return theirs.reshape(self.ours)


@dataclass(frozen=True)
class HeadsApart:
    """Rows that theirs keeps head by head, each with all its parts (GPT-NeoX's [H, 3, D]), and ours part by part ([3, H, D]).

    Args:
        heads: H.
        parts: queries, keys and values.
    """

    heads: int
    parts: int = 3

    def to_theirs(self, ours: Tensor) -> Tensor:
        """[parts H D, ...] -> [H parts D, ...]."""
        return ours.unflatten(0, (self.parts, self.heads, -1)).transpose(0, 1).flatten(0, 2)

    def to_ours(self, theirs: Tensor) -> Tensor:
        """[H parts D, ...] -> [parts H D, ...]."""
        return theirs.unflatten(0, (self.heads, self.parts, -1)).transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True)
class RotaryPairs:
    """Rows of queries or keys whose rotary pairs are neighbours (2i, 2i + 1) there, and halves (i, i + D/2) here (GGUF's Llama).

    Args:
        heads: heads in the tensor; each is turned in its whole width.
    """

    heads: int

    def to_theirs(self, ours: Tensor) -> Tensor:
        """[H 2 D/2, ...] -> [H D/2 2, ...]."""
        return ours.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def to_ours(self, theirs: Tensor) -> Tensor:
        """[H D/2 2, ...] -> [H 2 D/2, ...]."""
        return theirs.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)


SAME = Same()
TRANSPOSED = Transposed()


@dataclass(frozen=True)
class Part:
    """A tensor of theirs, and which rows of ours it is.

    Args:
        names: its name, and others under which a file may hold the same tensor (tied); the first is what is written.
        rows: how many rows of ours it is, after those of the parts before it; None is all.
        reshape: how its numbers are arranged.
    """

    names: tuple[str, ...]
    rows: int | None = None
    reshape: Reshape = SAME


@dataclass(frozen=True)
class Entry:
    """A tensor of ours and the tensors of theirs that make it up, stacked in this order."""

    ours: str
    theirs: tuple[Part, ...]

    def at(self, layer: int) -> Entry:
        """The entry of one layer: `{layer}` in all names filled in."""

        def fill(name: str) -> str:
            return name.replace("{layer}", str(layer))

        return Entry(fill(self.ours), tuple(replace(part, names=tuple(map(fill, part.names))) for part in self.theirs))


@dataclass(frozen=True)
class Fixed:
    """A tensor of theirs that ours computes (a sinusoid table, position ids): checked where a file holds it.

    Args:
        name: their name.
        make: its value.
        written: an exported file holds it, because `transformers` looks for it there.
    """

    name: str
    make: Callable[[], Tensor]
    written: bool = False


@dataclass(frozen=True)
class Echo:
    """A tensor of theirs that nothing reads, but which is looked for in a file: written as another one of theirs, not read.

    Args:
        name: its name.
        source: the name of the one it is written as.
        reason: why nothing reads it.
    """

    name: str
    source: str
    reason: str


@dataclass(frozen=True)
class Blank:
    """A tensor of theirs that ours has no part for, but which is looked for in a file: left out when read, written as zeros.

    Args:
        name: its name.
        shape: its shape.
        reason: what it is for, and why the model computes the same without it.
    """

    name: str
    shape: Shape
    reason: str


@dataclass(frozen=True)
class Ignored:
    """Tensors of theirs that ours has no part for, left out on purpose.

    Args:
        pattern: regular expression that a whole name matches.
        reason: why nothing is lost, for the reader.
    """

    pattern: str
    reason: str


@dataclass(frozen=True)
class TensorMapping:
    """All tensors of an architecture: every one of ours in one entry, every one of theirs in one of the five.

    Args:
        entries: what is copied.
        fixed: what ours computes.
        echoes: what is written for form's sake.
        blanks: what is left out, and written as zeros.
        ignored: what is left out.
    """

    entries: tuple[Entry, ...]
    fixed: tuple[Fixed, ...] = ()
    echoes: tuple[Echo, ...] = ()
    blanks: tuple[Blank, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    _aliases: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        aliases = {name: part.names[0] for entry in self.entries for part in entry.theirs for name in part.names}
        others = [fixed.name for fixed in self.fixed] + [echo.name for echo in self.echoes]
        others += [blank.name for blank in self.blanks]
        others += [blank.name for blank in self.blanks]
        object.__setattr__(self, "_aliases", aliases | {name: name for name in others})

    def known(self, name: str) -> bool:
        """Whether a tensor of theirs has a place here."""
        return name in self._aliases or any(re.fullmatch(rule.pattern, name) for rule in self.ignored)

    def written_as(self, name: str) -> str | None:
        """The first name of a tensor of theirs, or None for one that is not copied."""
        return self._aliases.get(name)


def tensor(ours: str, *theirs: str, reshape: Reshape = SAME) -> Entry:
    """One tensor that is one of theirs; further names are other names of the same one."""
    return Entry(ours, (Part(theirs, reshape=reshape),))


def module(
    ours: str, theirs: str | Mapping[str, int], *, bias: bool = True, weight: bool = True, reshape: Reshape = SAME
) -> Iterator[Entry]:
    """Weight and bias of a module.

    Args:
        ours: our module.
        theirs: their module, or their modules that are stacked in ours, with the rows of each.
        bias: it has a bias.
        weight: it has a weight.
        reshape: how theirs arranges the numbers, in each of its tensors.
    """
    stacked = {theirs: None} if isinstance(theirs, str) else theirs
    for kind in ("weight",) * weight + ("bias",) * bias:
        parts = tuple(Part((f"{name}.{kind}",), rows, reshape) for name, rows in stacked.items())
        yield Entry(f"{ours}.{kind}", parts)


def each_layer(count: int, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries of every layer; their names have `{layer}` in place of its number."""
    entries = tuple(entries)
    for layer in range(count):
        yield from (entry.at(layer) for entry in entries)


def to_theirs(mapping: TensorMapping, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as theirs, each under its first name; values are views where they can be.

    Raises UserError where our tensors are not those of the mapping.
    """
    entries = {entry.ours: entry for entry in mapping.entries}
    _compare(entries.keys(), tensors.keys(), "this model", "the mapping")
    found: dict[str, Tensor] = {}
    for name, entry in entries.items():
        rows = [part.rows for part in entry.theirs]
        ours = tensors[name]
        pieces = [ours] if rows == [None] else ours.split([row or 0 for row in rows])
        for part, piece in zip(entry.theirs, pieces, strict=True):
            found[part.names[0]] = part.reshape.to_theirs(piece)
    device = next(iter(tensors.values())).device
    found |= {echo.name: found[echo.source].clone() for echo in mapping.echoes}
    found |= {blank.name: torch.zeros(blank.shape, device=device) for blank in mapping.blanks}
    return found | {fixed.name: fixed.make().to(device) for fixed in mapping.fixed if fixed.written}


def to_ours(
    mapping: TensorMapping, tensors: Mapping[str, Tensor], *, place: object = "the weights"
) -> dict[str, Tensor]:
    """Their tensors as ours, after `check_shapes`.

    Raises UserError where tensors that are tied, or computed by ours, hold other values.
    """
    for fixed in mapping.fixed:
        if fixed.name in tensors:
            _check_fixed(fixed, tensors[fixed.name], place)
    return {
        entry.ours: torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        for entry in mapping.entries
        for pieces in [[part.reshape.to_ours(_the_one(part, tensors, place)) for part in entry.theirs]]
    }


def check_shapes(
    mapping: TensorMapping, ours: Mapping[str, Tensor], theirs: Mapping[str, Shape], *, place: object
) -> None:
    """Raise UserError that lists each leftover, missing or wrongly shaped tensor of theirs.

    Args:
        mapping: which is which.
        ours: our tensors, empty ones (of the meta device) will do.
        theirs: shapes by name, as the file has them.
        place: the file or directory, for the message.
    """
    expected = {name: tuple(value.shape) for name, value in to_theirs(mapping, ours).items()}
    needed = {part.names[0] for entry in mapping.entries for part in entry.theirs}
    needed -= {mapping.written_as(name) or "" for name in theirs}
    problems = [f"{name}: missing, expected {_shown(expected[name])}" for name in expected if name in needed]
    for name, shape in theirs.items():
        first = mapping.written_as(name)
        if first is None and not mapping.known(name):
            problems.append(f"{name}: left over, {_shown(shape)}; this architecture has no such tensor")
        elif first in expected and shape != expected[first]:
            problems.append(f"{name}: {_shown(shape)}, expected {_shown(expected[first])}")
    if problems:
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{place}: {len(problems)} tensors are not what config.json says\n  "
            + "\n  ".join(problems[:_SHOWN])
            + more
        )


def _the_one(part: Part, tensors: Mapping[str, Tensor], place: object) -> Tensor:
    """The tensor under any of its names; where there are several they must be equal."""
    held = [name for name in part.names if name in tensors]
    if not held:
        raise UserError(f"{place}: {part.names[0]}: missing")
    for name in held[1:]:
        if not torch.equal(tensors[held[0]], tensors[name]):
            raise UserError(f"{place}: {held[0]} and {name} are one tensor by config.json, but hold different numbers")
    return tensors[held[0]]


def _check_fixed(fixed: Fixed, held: Tensor, place: object) -> None:
    value = fixed.make()
    # two ways to compute a sine in fp32 differ by 2^-24 of it, and of an argument of some hundreds by 2^-24 of that: 1e-4 at most
    if held.shape != value.shape or not torch.allclose(held.double(), value.double(), rtol=0, atol=1e-4):
        raise UserError(
            f"{place}: {fixed.name}: {_shown(tuple(held.shape))}, is not the table that this architecture computes "
            f"({_shown(tuple(value.shape))}); triune has no tensor to hold another one"
        )


def _compare(expected: Iterable[str], found: Iterable[str], owner: str, other: str) -> None:
    expected, found = set(expected), set(found)
    problems = [f"{name}: {other} has it, {owner} does not" for name in sorted(expected - found)]
    problems += [f"{name}: {owner} has it, {other} does not" for name in sorted(found - expected)]
    if problems:
        raise UserError(f"the tensors of {owner} are not those of {other}\n  " + "\n  ".join(problems[:_SHOWN]))


def _shown(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"

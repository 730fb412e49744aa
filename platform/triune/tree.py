"""Frozen dataclasses from plain YAML data and back: strict, with every mistake on one screen. Imports no torch.

A union of dataclasses is told apart by the Literal of its field `kind`; a field named `from_` is spelled `from`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from triune.errors import UserError, nearest
from triune.units import Count, Interval
from triune.yaml_file import Tree, as_tree, load_yaml, merge, override, plain, spelled_out, to_yaml

__all__ = [
    "FieldNote",
    "Tree",
    "construct",
    "describe",
    "load_yaml",
    "merge",
    "override",
    "report",
    "to_tree",
    "to_yaml",
]

T = TypeVar("T")
_SHOWN = 8  # mistakes on one screen
_BAD: Any = object()  # stands for a value that was reported


def report(problems: Iterable[str]) -> None:
    """Raise one UserError that lists `problems`, at most eight of them; return where there are none."""
    lines = list(problems)
    if len(lines) == 1:
        raise UserError(lines[0])
    if lines:
        more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise UserError("\n".join([f"{len(lines)} mistakes:", *(f"  {line}" for line in lines[:_SHOWN]), *more]))


def construct(cls: type[T], data: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `cls` from plain data; `path` is the dotted path of `data` itself, for messages.

    Raises UserError that names every unknown key and wrong value (full dotted path, file and line where known,
    value, constraint, nearest spelling).
    """
    builder = _Builder(cls)
    built = builder.dataclass(cls, as_tree(data), path)
    report(builder.problems)
    return cast(T, built)


def to_tree(instance: Any) -> Any:
    """Plain YAML data (dict, list, str, int, float, bool, None) from which `construct` rebuilds `instance`."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, Interval):
        cls: Any = type(instance)
        return {key: to_tree(getattr(instance, name)) for key, name in _names(cls).items()}
    if isinstance(instance, Interval):
        return _shortest(str(instance))
    if isinstance(instance, Count):
        return int(instance)
    if isinstance(instance, Mapping):
        return {key: to_tree(value) for key, value in instance.items()}
    if isinstance(instance, list | tuple):
        return [to_tree(value) for value in instance]
    return instance


def _shortest(text: str) -> str | int | float:
    """The number that `text` spells, where that number is spelled so; else the text."""
    for number in (int, float):
        try:
            if str(number(text)) == text:
                return number(text)
        except ValueError:
            pass
    return text


@functools.cache
def _names(cls: Any) -> dict[str, str]:
    """YAML key -> field name: `kind` first, then in the order of the class."""
    names = sorted((field.name for field in dataclasses.fields(cls)), key=lambda name: name != "kind")
    return {name.rstrip("_"): name for name in names}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the hint itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _variants(hint: Any) -> dict[str, type]:
    """kind -> dataclass of a union of dataclasses told apart by `kind`; empty for anything else."""
    classes = [member for member in _members(hint) if _is_section(member)]
    if len(classes) < 2:
        return {}
    return {kind: cls for cls in classes for kind in get_args(_hints(cls)["kind"])}


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Interval


def _default(cls: type, name: str) -> Any:
    """Default value of a field; `dataclasses.MISSING` where it has none."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _spell(value: Any) -> str:
    """A value as YAML spells it, cut to fit a line."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(plain(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path else str(key)


class _Builder:
    """Walks types and data side by side and collects what is wrong instead of stopping at the first mistake."""

    def __init__(self, root: type) -> None:
        self.root = root
        self.problems: list[str] = []

    def wrong(self, tree: Tree | None, key: str, path: str, message: str) -> Any:
        origin = tree.origin.get(key) if tree is not None else None
        self.problems.append(f"{f'{origin}: ' if origin else ''}{path}: {message}")
        return _BAD

    def dataclass(self, cls: type, tree: Tree, path: str, variants: Mapping[str, type] | None = None) -> Any:
        names, hints = _names(cls), _hints(cls)
        values: dict[str, Any] = {}
        for key in tree:
            if key not in names:
                self.unknown(cls, tree, key, path, variants or {})
                continue
            values[names[key]] = self.field(cls, names[key], hints[names[key]], tree, key, _dotted(path, key))
        for key, name in names.items():
            if name not in values and _default(cls, name) is dataclasses.MISSING:
                values[name] = self.wrong(None, key, _dotted(path, key), "missing; it has no default")
        if any(value is _BAD for value in values.values()):
            return _BAD
        try:
            return cls(**values)
        except (ValueError, UserError) as error:
            return self.refused(tree, path, str(error))

    def refused(self, tree: Tree, path: str, message: str) -> Any:
        """What a class says of its own fields together, said of the section's first line."""
        first = next(iter(tree), "")
        if path and message.startswith(path):
            path, _, message = message.partition(": ")
        return self.wrong(tree, first, path, message)

    def unknown(self, cls: type, tree: Tree, key: str, path: str, variants: Mapping[str, type]) -> None:
        value = _spell(tree[key])
        owners = [kind for kind, variant in variants.items() if key in _names(variant)]
        if owners:
            mine = next(kind for kind, variant in variants.items() if variant is cls)
            message = (
                f"kind {mine!r} has no such option (value {value}); it belongs to kind {' or '.join(map(repr, owners))}"
            )
        else:
            message = f"unknown key (value {value}){self.hint(cls, key, path)}"
        self.wrong(tree, key, _dotted(path, key), message)

    def hint(self, cls: type, key: str, path: str) -> str:
        near = nearest(key, _names(cls))
        if near:
            return near
        elsewhere = [note.path for note in describe(self.root) if note.path.rpartition(".")[2] == key]
        return f"; did you mean '{elsewhere[0]}'?" if elsewhere else f"; known keys: {', '.join(_names(cls))}"

    def field(self, cls: type, name: str, hint: Any, tree: Tree, key: str, path: str) -> Any:
        value = tree[key]
        if any(_is_section(member) for member in _members(hint)):
            return self.section(cls, name, hint, tree, key, path)
        if get_origin(hint) is list and _is_section(get_args(hint)[0]):
            return self.sections(get_args(hint)[0], tree, key, path)
        try:
            return _leaf(hint, value)
        except _MismatchError as mismatch:
            return self.wrong(tree, key, path, str(mismatch))

    def section(self, cls: type, name: str, hint: Any, tree: Tree, key: str, path: str) -> Any:
        value = tree[key]
        if value is None and type(None) in _members(hint):
            return None
        variants = _variants(hint)
        if not isinstance(value, Mapping):
            inner = f"{{kind: {next(iter(variants))}}}" if variants else "{key: value}"
            inner = f"{{kind: {value}}}" if isinstance(value, str) and value in variants else inner
            return self.wrong(tree, key, path, f"expected a mapping such as {inner}, got {_spell(value)}")
        inside = as_tree(value)
        if not variants:
            section = next(member for member in _members(hint) if _is_section(member))
            return self.dataclass(section, inside, path)
        usual = getattr(_default(cls, name), "kind", None)
        kind = inside.get("kind", usual)
        if not isinstance(kind, str) or kind not in variants:
            known = ", ".join(variants)
            said = f"{_spell(kind)} is not one of {known}{nearest(str(kind), variants)}"
            return self.wrong(inside, "kind", f"{path}.kind", said if kind is not None else f"missing; one of {known}")
        # What an earlier layer wrote beside another kind is left behind; before any kind was named, the usual one held.
        kept = Tree()
        for inner_key, item in inside.items():
            if (inside.under.get(inner_key) or usual) == kind:
                kept.put(inner_key, item, inside.origin.get(inner_key))
        return self.dataclass(variants[kind], kept, path, variants)

    def sections(self, cls: type, tree: Tree, key: str, path: str) -> Any:
        value = tree[key]
        if isinstance(value, Mapping) and value and list(value) == [str(index) for index in range(len(value))]:
            value = list(value.values())
        if isinstance(value, str) and hasattr(cls, "SHORTHAND"):
            value = [value]
        if not isinstance(value, list):
            return self.wrong(
                tree, key, path, f"expected a list of mappings, got {_spell(value)}; begin each with `- `"
            )
        items = []
        for index, item in enumerate(value):
            item = spelled_out(item, getattr(cls, "SHORTHAND", None))
            if isinstance(item, Mapping):
                items.append(self.dataclass(cls, as_tree(item), _dotted(path, index)))
            else:
                items.append(self.wrong(tree, key, _dotted(path, index), f"expected a mapping, got {_spell(item)}"))
        return _BAD if any(item is _BAD for item in items) else items


class _MismatchError(Exception):
    """A value that its type does not take; the message says what was expected."""


def _leaf(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it. Raises _MismatchError."""
    if value is None and type(None) in _members(hint):
        return None
    for member in _members(hint):
        try:
            return _take(member, value)
        except ValueError as error:  # a unit's own sentence says more than the name of the type
            if len([other for other in _members(hint) if other is not type(None)]) == 1:
                raise _MismatchError(str(error)) from None
        except _MismatchError:
            continue
    choices = [choice for member in _members(hint) for choice in get_args(member) if get_origin(member) is Literal]
    if choices and isinstance(value, str):
        known = ", ".join([*map(_spell_choice, choices), *(["null"] if type(None) in _members(hint) else [])])
        raise _MismatchError(f"{value!r} is not one of {known}{nearest(value, map(str, choices))}")
    quotes = "; put it in quotes" if str in _members(hint) and isinstance(value, bool | int | float) else ""
    raise _MismatchError(f"expected {_expected(hint)}, got {_spell(value)}{quotes}")


def _spell_choice(choice: Any) -> str:
    return choice if isinstance(choice, str) else _spell(choice)


def _take(hint: Any, value: Any) -> Any:
    """`value` as the one type `hint`. Raises _MismatchError, or ValueError with a sentence of its own."""
    origin = get_origin(hint)
    if hint is Any:
        return plain(value)
    if hint is Count:
        return Count(value)
    if hint is Interval:
        return Interval.parse(value)
    if origin is list and isinstance(value, list):
        return [_leaf(get_args(hint)[0], item) for item in value]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(get_args(hint)):
        return tuple(_leaf(member, item) for member, item in zip(get_args(hint), value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {key: _leaf(get_args(hint)[1], item) for key, item in value.items()}
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
        return value
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (int, str, bool, type(None)) and type(value) is hint:
        return value
    raise _MismatchError


_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Count: "a whole number such as 4096, 32k, 0.5M or 10B",
    Interval: "an interval such as 50M (tokens), 100 steps, 30min or 0.2 (of the run)",
}


def _expected(hint: Any) -> str:
    """What a value of this type looks like, for a sentence."""
    origin, arguments = get_origin(hint), get_args(hint)
    if len(_members(hint)) > 1:
        return " or ".join(_expected(member) for member in _members(hint))
    if origin is list:
        return f"a list of {_expected(arguments[0]).removeprefix('a ')}s".replace("texts", "text")
    if origin is tuple:
        return f"a list of {len(arguments)} numbers"
    if origin is dict:
        return "a mapping"
    if origin is Literal:
        return "one of " + ", ".join(map(_spell_choice, arguments))
    return _EXPECTED.get(hint, str(hint))


@dataclass(frozen=True, kw_only=True)
class FieldNote:
    """One option of a tree, for `--help`.

    `path` is dotted; `kind` the variant of a union it belongs to, else None; `type`, `default` and `meaning` are text.
    A section (a nested mapping) has no default; `meaning` of a variant's first field, `kind`, is the variant's own.
    """

    path: str
    type: str
    default: str | None
    meaning: str
    kind: str | None = None
    is_section: bool = False


def describe(cls: type, path: str = "", kind: str | None = None) -> Iterator[FieldNote]:
    """Every option under the dataclass `cls`, in order: sections before their fields, each variant of a union in turn."""
    meanings = _meanings(cls)
    for key, name in _names(cls).items():
        hint, dotted, default = _hints(cls)[name], _dotted(path, key), _default(cls, name)
        variants = _variants(hint)
        inner = get_args(hint)[0] if get_origin(hint) is list else hint
        sections = [member for member in _members(inner) if _is_section(member)]
        note = functools.partial(FieldNote, path=dotted, kind=kind, meaning=meanings[name])
        if variants:
            yield note(type=f"kind: {' | '.join(variants)}", default=default.kind, is_section=True)
            for variant_kind, variant in variants.items():
                yield from describe(variant, dotted, variant_kind)
        elif sections:
            shape = "list" if get_origin(hint) is list else "section"
            yield note(type=shape, default=None, is_section=True)
            yield from describe(sections[0], f"{dotted}.0" if shape == "list" else dotted)
        elif key == "kind" and kind is not None:
            summary = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
            yield note(type=kind, default=None, meaning=summary)
        else:
            yield note(type=_named(hint), default=_spell(to_tree(default)).strip("'"))


_NAMED = {type(None): "null", Count: "count", Interval: "interval", str: "text", Any: "any"}


def _named(hint: Any) -> str:
    """Short name of a type, for a list of options."""
    if get_origin(hint) is Literal:
        return " | ".join(map(_spell_choice, get_args(hint)))
    if get_origin(hint) in (list, tuple):
        return "[" + ", ".join(_named(member) for member in get_args(hint)) + "]"
    if get_origin(hint) is dict:
        return "mapping"
    if len(_members(hint)) > 1:
        return " | ".join(_named(member) for member in _members(hint))
    return _NAMED.get(hint, getattr(hint, "__name__", str(hint)))


@functools.cache
def _meanings(cls: type) -> dict[str, str]:
    """field name -> its line under `Args:` in the docstring of the class or of a base class; KeyError where it has none."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        section = re.search(r"^Args:\n(.*?)(?:^\S|\Z)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE | re.DOTALL)
        for entry in re.finditer(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE):
            found[entry[1]] = re.sub(r"\s+", " ", entry[2]).strip()
    return found

"""YAML files as mappings that remember where each key was written: `base:` inheritance and `a.b=c` overrides.

Scalars follow YAML 1.2's core schema, so `1e-3` is a number and `no`, `on` and `1:30` are text. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from triune.errors import UserError, nearest

_RESOLVERS = (
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
            r"|\.(?:nan|NaN|NAN)$"
        ),
        list("-+.0123456789"),
    ),
)
# Characters that open something else than plain text in YAML, but are text at the start of an override (`path=*.txt`).
_INDICATORS = "*&!|>%@`"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or `_Loader` would read as something else than text."""


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Only a double-quoted scalar spells line breaks such as U+0085 so that they survive reading.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


class Origin(NamedTuple):
    """Where a key was written: a file and its line, or the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


COMMAND_LINE = Origin("command line")
#: key of what was a section written as one plain text before other keys came on top (`data.train=mine.csv data.train.0.seed=1`)
TEXT = ""


class Tree(dict[str, Any]):
    """A mapping that remembers where each key was written, and the `kind` beside which it was.

    `under` lets a later layer that switches `kind` leave behind the fields of the variant it switched from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[str, Origin] = {}
        self.under: dict[str, str | None] = {}

    def put(self, key: str, value: Any, origin: Origin | None, under: str | None = None) -> None:
        self[key] = value
        self.under[key] = under
        self.origin.pop(key, None)
        if origin is not None:
            self.origin[key] = origin


def as_tree(data: Mapping[str, Any]) -> Tree:
    """`data` with every mapping in it a `Tree`; a `Tree` comes back as it is."""
    if isinstance(data, Tree):
        return data
    tree = Tree()
    for key, value in data.items():
        tree.put(key, _grow(value), None, data.get("kind"))
    return tree


def _grow(value: Any) -> Any:
    if isinstance(value, Mapping):
        return as_tree(value)
    return [_grow(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """`value` with every `Tree` in it a plain dict."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def load_yaml(path: str | os.PathLike[str]) -> Tree:
    """The mapping in the YAML file at `path` over those of its `base:` files (one path or a list, relative to the file).

    Later bases win over earlier ones and the file over all of them; mappings merge key by key, lists are replaced.
    Raises UserError, with file and line, for what cannot be read, is no mapping, repeats a key or inherits from itself.
    """
    return _load(Path(path), trail=[], asked=None)


def _load(path: Path, trail: list[Path], asked: Origin | None) -> Tree:
    shown = os.path.normpath(path)
    real = path.resolve()
    if real in trail:
        files = " -> ".join(os.path.relpath(step) for step in [*trail[trail.index(real) :], real])
        raise UserError(f"{asked}: base: {shown} inherits from itself: {files}; take one `base` out")
    tree = _parse(_read_text(path, shown, asked), shown)
    where = tree.origin.get("base", Origin(shown))
    bases = tree.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{where}: base: expected a path or a list of paths, got {plain(bases)!r}")
    merged = Tree()
    for base in bases:
        merged = merge(merged, _load(path.parent / base, [*trail, real], where))
    return merge(merged, tree)


def _read_text(path: Path, shown: str, asked: Origin | None) -> str:
    said = f"{asked}: base: " if asked else ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = nearest(path.name, beside) or "; give the path of a YAML file, relative to the working directory"
        raise UserError(f"{said}{shown}: no such file{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{said}{shown}: is a directory; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{said}{shown}: not UTF-8 text (byte {error.start}); a config is a YAML text file") from None
    except OSError as error:
        raise UserError(f"{said}{shown}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise UserError(f"{said}{shown}: the file is empty; a config needs at least a `model:` or a `base:`")
    return text


def _parse(text: str, file: str) -> Tree:
    value = _value(text, file)
    if not isinstance(value, Tree):
        raise UserError(f"{file}: expected `key: value` lines, got {str(value)[:40]!r}")
    return value


def _value(text: str, file: str, origin: Origin | None = None) -> Any:
    """The value that `text` spells; every key gets `origin`, or its own line where `origin` is None."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _convert(node, loader, file, origin, ())
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(_syntax(error, file, origin)) from None


def _syntax(error: yaml.YAMLError, file: str, origin: Origin | None) -> str:
    mark = getattr(error, "problem_mark", None)
    where = origin or (Origin(file) if mark is None else Origin(file, mark.line + 1))
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    hint = "; indent with spaces, not tabs" if "\\t" in problem else ""
    hint = hint or ("; put text that holds ': ' in quotes" if "mapping values" in problem else "")
    return f"{where}: not valid YAML: {problem}{hint}"


def _convert(node: yaml.Node, loader: _Loader, file: str, origin: Origin | None, above: tuple[int, ...]) -> Any:
    if id(node) in above:
        raise UserError(f"{Origin(file, node.start_mark.line + 1)}: an alias holds itself")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, loader, file, origin, above) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    tree = Tree()
    for key, value in node.value:
        where = origin or Origin(file, key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: a key must be one word")
        if key.value in tree:
            raise UserError(f"{where}: {key.value}: written twice (first in line {tree.origin[key.value].line})")
        tree.put(key.value, _convert(value, loader, file, origin, above), where)
    for key in tree:
        tree.under[key] = tree.get("kind")
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> Tree:
    """`base` with the keys of `over` on top: mappings merge key by key, everything else is replaced.

    A mapping whose keys are numbers changes those items of a list in `base` (`data.train.0.path=...`); a text stands for
    a list of one.
    """
    base, over = as_tree(base), as_tree(over)
    kind = over.get("kind", base.get("kind"))
    merged = Tree()
    for key, value in base.items():
        merged.put(key, value, base.origin.get(key), base.under.get(key))
    for key, value in over.items():
        dotted = f"{path}.{key}" if path else key
        merged.put(
            key,
            _merged(base.get(key), value, dotted),
            over.origin.get(key, base.origin.get(key)),
            over.under.get(key) or kind,
        )
    return merged


def _merged(old: Any, new: Any, path: str) -> Any:
    if not isinstance(new, Tree):
        return new
    if not isinstance(old, list | str) or not new or not all(key.isdecimal() for key in new):
        return merge(old if isinstance(old, Tree) else Tree(), new, path)
    items = [old] if isinstance(old, str) else list(old)
    for key in sorted(new, key=int):
        index = int(key)
        if index > len(items):
            raise UserError(
                f"{new.origin.get(key, COMMAND_LINE)}: {path}.{key}: the list has {len(items)} items; the next is {path}.{len(items)}"
            )
        item = items[index] if index < len(items) else None
        item = as_tree({TEXT: item}) if isinstance(item, str) and isinstance(new[key], Tree) else item
        items[index : index + 1] = [_merged(item, new[key], f"{path}.{key}")]
    return items


def spelled_out(section: Any, name: str | None) -> Any:
    """A section that was written as plain text, or has one under other keys, with the text under the key `name`."""
    if isinstance(section, str) and name is not None:
        return {name: section}
    if isinstance(section, Mapping) and TEXT in section:
        section = merge({} if name is None else {name: section[TEXT]}, section)
        del section[TEXT]
    return section


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> Tree:
    """`data` with `a.b=value` assignments on top; values are YAML, later assignments win, their order with `kind` is free.

    Raises UserError for text that is no assignment or whose value is no YAML.
    """
    changes = Tree()
    for text in assignments:
        key, sign, value = text.partition("=")
        steps = key.strip().split(".")
        if not sign or not all(steps):
            raise UserError(f"{COMMAND_LINE}: {text!r}: an override is written key=value, such as model.layers=6")
        change = Tree()
        change.put(steps[-1], _spelled(value.strip()), COMMAND_LINE)
        for step in reversed(steps[:-1]):
            outer = Tree()
            outer.put(step, change, COMMAND_LINE)
            change = outer
        changes = merge(changes, change)
    return merge(data, changes)


def _spelled(value: str) -> Any:
    return value if value[:1] in _INDICATORS and value else _value(value, COMMAND_LINE.file, COMMAND_LINE)


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text that `load_yaml` reads back as the same data; keys keep their order."""
    return yaml.dump(
        plain(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False
    )

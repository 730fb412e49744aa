"""What `triune look pattern` is asked to draw: an expression, a preset or a config, as distinct patterns. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from triune.attention.expression import KNOWN, parse
from triune.attention.patterns import Pattern
from triune.attention.routed.patterns import Routed
from triune.errors import UserError, nearest
from triune.models.checks import check, layer_patterns
from triune.models.config import ModelConfig
from triune.tree import construct, load_yaml

#: Where a name without a path is looked up, below the working directory.
DIRECTORIES = ("configs/model", "configs/pretrain")
_PAPER = re.compile(r"# ([^:\n]*?\([^()\n]*\b(?:19|20)\d\d\b[^()\n]*\))")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One distinct pattern and who uses it.

    Attributes:
        pattern: a static pattern of one head (never a per_head), or a routed one.
        users: which layers and heads use it, in words; empty for a bare expression.
        layers: how many layers use it.
        heads: heads that use it in each of these layers; None without a model.
        head_width: D; None without a model.
    """

    pattern: Pattern | Routed
    users: str = ""
    layers: int = 1
    heads: int | None = None
    head_width: int | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is drawn: its title, a name for files, its panels, and the length at which its model works (None: no model)."""

    title: str
    name: str
    panels: Sequence[Panel]
    context: int | None = None


def subject(name: str) -> Subject:
    """What `name` stands for.

    Args:
        name: an expression (`window(64, 64) | global_tokens(first=2)`), the path of a YAML file, its name in `configs/model`
            or `configs/pretrain` without `.yaml`, or a family's name (`longformer` is `longformer-base`).

    Raises UserError for what is none of these, for a family with several members and no base, and for a wrong config.
    """
    if "(" in name:
        pattern = parse(name)
        panels = [Panel(pattern=part, users=users) for part, users, _ in _heads(pattern, None)]
        return Subject(title=str(pattern), name=_slug(name), panels=panels)
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else _find(name)
    tree = load_yaml(path)
    config = construct(ModelConfig, tree.get("model", tree), "model")
    check(config)
    paper = _PAPER.match(path.read_text(encoding="utf-8-sig"))
    return Subject(
        title=paper[1] if paper else path.stem, name=path.stem, panels=list(_panels(config)), context=config.context
    )


def _find(name: str) -> Path:
    files = {path.stem: path for folder in reversed(DIRECTORIES) for path in sorted(Path(folder).glob("*.yaml"))}
    presets = [stem for stem, path in files.items() if path.parent == Path(DIRECTORIES[0])]
    family = [stem for stem in presets if stem.startswith(f"{name}-")]
    for exact in (name, f"{name}-base", *(family if len(family) == 1 else ())):
        if exact in files:
            return files[exact]
    if family:
        raise UserError(f"look pattern: {name!r} may be {', '.join(family)}; name one of them")
    if name in KNOWN:
        parse(name)  # says what its parentheses hold
    families = {stem.partition("-")[0] for stem in presets}
    hint = nearest(name, [*files, *families, *KNOWN])
    places = " and ".join(DIRECTORIES)
    raise UserError(
        f"look pattern: {name!r} is no config in {places} (of the working directory){hint}; "
        f'a pattern is written with its parentheses, such as "window(64, 64) | prefix(2)"'
    )


def _slug(expression: str) -> str:
    """The expression as a file name."""
    words = expression.replace("&", " and ").replace("|", " or ").replace("~", " not ")
    return re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")[:80]


def _panels(config: ModelConfig) -> Iterator[Panel]:
    if config.family == "encoder_decoder":
        depth = config.resolved_decoder_layers
        yield from _stack(config, layer_patterns(config, config.layers, decoder=False), "encoder layers")
        yield from _stack(config, layer_patterns(config, depth, decoder=True, cross=True), "decoder layers")
    else:
        yield from _stack(config, layer_patterns(config, config.layers, decoder=config.family == "decoder"), "layers")


def _stack(config: ModelConfig, patterns: Sequence[Pattern | Routed], what: str) -> Iterator[Panel]:
    """One panel a distinct pattern, in the order of the layers that first use them."""
    layers: dict[Pattern | Routed, list[int]] = {}
    for index, pattern in enumerate(patterns, 1):
        layers.setdefault(pattern, []).append(index)
    for pattern, used in layers.items():
        where = f"{what} {_listed(used)} ({len(used)} of {len(patterns)})"
        where = f"{what.removesuffix('s')} {used[0]} of {len(patterns)}" if len(used) == 1 else where
        where = f"all {len(used)} {what}" if len(used) == len(patterns) else where
        for part, users, heads in _heads(pattern, config.heads):
            yield Panel(
                pattern=part,
                users=", ".join(filter(None, (where, users))),
                layers=len(used),
                heads=heads,
                head_width=config.resolved_head_width,
            )


def _heads(pattern: Pattern | Routed, heads: int | None) -> Iterator[tuple[Pattern | Routed, str, int | None]]:
    """(pattern, the heads that use it in words, how many) of each distinct pattern among the heads."""
    parts = pattern.heads()
    if len(parts) == 1:
        yield parts[0], "", heads
        return
    total = heads or len(parts)
    used: dict[Pattern | Routed, list[int]] = {}
    for head in range(total):
        used.setdefault(parts[head * len(parts) // total], []).append(head + 1)
    for part, indices in used.items():
        what = f"heads {_listed(indices)} of {total}" if heads else f"part {_listed(indices)} of {total} of the heads"
        yield part, what, len(indices) if heads else None


def _listed(numbers: Sequence[int]) -> str:
    """`1-4, 7, 9-10`: runs of an ascending list; of more than four runs the first three and the last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    words = ["-".join(map(str, run)) for run in runs]
    return ", ".join(words) if len(words) <= 4 else f"{', '.join(words[:3])} ... {words[-1]}"

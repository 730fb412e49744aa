"""A survey in words and in characters, for a terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from triune.insight.subject import Panel, Subject
from triune.insight.survey import Survey, areas, fold

_BLOCKS = ("██", "▒▒", "· ")
_ASCII = ("##", "++", ". ")


def report(subject: Subject, surveys: list[Survey | None], length: int, tile: int, encoding: str) -> Iterator[str]:
    """The lines of the report: each panel's facts and its matrix in characters that `encoding` has.

    `surveys` hold one for each panel; None for a routed one, which chooses its keys by content.
    """
    if subject.context is not None:
        yield subject.title
    yield f"length {length:,}, tiles of {tile} x {tile}"
    side = 32 if len(surveys) <= 2 else 16 if len(surveys) <= 4 else 0  # many matrices would bury their facts
    for panel, found in zip(subject.panels, surveys, strict=True):
        yield ""
        yield ": ".join(filter(None, (str(panel.pattern), panel.users)))
        if found is None:
            yield from _routed(panel, length)
            continue
        yield from (f"  {name:7}{said}" for name, said in facts(panel, found))
        if side and found.kept < found.pairs:
            yield ""
            yield from (f"  {line}".rstrip() for line in matrix(found, side, encoding))
    if subject.context is not None:
        yield ""
        yield _whole(subject, surveys, length)


def facts(panel: Panel, found: Survey) -> Iterator[tuple[str, str]]:
    """(name, sentence) of each fact about a panel."""
    yield "kept", f"{found.kept:,} of {found.pairs:,} pairs ({share(found.kept, found.pairs)})"
    spread = f"{found.fewest:,} to {found.most:,} a query, {found.kept / found.length:,.1f} on average"
    yield "keys", spread if found.fewest < found.most else f"{found.most:,} a query"
    yield "tiles", tiles(found)
    cost = f"{found.computed:,} pairs in the tiles that are not skipped: {share(found.computed, found.pairs)} of dense"
    yield "cost", cost + (f", {share(found.computed, found.causal_pairs)} of causal dense" if found.causal else "")
    if panel.heads is not None and panel.head_width is not None:
        pair = 4 * panel.heads * panel.head_width
        yield (
            "FLOPs",
            f"{_scaled(pair * found.kept)} a layer, forward: 4 x {panel.heads} heads x {panel.head_width} x kept pairs; "
            f"all pairs take {_scaled(pair * found.pairs)}",
        )
    if found.blind:
        yield "note", f"queries that see no key, whose output is zero: {found.blind:,}"
    if found.shows_all and not panel.pattern.is_full and str(panel.pattern) != "causal()":
        kind = "causal" if found.causal else "full"
        yield "note", f"the same as {kind}() at this length; a longer one shows more: --length {4 * found.length}"


def tiles(found: Survey) -> str:
    """The tiles in one clause."""
    return f"{found.full:,} full, {found.partial:,} partial, {found.skipped:,} skipped"


def share(part: int, whole: int) -> str:
    """In per cent with three digits; never a plain 100 where it is not all."""
    percent = 100 * part / whole
    if 99.5 <= percent < 100.5 and part != whole:
        return "about 100 %"
    return f"{percent:.3g} %" if percent < 999.5 else f"{percent:,.0f} %"


def matrix(found: Survey, side: int, encoding: str) -> Iterator[str]:
    """The matrix in two characters a cell, at most `side` cells a side, and what they mean."""
    factor = -(-len(found.cells) // side)
    cells = fold(found.cells, factor)
    cell = found.cell * factor
    try:
        "".join(_BLOCKS).encode(encoding)
        full, some, none = _BLOCKS
    except (UnicodeEncodeError, LookupError):
        full, some, none = _ASCII
    for counts, sizes in zip(cells, areas(found.length, cell), strict=True):
        yield "".join(
            none if count == 0 else full if count == size else some for count, size in zip(counts, sizes, strict=True)
        )
    what = (
        f"all kept, {some} some, {none.strip()} none of {cell} x {cell} pairs"
        if cell > 1
        else f"kept, {none.strip()} not"
    )
    yield f"{full} {what}; queries down, keys across"


def _routed(panel: Panel, length: int) -> Iterator[str]:
    kept = panel.pattern.kept(length, length)
    yield f"  kept   at most {kept:,} of {length**2:,} pairs ({share(kept, length**2)})"
    yield "  note   which ones depends on what the tokens hold, so there is no picture"


def _whole(subject: Subject, surveys: list[Survey | None], length: int) -> str:
    """Attention FLOPs of all self-attention layers beside dense ones."""
    weights = [panel.layers * (panel.heads or 0) * (panel.head_width or 0) * 4 for panel in subject.panels]
    pairs = [
        panel.pattern.kept(length, length) if found is None else found.kept
        for panel, found in zip(subject.panels, surveys, strict=True)
    ]
    kept = sum(weight * pair for weight, pair in zip(weights, pairs, strict=True))
    dense = sum(weights) * length**2
    return f"self-attention of all layers: {_scaled(kept)} a row, forward; all pairs take {_scaled(dense)} ({share(kept, dense)})"


def _scaled(flops: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if flops < 999.5:
            return f"{flops:.3g} {unit}"
        flops /= 1000
    return f"{flops:,.3g} TFLOP" if flops < 999.5 else f"{flops:,.0f} TFLOP"

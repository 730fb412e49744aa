"""`triune look pattern`: the matrix of a pattern as a picture, its counts and its cost. Imports no torch, and matplotlib when it draws."""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triune.attention.patterns import Pattern
from triune.errors import UserError
from triune.insight.pattern_text import report, share, tiles
from triune.insight.subject import Panel, Subject, subject
from triune.insight.survey import Survey, areas, check_sizes, default_tile, fold, survey

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

#: Length at which an expression is drawn where none is asked for; a model is drawn at its context.
DEFAULT_LENGTH = 256
FORMATS = (".png", ".pdf", ".svg")

# Blue and orange stay apart in every common kind of colour blindness, and kept is darker than not kept without colours.
_KEPT_FULL = (0.04, 0.24, 0.45)
_KEPT_PARTIAL = (0.78, 0.30, 0.0)
_MASKED = (0.99, 0.85, 0.66)
_SKIPPED = (0.95, 0.95, 0.95)

_DPI = 100
_POINT = 72 / _DPI  # a pixel, in points
_TEXT = 9  # points; a line of it takes _LINE pixels, a character about _CHARACTER
_LINE = 17
_CHARACTER = 6.9


def look(pattern: str, *, length: int | None = None, tile: int | None = None, output: str | None = None) -> int:
    """Draw `pattern` into `output` and print its facts; the exit code.

    Args:
        pattern: an expression, a preset or a config; see `subject`.
        length: queries, and keys; None is the model's context, for an expression `DEFAULT_LENGTH`.
        tile: queries, and keys, of a tile; None is 128, less at short lengths.
        output: a file whose name ends in one of `FORMATS`; None is `runs/look/<name>-<length>.png`.
    """
    shown = subject(pattern)
    length = length if length is not None else shown.context or DEFAULT_LENGTH
    tile = tile if tile is not None else default_tile(length)
    check_sizes(length, tile)
    path = Path(output) if output is not None else Path("runs/look") / f"{shown.name}-{length}.png"
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output is {str(path)!r}, but its name must end in one of {', '.join(FORMATS)}.")
    most = 1024 if len(shown.panels) <= 2 else 512
    surveys = [
        survey(panel.pattern, length, tile, most) if isinstance(panel.pattern, Pattern) else None
        for panel in shown.panels
    ]
    for line in report(shown, surveys, length, tile, sys.stdout.encoding):
        print(line)
    drawn = [(panel, found) for panel, found in zip(shown.panels, surveys, strict=True) if found is not None]
    if drawn:
        save(draw(shown, drawn), path)
        print(f"picture: {path}")
    return 0


def save(figure: Figure, path: Path) -> None:
    """Write `figure`, with the directories above it. UserError where that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        smaller: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if path.suffix.lower() == ".png" else {}
        figure.savefig(path, dpi=_DPI, **smaller)
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); name a file that can") from None


@dataclass(frozen=True)
class _Grid:
    """Where the panels stand, in pixels: `side` of a matrix, `head` of text above it, columns and rows of panels."""

    side: int
    head: int
    columns: int
    rows: int
    title: int
    left: int

    right, bottom = 26, 52

    @property
    def legend(self) -> int:
        return 62 if self._wide else 84

    @property
    def legend_columns(self) -> int:
        return 4 if self._wide else 2

    @property
    def _wide(self) -> bool:
        return self.width - self.left > 650

    @property
    def width(self) -> int:
        return self.columns * (self.left + self.side + self.right)

    @property
    def height(self) -> int:
        return self.title + self.rows * (self.head + self.side + self.bottom) + self.legend

    def place(self, index: int) -> tuple[int, int]:
        """(from the left, from the top) of a matrix."""
        row, column = divmod(index, self.columns)
        across = column * (self.left + self.side + self.right) + self.left
        return across, self.title + row * (self.head + self.side + self.bottom) + self.head


def draw(shown: Subject, drawn: list[tuple[Panel, Survey]]) -> Figure:
    """One matrix a panel: queries down, keys across; a cell is a whole number of pixels, so that a single line never vanishes."""
    from matplotlib.figure import Figure

    wanted = {1: 510, 2: 400}.get(len(drawn), 290)  # at least
    cells = len(drawn[0][1].cells)
    side = cells * -(-wanted // cells)
    columns = min(len(drawn), 4)
    heads = [_heading(shown, panel, found, side) for panel, found in drawn]
    left = 40 + 7 * len(f"{drawn[0][1].length:,}")
    title = _wrap(_title(shown, drawn[0][1]), columns * (side + left) - left, 1.25)
    grid = _Grid(
        side=side,
        head=_LINE * max(len(lines) for lines in heads) + 14,
        columns=columns,
        rows=-(-len(drawn) // columns),
        title=int(_LINE * 1.3 * len(title)) + 26,
        left=left,
    )
    figure = Figure(figsize=(grid.width / _DPI, grid.height / _DPI), dpi=_DPI)
    figure.text(
        grid.left / grid.width, 1 - 16 / grid.height, "\n".join(title), size=_TEXT * 1.25, weight="bold", va="top"
    )
    for index, ((_, found), lines) in enumerate(zip(drawn, heads, strict=True)):
        _matrix(figure, grid, index, found, lines)
    _legend(figure, grid, drawn)
    return figure


def _title(shown: Subject, found: Survey) -> str:
    return f"{shown.title}: length {found.length:,}, tiles of {found.tile}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{found.tile}"


def _heading(shown: Subject, panel: Panel, found: Survey, side: int) -> list[str]:
    """The lines above a matrix."""
    dense = f"{share(found.computed, found.pairs)} of dense"
    causal = f", {share(found.computed, found.causal_pairs)} of causal dense" if found.causal else ""
    said = [
        "" if str(panel.pattern) == shown.title else str(panel.pattern),
        panel.users,
        f"kept: {share(found.kept, found.pairs)} of the pairs",
        f"tiles: {tiles(found)}",
        f"cost in tiles: {dense}{causal}",
    ]
    return [line for text in said for line in _wrap(text, side)]


def _wrap(text: str, pixels: int, size: float = 1.0) -> list[str]:
    """`text` in lines of about `pixels`, at `size` times the usual letters; `window(3, 0)` stays in one piece."""
    whole = re.sub(r"(?<!\)), ", ",\N{NO-BREAK SPACE}", text)
    return textwrap.wrap(whole, max(int(pixels / (_CHARACTER * size)), 8), break_on_hyphens=False)


def _matrix(figure: Figure, grid: _Grid, index: int, found: Survey, lines: list[str]) -> None:
    across, down = grid.place(index)
    axes = figure.add_axes(
        (
            across / grid.width,
            1 - (down + grid.side) / grid.height,
            grid.side / grid.width,
            grid.side / grid.height,
        )
    )
    reach = len(found.cells) * found.cell - 0.5
    axes.imshow(picture(found), extent=(-0.5, reach, reach, -0.5), interpolation="none", aspect="auto")
    axes.set_xlim(-0.5, found.length - 0.5)
    axes.set_ylim(found.length - 0.5, -0.5)
    step = _step(found)
    ticks = range(0, found.length, step)
    labels = [f"{tick:,}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.tick_params(labelsize=_TEXT - 1, length=3, color="0.5")
    axes.set_xlabel("key position", size=_TEXT)
    axes.set_ylabel("query position", size=_TEXT)
    for spine in axes.spines.values():
        spine.set(color="0.5", linewidth=_POINT)
        spine.set_position(("outward", 1.5 * _POINT))  # beside the outermost pairs, not over them
    figure.text(
        across / grid.width, 1 - (down - 8) / grid.height, "\n".join(lines), size=_TEXT, va="bottom", linespacing=1.35
    )


def _step(found: Survey) -> int:
    """Positions between two ticks: a tile times a power of two, at most six ticks an axis."""
    step = found.tile
    while step * 6 < found.length:
        step *= 2
    return step


def picture(found: Survey) -> np.ndarray:
    """Colours [cells, cells, 3]: of the tile that holds the cell, darker the more of its pairs are kept."""
    import numpy as np

    sizes = areas(found.length, found.cell)
    share_kept = (found.cells / sizes)[..., None]
    kinds = _kinds(found)[..., None]  # 0 skipped, 1 partial, 2 full
    strength = np.where(share_kept > 0, 0.45 + 0.55 * share_kept, 0)  # a single pair of a large cell still shows
    partial = np.array(_MASKED) + strength * (np.array(_KEPT_PARTIAL) - np.array(_MASKED))
    return np.select([kinds == 2, kinds == 1], [np.array(_KEPT_FULL), partial], np.array(_SKIPPED))


def _kinds(found: Survey) -> np.ndarray:
    """Of each cell, the kind of the tile that it lies in (of itself, where it is a tile or more): int [cells, cells]."""
    import numpy as np

    factor = max(found.tile // found.cell, 1)
    counts = fold(found.cells, factor)
    kinds = (counts > 0).astype(int) + (counts == areas(found.length, found.cell * factor))
    size = len(found.cells)
    return np.repeat(np.repeat(kinds, factor, axis=0), factor, axis=1)[:size, :size]


def _legend(figure: Figure, grid: _Grid, drawn: list[tuple[Panel, Survey]]) -> None:
    from matplotlib.patches import Patch

    found = drawn[0][1]
    entries: list[tuple[Any, str]] = [
        (_KEPT_FULL, "full tile, all kept"),
        (_KEPT_PARTIAL, "kept, in a partial tile"),
        (_MASKED, "computed and masked out"),
        (_SKIPPED, "skipped tile"),
    ]
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor="0.5", linewidth=0.5, label=label) for colour, label in entries],
        loc="lower left",
        bbox_to_anchor=((grid.left - 6) / grid.width, 6 / grid.height),
        ncols=grid.legend_columns,
        frameon=False,
        fontsize=_TEXT,
        handlelength=1,
        handleheight=1,
        columnspacing=1.4,
    )
    if found.cell > 1:
        said = f"a dot is {found.cell} x {found.cell} pairs, darker the more of them are kept"
        figure.text(
            grid.left / grid.width, (grid.legend - 20) / grid.height, said, size=_TEXT, va="bottom", color="0.3"
        )

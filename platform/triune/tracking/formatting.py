"""Numbers as people read them: `14.2M`, `3 min 24 s`, `1.5 GiB`. Imports no torch."""

from __future__ import annotations

import math

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_FLOP_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def _scaled(value: float, scales: tuple[tuple[float, str], ...]) -> str:
    for scale, letter in scales:
        # what would round to 1000 belongs to the next scale up
        if abs(value) >= scale * 0.9995:
            return _three_digits(value / scale) + letter
    return f"{value:.0f}"


def count(value: float) -> str:
    """A count with three digits and a decimal scale: 14_200_000 -> `14.2M`, 512 -> `512`."""
    return _scaled(value, _SCALES)


def flops(value: float, *, per_second: bool = False) -> str:
    """Floating-point operations: 1.9e11 -> `190 GFLOP` (or `190 GFLOP/s`)."""
    text = _scaled(value, _FLOP_SCALES)
    number, scale = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
    return f"{number} {scale}FLOP{'/s' if per_second else ''}"


def size(value: float) -> str:
    """Bytes in binary units: 1_610_612_736 -> `1.50 GiB`."""
    for scale, unit in _BYTES:
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 204 -> `3 min 24 s`, 7500 -> `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def clock(seconds: float) -> str:
    """A length of time of constant shape, for a line that is redrawn: 102 -> `1:42`, 7500 -> `2:05:00`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figure(value: float) -> str:
    """A metric with four significant digits, never in scientific notation between 1e-3 and 1e6: 3.2141 -> `3.214`."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    exponent = int(f"{value:.3e}".split("e")[1])  # of the rounded value: 9.9996 is 10.00
    return f"{value:,.{max(0, 3 - exponent)}f}"

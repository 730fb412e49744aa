"""Amounts that carry their unit: `0.5M` tokens, `32k` entries, `30min`, `100 steps`. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def _split(text: object, what: str) -> tuple[float, str]:
    match = _AMOUNT.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not {what}")
    return float(match[1].replace("_", "")), match[2]


class Count(int):
    """A whole number written with or without a scale: `4096`, `32k`, `0.5M`, `10B`.

    Scales are decimal (k = 1,000, M = 10^6, B = 10^9, T = 10^12).
    Raises ValueError for another unit, a negative or a fractional result.
    """

    def __new__(cls, value: int | float | str = 0) -> Count:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a whole number")
        number, unit = _split(value, "a whole number such as 4096, 32k, 0.5M or 10B")
        if unit not in _SCALE:
            raise ValueError(f"{value!r} has an unknown scale {unit!r}: use k, M, B or T")
        scaled = number * _SCALE[unit]
        if abs(scaled - round(scaled)) > 1e-6:
            raise ValueError(f"{value!r} is not a whole number")
        return super().__new__(cls, round(scaled))


@dataclass(frozen=True)
class Interval:
    """A span of training with its unit: `50M` (tokens), `100 steps`, `30min` (time), `0.2` (fraction of the run).

    unit is one of "tokens", "steps", "seconds", "fraction". A bare number below 1 with a point is a fraction,
    any other bare or scaled number counts tokens.
    """

    amount: float
    unit: str
    text: str = ""

    @classmethod
    def parse(cls, value: Interval | int | float | str) -> Interval:
        """Read an interval; ValueError names the accepted spellings."""
        if isinstance(value, Interval):
            return value
        number, unit = _split(value, "an interval such as 50M (tokens), 100 steps, 30min or 0.2 (of the run)")
        text = str(value)
        if unit in ("step", "steps"):
            return cls(number, "steps", text)
        if unit in _SECONDS:
            return cls(number * _SECONDS[unit], "seconds", text)
        if unit in _SCALE:
            if unit == "" and 0 < number < 1:
                return cls(number, "fraction", text)
            return cls(number * _SCALE[unit], "tokens", text)
        raise ValueError(f"{value!r} has an unknown unit {unit!r}: use tokens (50M), steps, s, min, h or d")

    def __str__(self) -> str:
        return self.text or f"{self.amount:g} {self.unit}"

    def steps(self, *, batch_tokens: int, total_steps: int) -> int:
        """Length in optimizer steps (at least 0); ValueError for a time, which has no fixed length in steps."""
        if self.unit == "seconds":
            raise ValueError(f"{self} is a time; this option needs tokens, steps or a fraction of the run")
        if self.unit == "steps":
            return round(self.amount)
        if self.unit == "fraction":
            return round(self.amount * total_steps)
        return -(-int(self.amount) // batch_tokens)

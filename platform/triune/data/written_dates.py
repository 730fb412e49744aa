"""Written dates and numbers in two languages, made with the Babel library: as many as are asked for, each once.

A source text names its direction, so that its translation is a function of it: "en → es: Tuesday, March 3, 2026" is
"martes, 3 de marzo de 2026". The spellings are those of Unicode's CLDR, which Babel carries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial

LANGUAGES = ("en", "es", "fr", "de", "it", "pt")
_FIRST = date(1900, 1, 1)
_DAYS = (date(2100, 1, 1) - _FIRST).days
_CURRENCIES = ("EUR", "USD", "JPY")
#: kinds of example -> how many in a hundred
_SHARES = {"full": 35, "long": 25, "decimal": 10, "percent": 10, "currency": 10, "compact": 10}
_Spell = Callable[[str], str]  # language -> the value as written in it


def written_dates(examples: int, seed: int) -> Iterator[tuple[str, str]]:
    """`examples` (source, target) pairs; no source comes twice, and the first n are the same however many are asked for."""
    seen: set[str] = set()
    index = 0
    while len(seen) < examples:
        source, target = written_date(seed, index)
        index += 1
        if source not in seen:
            seen.add(source)
            yield source, target


def written_date(seed: int, index: int) -> tuple[str, str]:
    """The (source, target) pair that (seed, index) draws. Source alone decides target, for any seed and index."""
    draw = random.Random(f"{seed} {index}")
    spell = value_of(draw, draw.choices(list(_SHARES), list(_SHARES.values()))[0])
    source, target = draw.sample(LANGUAGES, 2)
    return f"{source} → {target}: {_plain(spell(source))}", _plain(spell(target))


def value_of(draw: random.Random, kind: str) -> _Spell:
    """A date or number drawn, as a function of the language it is written in.

    Only spellings that lose nothing: CLDR's medium dates coincide with its long ones in some languages and its short
    ones drop the century, so neither is here; a compact number has three digits before its power of ten.
    """
    from babel.dates import format_date
    from babel.numbers import format_compact_decimal, format_currency, format_decimal, format_percent

    if kind in ("full", "long"):
        day = _FIRST + timedelta(days=draw.randrange(_DAYS))
        return lambda language: format_date(day, kind, locale=language)
    if kind == "decimal":
        return partial(_number, format_decimal, draw.randrange(1, 10 ** draw.randint(2, 9)) / 100)
    if kind == "percent":
        return partial(_number, format_percent, draw.randrange(1, 10 ** draw.randint(2, 5)) / 100)
    if kind == "currency":
        currency = draw.choice(_CURRENCIES)
        amount = draw.randrange(1, 10 ** draw.randint(2, 8)) / (1 if currency == "JPY" else 100)
        return lambda language: format_currency(amount, currency, locale=language)
    count = draw.randrange(1, 1000) * 10 ** draw.randint(3, 10)
    return lambda language: format_compact_decimal(count, format_type="long", locale=language, fraction_digits=2)


def _number(spell: Callable[..., str], value: float, language: str) -> str:
    return spell(value, locale=language)


def _plain(text: str) -> str:
    """CLDR's no-break spaces as plain ones: not every tokenizer can spell them."""
    return text.replace("\u202f", " ").replace("\xa0", " ")

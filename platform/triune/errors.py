"""The one exception a user's mistake raises; the command line prints it on one screen and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: its message names the option, its value, the constraint and the fix."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known spelling nearest to `word`, or the empty string where none is near."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""

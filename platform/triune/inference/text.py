"""What a row writes, as text: whole characters only, and nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: ids -> text
Decode = Callable[[Sequence[int]], str]

_HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for the bytes of a character that is not there yet


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop text in it."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


class Spelling:
    """The text of one row that grows token by token, in pieces that are never taken back.

    A piece ends before the bytes of a character that is not whole yet and before what may turn out to be the beginning of a
    stop text; both may lie in the middle of a token. All pieces and the `rest` together are the text of all ids, cut at the first
    stop text. Where a decoder changes text that it has already given (WordPiece takes spaces away), what was given stays.

    Args:
        decode: ids -> text.
        stop: texts at which the row's text ends.
        before: ids that stand before the row, which tell some decoders whether a space comes first.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.decode = decode
        self.stop = stop
        self.ids = list(before)
        self.start = len(decode(self.ids)) if before else 0
        self.given = 0  # characters handed out
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that one more token makes certain; empty after a stop text."""
        if self.stopped:
            return ""
        self.ids.append(token)
        text = self.decode(self.ids)[self.start :]
        known = cut(text, self.stop)
        self.stopped = len(known) < len(text)
        return self._give(known if self.stopped else known[: self._certain(known)])

    def rest(self) -> str:
        """What was held back, once no token follows."""
        return "" if self.stopped else self._give(self.decode(self.ids)[self.start :])

    def _give(self, text: str) -> str:
        piece = text[self.given :]
        self.given = max(self.given, len(text))
        return piece

    def _certain(self, text: str) -> int:
        """Characters of `text` that no further token can change or turn into a stop text."""
        whole = len(text.rstrip(_HALF))
        held = [
            size
            for stop in self.stop
            for size in range(1, min(len(stop), whole + 1))
            if text.startswith(stop[:size], whole - size)
        ]
        return whole - max(held, default=0)


class Stops:
    """Whether a row has written one of the stop texts: an `ending` of `generate`.

    Args:
        decode: ids -> text.
        stop: the texts.
        before: see `Spelling`.
    """

    def __init__(self, decode: Decode, stop: Sequence[str], before: Sequence[int] = ()) -> None:
        self.decode = decode
        self.stop = stop
        self.before = list(before)
        self.start = len(decode(self.before)) if before else 0

    def __call__(self, row: list[int]) -> bool:
        """Whether one of them is in the text of `row`."""
        text = self.decode([*self.before, *row])[self.start :]
        return any(stop in text for stop in self.stop)

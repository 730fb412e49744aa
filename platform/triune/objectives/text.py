"""What a task asks of a tokenizer: ids of texts, where they lie in the text, and the special tokens that stand around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from triune.objectives.batch import Vocabulary


class TextEncoder(Protocol):
    """The part of a tokenizer that tasks use (`triune.data.tokenizers.Tokenizer` is one)."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Size and special tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, without special tokens."""

    def encode_aligned(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """([n] ids, [n, 2] start and end of each in characters of its text) of each text, without special tokens."""

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids."""

    def frame(self, family: str) -> Frame:
        """The special tokens around a text and around a pair of texts."""

    @property
    def tokens(self) -> Mapping[str, int]:
        """Every token as the vocabulary spells it, special ones included -> its id."""

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, reply: bool) -> str:
        """A conversation as the tokenizer's own chat template writes it, with `reply` up to where the assistant speaks."""


@dataclass(frozen=True)
class Framed:
    """A text, or a pair, with its special tokens.

    `starts` says where each text's own ids begin, `lengths` how many are left of each.
    """

    ids: np.ndarray  # [n] int64
    token_types: np.ndarray  # [n] int64: segment of each token, 0 or 1
    starts: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Special tokens around a text and around a pair, as ids.

    Args:
        before: of a text, and of the first of a pair.
        after: of a text alone.
        between: of a pair, behind its first text.
        pair_after: of a pair, behind its second text.
        pair_before: of a pair, before its first text.
        segments: whether the second text of a pair, with what follows it, is segment 1 (BERT); else all is segment 0.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pair_before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    pair_after: tuple[int, ...] = ()
    segments: bool = False

    def room(self, length: int, *, pair: bool = False) -> int:
        """Ids of text that fit into `length` tokens."""
        around = (self.pair_before, self.between, self.pair_after) if pair else (self.before, self.after)
        return length - sum(map(len, around))

    def __call__(self, text: np.ndarray, second: np.ndarray | None = None, *, length: int | None = None) -> Framed:
        """The framed text or pair; beyond `length` tokens, ids go from the end of the longer text."""
        if second is None:
            text = text if length is None else text[: max(0, self.room(length))]
            ids = np.concatenate([self.before, text, self.after]).astype(np.int64)
            return Framed(ids, np.zeros(len(ids), np.int64), (len(self.before),), (len(text),))
        if length is not None:
            text, second = _shortened(text, second, max(0, self.room(length, pair=True)))
        first = len(self.pair_before) + len(text) + len(self.between)
        ids = np.concatenate([self.pair_before, text, self.between, second, self.pair_after]).astype(np.int64)
        types = np.zeros(len(ids), np.int64)
        if self.segments:
            types[first:] = 1
        return Framed(ids, types, (len(self.pair_before), first), (len(text), len(second)))


def _shortened(text: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """A pair cut to `room` ids in all, taken one by one from the longer (of equals, from the second)."""
    over = len(text) + len(second) - room
    if over <= 0:
        return text, second
    shorter = min(len(text), len(second))
    if room <= 2 * shorter:  # both come down to halves, the first has the odd one
        return text[: room - room // 2], second[: room // 2]
    kept = room - shorter
    return (text[:kept], second) if len(text) > len(second) else (text, second[:kept])

"""How good an answer is, as SQuAD's official evaluation has it (evaluate-v2.0.py; Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """`answer` in lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where `answer` is one of `references` once both are normalized, else 0; without references "" is right."""
    return _best(lambda own, other: float(own == other), answer, references)


def f1(answer: str, references: Sequence[str]) -> float:
    """The greatest F1 of the words of `answer` and those of one of `references`; without references "" has 1, all else 0."""
    return _best(_overlap, answer, references)


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    known = [text for text in map(normalized, references) if text] or [""]
    return max(score(normalized(answer), reference) for reference in known)


def _overlap(answer: str, reference: str) -> float:
    own, other = answer.split(), reference.split()
    if not own or not other:
        return float(own == other)
    shared = (Counter(own) & Counter(other)).total()
    # 2 P R / (P + R) of precision shared / |own| and recall shared / |other|
    return 2 * shared / (len(own) + len(other))

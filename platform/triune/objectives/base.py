"""The contract of an objective: a pure function of ids and a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from triune.objectives.batch import Example, Segment, Vocabulary
from triune.objectives.config import LossConfig


class Objective(ABC):
    """Turns the segments of a row into an `Example`; the same (segments, generator seed) give the same example.

    Args:
        config: this objective's settings.
        vocabulary: sizes and special tokens.
        context: the longest row of either tower, in tokens.
    """

    families: ClassVar[frozenset[str]]
    #: metric that `validation/accuracy` is compared with, and whether bits per byte is defined for it
    measures_bits_per_byte: ClassVar[bool] = False

    def __init__(self, config: LossConfig, vocabulary: Vocabulary, context: int) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.context = context

    @abstractmethod
    def check(self, family: str) -> None:
        """Raise UserError, naming option, value, constraint and fix, where this objective cannot serve `family` or this vocabulary."""

    @abstractmethod
    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        """[N] ids in each document -> [N] the most room each can take in a row of `context` (special tokens included).

        The packer fills rows so that costs never add up to more than `context`.
        """

    @property
    @abstractmethod
    def longest(self) -> int:
        """Most raw ids a segment may hold so that its cost is at most `context`; longer documents are cut there."""

    @abstractmethod
    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        """One row of the model from the row's segments."""

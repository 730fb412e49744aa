"""The contract of an objective: a pure function of ids and a seed."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from triune.errors import UserError
from triune.objectives.batch import Example, Segment, Vocabulary
from triune.objectives.config import FAMILY, LossConfig


class Objective(ABC):
    """Turns the segments of a row into an `Example`; the same (segments, generator seed) give the same example.

    Every objective reports the accuracy over the positions of weight 1 (those it predicts).

    Args:
        config: this objective's settings.
        vocabulary: sizes and special tokens.
        context: the longest row of either tower, in tokens.
    """

    #: `objective.kind`
    kind: ClassVar[str]
    families: ClassVar[frozenset[str]]
    #: whether each token of the text is predicted once, from those before it, so that bits per byte is defined
    measures_bits_per_byte: ClassVar[bool] = False
    #: whether the loss is the negative log-likelihood of tokens, so that its exponential is a perplexity
    measures_perplexity: ClassVar[bool] = True

    def __init__(self, config: LossConfig, vocabulary: Vocabulary, context: int) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.context = context

    def check(self, family: str) -> None:
        """Raise UserError, naming option, value, constraint and fix, where this objective cannot serve `family` or this vocabulary."""
        if family not in self.families:
            others = [repr(kind) for kind, served in FAMILY.items() if served == family]
            hint = (
                f"; use {' or '.join([', '.join(others[:-1]), others[-1]] if others[1:] else others)}" if others else ""
            )
            raise UserError(
                f"objective.kind: '{self.kind}' serves family {' or '.join(sorted(self.families))}, not {family}{hint}"
            )
        self._share("label_smoothing", self.config.label_smoothing, "[0, 1)")
        if not self.config.z_loss >= 0:
            raise UserError(f"objective.z_loss: {self.config.z_loss} is negative; use 0 (off) or 1e-4 (PaLM)")
        if self.vocabulary.bos is None:
            self._token("eos")  # either stands in for the other
        self._check()
        if self.longest < 1:
            raise UserError(
                f"data.rows.length: a row of {self.context} tokens has no room for a token of text beside "
                f"the special tokens of objective.kind '{self.kind}'; make it longer (null is model.context)"
            )

    def _check(self) -> None:  # noqa: B027  an objective without settings asks nothing
        """What `check` asks of this objective's own settings and special tokens."""

    @abstractmethod
    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        """[N] ids in each document -> [N] the most room each can take in a row of `context` (special tokens included).

        The packer fills rows so that costs never add up to more than `context`. Never falls as a length grows.
        """

    @cached_property
    def longest(self) -> int:
        """Most raw ids a segment may hold so that its cost is at most `context`; longer documents are cut there.

        Below 1 where no token fits.
        """
        # an id takes room in at least one tower, so no segment of 2 * context + 1 ids fits
        lengths = range(2 * self.context + 2)
        return bisect.bisect_right(lengths, self.context, key=lambda n: int(self.cost(np.array([n]))[0])) - 1

    @abstractmethod
    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        """One row of the model from the row's segments."""

    @cached_property
    def _special(self) -> np.ndarray:
        """[V] bool: True for special tokens."""
        table = np.zeros(self.vocabulary.size, bool)
        table[list(self.vocabulary.special)] = True
        return table

    def _share(self, name: str, value: float, interval: str) -> None:
        """UserError where objective.`name` is outside `interval`: "(0, 1)", "[0, 1)" or "[0, 1]"."""
        if not (0 <= value <= 1) or (value == 0 and interval[0] == "(") or (value == 1 and interval[-1] == ")"):
            raise UserError(f"objective.{name}: {value} is a share and must lie in {interval}")

    def _mean_span(self, value: float) -> None:
        if not value >= 1:
            raise UserError(f"objective.mean_span: {value} is below 1 token; T5 and BART use 3")

    def _token(self, role: str) -> int:
        """Id of the special token of a role of `Vocabulary`; UserError where the tokenizer lacks it."""
        token = getattr(self.vocabulary, role)
        if token is None:
            raise UserError(
                f"objective.kind: '{self.kind}' needs a token for the role {role}, and the tokenizer has none; "
                "train one with data.tokenizer.kind, or add the token to the tokenizer at data.tokenizer.path"
            )
        return token

"""Prefix language modelling (Raffel et al. 2020, 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from triune.errors import UserError
from triune.objectives.batch import Example, Segment
from triune.objectives.causal import Causal
from triune.objectives.config import FAMILY, PrefixObjective


class Prefix(Causal):
    """As causal, but every position of a document sees its prefix: [bos] and the first k ids, which are not predicted.

    k is a whole number between `minimum` and `maximum` of the document's length, all equally likely, and below the length,
    so that something is left to predict.
    """

    kind = "prefix"
    families = frozenset({FAMILY[kind]})
    measures_bits_per_byte = False
    config: PrefixObjective

    def _check(self) -> None:
        self._share("minimum", self.config.minimum, "[0, 1]")
        self._share("maximum", self.config.maximum, "[0, 1]")
        if self.config.minimum > self.config.maximum:
            raise UserError(
                f"objective.minimum: {self.config.minimum} is above objective.maximum, {self.config.maximum}; swap them"
            )

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        row = super().__call__(segments, generator)
        lengths = np.bincount(row.documents) - 1  # [D] ids; each document has one position more
        low = np.ceil(self.config.minimum * lengths)
        high = np.maximum(low, np.floor(self.config.maximum * lengths))
        count = low + np.floor(generator.random(len(lengths)) * (high - low + 1))
        last = np.clip(count, 0, np.maximum(lengths - 1, 0))[row.documents]  # [t] last position of its prefix
        # position k reads the prefix's last id and predicts the first one behind it
        weights = row.weights * (row.positions >= last)
        return replace(row, prefix=row.positions <= last, weights=weights.astype(np.float32))

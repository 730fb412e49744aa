"""Next-token prediction (Radford et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.objectives.assemble import flatten, frame, next_token
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY


class Causal(Objective):
    """Inputs are [bos] ids, targets ids [eos], of each document.

    A piece of a cut document also starts from [bos], so that every token is predicted once; its end token
    has weight 0 unless the document ends there. A vocabulary without bos starts from eos, as GPT-2 does.
    """

    kind = "causal"
    families = frozenset({FAMILY[kind]})
    measures_bits_per_byte = True

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths) + 1

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        ids, lengths = flatten(segments)
        return next_token(
            frame(ids, lengths, last=self.vocabulary.closing),
            lengths + 1,
            start=self.vocabulary.opening,
            closed=np.array([segment.ends for segment in segments]),
        )

"""Sequence to sequence on pairs (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.errors import UserError
from triune.objectives.assemble import flatten, frame, next_token
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY


class Translation(Objective):
    """The source is the first text of a pair and eos, the target the second and eos; `Segment.split` lies between.

    The decoder starts from bos, or from pad where there is none.
    """

    kind = "translation"
    families = frozenset({FAMILY[kind]})

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        """The longer text of each pair and eos; without `splits`, the worst case: all in one text."""
        lengths = np.asarray(lengths)
        return (lengths if splits is None else np.maximum(splits, lengths - splits)) + 1

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        """Raises UserError where a segment is not a pair."""
        sources, targets = [], []
        for segment in segments:
            if segment.split is None:
                raise UserError(
                    "objective.kind: 'translation' needs pairs of texts, and a document of data.train has one text; "
                    "set target_column on every source"
                )
            sources.append(Segment(segment.ids[: segment.split]))
            targets.append(Segment(segment.ids[segment.split :]))
        (source, source_lengths), (target, target_lengths) = flatten(sources), flatten(targets)
        eos = self.vocabulary.closing
        return next_token(
            frame(target, target_lengths, last=eos),
            target_lengths + 1,
            start=self.vocabulary.decoder_start,
            source=(frame(source, source_lengths, last=eos), source_lengths + 1),
        )

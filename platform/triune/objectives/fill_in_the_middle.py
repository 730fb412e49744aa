"""Fill in the middle (Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.objectives.assemble import flatten, frame, next_token
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY, FillInTheMiddleObjective


class FillInTheMiddle(Objective):
    """Causal prediction of all tokens, of documents cut in three (prefix P, middle M, suffix S) at two random tokens.

    - prefix first (PSM): <prefix> P <suffix> S <middle> M <eos>
    - suffix first (SPM, the paper's second variant, appendix D): <prefix> <suffix> S <middle> P M <eos>
    - as it was, for the rest: ids <eos>

    A cut is as likely between any two tokens and at either end. The end token of a rearranged document closes the middle
    and is always learned; that of one left as it was only where the document ends.
    """

    kind = "fill_in_the_middle"
    families = frozenset({FAMILY[kind]})
    config: FillInTheMiddleObjective

    def _check(self) -> None:
        self._share("rate", self.config.rate, "(0, 1]")
        self._share("suffix_first", self.config.suffix_first, "[0, 1]")
        for role in ("fim_prefix", "fim_middle", "fim_suffix"):
            self._token(role)

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths) + 4

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        draws = generator.random((len(segments), 4))
        documents = [
            Segment(self._rearrange(np.asarray(segment.ids), cuts, order < self.config.suffix_first))
            if chance < self.config.rate
            else segment
            for segment, (chance, order, *cuts) in zip(segments, draws, strict=True)
        ]
        ids, lengths = flatten(documents)
        return next_token(
            frame(ids, lengths, last=self.vocabulary.closing),
            lengths + 1,
            start=self.vocabulary.opening,
            closed=np.array([document.ends for document in documents]),
        )

    def _rearrange(self, ids: np.ndarray, cuts: Sequence[float], suffix_first: bool) -> np.ndarray:
        """The ids with three more tokens; `cuts` are two uniform draws from [0, 1)."""
        one, two = sorted(int(cut * (len(ids) + 1)) for cut in cuts)
        prefix, middle, suffix = ids[:one], ids[one:two], ids[two:]
        pre, mid, suf = ([self._token(role)] for role in ("fim_prefix", "fim_middle", "fim_suffix"))
        parts = (pre, suf, suffix, mid, prefix, middle) if suffix_first else (pre, prefix, suf, suffix, mid, middle)
        return np.concatenate(parts, dtype=np.int64)

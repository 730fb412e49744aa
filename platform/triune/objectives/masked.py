"""Masked language modelling (Devlin et al. 2019, 3.1), with whole words and spans (Joshi et al. 2020, SpanBERT 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from triune.errors import UserError
from triune.objectives import spans
from triune.objectives.assemble import flatten, frame, number
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY, MaskedObjective


class Masked(Objective):
    """A row is [bos] ids [eos] of each document, some ids replaced; the originals of those are predicted.

    Tokens, or whole words, are drawn at random until `rate` of the document's ids is reached, exactly so in expectation; a
    word is never split. With `mean_span` the text falls into spans of geometric length (not clipped; SpanBERT clips at 10)
    and these are drawn; the last is cut short where it would exceed the rate. A row with any text predicts at
    least one token or word. Each chosen token is masked, replaced or kept by its own draw, those of a span together by
    one, as in SpanBERT. Special tokens are never chosen and never put in.
    """

    kind = "masked"
    families = frozenset({FAMILY[kind]})
    config: MaskedObjective

    def _check(self) -> None:
        config = self.config
        self._share("rate", config.rate, "(0, 1)")
        self._share("mask_share", config.mask_share, "[0, 1]")
        self._share("random_share", config.random_share, "[0, 1]")
        if config.mask_share + config.random_share > 1 + 1e-9:
            raise UserError(
                f"objective.random_share: {config.random_share} and objective.mask_share {config.mask_share} add up to "
                "more than 1; BERT uses 0.1 and 0.8"
            )
        if config.mean_span is not None:
            self._mean_span(config.mean_span)
        if config.mask_share > 0:
            self._token("mask")
        if config.whole_word and self.vocabulary.continues_word is None:
            raise UserError(
                "objective.whole_word: true needs a tokenizer that marks where words start, and this one does not; "
                "set objective.whole_word=false or train one with data.tokenizer.kind=wordpiece"
            )

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths) + 2

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        ids, lengths = flatten(segments)
        chosen, fate = self._choose(ids, lengths, generator)
        corrupted = self._corrupt(ids, chosen, fate, generator)
        documents, positions = number(lengths + 2)
        ends = {"first": self.vocabulary.opening, "last": self.vocabulary.closing}
        return Example(
            inputs=frame(corrupted, lengths, **ends),
            targets=frame(ids, lengths, **ends),
            weights=frame(chosen.astype(np.float32), lengths, first=0, last=0),
            documents=documents,
            positions=positions,
        )

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """Ids that may stand in for another: all but the special ones."""
        return np.flatnonzero(~self._special)

    def _choose(
        self, ids: np.ndarray, lengths: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """[N] bool: tokens to predict; [N] int: tokens of the same number share one fate."""
        document = np.repeat(np.arange(len(lengths)), lengths)
        ordinary = ~self._special[ids]
        # where a word starts whatever the tokenizer says: at a document's start and after a special token
        fresh = np.ones(len(ids), bool)
        fresh[1:] = (document[1:] != document[:-1]) | ~ordinary[:-1]
        starts = ordinary.copy()
        if self.config.whole_word and self.vocabulary.continues_word is not None:
            starts &= fresh | ~self.vocabulary.continues_word[ids]
        if not starts.any():
            return ordinary, document  # nothing but special tokens: all False

        unit = np.maximum(np.cumsum(starts) - 1, 0)  # [N] the word (or the token) of each token
        sizes = np.bincount(unit[ordinary])
        keys = generator.random(len(sizes))
        fate = np.arange(len(ids))
        if self.config.mean_span is not None:
            # a border before each unit with this probability: spans of mean_span tokens on average
            border = generator.random(len(sizes)) < sizes.mean() / self.config.mean_span
            span = np.maximum(np.cumsum(border | fresh[starts]) - 1, 0)  # [U]
            keys, fate = keys[span], span[unit]
        budgets = self.config.rate * np.bincount(document[ordinary], minlength=len(lengths))
        taken = spans.choose(sizes, document[starts], budgets, keys, generator)
        if not taken.any():
            taken[int(generator.random() * len(taken))] = True
        return ordinary & taken[unit], fate

    def _corrupt(
        self, ids: np.ndarray, chosen: np.ndarray, fate: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """The ids with the chosen ones masked, replaced or kept."""
        draw = generator.random(len(ids))[fate]
        masked = chosen & (draw < self.config.mask_share)
        replaced = chosen & ~masked & (draw < self.config.mask_share + self.config.random_share)
        corrupted = ids.copy()
        if masked.any():  # the tokenizer may have no mask where mask_share is 0
            corrupted[masked] = self._token("mask")
        corrupted[replaced] = self._ordinary[(generator.random(len(ids)) * len(self._ordinary)).astype(int)[replaced]]
        return corrupted

"""Denoising of whole texts (BART: Lewis et al. 2020, 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.errors import UserError
from triune.objectives import spans
from triune.objectives.assemble import flatten, frame, next_token
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY, DenoisingObjective


class Denoising(Objective):
    """The source is [bos] corrupted ids [eos]; the target is all the original ids and eos.

    In this order: sentences are shuffled, spans become one mask token each, tokens are deleted, the text is rotated.
    Spans have Poisson lengths; one of length 0 puts in a mask where nothing is missing. Such masks are dropped where they
    would make the source longer than the text (with mean_span 3 next to never). A tokenizer without bos leaves it out.
    """

    kind = "denoising"
    families = frozenset({FAMILY[kind]})
    config: DenoisingObjective

    def _check(self) -> None:
        config = self.config
        self._share("infill_rate", config.infill_rate, "[0, 1)")
        self._share("permute_sentences", config.permute_sentences, "[0, 1]")
        self._share("rotate", config.rotate, "[0, 1]")
        self._share("delete_rate", config.delete_rate, "[0, 1)")
        self._mean_span(config.mean_span)
        if config.infill_rate > 0:
            self._token("mask")
        if self.vocabulary.ends_sentence is None and config.permute_sentences > 0:
            raise UserError(
                f"objective.permute_sentences: {config.permute_sentences} needs a tokenizer that marks where sentences end, "
                "and this one does not; set objective.permute_sentences=0"
            )

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        return np.asarray(lengths) + 1 + (self.vocabulary.bos is not None)

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        ids, lengths = flatten(segments)
        sources = [self._corrupt(document, generator) for document in np.split(ids, np.cumsum(lengths)[:-1])]
        source_lengths = np.array([len(source) for source in sources])
        first, last = self.vocabulary.bos, self.vocabulary.closing
        return next_token(
            frame(ids, lengths, last=last),
            lengths + 1,
            start=self.vocabulary.decoder_start,
            source=(
                frame(np.concatenate(sources), source_lengths, first=first, last=last),
                source_lengths + 1 + (first is not None),
            ),
        )

    def _corrupt(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        config = self.config
        permute, rotate, offset = generator.random(3)
        if permute < config.permute_sentences:
            ids = self._permute(ids, generator)
        if config.infill_rate > 0:
            ids = self._infill(ids, generator)
        if config.delete_rate > 0:
            ids = ids[(generator.random(len(ids)) >= config.delete_rate) | (ids == self.vocabulary.mask)]
        if rotate < config.rotate:
            ids = np.roll(ids, -int(offset * len(ids)))
        return ids

    def _permute(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sentences in random order; what follows the last sentence's end counts as one."""
        assert self.vocabulary.ends_sentence is not None
        ends = self.vocabulary.ends_sentence[ids]
        sentence = np.cumsum(ends) - ends
        return ids[np.argsort(generator.random(len(ids))[sentence], kind="stable")]

    def _infill(self, ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """`infill_rate` of the ids (exactly so in expectation) in spans, each replaced by one mask."""
        hidden = int(self.config.infill_rate * len(ids) + generator.random())
        lengths = spans.poisson_lengths(hidden, self.config.mean_span, generator)
        # a source longer than the text would break `cost`: drop the last empty spans that make it so
        surplus = max(0, len(lengths) - hidden)
        if surplus:
            lengths = np.delete(lengths, np.flatnonzero(lengths == 0)[-surplus:])
        kept = len(ids) - hidden
        # the tokens left, 0..kept-1, with a span before the token of that number
        before = np.sort((generator.random(len(lengths)) * (kept + 1)).astype(np.int64))
        skipped = np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(before, np.arange(kept), side="right")]
        text = np.full(kept + len(lengths), self._token("mask"), np.int64)
        stays = np.ones(len(text), bool)
        stays[before + np.arange(len(lengths))] = False
        text[stays] = ids[np.arange(kept) + skipped]
        return text

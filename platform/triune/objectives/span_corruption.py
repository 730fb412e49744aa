"""Span corruption (T5: Raffel et al. 2020, 3.1.4 and 3.3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triune.errors import UserError
from triune.objectives import spans
from triune.objectives.assemble import flatten, frame, next_token
from triune.objectives.base import Objective
from triune.objectives.batch import Example, Segment
from triune.objectives.config import FAMILY, SpanCorruptionObjective


class SpanCorruption(Objective):
    """Each span of a document becomes one sentinel in the source; the target spells out sentinel and span, span by span.

    T5's recipe. The number of tokens in spans is rate * n rounded, that of spans is it / mean_span rounded, at least one
    of each; the lengths of spans and of the text between are random partitions of their totals. A document starts
    with text and ends with a span (one of a single token is all span). Sentinels count from the first in each
    document. Source and target end with eos; the decoder starts from bos, or from pad (as T5) where there is none.

    A tokenizer with too few sentinels for the longest document of a row is refused rather than given longer spans
    silently.
    """

    kind = "span_corruption"
    families = frozenset({FAMILY[kind]})
    config: SpanCorruptionObjective

    def _check(self) -> None:
        self._share("rate", self.config.rate, "(0, 1)")
        self._mean_span(self.config.mean_span)
        if not self.vocabulary.sentinels:
            raise UserError(
                f"objective.kind: '{self.kind}' needs sentinel tokens, and the tokenizer has none; "
                "set data.tokenizer.sentinels=100, or load a tokenizer with <extra_id_0>, <extra_id_1>, ..."
            )
        count = int(self._counts(np.array([self.longest]))[1][0])
        sentinels = len(self.vocabulary.sentinels)
        if count > sentinels:
            # with longer spans a longer document fits; its hidden tokens stay below these bounds of either tower
            hidden = self.context * min(1, self.config.rate / (1 - self.config.rate))
            raise UserError(
                f"objective.mean_span: {self.config.mean_span} makes {count} spans of a document that fills a row of "
                f"{self.context} tokens, and the tokenizer has {sentinels} sentinels; "
                f"set data.tokenizer.sentinels={count} or objective.mean_span={np.ceil(10 * hidden / sentinels) / 10:g}"
            )

    def _counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[D] tokens in spans and [D] spans of documents of these lengths. Neither falls as a length grows."""
        lengths = np.asarray(lengths, np.int64)
        noise = np.rint(lengths * self.config.rate).astype(np.int64)
        noise = np.minimum(np.clip(noise, 1, np.maximum(lengths - 1, 1)), lengths)
        count = np.maximum(np.rint(noise / self.config.mean_span).astype(np.int64), 1)
        # the text between spans must be as many parts; a document of one token is one span
        return noise, np.minimum(np.minimum(count, np.maximum(lengths - noise, 1)), noise)

    def cost(self, lengths: np.ndarray, splits: np.ndarray | None = None) -> np.ndarray:
        noise, count = self._counts(lengths)
        return np.maximum(np.asarray(lengths) - noise, noise) + count + 1

    def __call__(self, segments: Sequence[Segment], generator: np.random.Generator) -> Example:
        ids, lengths = flatten(segments)
        noise, count = self._counts(lengths)
        inside, starts = self._mask(lengths, noise, count, generator)

        # sentinel of each span: its number in its document
        sentinel = np.array(self.vocabulary.sentinels)[
            np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        ]
        source = ids.copy()
        source[starts] = sentinel
        source = source[~inside | starts]

        target = np.repeat(ids, np.where(starts, 2, inside))
        # where a span starts in `target`: tokens of spans before it, and the sentinels of those
        target[(np.cumsum(inside) - 1)[starts] + np.arange(len(sentinel))] = sentinel

        eos = self.vocabulary.closing
        source_lengths, target_lengths = lengths - noise + count, noise + count
        return next_token(
            frame(target, target_lengths, last=eos),
            target_lengths + 1,
            start=self.vocabulary.decoder_start,
            source=(frame(source, source_lengths, last=eos), source_lengths + 1),
        )

    @staticmethod
    def _mask(
        lengths: np.ndarray, noise: np.ndarray, count: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """[N] bool: tokens in spans, and [N] bool: the first token of each span."""
        totals = np.stack([lengths - noise, noise], axis=1).ravel()  # [2D] text, spans, text, spans, ...
        parts = spans.partition(totals, np.repeat(count, 2), generator)
        # of one document: k lengths of text, then k of spans; wanted: text, span, text, span, ...
        offset = np.cumsum(count) - count  # [D] spans before the document
        within = np.arange(int(count.sum())) - np.repeat(offset, count)
        text_at = np.repeat(2 * offset, count) + within
        text, span = parts[text_at], parts[text_at + np.repeat(count, count)]
        inside = np.repeat(np.tile([False, True], len(span)), np.stack([text, span], axis=1).ravel())
        starts = np.zeros(len(inside), bool)
        starts[np.cumsum(text + span) - span] = True
        return inside, starts

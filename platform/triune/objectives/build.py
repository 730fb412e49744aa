"""The objective that a config describes."""

from __future__ import annotations

from triune.objectives.base import Objective
from triune.objectives.batch import Vocabulary
from triune.objectives.causal import Causal
from triune.objectives.config import ObjectiveConfig
from triune.objectives.denoising import Denoising
from triune.objectives.fill_in_the_middle import FillInTheMiddle
from triune.objectives.masked import Masked
from triune.objectives.prefix import Prefix
from triune.objectives.span_corruption import SpanCorruption
from triune.objectives.translation import Translation

_CLASSES: dict[str, type[Objective]] = {
    objective.kind: objective
    for objective in (Masked, Causal, Prefix, FillInTheMiddle, SpanCorruption, Denoising, Translation)
}


def build(config: ObjectiveConfig, vocabulary: Vocabulary, context: int) -> Objective:
    """The objective of `config`. Call its `check(family)` before use.

    Args:
        vocabulary: sizes and special tokens.
        context: the longest row of either tower, in tokens.
    """
    return _CLASSES[config.kind](config, vocabulary, context)

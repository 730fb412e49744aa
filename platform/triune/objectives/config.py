"""Settings of the training objectives, one variant a `kind`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Fields that every objective has.

    Args:
        label_smoothing: share of the target's probability spread over the vocabulary (Szegedy et al. 2016; 0.1 in the 2017 Transformer).
        z_loss: weight of the squared log-normaliser (PaLM: 1e-4), which keeps logits from drifting.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MaskedObjective(LossConfig):
    """Masked language modelling (Devlin et al. 2019), for an encoder.

    Args:
        kind: the variant.
        rate: share of the tokens to predict.
        mask_share: share of those replaced by the mask token.
        random_share: share of those replaced by a random token; the rest stay as they are.
        whole_word: choose whole words instead of tokens.
        mean_span: mean length of masked spans in tokens, geometric (SpanBERT: 3.8); null masks single tokens (or words).
    """

    kind: Literal["masked"] = "masked"
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False
    mean_span: float | None = None


@dataclass(frozen=True, kw_only=True)
class CausalObjective(LossConfig):
    """Next-token prediction (GPT), for a decoder.

    Args:
        kind: the variant.
    """

    kind: Literal["causal"] = "causal"


@dataclass(frozen=True, kw_only=True)
class PrefixObjective(LossConfig):
    """Prefix language modelling (Raffel et al. 2020, 3.2.1): a random prefix is read both ways, the rest is predicted, for a decoder.

    Args:
        kind: the variant.
        minimum: smallest share of a document in the prefix.
        maximum: largest share of a document in the prefix.
    """

    kind: Literal["prefix"] = "prefix"
    minimum: float = 0.1
    maximum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddleObjective(LossConfig):
    """Causal prediction of documents whose middle was moved to the end (Bavarian et al. 2022), for a decoder.

    Args:
        kind: the variant.
        rate: share of the documents rearranged.
        suffix_first: share of the rearranged documents in suffix-prefix-middle order.
    """

    kind: Literal["fill_in_the_middle"] = "fill_in_the_middle"
    rate: float = 0.5
    suffix_first: float = 0.5


@dataclass(frozen=True, kw_only=True)
class SpanCorruptionObjective(LossConfig):
    """Spans replaced by sentinels, which the decoder spells out (T5: Raffel et al. 2020, 3.1.4), for an encoder_decoder.

    Args:
        kind: the variant.
        rate: share of the tokens in spans.
        mean_span: mean span length in tokens.
    """

    kind: Literal["span_corruption"] = "span_corruption"
    rate: float = 0.15
    mean_span: float = 3.0


@dataclass(frozen=True, kw_only=True)
class DenoisingObjective(LossConfig):
    """The decoder restores a text corrupted in several ways (BART: Lewis et al. 2020, 2.2), for an encoder_decoder.

    Args:
        kind: the variant.
        infill_rate: share of the tokens in spans that one mask token each replaces (span length Poisson).
        mean_span: mean of that Poisson distribution, in tokens.
        permute_sentences: share of the documents whose sentences are shuffled.
        rotate: share of the documents that start at a random token.
        delete_rate: share of the remaining tokens deleted.
    """

    kind: Literal["denoising"] = "denoising"
    infill_rate: float = 0.3
    mean_span: float = 3.0
    permute_sentences: float = 1.0
    rotate: float = 0.0
    delete_rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TranslationObjective(LossConfig):
    """Sequence to sequence on pairs (Vaswani et al. 2017), for an encoder_decoder.

    Args:
        kind: the variant.
        label_smoothing: share of the target's probability spread over the vocabulary.
    """

    kind: Literal["translation"] = "translation"
    label_smoothing: float = 0.1


ObjectiveConfig = (
    MaskedObjective
    | CausalObjective
    | PrefixObjective
    | FillInTheMiddleObjective
    | SpanCorruptionObjective
    | DenoisingObjective
    | TranslationObjective
)

#: The model family each kind serves.
FAMILY: Mapping[str, str] = {
    "masked": "encoder",
    "causal": "decoder",
    "prefix": "decoder",
    "fill_in_the_middle": "decoder",
    "span_corruption": "encoder_decoder",
    "denoising": "encoder_decoder",
    "translation": "encoder_decoder",
}

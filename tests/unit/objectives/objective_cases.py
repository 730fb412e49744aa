"""What the tests of the objectives share: a small vocabulary, a config of each kind, and the way back to the text."""

from __future__ import annotations

import numpy as np

from triune.objectives.batch import Example, Segment, Vocabulary
from triune.objectives.config import (
    CausalObjective,
    DenoisingObjective,
    FillInTheMiddleObjective,
    MaskedObjective,
    ObjectiveConfig,
    PrefixObjective,
    SpanCorruptionObjective,
    TranslationObjective,
)

PAD, BOS, EOS, MASK, UNKNOWN, PRE, MID, SUF = range(8)
SENTINELS = tuple(range(8, 24))
FIRST, SIZE = 24, 64  # ordinary ids are FIRST..SIZE-1

VOCABULARY = Vocabulary(
    size=SIZE,
    pad=PAD,
    bos=BOS,
    eos=EOS,
    mask=MASK,
    unknown=UNKNOWN,
    sentinels=SENTINELS,
    fim_prefix=PRE,
    fim_middle=MID,
    fim_suffix=SUF,
    special=frozenset(range(FIRST)),
    continues_word=np.arange(SIZE) % 3 == 1,
    ends_sentence=np.arange(SIZE) % 8 == 0,
)

CONFIGS: dict[str, ObjectiveConfig] = {
    "masked": MaskedObjective(),
    "masked words": MaskedObjective(whole_word=True, rate=0.3),
    "masked spans": MaskedObjective(mean_span=3.0, rate=0.4),
    "masked word spans": MaskedObjective(whole_word=True, mean_span=4.0, rate=0.25),
    "causal": CausalObjective(),
    "prefix": PrefixObjective(),
    "fill_in_the_middle": FillInTheMiddleObjective(rate=0.7),
    "span_corruption": SpanCorruptionObjective(),
    "span_corruption, most of the text": SpanCorruptionObjective(rate=0.8, mean_span=4.0),
    "denoising": DenoisingObjective(),
    "denoising, all noises": DenoisingObjective(rotate=0.5, delete_rate=0.2, permute_sentences=0.5),
    "denoising, many empty spans": DenoisingObjective(infill_rate=0.9, mean_span=1.0, permute_sentences=0.0),
    "translation": TranslationObjective(),
}


class Scripted:
    """Stands in for a generator: `random` gives the listed draws, call by call."""

    def __init__(self, *draws: float | list[float]) -> None:
        self.draws = list(draws)

    def random(self, size: int | tuple[int, ...] | None = None) -> np.ndarray | float:
        draws = np.array(self.draws.pop(0), float)
        return float(draws) if size is None else draws.reshape(size)


def document(n: int, seed: int = 0) -> np.ndarray:
    """n ordinary ids."""
    return np.random.default_rng(seed).integers(FIRST, SIZE, n).astype(np.uint16)


def restore(kind: str, example: Example) -> list[np.ndarray]:
    """The ids of each document of the row, from the corrupted input and the target alone."""
    texts = []
    for number in range(int(example.documents.max()) + 1):
        here = example.documents == number
        inputs, targets, weights = example.inputs[here], example.targets[here], example.weights[here]
        source = example.source[example.source_documents == number] if example.source is not None else None
        texts.append(_RESTORE[kind](inputs, targets, weights, source))
    return texts


def _masked(inputs, targets, weights, source):
    assert inputs[0] == targets[0] == BOS
    assert inputs[-1] == targets[-1] == EOS
    return np.where(weights > 0, targets, inputs)[1:-1]


def _causal(inputs, targets, weights, source):
    assert inputs[0] == BOS
    assert targets[-1] == EOS
    assert np.array_equal(inputs[1:], targets[:-1])
    return inputs[1:]


def _fill_in_the_middle(inputs, targets, weights, source):
    text = list(_causal(inputs, targets, weights, source))
    if PRE not in text:
        return np.array(text, int)
    assert text[0] == PRE
    middle = text.index(MID)
    suffix = text.index(SUF)
    # with an empty prefix both orders read the same
    return np.array(text[1:suffix] + text[middle + 1 :] + text[suffix + 1 : middle], int)


def _span_corruption(inputs, targets, weights, source):
    spelled = list(_causal(inputs, targets, weights, source))
    assert source[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in spelled:
        if token in SENTINELS:
            assert token == SENTINELS[len(spans)]  # in order, from the first
            spans[token] = []
        else:
            spans[SENTINELS[len(spans) - 1]].append(token)
    text = [token for item in source[:-1] for token in spans.pop(item, [item])]
    assert not spans
    return np.array(text, int)


def _denoising(inputs, targets, weights, source):
    assert source[0] == BOS
    assert source[-1] == EOS
    return _causal(inputs, targets, weights, source)


def _translation(inputs, targets, weights, source):
    assert source[-1] == EOS
    return np.concatenate([source[:-1], _causal(inputs, targets, weights, source)])


_RESTORE = {
    "masked": _masked,
    "causal": _causal,
    "prefix": _causal,
    "fill_in_the_middle": _fill_in_the_middle,
    "span_corruption": _span_corruption,
    "denoising": _denoising,
    "translation": _translation,
}


def cut(ids: np.ndarray, *, pair: bool, starts: bool = True, ends: bool = True) -> Segment:
    """A segment of these ids, split in the middle where a pair is wanted."""
    return Segment(ids, starts, ends, len(ids) // 2 if pair else None)

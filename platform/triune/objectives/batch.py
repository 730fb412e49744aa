"""What passes between data, objectives, training and models: segments in, rows of arrays, one `Batch` out.

Legend: B batch, T row length, S source row length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from triune.attention.layout import SequenceLayout


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What an objective must know of the tokenizer: size and the ids of the special tokens by role.

    A role that the tokenizer lacks is None; an objective that needs it refuses in `check`.
    `bos` is also BERT's [CLS], `eos` also its [SEP]. `continues_word[i]` is True where token i is not the start
    of a word (for whole-word masking); `ends_sentence[i]` where token i closes a sentence (for permutation).
    """

    size: int
    pad: int
    bos: int | None = None
    eos: int | None = None
    mask: int | None = None
    unknown: int | None = None
    sentinels: tuple[int, ...] = ()
    fim_prefix: int | None = None
    fim_middle: int | None = None
    fim_suffix: int | None = None
    special: frozenset[int] = frozenset()
    continues_word: np.ndarray | None = field(default=None, compare=False)  # [V] bool
    ends_sentence: np.ndarray | None = field(default=None, compare=False)  # [V] bool


@dataclass(frozen=True)
class Segment:
    """A document, or a piece of one, as raw ids without special tokens.

    `starts`/`ends` say whether the piece holds the document's first/last token.
    `split` is where the target begins in a pair (translation), else None.
    """

    ids: np.ndarray  # [n] integer
    starts: bool = True
    ends: bool = True
    split: int | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row before collation: what the predicting tower reads and predicts, and what an encoder reads beside it.

    `documents` numbers the documents of the row from 0 and `positions` counts from 0 in each; a document has the
    same number in the source, so that cross-attention pairs them.
    """

    inputs: np.ndarray  # [t] int64
    targets: np.ndarray  # [t] int64
    weights: np.ndarray  # [t] float32; 0 where nothing is predicted
    documents: np.ndarray  # [t] int32
    positions: np.ndarray  # [t] int32
    prefix: np.ndarray | None = None  # [t] bool: keys that every query of the document sees
    source: np.ndarray | None = None  # [s] int64
    source_documents: np.ndarray | None = None  # [s] int32
    source_positions: np.ndarray | None = None  # [s] int32


@dataclass(kw_only=True)
class Batch:
    """B rows for the model. `inputs` and `targets` are aligned: hidden state t predicts targets[t] with weights[t].

    An encoder or decoder reads `inputs`; an encoder-decoder's encoder reads `source` and its decoder `inputs`.
    `tokens` counts the real (unpadded) tokens, source included, on the host: no device sync to log a rate.
    """

    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T] float32
    layout: SequenceLayout
    source: Tensor | None = None  # [B, S] int64
    source_layout: SequenceLayout | None = None
    tokens: int = 0
    predicted: int = 0  # positions with weight > 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device (Lightning's transfer hook calls this)."""
        raise NotImplementedError

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's DataLoader calls this)."""
        raise NotImplementedError

"""What passes between data, objectives, training and models: segments in, rows of arrays, one `Batch` out.

Legend: B batch, T row length, S source row length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import DTypeLike
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

    @property
    def opening(self) -> int:
        """What a text starts with: bos, or eos where there is no bos (GPT-2). ValueError where there is neither."""
        return self._first(self.bos, self.eos)

    @property
    def closing(self) -> int:
        """What a text ends with: eos, or bos where there is no eos. ValueError where there is neither."""
        return self._first(self.eos, self.bos)

    @property
    def decoder_start(self) -> int:
        """What an encoder-decoder's decoder starts from: bos, or pad where there is no bos (T5)."""
        return self._first(self.bos, self.pad)

    @staticmethod
    def _first(*candidates: int | None) -> int:
        for candidate in candidates:
            if candidate is not None:
                return candidate
        raise ValueError("the vocabulary has neither a bos nor an eos token")


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
    same number in the source, so that cross-attention pairs them. Where a target is more than a class (several labels,
    numbers), `values` holds one line for each, and the targets of weight above 0 are numbers of lines.
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
    token_types: np.ndarray | None = None  # [t] int64: segment of each token (BERT)
    values: np.ndarray | None = None  # [k, L] float32


@dataclass(kw_only=True)
class Batch:
    """B rows for the model. `inputs` and `targets` are aligned: hidden state t predicts targets[t] with weights[t].

    An encoder or decoder reads `inputs`; an encoder-decoder's encoder reads `source` and its decoder `inputs`.
    `tokens` counts the real (unpadded) tokens, source included, on the host: no device sync to log a rate. With `values`, targets
    are numbers of its lines.
    """

    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T] float32
    layout: SequenceLayout
    source: Tensor | None = None  # [B, S] int64
    source_layout: SequenceLayout | None = None
    token_types: Tensor | None = None  # [B, T] int64
    values: Tensor | None = None  # [K, L] float32
    tokens: int = 0
    predicted: int = 0  # positions with weight > 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device (Lightning's transfer hook calls this)."""
        return self._each(
            lambda tensor: tensor.to(device, non_blocking=non_blocking),
            lambda layout: layout.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's DataLoader calls this)."""
        return self._each(Tensor.pin_memory, SequenceLayout.pin_memory)

    def _each(self, tensor: Callable[[Tensor], Tensor], layout: Callable[[SequenceLayout], SequenceLayout]) -> Batch:
        return replace(
            self,
            inputs=tensor(self.inputs),
            targets=tensor(self.targets),
            weights=tensor(self.weights),
            layout=layout(self.layout),
            source=None if self.source is None else tensor(self.source),
            source_layout=None if self.source_layout is None else layout(self.source_layout),
            token_types=None if self.token_types is None else tensor(self.token_types),
            values=None if self.values is None else tensor(self.values),
            extra={name: tensor(value) for name, value in self.extra.items()},
        )


def collate(
    examples: Sequence[Example],
    *,
    pad: int,
    length: int | None,
    source_length: int | None = None,
    multiple_of: int = 8,
) -> Batch:
    """B examples as one batch, padded on the right with `pad`, weight 0 and document -1.

    Args:
        examples: rows of one objective: all with a source, or none.
        length: T; None is the longest row, rounded up to `multiple_of`.
        source_length: S; None is the longest source, rounded up likewise.

    Raises ValueError where a row is longer than its length.
    """
    rows = [example.inputs for example in examples]
    prefixes = [example.prefix for example in examples if example.prefix is not None]
    sources = [
        (example.source, example.source_documents, example.source_positions)
        for example in examples
        if example.source is not None and example.source_documents is not None and example.source_positions is not None
    ]
    types = [example.token_types for example in examples if example.token_types is not None]
    values = [example.values for example in examples if example.values is not None]
    if any(len(given) not in (0, len(rows)) for given in (sources, prefixes, types, values)):
        raise ValueError("the examples of a batch must agree on having a source, a prefix, token types and values")

    width = _width(rows, length, multiple_of)
    batch = Batch(
        inputs=torch.from_numpy(_pad(rows, width, pad, np.int64)),
        targets=torch.from_numpy(_pad(_targets(examples), width, 0 if values else pad, np.int64)),
        weights=torch.from_numpy(_pad([example.weights for example in examples], width, 0, np.float32)),
        layout=SequenceLayout.from_arrays(
            _pad([example.documents for example in examples], width, -1, np.int32),
            _pad([example.positions for example in examples], width, 0, np.int32),
            _pad(prefixes, width, False, np.bool_) if prefixes else None,
        ),
        token_types=torch.from_numpy(_pad(types, width, 0, np.int64)) if types else None,
        values=torch.from_numpy(np.concatenate(values)) if values else None,
        tokens=sum(map(len, rows)),
        predicted=sum(int(np.count_nonzero(example.weights)) for example in examples),
    )
    if not sources:
        return batch
    ids, documents, positions = (list(column) for column in zip(*sources, strict=True))
    width = _width(ids, source_length, multiple_of)
    return replace(
        batch,
        source=torch.from_numpy(_pad(ids, width, pad, np.int64)),
        source_layout=SequenceLayout.from_arrays(
            _pad(documents, width, -1, np.int32), _pad(positions, width, 0, np.int32)
        ),
        tokens=batch.tokens + sum(map(len, ids)),
    )


def _targets(examples: Sequence[Example]) -> list[np.ndarray]:
    """The targets of each row, as numbers of the lines of the whole batch where they are numbers of lines."""
    first = np.cumsum([0, *(0 if example.values is None else len(example.values) for example in examples)])
    return [example.targets + start for example, start in zip(examples, first, strict=False)]


def _width(rows: Sequence[np.ndarray], length: int | None, multiple_of: int) -> int:
    longest = max(map(len, rows))
    if length is None:
        return -(-longest // multiple_of) * multiple_of
    if longest > length:
        raise ValueError(f"a row of {longest} tokens is longer than the batch's length, {length}")
    return length


def _pad(rows: Sequence[np.ndarray], width: int, fill: float, dtype: DTypeLike) -> np.ndarray:
    """[B, width]: the rows, each padded on the right."""
    padded = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded

"""The special tokens that stand around a text: a tokenizer's own, or those that objectives set around what they train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from triune.errors import UserError

if TYPE_CHECKING:
    from triune.objectives.batch import Vocabulary
    from triune.objectives.text import Frame


def frame_of(definition: dict[str, Any], backend: Backend, vocabulary: Vocabulary, family: str) -> Frame:
    """The frame of a tokenizer that brings one (its `post_processor`, as BERT's and T5's), else that of our objectives.

    Ours: `<s> text </s>` for an encoder, `<s> text` for a decoder, `text </s>` for what an encoder-decoder reads; an export writes
    the same into its tokenizer (`exchange/tokenizer_files.py`).

    Raises UserError for a frame that sets tokens elsewhere than before, between and behind the texts.
    """
    from triune.objectives.text import Frame  # brings torch along

    if definition.get("post_processor") is not None:
        return _declared(backend)  # GPT-2's adds nothing, and neither do we
    before = (vocabulary.opening,) if family != "encoder_decoder" else ()
    after = (vocabulary.closing,) if family != "decoder" else ()
    return Frame(before=before, after=after, pair_before=before, between=after, pair_after=after)


def _declared(backend: Backend) -> Frame:
    from triune.objectives.text import Frame

    # `post_process` of two encodings would not do: behind a template it forgets which tokens are the first text's (tokenizers 0.23)
    alone, pair = backend.encode("a"), backend.encode("a", "a")
    before, after = _around(alone, 1)
    pair_before, between, pair_after = _around(pair, 2)
    second = [kind for kind, text in zip(pair.type_ids, pair.sequence_ids, strict=True) if text == 1]
    return Frame(
        before=before,
        after=after,
        pair_before=pair_before,
        between=between,
        pair_after=pair_after,
        segments=bool(second) and second[0] == 1,
    )


def _around(encoding: Encoding, texts: int) -> list[tuple[int, ...]]:
    """Ids of the special tokens before the first text, between texts and behind the last."""
    gaps: list[list[int]] = [[] for _ in range(texts + 1)]
    gap = 0
    for token, text, real in zip(encoding.ids, encoding.sequence_ids, encoding.attention_mask, strict=True):
        if not real:  # a tokenizer that pads each text to a length (MiniLM's)
            continue
        if text is None:
            gaps[gap].append(token)
        elif text + 1 >= gap:
            gap = text + 1
        else:
            raise UserError("this tokenizer's template sets the second text before the first, which no task can read")
    return [tuple(ids) for ids in gaps]

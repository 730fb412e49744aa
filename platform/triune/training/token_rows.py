"""The rows of a vocabulary of which another vocabulary's are made. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from triune.data.special_tokens import SpecialTokens
    from triune.data.tokenizers import Tokenizer

_BROKEN = "\ufffd"  # stands for a part of a character, so that a token's text does not tell it from others


@dataclass(frozen=True)
class TokenRows:
    """A table of one row a token, for another vocabulary.

    A token that both vocabularies have keeps its row; another is the mean of the rows of the pieces that the old tokenizer makes
    of its text (Gee et al. 2022, Fast Vocabulary Transfer; Mosin et al. 2021). What has none (new special tokens, rows that
    no token has yet) is the mean of all, so that no row is drawn that may outweigh the trained ones (Hewitt 2021).

    Args:
        pieces: for each row of the model's the source's rows that it is the mean of; none is all.
        known: rows of the source that stand for a token, from the first one.
    """

    pieces: tuple[tuple[int, ...], ...]
    known: int

    def take(self, given: Tensor) -> Tensor:
        """[old vocabulary, ...] -> [vocabulary, ...]; single rows to the bit, means in fp32."""
        import torch

        wide = given.to(torch.promote_types(given.dtype, torch.float32))
        rows = wide[torch.tensor([pieces[0] if pieces else 0 for pieces in self.pieces])]
        centre = wide[: self.known].mean(0)
        for row, pieces in enumerate(self.pieces):
            if len(pieces) != 1:
                rows[row] = wide[list(pieces)].mean(0) if pieces else centre
        return rows

    def __str__(self) -> str:
        single = sum(len(pieces) == 1 for pieces in self.pieces)
        alone = sum(not pieces for pieces in self.pieces)
        several = len(self.pieces) - single - alone
        words = [f"{single:,} rows copied"]
        words += [f"{several:,} the mean of the old rows of their pieces"] if several else []
        words += [f"{alone:,} the mean of all"] if alone else []
        return "; ".join(words)


def same_tokens(*, before: int, after: int, known: int) -> TokenRows:
    """A table of `before` rows with `after`: rows keep their ids, further ones are the mean of all."""
    return TokenRows(tuple((row,) if row < before else () for row in range(after)), min(known, before))


def join_tokens(old: Tokenizer, new: Tokenizer, *, before: int, after: int) -> TokenRows:
    """Rows of a vocabulary of `old` tokens for `new` ones.

    Ordinary tokens are joined by the text that they stand for, so that "Ġthe", "▁the" and WordPiece's "the" are one, and
    "the" inside a word another; parts of characters by their spelling; special tokens by what they are for.

    Args:
        old: the tokenizer that the table was trained with.
        new: the one that the model will read text through.
        before: rows of the table; ids beyond it have none.
        after: rows of the model's table.
    """
    pieces: dict[int, tuple[int, ...]] = {}
    for id_, row in _ordinary(old, new) | _special(old, new):
        pieces[id_] = (row,)
    left = [(id_, text) for id_, text in new.surfaces.items() if id_ not in pieces and text.strip(_BROKEN + " ")]
    unknown = old.vocabulary.unknown
    for (id_, _), cut in zip(left, old.encode_batch([text for _, text in left]), strict=True):
        pieces[id_] = () if unknown in cut else tuple(int(row) for row in cut)
    held = {id_: tuple(row for row in rows if row < before) for id_, rows in pieces.items()}
    return TokenRows(tuple(held.get(row, ()) for row in range(after)), min(old.size, before))


def _ordinary(old: Tokenizer, new: Tokenizer) -> set[tuple[int, int]]:
    """(new id, old id) of tokens that stand for the same text."""
    whole: dict[str, int] = {}
    for id_, text in old.surfaces.items():
        whole.setdefault(text, id_)
    spelled = {id_: token for token, id_ in new.tokens.items()}
    found = set()
    for id_, text in new.surfaces.items():
        row = old.tokens.get(spelled.get(id_, "")) if _BROKEN in text or not text else whole.get(text)
        if row is not None:
            found.add((id_, row))
    return found


def _special(old: Tokenizer, new: Tokenizer) -> set[tuple[int, int]]:
    """(new id, old id) of special tokens of the same role, or else the same spelling."""
    roles = _roles(old.roles, new.roles)
    found = set()
    for token, id_ in new.tokens.items():
        row = old.tokens.get(roles.get(token, token)) if id_ not in new.surfaces else None
        if row is not None:
            found.add((id_, row))
    return found


def _roles(old: SpecialTokens, new: SpecialTokens) -> dict[str, str]:
    """New special token -> old one; of a token of several roles the last counts, eos before bos before pad."""
    before, after = asdict(old), asdict(new)
    pairs = [*zip(after.pop("sentinels"), before.pop("sentinels"), strict=False)]
    pairs += [(token, before[role]) for role, token in after.items()]
    return {token: other for token, other in pairs if token is not None and other is not None}

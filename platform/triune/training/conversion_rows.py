"""How the rows of a tensor are chosen from those of a trained one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from triune.training.token_rows import TokenRows


class Chosen(ABC):
    """Rows that are rows of the source's tensor."""

    @abstractmethod
    def index(self) -> list[int]:
        """The row of the source's that each row of the model's is."""

    def take(self, given: Tensor) -> Tensor:
        """[rows of the source, ...] -> [rows of the model, ...]."""
        return given[torch.tensor(self.index())]


@dataclass(frozen=True)
class PositionRows(Chosen):
    """A learned position table at another context: the trained positions over and over, the last block cut (Beltagy et al. 2020, 5).

    Args:
        offset: rows before position 0, which stay (RoBERTa, BART: 2).
        before: positions of the source.
        after: positions of the model.
    """

    offset: int
    before: int
    after: int

    def index(self) -> list[int]:
        """The row of the source's table that each row of the model's is."""
        return [*range(self.offset), *(self.offset + position % self.before for position in range(self.after))]

    def __str__(self) -> str:
        index = self.index()
        whole = index.count(self.offset + self.before - 1)  # how often the last trained position is there
        rest = len(index) - self.offset - whole * self.before
        if whole == 0:
            words = f"positions 0-{rest - 1} copied, the other {self.before - rest} left out"
        else:
            words = f"positions 0-{self.before - 1} copied {whole} time{'s' if whole > 1 else ''} in a row"
            words += f", then 0-{rest - 1}" if rest else ""
        return words + (f"; the rows before position 0 ({self.offset}) as they were" if self.offset else "")


@dataclass(frozen=True)
class BranchRows(Chosen):
    """The projection of a dense layer at the start of `nsa`: each branch has the trained keys and values (Yuan et al. 2025, 3.3).

    Args:
        query: rows of the queries.
        key: rows of the keys, and as many of the values.
        branches: sets of keys and values.
    """

    query: int
    key: int
    branches: int

    def index(self) -> list[int]:
        """The row of the source's projection that each row of the model's is."""
        ends = self.query, self.query + self.key, self.query + 2 * self.key
        keys, values = range(ends[0], ends[1]), range(ends[1], ends[2])
        return [*range(self.query), *[*keys] * self.branches, *[*values] * self.branches]

    def __str__(self) -> str:
        return f"queries copied; keys and values copied to each of the pattern's {self.branches} branches"


@dataclass(frozen=True)
class PartRows(Chosen):
    """A part of self-attention's one projection, for cross-attention, which has two.

    Args:
        first: the first row.
        end: the row behind the last.
        name: what they make.
    """

    first: int
    end: int
    name: str

    def index(self) -> list[int]:
        """The row of the source's projection that each row of the model's is."""
        return [*range(self.first, self.end)]

    def __str__(self) -> str:
        return f"{self.name} copied"


#: any way to choose rows
Rows = PositionRows | BranchRows | PartRows | TokenRows

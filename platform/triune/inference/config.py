"""Settings of writing text. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from triune.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a row's next tokens are chosen, and when it ends. The names are the field's; the defaults are greedy decoding.

    Scores pass through the repetition penalty first, then temperature, top-k, top-p and min-p, as in `transformers`.

    Args:
        max_new_tokens: most ids to write in each row.
        min_new_tokens: ids that a row holds at least before it may end.
        temperature: what scores are divided by before sampling; 0 always takes the best.
        top_k: sample among the k best only (Fan et al. 2018); 0 is all.
        top_p: sample among the fewest that hold this share of the probability (Holtzman et al. 2020); 1 is all.
        min_p: sample among those at least this share as likely as the best (Nguyen et al. 2024); 0 is all.
        repetition_penalty: divides the scores above 0, and multiplies those below, of the tokens that the row holds already, its
            prompt included (Keskar et al. 2019); 1 is none.
        beams: rows that beam search keeps for each prompt; 1 is no search.
        length_penalty: a beam's score is its log-probability / length^this: above 0 favours long texts.
        early_stopping: when a search ends: true at the first `beams` complete texts, false where the best open beam could not win
            if it ended now, "never" where it could not win at any length.
        n_best: texts to give back for each prompt, at most `beams` of a search.
        stop: texts that end a row where they come up in what it writes.
        seed: of the sampling; the same seed and rows give the same text. None draws from torch's default generator.

    Raises UserError for a value out of its range, and for settings that do not go together.
    """

    max_new_tokens: int = 100
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    n_best: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges: list[tuple[str, bool, str]] = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to max_new_tokens"),
            ("temperature", self.temperature >= 0, "0 (always the best) or above"),
            ("top_k", self.top_k >= 0, "0 (all) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (all)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (all) to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 is none)"),
            ("beams", self.beams >= 1, "at least 1 (no search)"),
            ("early_stopping", self.early_stopping in (True, False, "never"), 'true, false or "never"'),
            ("n_best", self.n_best >= 1, "at least 1"),
            ("stop", "" not in self.stop, "texts of at least one character"),
        ]
        for name, fits, constraint in ranges:
            if not fits:
                raise UserError(f"{name} is {_shown(getattr(self, name))}, but it must be {constraint}")
        self._check_together()

    def _check_together(self) -> None:
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"beams is {self.beams} and temperature {self.temperature:g}, but beam search draws nothing: "
                "set temperature to 0, or beams to 1"
            )
        if self.beams > 1 and self.n_best > self.beams:
            raise UserError(f"n_best is {self.n_best}, but a search over {self.beams} beams finds no more: raise beams")
        if self.n_best > 1 and self.beams == 1 and self.temperature == 0:
            raise UserError(
                f"n_best is {self.n_best}, but the best token each time makes one text: set beams, or a temperature above 0"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


def resolved(config: GenerationConfig | None, settings: Mapping[str, Any]) -> GenerationConfig:
    """`config`, or the default, with `settings` over it; UserError for a setting that there is not."""
    known = [field.name for field in fields(GenerationConfig)]
    for name in settings:
        if name not in known:
            raise UserError(f"{name} is no setting of generation{nearest(name, known)}")
    return replace(config or GenerationConfig(), **settings)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)

"""Settings of attention. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triune.attention.expression import parse
from triune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How positions attend to one another.

    Args:
        pattern: which query may attend to which key, as an expression ("causal()", "window(128, 0)", "window(64, 64) & causal()"), or a list with one a layer (repeated to the depth); null is full in an encoder, causal in a decoder.
        backend: the implementation: auto picks the fastest that can serve the call.
        dropout: probability of dropping an attention weight in training.
        qk_norm: normalise queries and keys per head before the product (Henry et al. 2020).
        global_projections: what global tokens ask has queries, keys and values of its own (Longformer; encoders, with a pattern `... | global_tokens(...)` or landmarks).
        scale: what the scores are multiplied by; null is 1/sqrt(head width) (Vaswani et al. 2017, 3.2.1). T5 uses 1.0.
    """

    pattern: str | list[str] | None = None
    backend: Literal["auto", "sdpa", "blocked", "flex", "reference"] = "auto"
    dropout: float = 0.0
    qk_norm: bool = False
    global_projections: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pattern, list) and not self.pattern:
            raise UserError(
                "attention.pattern is an empty list, but it needs one pattern a layer (repeated to the depth)."
            )
        for text in [self.pattern] if isinstance(self.pattern, str) else self.pattern or []:
            parse(text)
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"attention.dropout is {self.dropout}, but it must be at least 0 and below 1.")
        if self.scale is not None and self.scale <= 0.0:
            raise UserError(f"attention.scale is {self.scale}, but it must be above 0, or null for 1/sqrt(head width).")

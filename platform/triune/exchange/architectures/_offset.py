"""Learned positions that are counted from the id of padding plus one (RoBERTa, ESM-1b): the rows before it belong to no position."""

from __future__ import annotations

from triune.exchange.architecture import Settings
from triune.models.config import LearnedPosition, ModelConfig
from triune.units import Count


def read_offset(settings: Settings, *, rows: int) -> tuple[Count, LearnedPosition]:
    """The longest row, and positions; `rows` is the architecture's `max_position_embeddings` where the config has none.

    Raises UserError where the table has no row for a position.
    """
    offset = settings.whole("pad_token_id", 1) + 1
    rows = settings.whole("max_position_embeddings", rows)
    if offset < 1:
        raise settings.refusal("pad_token_id", offset - 1, "positions are counted from it: it must be 0 or more")
    if rows <= offset:
        raise settings.refusal(
            "max_position_embeddings", rows, f"it must be above {offset}: positions begin at row pad_token_id + 1"
        )
    return Count(rows - offset), LearnedPosition(offset=offset)


def write_offset(config: ModelConfig) -> dict[str, int]:
    """The keys that `read_offset` asks for; for other positions, and a table without rows to spare, those of the published models."""
    offset = max(1, config.position.offset) if isinstance(config.position, LearnedPosition) else 2
    return {"max_position_embeddings": int(config.context) + offset, "pad_token_id": offset - 1}

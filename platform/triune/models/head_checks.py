"""What the settings of a head must satisfy, alone and with the model's. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from triune.models.config import ClassHeadConfig, ModelConfig, PatchInput


def head_problems(config: ModelConfig) -> Iterator[str]:
    """One sentence for each setting of `model.head` that cannot be."""
    head = config.head
    if isinstance(head, ClassHeadConfig):
        if head.labels < 0:
            yield f"model.head.labels is {head.labels}, but it must be at least 0, which is no class."
        if head.pool == "first" and isinstance(config.input, PatchInput) and not config.input.class_token:
            yield "model.head.pool is first, but model.input.class_token is false: the first position is a patch like any other. Use mean."
        yield from _problem(head)
    elif config.tie_embeddings and config.vocabulary_width != config.resolved_embedding_width:
        yield (
            f"model.embedding_width is {config.embedding_width}, but the tied vocabulary is multiplied with model.width = "
            f"{config.width} numbers: set model.head.transform=true, which leads back, or model.tie_embeddings=false."
        )


def _problem(head: ClassHeadConfig) -> Iterator[str]:
    if head.problem == "span" and (head.labels, head.pool) != (2, "none"):
        yield "model.head.problem is span: a start and an end of each token want model.head.labels=2 and model.head.pool=none."
    if head.problem == "match" and (head.labels or head.pool == "none"):
        yield "model.head.problem is match: vectors of texts want model.head.labels=0 and a model.head.pool of first, last or mean."
    if head.problem in ("multi_label", "regression") and head.labels < 1:
        yield f"model.head.labels is {head.labels}, but model.head.problem={head.problem} needs at least 1."
    if head.norm and not head.transform:
        yield "model.head.norm is true, but it follows the dense layer of model.head.transform: set that to true."
    if not 0 <= head.dropout < 1:
        yield f"model.head.dropout is {head.dropout:g}, but a probability of dropping must be 0 or more and below 1."

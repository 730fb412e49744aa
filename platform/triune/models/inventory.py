"""Every parameter tensor of a model, from its settings alone: what `triune.models.cost` counts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal, NamedTuple

from triune.attention.patterns import Pattern
from triune.attention.routed.patterns import Lsh, Nsa, Routed
from triune.models.checks import layer_patterns
from triune.models.config import ClassHeadConfig, HeadConfig, LearnedPosition, ModelConfig, PatchInput, T5Position

#: The tokens whose vectors a weight is multiplied with: the source's, the target's, those that are predicted, patches, or
#: one for a row; "nothing" for lookups and what is element-wise.
Reader = Literal["source", "target", "predicted", "patches", "row", "nothing"]


class Weight(NamedTuple):
    """A parameter tensor and what happens to it."""

    part: str
    shape: tuple[int, ...]
    reader: Reader = "nothing"
    in_block: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


def weights(config: ModelConfig) -> list[Weight]:
    """Every parameter tensor of the model, shared ones once. `config.vocabulary` must be set, unless it reads no tokens."""
    found = [*_embedding(config)]
    if config.family == "encoder_decoder":
        found += [*_input(config, "source"), *_stack(config, config.layers, "source")]
        found += _input(config, "target")
        found += _stack(config, config.resolved_decoder_layers, "target", cross=True)
    else:
        found += [*_input(config, "target"), *_stack(config, config.layers, "target")]
    return [*found, *_head(config)]


def vocabulary_of(config: ModelConfig) -> int:
    """`config.vocabulary`; ValueError where it is null."""
    if config.vocabulary is None:
        raise ValueError("model.vocabulary is null: its cost is known once the tokenizer is")
    return int(config.vocabulary)


def _embedding(config: ModelConfig) -> Iterator[Weight]:
    if not isinstance(config.input, PatchInput):
        yield Weight("token embedding", (vocabulary_of(config), config.resolved_embedding_width))
        return
    pixels = config.input.channels * config.input.patch**2
    yield from _linear("patch embedding", config.width, pixels, "patches", bias=True, in_block=False)
    if config.input.class_token:
        yield Weight("patch embedding", (config.width,))


def _input(config: ModelConfig, reader: Reader) -> Iterator[Weight]:
    position, width = config.position, config.resolved_embedding_width
    if isinstance(position, LearnedPosition):
        yield Weight("positions and types", (config.context + position.offset, width))
    if config.token_types:
        yield Weight("positions and types", (config.token_types, width))
    if config.norm.embedding:
        yield from _norm(config, width)
    if width != config.width:
        yield from _linear("embedding projection", config.width, width, reader, bias=True, in_block=False)


def _stack(config: ModelConfig, layers: int, reader: Reader, *, cross: bool = False) -> Iterator[Weight]:
    branches = 3 if cross else 2
    decoder = cross or config.family == "decoder"
    for layer, pattern in enumerate(layer_patterns(config, layers, decoder=decoder, cross=cross)):
        yield from _attention(config, reader, pattern)
        if cross:
            yield from _cross_attention(config)
        yield from _feed_forward(config, reader)
        skipped = layer == 0 and config.norm.skip_first and config.norm.placement != "post"
        for _ in range(branches * (2 if config.norm.placement == "sandwich" else 1) - skipped):
            yield from _norm(config)
    if isinstance(config.position, T5Position):
        yield Weight("relative bias", (config.position.buckets, config.heads))
    if config.final_norm:
        yield from _norm(config)


def _attention(config: ModelConfig, reader: Reader, pattern: Pattern | Routed) -> Iterator[Weight]:
    query, key_value = projected(config, pattern)
    shared = key_value // 2 if isinstance(pattern, Lsh) else 0  # the keys are the queries
    yield from _linear("attention", query + key_value - shared, config.width, reader, bias=config.resolved_qkv_bias)
    if config.attention.global_projections:
        yield from _linear("attention", query + key_value, config.width, reader, bias=config.resolved_qkv_bias)
    yield from _linear("attention", config.width, query, reader, bias=config.bias)
    yield from _query_key_norms(config, 1 if shared else 2)
    if isinstance(pattern, Nsa):
        yield from _native_sparse(config, reader, pattern)


def _native_sparse(config: ModelConfig, reader: Reader, pattern: Nsa) -> Iterator[Weight]:
    """A compression's matrices multiply blocks, one for `stride` tokens, so that no reader counts them; they are few."""
    width = config.resolved_head_width
    for _ in ("keys", "values"):
        yield Weight("attention", (config.resolved_key_value_heads, pattern.compress, width), "nothing", in_block=True)
        yield from _linear("attention", width, pattern.compress * width, "nothing", bias=config.bias)
        yield from _linear("attention", width, width, "nothing", bias=config.bias)
    yield from _linear("attention", 3 * config.heads, config.width, reader, bias=True)


def _cross_attention(config: ModelConfig) -> Iterator[Weight]:
    query, key_value = projected(config)
    yield from _linear("cross-attention", query, config.width, "target", bias=config.resolved_qkv_bias)
    yield from _linear("cross-attention", key_value, config.width, "source", bias=config.resolved_qkv_bias)
    yield from _linear("cross-attention", config.width, query, "target", bias=config.bias)
    yield from _query_key_norms(config)


def _feed_forward(config: ModelConfig, reader: Reader) -> Iterator[Weight]:
    inner = config.feed_forward.inner_width(config.width)
    up = 2 * inner if config.feed_forward.gated else inner
    yield from _linear("feed-forward", up, config.width, reader, bias=config.bias)
    yield from _linear("feed-forward", config.width, inner, reader, bias=config.bias)


def _head(config: ModelConfig) -> Iterator[Weight]:
    if isinstance(config.head, ClassHeadConfig):
        yield from _classes(config, config.head)
        return
    vocabulary, width = vocabulary_of(config), config.vocabulary_width
    if config.head.transform:
        yield from _linear("head", width, config.width, "predicted", bias=config.head.transform_bias, in_block=False)
        yield from _norm(config, width)
    if not config.tie_embeddings:
        yield Weight("head", (vocabulary, width), "predicted")
    if config.head.bias:
        yield Weight("head", (vocabulary,))


def _classes(config: ModelConfig, head: ClassHeadConfig) -> Iterator[Weight]:
    reader: Reader = "predicted" if head.pool == "none" else "row"
    if head.transform:
        yield from _linear("head", config.width, config.width, reader, bias=head.transform_bias, in_block=False)
        if head.norm:
            yield from _norm(config)
    if head.labels:
        yield from _linear("head", head.labels, config.width, reader, bias=head.bias, in_block=False)


def scores(config: ModelConfig) -> tuple[int, int]:
    """Entries that the head scores, and the width of what it multiplies with them."""
    if isinstance(config.head, HeadConfig):
        return vocabulary_of(config), config.vocabulary_width
    return config.head.labels, config.width


def projected(config: ModelConfig, pattern: Pattern | Routed | None = None) -> tuple[int, int]:
    """Widths of all queries, and of all keys and values together; `nsa` has those of three branches."""
    key = config.resolved_key_value_heads * config.resolved_head_width
    return config.heads * config.resolved_head_width, 2 * key * (3 if isinstance(pattern, Nsa) else 1)


def _linear(
    part: str, fan_out: int, fan_in: int, reader: Reader, *, bias: bool, in_block: bool = True
) -> Iterator[Weight]:
    yield Weight(part, (fan_out, fan_in), reader, in_block)
    if bias:
        yield Weight(part, (fan_out,), "nothing", in_block)


def _norm(config: ModelConfig, width: int | None = None) -> Iterator[Weight]:
    yield Weight("norms", (width or config.width,))
    if config.norm.kind == "layer" and config.norm.bias:
        yield Weight("norms", (width or config.width,))


def _query_key_norms(config: ModelConfig, norms: int = 2) -> Iterator[Weight]:
    for _ in range(norms if config.attention.qk_norm else 0):
        yield from _norm(config, config.resolved_head_width)

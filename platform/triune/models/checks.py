"""What a model's settings must satisfy, checked before anything starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from triune.attention.patterns import Pattern, causal, full, parse
from triune.errors import UserError
from triune.models.config import LearnedPosition, ModelConfig, RotaryPosition, SinusoidalPosition, T5Position


def check(config: ModelConfig) -> None:
    """Raise UserError with every mistake, each naming option, value, constraint and fix."""
    problems = [*_sizes(config), *_heads(config), *_position(config), *_norm(config), *_training(config)]
    problems += _patterns(config)
    if problems:
        raise UserError("\n".join(problems))


def layer_patterns(config: ModelConfig, layers: int, *, decoder: bool, cross: bool = False) -> list[Pattern]:
    """One self-attention pattern a block: `attention.pattern`, a list repeated to the depth.

    Null is full in an encoder and causal in a decoder. The decoder of an encoder_decoder (`cross`) is always causal:
    the option speaks of the tower that reads the long source (as in LED, Beltagy et al. 2020, and LongT5, Guo et al. 2022).
    """
    chosen = config.attention.pattern
    if cross or chosen is None:
        return [causal() if decoder else full()] * layers
    read = [parse(text) for text in ([chosen] if isinstance(chosen, str) else chosen)]
    return [read[index % len(read)] for index in range(layers)]


def rotary_bases(config: ModelConfig) -> list[float]:
    """Bases of the rotary wavelengths in the order of the layers, to be repeated to the depth; empty for other positions."""
    if not isinstance(config.position, RotaryPosition):
        return []
    base = config.position.base
    return list(base) if isinstance(base, list) else [base]


def _sizes(config: ModelConfig) -> Iterator[str]:
    positive = {
        "vocabulary": config.vocabulary,
        "context": config.context,
        "width": config.width,
        "layers": config.layers,
        "decoder_layers": config.decoder_layers,
        "heads": config.heads,
        "key_value_heads": config.key_value_heads,
        "head_width": config.head_width,
        "feed_forward.width": config.feed_forward.width,
        "loss_chunk": config.loss_chunk,
        "initialization.base_width": config.initialization.base_width,
    }
    for name, value in positive.items():
        if value is not None and value < 1:
            yield f"model.{name} is {value}, but it must be at least 1."
    if config.token_types < 0:
        yield f"model.token_types is {config.token_types}, but it must be 0 (none) or more."
    if config.decoder_layers is not None and config.family != "encoder_decoder":
        yield (
            f"model.decoder_layers is {config.decoder_layers}, but only family: encoder_decoder has a second stack "
            f"(family is {config.family}): set model.layers, or leave it null."
        )


def _heads(config: ModelConfig) -> Iterator[str]:
    if config.heads < 1:
        return
    if config.head_width is None and config.width % config.heads:
        yield (
            f"model.heads is {config.heads}, which does not divide model.width = {config.width}: "
            f"{_divisors(config.width, config.heads)}, or set model.head_width."
        )
    keys = config.key_value_heads
    if keys is not None and keys > 0 and config.heads % keys:
        yield (
            f"model.key_value_heads is {keys}, which does not divide model.heads = {config.heads}: "
            f"{_divisors(config.heads, keys)}."
        )


def _divisors(number: int, near: int) -> str:
    """`use 4 or 8`: the divisors of `number` next to `near`."""
    divisors = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
    below = [candidate for candidate in divisors if candidate < near][-1:]
    above = [candidate for candidate in divisors if candidate > near][:1]
    return "use " + " or ".join(map(str, below + above))


def _position(config: ModelConfig) -> Iterator[str]:
    position = config.position
    if isinstance(position, RotaryPosition):
        yield from _rotary(config, position)
    if isinstance(position, SinusoidalPosition):
        if config.width % 2:
            yield f"model.width is {config.width}, but sinusoidal positions need an even one: sines and cosines in pairs."
        if position.base <= 0:
            yield f"model.position.base is {position.base:g}, but it must be above 0."
    if isinstance(position, LearnedPosition) and position.offset < 0:
        yield f"model.position.offset is {position.offset}, but it must be 0 or more."
    if isinstance(position, T5Position):
        if position.buckets < 4 or position.buckets % 4:
            yield f"model.position.buckets is {position.buckets}, but it must be a multiple of 4: two directions, half exact."
        elif position.max_distance <= position.buckets // 2:
            yield (
                f"model.position.max_distance is {position.max_distance}, but it must be above half of "
                f"model.position.buckets = {position.buckets}, the distances that have a bucket of their own."
            )


def _rotary(config: ModelConfig, position: RotaryPosition) -> Iterator[str]:
    bases = rotary_bases(config)
    if not bases or min(bases) <= 0:
        yield f"model.position.base is {position.base}, but it must be a number above 0, or a list of them."
    yield from _list_fits("model.position.base", len(bases), config)
    if not 0 < position.fraction <= 1:
        yield f"model.position.fraction is {position.fraction:g}, but it must be above 0 and at most 1."
    elif config.heads > 0 and (config.head_width or config.width % config.heads == 0):
        turned = int(config.resolved_head_width * position.fraction)
        if turned < 2 or turned % 2:
            yield (
                f"rotary positions would turn {turned} of the {config.resolved_head_width} numbers of a head, but they turn pairs: "
                "choose model.width / model.heads (or model.head_width) times model.position.fraction even."
            )
        elif turned < 4 and position.scaling == "ntk":
            yield "model.position.scaling: ntk needs a turned width of at least 4: choose a larger head."
    if position.scaling == "none" and position.factor != 1:
        yield (
            f"model.position.factor is {position.factor:g}, but model.position.scaling is none: "
            "set it to linear, ntk, yarn or llama3, or leave factor at 1."
        )
    if position.factor < 1:
        yield f"model.position.factor is {position.factor:g}, but it must be at least 1."
    if position.original_context is not None and position.original_context < 1:
        yield f"model.position.original_context is {position.original_context}, but it must be at least 1, or null."


def _norm(config: ModelConfig) -> Iterator[str]:
    if config.norm.epsilon <= 0:
        yield f"model.norm.epsilon is {config.norm.epsilon:g}, but it must be above 0."
    if config.norm.skip_first and config.norm.placement == "post":
        yield "model.norm.skip_first is true, but placement post has no norm before the first attention: use pre or sandwich."


def _training(config: ModelConfig) -> Iterator[str]:
    probabilities = {
        "dropout": config.dropout,
        "feed_forward.dropout": config.feed_forward.dropout,
        "stochastic_depth": config.stochastic_depth,
    }
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            yield f"model.{name} is {value:g}, but a probability of dropping must be at least 0 and below 1."
    if config.initialization.std <= 0:
        yield f"model.initialization.std is {config.initialization.std:g}, but it must be above 0."


def _patterns(config: ModelConfig) -> Iterator[str]:
    if isinstance(config.attention.pattern, list):
        yield from _list_fits("model.attention.pattern", len(config.attention.pattern), config)
    if config.family != "decoder":
        return
    for pattern in dict.fromkeys(layer_patterns(config, max(config.layers, 1), decoder=True)):
        if _sees_ahead(pattern, config.context):
            yield (
                f"model.attention.pattern is {str(pattern)!r}, with which a decoder would see the tokens that it predicts: "
                f"write {f'({pattern}) & causal()'!r}, or use family: encoder."
            )


def _sees_ahead(pattern: Pattern, context: int) -> bool:
    """Whether queries anywhere see later keys; a prefix at the start of the row, which a prefix language model has, does not count."""
    if pattern.is_causal:
        return False
    ahead = pattern.materialize(range(context, context + 1), range(context + 1, 3 * context + 2))
    return bool(ahead.any())


def _list_fits(name: str, length: int, config: ModelConfig) -> Iterator[str]:
    if length > max(config.layers, 1):
        yield f"{name} lists {length} layers, but model.layers is {config.layers}: drop some, or add layers."

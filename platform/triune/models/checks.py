"""What a model's settings must satisfy, checked before anything starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from triune.attention.expression import parse
from triune.attention.patterns import All, Any_, Not, Pattern, PerHead, Prefix, causal, full
from triune.attention.routed.patterns import SERVED, Lsh, Routed
from triune.attention.sparse import BlockLocal, Dilated, Fixed, GlobalTokens, RandomBlocks, Sinks, Strided
from triune.errors import UserError
from triune.models.config import (
    AlibiPosition,
    HeadConfig,
    LearnedPosition,
    ModelConfig,
    PatchInput,
    RotaryPosition,
    SinusoidalPosition,
    T5Position,
)
from triune.models.head_checks import head_problems


def check(config: ModelConfig) -> None:
    """Raise UserError with every mistake, each naming option, value, constraint and fix."""
    problems = [*_sizes(config), *_heads(config), *_position(config), *_norm(config), *_training(config)]
    problems += [*_input(config), *head_problems(config), *_patterns(config)]
    if problems:
        raise UserError("\n".join(problems))


def layer_patterns(config: ModelConfig, layers: int, *, decoder: bool, cross: bool = False) -> list[Pattern | Routed]:
    """One self-attention pattern a block: `attention.pattern`, a list repeated to the depth.

    Null is full in an encoder and causal in a decoder. The decoder of an encoder_decoder (`cross`) is always causal:
    the option speaks of the tower that reads the long source (as in LED, Beltagy et al. 2020, and LongT5, Guo et al. 2022).
    """
    chosen = config.attention.pattern
    if cross or chosen is None:
        return [causal() if decoder else full()] * layers
    read = [parse(text) for text in ([chosen] if isinstance(chosen, str) else chosen)]
    return [read[index % len(read)] for index in range(layers)]


def global_part(pattern: Pattern | Routed) -> GlobalTokens | None:
    """The `global_tokens(...)` that a pattern is or that `|` adds to it; None without one."""
    parts = pattern.parts if isinstance(pattern, Any_) else (pattern,)
    return next((part for part in parts if isinstance(part, GlobalTokens)), None)


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
        "embedding_width": config.embedding_width,
        "layers": config.layers,
        "decoder_layers": config.decoder_layers,
        "heads": config.heads,
        "key_value_heads": config.key_value_heads,
        "head_width": config.head_width,
        "feed_forward.width": config.feed_forward.width,
        "feed_forward.chunk": config.feed_forward.chunk,
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
        if config.resolved_embedding_width % 2:
            name = "width" if config.embedding_width is None else "embedding_width"
            yield (
                f"model.{name} is {config.resolved_embedding_width}, but sinusoidal positions need an even one: sines and cosines "
                "in pairs."
            )
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


def _input(config: ModelConfig) -> Iterator[str]:
    if isinstance(config.input, PatchInput):
        yield from _patches(config, config.input)
    if config.parallel:
        yield from _parallel(config)
    dropout = config.token_dropout
    if dropout is None:
        return
    if config.family != "encoder":
        yield f"model.token_dropout is set, but family is {config.family}: only an encoder reads mask tokens. Leave it null."
    if not 0 <= dropout.rate < 1:
        yield f"model.token_dropout.rate is {dropout.rate:g}, but a share of tokens must be at least 0 and below 1."
    mask = -1 if dropout.mask is None else dropout.mask
    if mask < 0 or (config.vocabulary is not None and mask >= config.vocabulary):
        said = "null" if dropout.mask is None else mask
        entries = "the vocabulary" if config.vocabulary is None else f"model.vocabulary = {config.vocabulary}"
        yield f"model.token_dropout.mask is {said}, but it must be the id of the mask token, at least 0 and below {entries}."


def _patches(config: ModelConfig, patches: PatchInput) -> Iterator[str]:
    for name in ("image", "patch", "channels"):
        if getattr(patches, name) < 1:
            yield f"model.input.{name} is {getattr(patches, name)}, but it must be at least 1."
    if patches.patch > 0 and patches.image % patches.patch:
        yield (
            f"model.input.patch is {patches.patch}, which does not divide model.input.image = {patches.image}: "
            f"{_divisors(patches.image, patches.patch)}."
        )
    elif patches.patch > 0 and config.context != patches.positions:
        what = "patches and the class token" if patches.class_token else "patches"
        yield f"model.context is {config.context}, but an image has {patches.positions} positions, its {what}: set model.context={patches.positions}."
    if isinstance(config.head, HeadConfig):
        yield "model.head.kind is vocabulary, but model.input.kind: patches has none: use model.head.kind=classes."
    unread = {
        "family": (config.family, "encoder"),
        "vocabulary": (config.vocabulary, None),
        "embedding_width": (config.embedding_width, None),
        "token_types": (config.token_types, 0),
        "token_dropout": (config.token_dropout, None),
        "scale_embeddings": (config.scale_embeddings, False),
    }
    for name, (value, needed) in unread.items():
        if value != needed:
            said = "null" if needed is None else str(needed).lower()
            yield f"model.{name} is {value}, but model.input.kind: patches reads images, not tokens: it must be {said}."


def _parallel(config: ModelConfig) -> Iterator[str]:
    if config.norm.placement == "post":
        yield "model.parallel is true, but with model.norm.placement: post each branch has a sum of its own to normalise: use pre or sandwich."
    if config.family == "encoder_decoder":
        yield "model.parallel is true, but cross-attention asks with what self-attention has found: use family: encoder or decoder."
    if config.reversible:
        yield "model.parallel and model.reversible are both true, but reversible branches read one another's stream: set one to false."


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
    if config.reversible and config.activation_checkpointing:
        yield (
            "model.reversible and model.activation_checkpointing are both true, but a reversible stack keeps no activations that "
            "could be left out: set one of them to false."
        )
    if config.reversible and config.norm.placement == "post":
        yield (
            "model.reversible is true, but with model.norm.placement: post a norm stands on the residual stream, which can't be "
            "undone: use pre or sandwich."
        )


def _patterns(config: ModelConfig) -> Iterator[str]:
    if isinstance(config.attention.pattern, list):
        yield from _list_fits("model.attention.pattern", len(config.attention.pattern), config)
    for pattern in dict.fromkeys(layer_patterns(config, max(config.layers, 1), decoder=config.family == "decoder")):
        if isinstance(pattern, Routed):
            yield from _routed(config, pattern)
        else:
            yield from _static(config, pattern)
        if config.attention.global_projections:
            yield from _global_projections(config, pattern)


def _global_projections(config: ModelConfig, pattern: Pattern | Routed) -> Iterator[str]:
    if config.family != "encoder":
        yield f"model.attention.global_projections is true, but family is {config.family}: only an encoder has them. Set it to false."
        return
    atoms = [] if isinstance(pattern, Routed) else [*_atoms(pattern)]
    found = sum(isinstance(atom, GlobalTokens) for atom in atoms)
    if not atoms or found > 1 or (found and global_part(pattern) is None):
        yield (
            f"model.attention.global_projections is true, but model.attention.pattern is {str(pattern)!r}, in which no one "
            "`| global_tokens(...)` says which tokens ask with them: write one after the rest of the pattern."
        )


def _static(config: ModelConfig, pattern: Pattern) -> Iterator[str]:
    context = max(config.context, 1)
    found = [*dict.fromkeys(filter(None, (_misfit(atom, context) for atom in _atoms(pattern))))]
    if not found:
        found += [problem for part in pattern.heads() for problem in _sight(part, context)]
    found += _head_groups(config, len(pattern.heads()))
    if config.family == "decoder" and _sees_ahead(pattern, context):
        fix = f"({pattern}) & causal()"
        found.append(f"lets a decoder see the tokens that it predicts: write {fix!r}, or use family: encoder.")
    yield from (f"model.attention.pattern is {str(pattern)!r}, which {problem}" for problem in dict.fromkeys(found))


def _atoms(pattern: Pattern) -> Iterator[Pattern]:
    """What `& | ~` and per_head combine."""
    if isinstance(pattern, Not):
        yield from _atoms(pattern.inner)
    elif isinstance(pattern, All | Any_ | PerHead):
        for part in pattern.parts:
            yield from _atoms(part)
    else:
        yield pattern


def _misfit(atom: Pattern, context: int) -> str | None:
    """Why an atom has no place in rows of `context` positions."""
    match atom:
        case GlobalTokens(runs=[*_, (_, stop)]) if stop > context:
            return f"has a global token at position {stop - 1}, but model.context is {context}: the last position is {context - 1}."
        case (Dilated(step=size) | Strided(stride=size) | Fixed(stride=size)) | (
            BlockLocal(size=size) | RandomBlocks(block=size)
        ) if size >= context > 1:
            return f"has {atom}, whose {size} must be below model.context = {context}: no row is long enough for it."
    return None


def _head_groups(config: ModelConfig, parts: int) -> Iterator[str]:
    keys = config.resolved_key_value_heads
    if parts > 1 and keys > 0 and keys % parts:
        which = "heads" if keys == config.heads else "key_value_heads"
        yield (
            f"has {parts} parts of as many heads each, with their own keys and values, but {parts} does not divide "
            f"model.{which} = {keys}: {_divisors(keys, parts)}."
        )


def _sees_ahead(pattern: Pattern, context: int) -> bool:
    """Whether a query sees a later key; a prefix at the start of the row, which a prefix language model has, does not count."""
    if pattern.is_causal:
        return False
    return any((part & ~causal()).kept(context, context) for part in _without_prefixes(pattern).heads())


def _without_prefixes(pattern: Pattern) -> Pattern:
    """The pattern with no key of a prefix after its query."""
    match pattern:
        case Prefix(length=length):
            return Sinks(length)
        case Not(inner=inner):
            return Not(_without_prefixes(inner))
        case All(parts=parts) | Any_(parts=parts) | PerHead(parts=parts):
            return type(pattern)(tuple(map(_without_prefixes, parts)))
    return pattern


def _sight(pattern: Pattern, context: int) -> Iterator[str]:
    """Queries that see nothing, or nothing but themselves, in a row of `context` positions; shorter ones are not looked at."""
    import numpy as np

    low, high = pattern.reach()
    if low >= 0 >= high and context > 1:
        yield "lets no token see another: a window needs a side of at least 1."
        return
    position = np.arange(context, dtype=np.int32)
    if pattern.allows(position, position).all():
        return
    blind = np.flatnonzero(pattern.kept_rows(context, context) == 0)
    if blind.size:
        more = f" and {blind.size - 1} more" if blind.size > 1 else ""
        yield f"leaves the query at position {blind[0]}{more} nothing to attend to: add its own key with | window(0, 0)."


def _routed(config: ModelConfig, pattern: Routed) -> Iterator[str]:
    name = f"model.attention.pattern is {str(pattern)!r}"
    if config.family == "decoder" and not pattern.is_causal:
        yield f"{name}, with which a decoder would see the tokens that it predicts: write causal=True, or use family: encoder."
    if config.family != "decoder" and pattern.is_causal:
        way = "write causal=False" if isinstance(pattern, Lsh) else "use another pattern, or family: decoder"
        yield f"{name}, which sees the past only, but family is {config.family}, whose encoder reads both ways: {way}."
    if isinstance(config.position, AlibiPosition | T5Position):
        yield (
            f"model.position.kind is {config.position.kind}, a bias on the scores, but {name.removeprefix('model.')}, which takes none: "
            "use rotary, learned, sinusoidal or none."
        )
    if isinstance(pattern, Lsh) and config.resolved_key_value_heads != config.heads:
        yield (
            f"model.key_value_heads is {config.key_value_heads}, but {name.removeprefix('model.')}, where one vector is query and key: "
            f"leave it null, or set it to model.heads = {config.heads}."
        )
    if config.attention.backend not in SERVED:
        yield (
            f"model.attention.backend is {config.attention.backend}, but {name.removeprefix('model.')}, whose pairs are known only once "
            f"the tokens are: use one of {', '.join(SERVED)}."
        )


def _list_fits(name: str, length: int, config: ModelConfig) -> Iterator[str]:
    if length > max(config.layers, 1):
        yield f"{name} lists {length} layers, but model.layers is {config.layers}: drop some, or add layers."

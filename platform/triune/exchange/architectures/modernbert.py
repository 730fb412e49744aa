"""ModernBERT (Warner et al. 2024, 2.1): an encoder of full and windowed layers, each kind with its rotary base, GeGLU, no biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, TokenIds, vocabulary_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._both_ways import cycle, sides
from triune.exchange.architectures._rotary import read_rotary, write_rotary
from triune.exchange.mapping import Entry, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.checks import layer_patterns, rotary_bases
from triune.models.config import ClassHeadConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig, RotaryPosition
from triune.units import Count

#: Kinds of layers: the base of each where the config has none, and the key that held it before v5.
_KINDS = {"full_attention": (160000.0, "global_rope_theta"), "sliding_attention": (10000.0, "local_rope_theta")}
_HEAD = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `ModernBertConfig`; a file without the masked-LM head becomes an encoder without it."""
    bare = "ModernBertModel" in (settings.values.get("architectures") or ())
    bias = settings.flag("mlp_bias", False)
    settings.only("attention_bias", bias, default=False)
    settings.only("sparse_prediction", False)  # their logits would be those of masked tokens alone
    kinds = _layer_kinds(settings)
    side = settings.whole("local_attention", 128) // 2  # to each side of the token
    patterns = {"full_attention": "full()", "sliding_attention": f"window({side}, {side})"}
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 50368)),
        context=Count(settings.whole("max_position_embeddings", 8192)),
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 22),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(
            pattern=[patterns[kind] for kind in kinds], dropout=settings.number("attention_dropout", 0.0)
        ),
        position=_position(settings, kinds),
        norm=NormConfig(
            epsilon=settings.number("norm_eps", 1e-5),
            bias=settings.flag("norm_bias", False),
            embedding=True,
            skip_first=True,
        ),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_activation", "gelu", gated=True),
            width=settings.whole("intermediate_size", 1152),
            dropout=settings.number("mlp_dropout", 0.0),
        ),
        head=HeadConfig() if bare else _head(settings),
        bias=bias,
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("embedding_dropout", 0.0),
    )


def _head(settings: Settings) -> HeadConfig:
    return HeadConfig(
        transform=True,
        transform_bias=settings.flag("classifier_bias", False),
        activation=settings.choice("classifier_activation", _HEAD, default="gelu"),
        bias=settings.flag("decoder_bias", True),
    )


def _layer_kinds(settings: Settings) -> list[str]:
    """The kinds of layers in their order, to be repeated to the depth."""
    layers = settings.whole("num_hidden_layers", 22)
    kinds = settings.values.get("layer_types")
    if kinds is None:  # before v5
        every = settings.whole("global_attn_every_n_layers", 3)
        return ["full_attention", *["sliding_attention"] * (min(every, layers) - 1)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise settings.refusal("layer_types", kinds, f"it must list num_hidden_layers = {layers} layers")
    for kind in kinds:
        if kind not in [*_KINDS]:
            raise settings.refusal("layer_types", kind, f"triune can do {', '.join(_KINDS)}")
    return cycle(kinds)


def _position(settings: Settings, kinds: list[str]) -> RotaryPosition:
    """Rotary positions with one base a layer; UserError where the kinds of layers differ in more than their base."""
    found = {}
    for kind in dict.fromkeys(kinds):
        base, older = _KINDS[kind]
        values = {**settings.section("rope_parameters").section(kind).values, **settings.section("rope_scaling").values}
        context = settings.whole("max_position_embeddings", 8192)
        own = Settings({"rope_parameters": values, "max_position_embeddings": context}, place=settings.place)
        found[kind] = read_rotary(own, base=float(settings.number(older, base)))
    first, *others = found.values()
    if any(replace(position, base=first.base) != first for position in others):
        raise settings.refusal(
            "rope_parameters", settings.values.get("rope_parameters"), "triune has one scaling for all layers"
        )
    bases: list[float] = [position.base for kind in kinds if isinstance((position := found[kind]).base, float)]
    return replace(first, base=bases)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `ModernBertConfig`; of several windows, or bases of one kind of layer, the first."""
    head = vocabulary_head(config)
    patterns = layer_patterns(config, config.layers, decoder=False)
    windows = [side for side in sides(patterns) if side is not None]
    kinds = ["full_attention" if str(pattern) == "full()" else "sliding_attention" for pattern in patterns]
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_activation": write_activation(config.feed_forward, "gelu", gated=True),
        "layer_types": kinds,
        "local_attention": 2 * windows[0] if windows else 128,
        "rope_parameters": dict(_rope_parameters(config, kinds)),
        "norm_eps": config.norm.epsilon,
        "norm_bias": config.norm.bias,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "classifier_bias": head.transform_bias,
        "classifier_activation": {ours: theirs for theirs, ours in reversed(_HEAD.items())}[head.activation],
        "decoder_bias": head.bias,
        "attention_dropout": config.attention.dropout,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.feed_forward.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _rope_parameters(config: ModelConfig, kinds: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The positions of each kind of layer; a kind that the model has no layer of is left at its default."""
    if not isinstance(config.position, RotaryPosition):
        return
    bases = rotary_bases(config)
    for kind in dict.fromkeys(kinds):
        base = bases[kinds.index(kind) % len(bases)]
        own = replace(config, position=replace(config.position, base=base))
        yield kind, write_rotary(own)["rope_parameters"]


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `ModernBertForMaskedLM`, or of `ModernBertModel` under the same names."""
    table, output = "model.embeddings.tok_embeddings.weight", "decoder.weight"
    head, shift = vocabulary_head(config), config.norm.bias
    tied = config.tie_embeddings
    blocks = each_layer(config.layers, _blocks(config))
    unnormed = "stack.blocks.0.attention_residual."  # what it reads is normalised already
    return TensorMapping(
        entries=(
            tensor("embedding.weight", table, *[output] * (tied and head.transform)),
            *module("input.norm", "model.embeddings.norm", bias=shift),
            *(entry for entry in blocks if not entry.ours.startswith(unnormed)),
            *module("stack.norm", "model.final_norm", bias=shift),
            *(module("head.dense", "head.dense", bias=head.transform_bias) if head.transform else ()),
            *(module("head.norm", "head.norm", bias=shift) if head.transform else ()),
            *([] if tied else [tensor("head.weight", output)]),
            *([tensor("head.bias", "decoder.bias")] if head.bias else []),
        )
    )


def _blocks(config: ModelConfig) -> Iterator[Entry]:
    layer, block = "model.layers.{layer}", "stack.blocks.{layer}"
    bias, shift = config.bias, config.norm.bias
    yield from module(f"{block}.attention_residual.norm_before", f"{layer}.attn_norm", bias=shift)
    yield from module(f"{block}.attention.query_key_value", f"{layer}.attn.Wqkv", bias=bias)
    yield from module(f"{block}.attention.output", f"{layer}.attn.Wo", bias=bias)
    yield from module(f"{block}.feed_forward_residual.norm_before", f"{layer}.mlp_norm", bias=shift)
    yield from module(f"{block}.feed_forward.up", f"{layer}.mlp.Wi", bias=bias)
    yield from module(f"{block}.feed_forward.down", f"{layer}.mlp.Wo", bias=bias)


def classes(config: ModelConfig) -> Classes:
    """`ModernBertForMaskedLM`, or `ModernBertModel` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="ModernBertForMaskedLM")
    return Classes(auto="AutoModel", concrete="ModernBertModel", bare=True)


def _read_shape(settings: Settings, config: ModelConfig) -> dict[str, Any]:
    """A task's dense layer is that of the masked-LM head."""
    head = vocabulary_head(config)
    return {"transform_bias": head.transform_bias, "activation": head.activation}


def _read_pooled(settings: Settings, config: ModelConfig) -> dict[str, Any]:
    return _read_shape(settings, config) | {"pool": settings.choice("classifier_pooling", _POOLING, default="cls")}


def _write_pooling(head: ClassHeadConfig) -> dict[str, Any]:
    return {"classifier_pooling": {ours: theirs for theirs, ours in _POOLING.items()}.get(head.pool, "cls")}


_POOLING = {"cls": "first", "mean": "mean"}
_TASK = TaskHead(
    concrete="",
    dense="head.dense",
    norm="head.norm",
    scores="classifier",
    dropout="classifier_dropout",
    read=_read_shape,
)


def _named(ids: TokenIds) -> dict[str, Any]:
    """A text begins with what classifies it, and ends with what separates it from another."""
    return {"cls_token_id": ids.bos, "sep_token_id": ids.eos}


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="modernbert",
        family="encoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="model.",
        extra=_named,
    ),
    sequence=replace(_TASK, concrete="ModernBertForSequenceClassification", read=_read_pooled, write=_write_pooling),
    tokens=replace(_TASK, concrete="ModernBertForTokenClassification"),
    span=replace(_TASK, concrete="ModernBertForQuestionAnswering"),
)

"""Longformer (Beltagy et al. 2020): RoBERTa with a window in each layer, and global tokens with projections of their own.

Which tokens are global is no setting of theirs: whoever calls their model marks them in `global_attention_mask`, and without one there are
none. So a config of theirs is read as windows alone, with the projections for the tokens that a `SequenceLayout` marks as
landmarks. Where our pattern names the first tokens, the exported config remembers how many under `triune`, the proof marks them, and so must
whoever calls the model there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, vocabulary_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._bert_layers import bert_layers, position_ids
from triune.exchange.architectures._both_ways import cycle, sides
from triune.exchange.architectures._offset import read_offset, write_offset
from triune.exchange.mapping import Echo, Entry, Ignored, Part, TensorMapping, each_layer, module, tensor
from triune.models.checks import global_part, layer_patterns
from triune.models.config import FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from triune.units import Count

_LAYER = "longformer.encoder.layer.{layer}"
_PROJECTIONS = ("query", "key", "value")


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `LongformerConfig`; a file without the masked-LM head becomes an encoder without it."""
    bare = "LongformerModel" in (settings.values.get("architectures") or ())
    context, position = read_offset(settings, rows=512)
    own = settings.section("triune")
    types = settings.whole("type_vocab_size", 2)
    if types < 1:
        raise settings.refusal("type_vocab_size", types, "it must be at least 1: the first is added to every token")
    return ModelConfig(
        family="encoder",
        vocabulary=Count(settings.whole("vocab_size", 30522)),
        context=context,
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(
            pattern=_patterns(settings, own),
            global_projections=own.flag("global_projections", True),
            dropout=settings.number("attention_probs_dropout_prob", 0.1),
        ),
        token_types=types,
        position=position,
        norm=NormConfig(placement="post", epsilon=settings.number("layer_norm_eps", 1e-12), embedding=True),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_act", "gelu"), width=settings.whole("intermediate_size", 3072)
        ),
        head=HeadConfig() if bare else HeadConfig(transform=True, bias=True),
        tie_embeddings=bare or settings.flag("tie_word_embeddings", True),
        dropout=settings.number("hidden_dropout_prob", 0.1),
    )


def _patterns(settings: Settings, own: Settings) -> list[str]:
    layers = settings.whole("num_hidden_layers", 12)
    windows = settings.values.get("attention_window", 512)
    if isinstance(windows, list) and len(windows) != layers:
        raise settings.refusal("attention_window", windows, f"it must have num_hidden_layers = {layers} numbers")
    windows = windows if isinstance(windows, list) else [windows]
    for window in windows:
        if not isinstance(window, int) or isinstance(window, bool) or window < 4 or window % 2:
            why = "it must be even, or a list of even numbers, and at least 4, as theirs fails below"
            raise settings.refusal("attention_window", window, why)
    if any(max(windows) % window for window in windows):
        raise settings.refusal(
            "attention_window", windows, "theirs pads rows to the largest, which the others must divide"
        )
    tokens = own.whole("global_tokens", 0)
    marked = f" | global_tokens(first={tokens})" if tokens else ""
    return [f"window({window // 2}, {window // 2}){marked}" for window in cycle(windows)]


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `LongformerConfig`; a layer without a window gets one of the context."""
    patterns = layer_patterns(config, config.layers, decoder=False)
    tokens, own = _first_tokens(config), config.attention.global_projections
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "attention_window": [2 * max(1, int(config.context) if side is None else side) for side in sides(patterns)],
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "gelu"),
        "type_vocab_size": max(1, config.token_types),
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **write_offset(config),
        **({} if own and not tokens else {"triune": {"global_tokens": tokens, "global_projections": own}}),
    }


def _first_tokens(config: ModelConfig) -> int:
    """How many tokens of a document are global, as the first layer with a run of them from position 0 says; 0 without one."""
    for pattern in layer_patterns(config, config.layers, decoder=False):
        part = global_part(pattern)
        if part is not None and part.runs[0][0] == 0:
            return part.runs[0][1]
    return 0


def marks(config: ModelConfig, real: Tensor) -> dict[str, Tensor]:
    """The `global_attention_mask` [B, T] that makes theirs compute what our pattern says; nothing without global tokens."""
    tokens = _first_tokens(config)
    return {"global_attention_mask": (real & (torch.arange(real.shape[1]) < tokens)).long()} if tokens else {}


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `LongformerForMaskedLM`, or of `LongformerModel` under the same names.

    A model without projections for global tokens is one in which they equal the others: its file repeats these, and a file
    whose own differ (trained there) is refused as long as its config says so.
    """
    tables, output = "longformer.embeddings", "lm_head.decoder"
    headed, tied = vocabulary_head(config).transform, config.tie_embeddings
    own = config.attention.global_projections
    layers = bert_layers(config, _LAYER)
    projections = {f"{_LAYER}.attention.self.{name}_global": config.width for name in _PROJECTIONS}
    own_layers = module("stack.blocks.{layer}.attention.global_query_key_value", projections)
    return TensorMapping(
        entries=(
            tensor("embedding.weight", f"{tables}.word_embeddings.weight", *[f"{output}.weight"] * (tied and headed)),
            *module("input.positions", f"{tables}.position_embeddings", bias=False),
            *module("input.token_types", f"{tables}.token_type_embeddings", bias=False),
            *module("input.norm", f"{tables}.LayerNorm"),
            *(layers if own else map(_shared, layers)),
            *each_layer(config.layers, own_layers if own else ()),
            *(_head(output, tied=tied) if headed else ()),
        ),
        fixed=(position_ids(tables, write_offset(config)["max_position_embeddings"]),),
        echoes=(*(() if own else _repeated(config)), *(() if tied or not headed else (_UNREAD,))),
        ignored=(
            Ignored(r"longformer\.pooler\..*", "reads the first token for classification, not for masked tokens"),
        ),
    )


_UNREAD = Echo("lm_head.bias", "lm_head.decoder.bias", "an untied vocabulary adds the bias of its own layer")


def _global_name(name: str) -> str:
    """`….self.query.weight` -> `….self.query_global.weight`."""
    module_name, kind = name.rsplit(".", 1)
    return f"{module_name}_global.{kind}"


def _shared(entry: Entry) -> Entry:
    """Queries, keys and values that are those of global tokens, too."""
    if "attention.query_key_value" not in entry.ours:
        return entry
    parts = (Part((*part.names, _global_name(part.names[0])), part.rows, part.reshape) for part in entry.theirs)
    return Entry(entry.ours, tuple(parts))


def _repeated(config: ModelConfig) -> Iterator[Echo]:
    for layer in range(config.layers):
        for projection in _PROJECTIONS:
            for kind in ("weight", "bias"):
                name = f"{_LAYER}.attention.self.{projection}.{kind}".replace("{layer}", str(layer))
                yield Echo(_global_name(name), name, "global tokens have no projections of their own")


def _head(output: str, *, tied: bool) -> Iterator[Entry]:
    yield from module("head.dense", "lm_head.dense")
    yield from module("head.norm", "lm_head.layer_norm")
    if tied:
        yield tensor("head.bias", "lm_head.bias", f"{output}.bias")
    else:
        yield from module("head", output)


def classes(config: ModelConfig) -> Classes:
    """`LongformerForMaskedLM`, or `LongformerModel` without a head."""
    if vocabulary_head(config).transform:
        return Classes(auto="AutoModelForMaskedLM", concrete="LongformerForMaskedLM")
    return Classes(auto="AutoModel", concrete="LongformerModel", bare=True)


def caveat(values: Mapping[str, Any]) -> str:
    """What a caller of theirs must pass, since it is no setting there."""
    tokens = (values.get("triune") or {}).get("global_tokens")
    if not tokens:
        return ""
    return f"its first {tokens} tokens are global: call it with a global_attention_mask that is 1 there"


ARCHITECTURE = Architecture(
    model_type="longformer",
    family="encoder",
    read_config=read_config,
    write_config=write_config,
    mapping=mapping,
    classes=classes,
    prefix="longformer.",
    arguments=marks,
    caveat=caveat,
)

"""T5 and T5 1.1 (Raffel et al. 2020): an encoder-decoder with RMS norms, relative buckets and no scale in attention.

1.0 has one table for inputs and outputs, whose hidden states it scales by width**-0.5; 1.1 has a table of its own for the outputs,
unscaled, and a gated feed-forward. `transformers` can load any of the four (tied or not, scaled or not) and its config says only
whether states are scaled: the tensors say whether the tables are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, TokenIds, vocabulary_head
from triune.exchange.mapping import Entry, Ignored, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, HeadConfig, ModelConfig, NormConfig, T5Position
from triune.units import Count

_KINDS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gated-gelu": "geglu_tanh",  # `transformers` takes "gelu" here for its tanh form, as T5 1.1 was trained
    "gated-gelu_new": "geglu_tanh",
    "gated-silu": "swiglu",
}
_CONTEXT = 512  # what T5 was trained at: its config names no length, and its positions end nowhere


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `T5Config`."""
    settings.only("is_decoder", False)
    width, layers = settings.whole("d_model", 512), settings.whole("num_layers", 6)
    scaled = settings.flag("scale_decoder_outputs", settings.flag("tie_word_embeddings", True))
    decoder_layers = settings.whole("num_decoder_layers", layers)
    dropout = settings.number("dropout_rate", 0.1)  # one rate for all three places
    return ModelConfig(
        family="encoder_decoder",
        vocabulary=Count(settings.whole("vocab_size", 32128)),
        context=Count(settings.whole("n_positions", _CONTEXT)),
        width=width,
        layers=layers,
        decoder_layers=decoder_layers,
        heads=settings.whole("num_heads", 8),
        head_width=settings.whole("d_kv", 64),
        attention=AttentionConfig(scale=1.0, dropout=dropout),
        position=T5Position(
            buckets=settings.whole("relative_attention_num_buckets", 32),
            max_distance=settings.whole("relative_attention_max_distance", 128),
        ),
        norm=NormConfig(kind="rms", epsilon=settings.number("layer_norm_epsilon", 1e-6)),
        feed_forward=FeedForwardConfig(
            kind=settings.choice("feed_forward_proj", _KINDS, default="relu"),
            width=settings.whole("d_ff", 2048),
            dropout=dropout,
        ),
        head=HeadConfig(scale=width**-0.5 if scaled else None),
        bias=False,
        tie_embeddings="lm_head.weight" not in settings.names,
        dropout=dropout,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `T5Config`; `n_positions` is what older configs had, and tells triune the trained length."""
    position = config.position if isinstance(config.position, T5Position) else T5Position()
    scaled = vocabulary_head(config).scale is not None
    return {
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "d_model": config.width,
        "d_kv": config.resolved_head_width,
        "d_ff": config.feed_forward.inner_width(config.width),
        "num_layers": config.layers,
        "num_decoder_layers": config.resolved_decoder_layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.max_distance,
        "feed_forward_proj": next((name for name, kind in _KINDS.items() if kind == config.feed_forward.kind), "relu"),
        "layer_norm_epsilon": config.norm.epsilon,
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": scaled,  # its class reads this as "scale the outputs"
        "scale_decoder_outputs": scaled,
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `T5ForConditionalGeneration`."""
    tied = config.tie_embeddings
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return TensorMapping(
        entries=(
            tensor("embedding.weight", *names, *["lm_head.weight"] * tied),
            *_stack(config, "encoder", config.layers),
            *_stack(config, "decoder", config.resolved_decoder_layers),
            *([] if tied else [tensor("head.weight", "lm_head.weight")]),
        ),
        ignored=(
            Ignored(
                r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
                "cross-attention has no positions; the first release's files hold a table that nothing reads",
            ),
        ),
    )


def _stack(config: ModelConfig, side: str, layers: int) -> Iterator[Entry]:
    cross = side == "decoder"
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    yield from module(f"{side}.relative", table, bias=False)
    yield from each_layer(layers, _block(config, side, cross=cross))
    yield from module(f"{side}.norm", f"{side}.final_layer_norm", bias=False)


def _block(config: ModelConfig, side: str, *, cross: bool) -> Iterator[Entry]:
    layer, block = f"{side}.block.{{layer}}.layer", f"{side}.blocks.{{layer}}"
    rows = config.heads * config.resolved_head_width
    inner = config.feed_forward.inner_width(config.width)
    attention, across, last = f"{layer}.0.SelfAttention", f"{layer}.1.EncDecAttention", f"{layer}.{2 if cross else 1}"
    dense = f"{last}.DenseReluDense"
    pairs: dict[str, str | dict[str, int]] = {
        f"{block}.attention_residual.norm_before": f"{layer}.0.layer_norm",
        f"{block}.attention.query_key_value": {f"{attention}.{name}": rows for name in "qkv"},
        f"{block}.attention.output": f"{attention}.o",
        f"{block}.feed_forward_residual.norm_before": f"{last}.layer_norm",
        f"{block}.feed_forward.up": {f"{dense}.{name}": inner for name in ("wi_0", "wi_1")}
        if config.feed_forward.gated
        else f"{dense}.wi",
        f"{block}.feed_forward.down": f"{dense}.wo",
    }
    if cross:
        pairs |= {
            f"{block}.cross_residual.norm_before": f"{layer}.1.layer_norm",
            f"{block}.cross_attention.query": f"{across}.q",
            f"{block}.cross_attention.key_value": {f"{across}.{name}": rows for name in "kv"},
            f"{block}.cross_attention.output": f"{across}.o",
        }
    for ours, theirs in pairs.items():
        yield from module(ours, theirs, bias=False)


def classes(config: ModelConfig) -> Classes:
    """`T5ForConditionalGeneration`."""
    return Classes(auto="AutoModelForSeq2SeqLM", concrete="T5ForConditionalGeneration")


def _start(ids: TokenIds) -> dict[str, Any]:
    return {"decoder_start_token_id": ids.decoder_start}


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="t5",
        family="encoder_decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        extra=_start,
    ),
    sequence=TaskHead(
        concrete="T5ForSequenceClassification",
        dense="classification_head.dense",
        scores="classification_head.out_proj",
        pool="last",
        dropout="classifier_dropout",
        prefix="transformer.",
    ),
    span=TaskHead(concrete="T5ForQuestionAnswering", scores="qa_outputs"),
)

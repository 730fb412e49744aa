"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): a decoder whose attention and feed-forward stand side by side, and
whose rotary positions turn a part of each head.
"""

from __future__ import annotations

from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.architectures._rotary import read_rotary, write_rotary
from triune.exchange.mapping import HeadsApart, Ignored, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, ModelConfig, NormConfig, RotaryPosition
from triune.units import Count

_HEADS = ("embed_out.weight", "lm_head.weight")  # in files, and in the class since v5


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `GPTNeoXConfig`."""
    settings.only("attention_bias", True)
    width, heads = settings.whole("hidden_size", 6144), settings.whole("num_attention_heads", 64)
    if heads < 1 or width % heads:
        raise settings.refusal("num_attention_heads", heads, f"it must divide hidden_size = {width}")
    return ModelConfig(
        family="decoder",
        vocabulary=Count(settings.whole("vocab_size", 50432)),
        context=Count(settings.whole("max_position_embeddings", 2048)),
        width=width,
        layers=settings.whole("num_hidden_layers", 44),
        heads=heads,
        attention=AttentionConfig(dropout=settings.number("attention_dropout", 0.0)),
        position=_rotary(settings),
        norm=NormConfig(epsilon=settings.number("layer_norm_eps", 1e-5)),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_act", "gelu"), width=settings.whole("intermediate_size", 24576)
        ),
        parallel=settings.flag("use_parallel_residual", True),
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        dropout=settings.number("hidden_dropout", 0.0),
    )


def _rotary(settings: Settings) -> RotaryPosition:
    """Outside of `rope_parameters` theirs reads `rotary_emb_base` and `rotary_pct`, and no `rope_theta` or `partial_rotary_factor`."""
    named = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    values = {**settings.values, **{name: settings.values.get(theirs) for name, theirs in named.items()}}
    return read_rotary(Settings(values, place=settings.place), fraction=0.25)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `GPTNeoXConfig`."""
    fraction = config.position.fraction if isinstance(config.position, RotaryPosition) else 1.0
    rotary = write_rotary(config).get("rope_parameters", {})
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "gelu"),
        "layer_norm_eps": config.norm.epsilon,
        "attention_bias": True,
        "attention_dropout": config.attention.dropout,
        "hidden_dropout": config.dropout,
        "use_parallel_residual": config.parallel,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rotary | {"partial_rotary_factor": fraction},
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `GPTNeoXForCausalLM`."""
    layer, block = "gpt_neox.layers.{layer}", "stack.blocks.{layer}"
    attention, together = f"{layer}.attention", HeadsApart(config.heads)
    blocks = [
        *module(f"{block}.attention_residual.norm_before", f"{layer}.input_layernorm"),
        *module(f"{block}.attention.query_key_value", f"{attention}.query_key_value", reshape=together),
        *module(f"{block}.attention.output", f"{attention}.dense"),
        *module(f"{block}.feed_forward_residual.norm_before", f"{layer}.post_attention_layernorm"),
        *module(f"{block}.feed_forward.up", f"{layer}.mlp.dense_h_to_4h"),
        *module(f"{block}.feed_forward.down", f"{layer}.mlp.dense_4h_to_h"),
    ]
    tied = config.tie_embeddings
    return TensorMapping(
        entries=(
            tensor("embedding.weight", "gpt_neox.embed_in.weight", *_HEADS * tied),
            *each_layer(config.layers, blocks),
            *module("stack.norm", "gpt_neox.final_layer_norm"),
            *([] if tied else [tensor("head.weight", *_HEADS)]),
        ),
        ignored=(
            Ignored(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)", "the causal mask, which older files hold"),
            Ignored(r"gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq", "frequencies, which older files hold"),
        ),
    )


def classes(config: ModelConfig) -> Classes:
    """`GPTNeoXForCausalLM`."""
    return Classes(auto="AutoModelForCausalLM", concrete="GPTNeoXForCausalLM")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="gpt_neox",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="gpt_neox.",
    ),
    sequence=TaskHead(concrete="GPTNeoXForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(
        concrete="GPTNeoXForTokenClassification", scores="classifier", dropout="classifier_dropout", rate=0.1
    ),
    span=TaskHead(concrete="GPTNeoXForQuestionAnswering", scores="qa_outputs"),
)

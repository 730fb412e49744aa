"""GPT-2 (Radford et al. 2019): a decoder with pre-norm and learned positions; its linear layers are kept transposed."""

from __future__ import annotations

from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.mapping import TRANSPOSED, Ignored, TensorMapping, each_layer, module, tensor
from triune.exchange.task_heads import TaskHead, with_tasks
from triune.models.config import FeedForwardConfig, LearnedPosition, ModelConfig, NormConfig
from triune.units import Count


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `GPT2Config`."""
    settings.only("add_cross_attention", False)
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    width = settings.whole("n_embd", 768)
    return ModelConfig(
        family="decoder",
        vocabulary=Count(settings.whole("vocab_size", 50257)),
        context=Count(settings.whole("n_positions", 1024)),
        width=width,
        layers=settings.whole("n_layer", 12),
        heads=settings.whole("n_head", 12),
        attention=AttentionConfig(dropout=settings.number("attn_pdrop", 0.1)),
        position=LearnedPosition(),
        norm=NormConfig(epsilon=settings.number("layer_norm_epsilon", 1e-5)),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "activation_function", "gelu_new"),
            width=settings.whole("n_inner", 4 * width),
        ),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        dropout=settings.number("resid_pdrop", 0.1),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `GPT2Config`."""
    return {
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feed_forward.inner_width(config.width),
        "activation_function": write_activation(config.feed_forward, "gelu_new"),
        "layer_norm_epsilon": config.norm.epsilon,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `GPT2LMHeadModel`."""
    layer, block = "transformer.h.{layer}", "stack.blocks.{layer}"
    blocks = [
        *module(f"{block}.attention_residual.norm_before", f"{layer}.ln_1"),
        *module(f"{block}.attention.query_key_value", f"{layer}.attn.c_attn", reshape=TRANSPOSED),
        *module(f"{block}.attention.output", f"{layer}.attn.c_proj", reshape=TRANSPOSED),
        *module(f"{block}.feed_forward_residual.norm_before", f"{layer}.ln_2"),
        *module(f"{block}.feed_forward.up", f"{layer}.mlp.c_fc", reshape=TRANSPOSED),
        *module(f"{block}.feed_forward.down", f"{layer}.mlp.c_proj", reshape=TRANSPOSED),
    ]
    tied = config.tie_embeddings
    return TensorMapping(
        entries=(
            tensor("embedding.weight", "transformer.wte.weight", *["lm_head.weight"] * tied),
            *module("input.positions", "transformer.wpe", bias=False),
            *each_layer(config.layers, blocks),
            *module("stack.norm", "transformer.ln_f"),
            *([] if tied else [tensor("head.weight", "lm_head.weight")]),
        ),
        ignored=(Ignored(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", "the causal mask, which older files hold"),),
    )


def classes(config: ModelConfig) -> Classes:
    """`GPT2LMHeadModel`."""
    return Classes(auto="AutoModelForCausalLM", concrete="GPT2LMHeadModel")


ARCHITECTURE = with_tasks(
    Architecture(
        model_type="gpt2",
        family="decoder",
        read_config=read_config,
        write_config=write_config,
        mapping=mapping,
        classes=classes,
        prefix="transformer.",
    ),
    sequence=TaskHead(concrete="GPT2ForSequenceClassification", scores="score", pool="last", bias=False),
    tokens=TaskHead(concrete="GPT2ForTokenClassification", scores="classifier", dropout="classifier_dropout", rate=0.1),
    span=TaskHead(concrete="GPT2ForQuestionAnswering", scores="qa_outputs"),
)

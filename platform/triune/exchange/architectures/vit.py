"""ViT (Dosovitskiy et al. 2021): an encoder of image patches; with scores of classes, or bare, with or without its pooler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triune.attention.config import AttentionConfig
from triune.exchange.architecture import Architecture, Classes, Settings, class_head
from triune.exchange.architectures._activations import read_activation, write_activation
from triune.exchange.mapping import Entry, Ignored, Part, TensorMapping, Viewed, each_layer, module, tensor
from triune.models.config import (
    ClassHeadConfig,
    FeedForwardConfig,
    LearnedPosition,
    ModelConfig,
    NormConfig,
    PatchInput,
)
from triune.units import Count

_POOLER = "vit.pooler.dense"
_POOLING = {"tanh": "tanh", "gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}


def read_config(settings: Settings) -> ModelConfig:
    """Settings of `ViTConfig`; a file of the bare class becomes an encoder without scores, whose head is the pooler if it has one."""
    if settings.has("problem_type"):
        settings.only("problem_type", "single_label_classification")
    image = PatchInput(
        image=_square(settings, "image_size", 224),
        patch=_square(settings, "patch_size", 16),
        channels=settings.whole("num_channels", 3),
    )
    return ModelConfig(
        family="encoder",
        input=image,
        context=Count(image.positions),
        width=settings.whole("hidden_size", 768),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 12),
        attention=AttentionConfig(dropout=settings.number("attention_probs_dropout_prob", 0.0)),
        position=LearnedPosition(),
        norm=NormConfig(placement="pre", epsilon=settings.number("layer_norm_eps", 1e-12)),
        feed_forward=FeedForwardConfig(
            kind=read_activation(settings, "hidden_act", "gelu"), width=settings.whole("intermediate_size", 3072)
        ),
        head=_head(settings),
        qkv_bias=settings.flag("qkv_bias", True),
        dropout=settings.number("hidden_dropout_prob", 0.0),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Settings for `ViTConfig`."""
    image = config.input if isinstance(config.input, PatchInput) else PatchInput()
    head = class_head(config)
    names = {str(label): f"LABEL_{label}" for label in range(head.labels)}
    return {
        "image_size": image.image,
        "patch_size": image.patch,
        "num_channels": image.channels,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward.inner_width(config.width),
        "hidden_act": write_activation(config.feed_forward, "gelu"),
        "layer_norm_eps": config.norm.epsilon,
        "qkv_bias": config.resolved_qkv_bias,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
        "pooler_output_size": config.width,
        "pooler_act": next(theirs for theirs, ours in _POOLING.items() if ours == head.activation),
        **({"id2label": names, "label2id": {name: int(label) for label, name in names.items()}} if names else {}),
    }


def mapping(config: ModelConfig) -> TensorMapping:
    """Tensors of `ViTForImageClassification`, or of `ViTModel` under the same names."""
    image = config.input if isinstance(config.input, PatchInput) else PatchInput()
    width, positions = config.width, int(config.context)
    kernel = (width, image.channels, image.patch, image.patch)
    flat = (width, image.channels * image.patch**2)
    tables = "vit.embeddings"
    head = class_head(config)
    pooled = head.transform and not head.labels
    return TensorMapping(
        entries=(
            tensor(
                "embedding.projection.weight",
                f"{tables}.patch_embeddings.projection.weight",
                reshape=Viewed(ours=flat, theirs=kernel),
            ),
            tensor("embedding.projection.bias", f"{tables}.patch_embeddings.projection.bias"),
            tensor("embedding.class_token", f"{tables}.cls_token", reshape=Viewed(ours=(width,), theirs=(1, 1, width))),
            tensor(
                "input.positions.weight",
                f"{tables}.position_embeddings",
                reshape=Viewed(ours=(positions, width), theirs=(1, positions, width)),
            ),
            *each_layer(config.layers, _block(config)),
            *module("stack.norm", "vit.layernorm"),
            *(module("head.dense", _POOLER) if pooled else []),
            *(module("head", "classifier") if head.labels else []),
        ),
        ignored=(
            Ignored(r"vit\.embeddings\.mask_token", "stands for patches to be restored in pretraining"),
            *([] if pooled else [Ignored(r"vit\.pooler\..*", "no class is read from it")]),
        ),
    )


def _head(settings: Settings) -> ClassHeadConfig:
    if "ViTModel" in (settings.values.get("architectures") or ()):
        if not settings.names & {f"{_POOLER}.weight", f"{_POOLER.removeprefix('vit.')}.weight"}:
            return ClassHeadConfig(labels=0)
        width = settings.whole("hidden_size", 768)
        if settings.whole("pooler_output_size", width) != width:
            raise settings.refusal(
                "pooler_output_size",
                settings.values["pooler_output_size"],
                f"triune's is as wide as its input, hidden_size = {width}",
            )
        return ClassHeadConfig(labels=0, transform=True, activation=settings.choice("pooler_act", _POOLING, "tanh"))
    labels = len(settings.section("id2label").values) or settings.whole("num_labels", 2)
    if labels < 2:
        raise settings.refusal(
            "num_labels", labels, "theirs learns one number by regression, triune two classes or more"
        )
    return ClassHeadConfig(labels=labels)


def _square(settings: Settings, key: str, default: int) -> int:
    """A side, which theirs may give as [height, width]."""
    value = settings.values.get(key)
    sides = value if isinstance(value, list) else [settings.whole(key, default)] * 2
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
        raise settings.refusal(key, value, "triune's images and patches are squares of whole pixels")
    return sides[0]


def _block(config: ModelConfig) -> Iterator[Entry]:
    """Each tensor under the name that files have, and under the one that modules have since transformers 5."""
    old, new, block = "vit.encoder.layer.{layer}", "vit.layers.{layer}", "stack.blocks.{layer}"
    names = {
        f"{block}.attention.output": ("attention.output.dense", "attention.o_proj"),
        f"{block}.attention_residual.norm_before": ("layernorm_before", "layernorm_before"),
        f"{block}.feed_forward.up": ("intermediate.dense", "mlp.fc1"),
        f"{block}.feed_forward.down": ("output.dense", "mlp.fc2"),
        f"{block}.feed_forward_residual.norm_before": ("layernorm_after", "layernorm_after"),
    }
    for kind in ("weight", "bias"):
        for ours, (held, named) in names.items():
            yield tensor(f"{ours}.{kind}", f"{old}.{held}.{kind}", f"{new}.{named}.{kind}")
    for kind in ("weight", "bias") if config.resolved_qkv_bias else ("weight",):
        parts = tuple(
            Part((f"{old}.attention.attention.{name}.{kind}", f"{new}.attention.{name[0]}_proj.{kind}"), config.width)
            for name in ("query", "key", "value")
        )
        yield Entry(f"{block}.attention.query_key_value.{kind}", parts)


def classes(config: ModelConfig) -> Classes:
    """`ViTForImageClassification`, or `ViTModel` without scores."""
    if class_head(config).labels:
        return Classes(auto="AutoModelForImageClassification", concrete="ViTForImageClassification")
    return Classes(auto="AutoModel", concrete="ViTModel", bare=True)


ARCHITECTURE = Architecture(
    model_type="vit",
    family="encoder",
    read_config=read_config,
    write_config=write_config,
    mapping=mapping,
    classes=classes,
    heads=("classes",),
    prefix="vit.",
    last_state="block",
)

"""Settings that do not fit are refused in words, before anything starts and without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from triune.errors import UserError
from triune.models.checks import check, layer_patterns
from triune.models.factory import resolve

IMAGES: dict[str, Any] = {
    "family": "encoder",
    "context": 197,
    "input": {"kind": "patches"},
    "head": {"kind": "classes"},
}

WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "heads": ({"width": 100, "heads": 8}, ["model.heads is 8", "model.width = 100", "use 5 or 10", "head_width"]),
    "groups": ({"heads": 8, "key_value_heads": 3}, ["model.key_value_heads is 3", "model.heads = 8", "use 2 or 4"]),
    "no heads": ({"heads": 0}, ["model.heads is 0", "at least 1"]),
    "context": ({"context": 0}, ["model.context is 0", "at least 1"]),
    "layers": ({"layers": 0}, ["model.layers is 0"]),
    "vocabulary": ({"vocabulary": 0}, ["model.vocabulary is 0"]),
    "odd rotary": ({"width": 36, "heads": 4}, ["turn 9 of the 9", "pairs", "even"]),
    "odd fraction": ({"width": 64, "heads": 4, "position": {"kind": "rotary", "fraction": 0.2}}, ["turn 3 of the 16"]),
    "fraction": ({"position": {"kind": "rotary", "fraction": 1.5}}, ["position.fraction is 1.5"]),
    "factor": ({"position": {"kind": "rotary", "factor": 4.0}}, ["position.factor is 4", "scaling is none"]),
    "small factor": (
        {"position": {"kind": "rotary", "factor": 0.5, "scaling": "yarn"}},
        ["factor is 0.5", "at least 1"],
    ),
    "ntk": ({"width": 8, "heads": 4, "position": {"kind": "rotary", "scaling": "ntk", "factor": 2.0}}, ["ntk"]),
    "base": ({"position": {"kind": "rotary", "base": [1e4, -1.0]}}, ["position.base is [10000.0, -1.0]"]),
    "no base": ({"position": {"kind": "rotary", "base": []}}, ["position.base is []"]),
    "bases": (
        {"layers": 2, "position": {"kind": "rotary", "base": [1e4] * 3}},
        ["position.base lists 3", "layers is 2"],
    ),
    "original": ({"position": {"kind": "rotary", "original_context": 0}}, ["original_context is 0"]),
    "sinusoidal": ({"width": 33, "heads": 3, "position": {"kind": "sinusoidal"}}, ["model.width is 33", "even"]),
    "offset": ({"position": {"kind": "learned", "offset": -1}}, ["offset is -1"]),
    "buckets": ({"position": {"kind": "t5", "buckets": 6}}, ["buckets is 6", "multiple of 4"]),
    "distance": (
        {"position": {"kind": "t5", "buckets": 32, "max_distance": 16}},
        ["max_distance is 16", "buckets = 32"],
    ),
    "decoder layers": ({"decoder_layers": 2}, ["decoder_layers is 2", "family is decoder"]),
    "pattern": ({"attention": {"pattern": "cuasal()"}}, ["model.attention: ", "'cuasal'", "did you mean 'causal'"]),
    "no pattern": ({"attention": {"pattern": []}}, ["attention.pattern is an empty list"]),
    "patterns": ({"layers": 2, "attention": {"pattern": ["causal()"] * 3}}, ["lists 3 layers", "layers is 2"]),
    "future": ({"attention": {"pattern": "window(8, 8)"}}, ["'window(8, 8)'", "(window(8, 8)) & causal()"]),
    "one future": ({"attention": {"pattern": ["causal()", "full()"]}}, ["'full()'", "decoder"]),
    "global ahead": (
        {"attention": {"pattern": "window(3, 0) | global_tokens(first=1)"}},
        ["'window(3, 0) | global_tokens(first=1)'", "& causal()", "decoder"],
    ),
    "random ahead": ({"attention": {"pattern": "causal() | random_blocks(16, 2)"}}, ["& causal()"]),
    "blocks ahead": ({"attention": {"pattern": "block_local(16)"}}, ["(block_local(16)) & causal()"]),
    "head ahead": ({"heads": 4, "attention": {"pattern": "per_head(causal(), full())"}}, ["& causal()", "decoder"]),
    "no prefix": ({"attention": {"pattern": "causal() | ~prefix(4)"}}, ["& causal()", "decoder"]),
    "alone": ({"attention": {"pattern": "window(0, 0)"}}, ["'window(0, 0)'", "no token see another", "at least 1"]),
    "blind": (
        {"family": "encoder", "context": 64, "attention": {"pattern": "random_blocks(16, 2)"}},
        ["position 0 and 15 more nothing to attend to", "| window(0, 0)"],
    ),
    "blind start": ({"attention": {"pattern": "causal() & ~window(0, 0)"}}, ["position 0 nothing to attend to"]),
    "global outside": (
        {"family": "encoder", "context": 64, "attention": {"pattern": "window(4, 4) | global_tokens(indices=[0, 64])"}},
        ["global token at position 64", "model.context is 64", "last position is 63"],
    ),
    "globals outside": (
        {"family": "encoder", "context": 64, "attention": {"pattern": "global_tokens(first=65)"}},
        ["position 64", "model.context is 64"],
    ),
    "step": (
        {"context": 64, "attention": {"pattern": "dilated(2, 0, 64)"}},
        ["dilated(2, 0, 64)", "64 must be below model.context = 64"],
    ),
    "stride": ({"context": 64, "attention": {"pattern": "strided(100)"}}, ["100 must be below model.context = 64"]),
    "fixed": ({"context": 64, "attention": {"pattern": "fixed(64, 1)"}}, ["64 must be below model.context = 64"]),
    "block": (
        {"context": 64, "attention": {"pattern": "causal() & ~block_local(64) | window(3, 0)"}},
        ["has block_local(64)", "64 must be below model.context = 64"],
    ),
    "random": (
        {"family": "encoder", "context": 64, "attention": {"pattern": "window(3, 3) | random_blocks(64, 3)"}},
        ["random_blocks(64, 3, seed=0)", "64 must be below model.context = 64"],
    ),
    "head parts": (
        {"width": 64, "heads": 4, "attention": {"pattern": "per_head(causal(), window(3, 0), window(9, 0))"}},
        ["has 3 parts", "model.heads = 4", "use 2 or 4"],
    ),
    "key parts": (
        {
            "width": 64,
            "heads": 8,
            "key_value_heads": 2,
            "attention": {"pattern": f"per_head({', '.join(['causal()'] * 4)})"},
        },
        ["has 4 parts", "model.key_value_heads = 2"],
    ),
    "moba": (
        {"family": "encoder", "attention": {"pattern": "moba(block=8, top=3)"}},
        ["moba(block=8, top=3)", "sees the past only", "family is encoder", "family: decoder"],
    ),
    "moba source": (
        {"family": "encoder_decoder", "attention": {"pattern": "moba(block=8, top=3)"}},
        ["sees the past only", "family is encoder_decoder"],
    ),
    "lsh": (
        {"family": "encoder", "attention": {"pattern": "lsh(buckets=4, chunk=8, causal=True)"}},
        ["family is encoder", "write causal=False"],
    ),
    "lsh ahead": (
        {"attention": {"pattern": "lsh(buckets=4, chunk=8, causal=False)"}},
        ["decoder", "write causal=True"],
    ),
    "lsh buckets": (
        {"attention": {"pattern": "lsh(buckets=5, chunk=8, causal=True)"}},
        ["model.attention: ", "buckets is 5", "even"],
    ),
    "epsilon": ({"norm": {"epsilon": 0.0}}, ["norm.epsilon is 0"]),
    "skip": ({"norm": {"placement": "post", "skip_first": True}}, ["skip_first", "post"]),
    "dropout": ({"dropout": 1.0}, ["model.dropout is 1", "below 1"]),
    "attention dropout": ({"attention": {"dropout": -0.1}}, ["attention.dropout is -0.1"]),
    "depth": ({"stochastic_depth": 1.5}, ["stochastic_depth is 1.5"]),
    "scale": ({"attention": {"scale": 0.0}}, ["attention.scale is 0"]),
    "std": ({"initialization": {"std": 0.0}}, ["initialization.std is 0"]),
    "types": ({"token_types": -1}, ["token_types is -1"]),
    "chunk": ({"loss_chunk": 0}, ["loss_chunk is 0"]),
    "embedding width": ({"embedding_width": 0, "tie_embeddings": False}, ["model.embedding_width is 0", "at least 1"]),
    "narrow vocabulary": (
        {"embedding_width": 64},
        ["model.embedding_width is 64", "model.width = 256", "head.transform=true", "tie_embeddings=false"],
    ),
    "narrow sinusoidal": (
        {"embedding_width": 33, "tie_embeddings": False, "position": {"kind": "sinusoidal"}},
        ["model.embedding_width is 33", "even"],
    ),
    "parallel post": ({"parallel": True, "norm": {"placement": "post"}}, ["model.parallel", "pre or sandwich"]),
    "parallel cross": ({"parallel": True, "family": "encoder_decoder"}, ["model.parallel", "encoder or decoder"]),
    "parallel reversible": ({"parallel": True, "reversible": True}, ["model.parallel", "model.reversible"]),
    "masks": ({"token_dropout": {"mask": 3}}, ["model.token_dropout", "family is decoder", "null"]),
    "mask": (
        {"family": "encoder", "vocabulary": 33, "token_dropout": {"mask": 33}},
        ["token_dropout.mask is 33", "below model.vocabulary = 33"],
    ),
    "mask without vocabulary": ({"family": "encoder", "token_dropout": {"mask": -1}}, ["mask is -1", "the vocabulary"]),
    "no mask": ({"family": "encoder", "token_dropout": {"rate": 0.2}}, ["mask is null", "the vocabulary"]),
    "mask rate": ({"family": "encoder", "token_dropout": {"mask": 3, "rate": 1.0}}, ["token_dropout.rate is 1"]),
    "labels": ({"head": {"kind": "classes", "labels": -1}}, ["model.head.labels is -1", "at least 0"]),
    "patch": (
        {**IMAGES, "input": {"kind": "patches", "image": 24, "patch": 7}},
        ["model.input.patch is 7", "image = 24", "use 6 or 8"],
    ),
    "channels": ({**IMAGES, "input": {**IMAGES["input"], "channels": 0}}, ["model.input.channels is 0"]),
    "image positions": (
        {**IMAGES, "context": 512},
        ["model.context is 512", "197 positions", "the class token", "context=197"],
    ),
    "no class token": (
        {**IMAGES, "context": 196, "input": {"kind": "patches", "class_token": False}},
        ["head.pool is first", "class_token is false", "mean"],
    ),
    "image vocabulary": ({**IMAGES, "head": {"kind": "vocabulary"}}, ["head.kind is vocabulary", "head.kind=classes"]),
    "image decoder": ({**IMAGES, "family": "decoder"}, ["model.family is decoder", "images", "must be encoder"]),
    "image words": ({**IMAGES, "vocabulary": 100}, ["model.vocabulary is 100", "must be null"]),
    "image types": ({**IMAGES, "token_types": 2}, ["model.token_types is 2", "must be 0"]),
    "image scale": ({**IMAGES, "scale_embeddings": True}, ["model.scale_embeddings is True", "must be false"]),
    "global decoder": ({"attention": {"global_projections": True}}, ["global_projections", "family is decoder"]),
    "global inside": (
        {
            "family": "encoder",
            "attention": {
                "global_projections": True,
                "pattern": "(window(8, 8) | global_tokens(first=1)) & window(99, 99)",
            },
        },
        ["global_projections is true", "| global_tokens(...)"],
    ),
    "globals": (
        {
            "family": "encoder",
            "attention": {"global_projections": True, "pattern": "global_tokens(first=1) | global_tokens(indices=[7])"},
        },
        ["global_projections is true", "no one"],
    ),
    "global routed": (
        {
            "family": "encoder",
            "attention": {"global_projections": True, "pattern": "lsh(buckets=4, chunk=8, causal=False)"},
        },
        ["global_projections is true", "lsh("],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_its_value_and_the_way_out(name: str) -> None:
    settings, words = WRONG[name]
    with pytest.raises(UserError) as error:
        check(resolve(settings))
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        check(resolve({"heads": 5, "dropout": 2.0, "context": 0}))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"family": "encoder", "attention": {"pattern": "window(8, 8)"}},
        {"family": "encoder", "attention": {"pattern": "causal()"}},
        {"attention": {"pattern": "window(8, 8) & causal()"}},
        {"attention": {"pattern": "causal() | prefix(32)"}},
        {"family": "encoder_decoder", "decoder_layers": 1, "attention": {"pattern": "window(8, 8)"}},
        {"attention": {"pattern": "(window(8, 8) | global_tokens(first=2) | random_blocks(16, 2)) & causal()"}},
        {"attention": {"pattern": "(causal() | prefix(8)) & ~(~window(30, 30) & ~prefix(4))"}},
        {"family": "encoder", "context": 64, "attention": {"pattern": "window(3, 3) | global_tokens(indices=[0, 63])"}},
        {"context": 64, "attention": {"pattern": "dilated(2, 0, 63) | strided(63)"}},
        {"family": "encoder", "attention": {"pattern": "random_blocks(16, 2) | window(0, 0)"}},
        {"width": 64, "heads": 8, "key_value_heads": 4, "attention": {"pattern": "per_head(causal(), window(3, 0))"}},
        {"width": 64, "heads": 4, "attention": {"pattern": "per_head(causal(), window(3, 0)) & window(9, 0)"}},
        {"family": "encoder", "attention": {"pattern": ["lsh(buckets=4, chunk=8, causal=False)", "window(3, 3)"]}},
        {"attention": {"pattern": ["moba(block=8, top=3)", "causal()"]}},
        {"width": 100, "heads": 8, "head_width": 16},
        {"width": 33, "heads": 3, "position": {"kind": "alibi"}},
        {"layers": 5, "attention": {"pattern": ["causal()", "window(3, 0)"]}},
        {"norm": {"placement": "sandwich", "skip_first": True}},
        IMAGES,
        {
            **IMAGES,
            "context": 196,
            "input": {"kind": "patches", "class_token": False},
            "head": {"kind": "classes", "pool": "mean"},
        },
        {"embedding_width": 64, "tie_embeddings": False},
        {"embedding_width": 64, "head": {"transform": True}},
        {"embedding_width": 64, "head": {"kind": "classes"}},
        {"parallel": True, "norm": {"placement": "sandwich"}},
        {"family": "encoder", "token_dropout": {"mask": 32}},
        {
            "family": "encoder",
            "attention": {
                "global_projections": True,
                "pattern": ["window(8, 8) | global_tokens(indices=[0, 9]) | random_blocks(16, 1)", "window(8, 8)"],
            },
        },
    ],
    ids=str,
)
def test_what_fits_passes(settings: dict[str, Any]) -> None:
    check(resolve(settings))


def test_patterns_default_to_the_towers_direction_and_lists_repeat() -> None:
    config = resolve({"layers": 3})
    assert [str(p) for p in layer_patterns(config, 2, decoder=True)] == ["causal()"] * 2
    assert [str(p) for p in layer_patterns(config, 2, decoder=False)] == ["full()"] * 2
    config = resolve({"layers": 3, "attention": {"pattern": ["window(1, 0)", "causal()"]}})
    assert [str(p) for p in layer_patterns(config, 3, decoder=True)] == ["window(1, 0)", "causal()", "window(1, 0)"]
    assert [str(p) for p in layer_patterns(config, 2, decoder=True, cross=True)] == ["causal()"] * 2


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys; from triune.models.checks import check; from triune.models.config import ModelConfig; "
        "check(ModelConfig()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

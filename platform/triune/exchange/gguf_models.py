"""Models in GGUF files of Llama's shape: llama.cpp's names for settings and tensors, as Hugging Face's.

The files of Llama, of Mistral and of others that were converted as `llama` keep the rotary pairs of queries and keys as neighbours.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triune.errors import UserError
from triune.exchange.architecture import Architecture, Settings, TokenIds, architecture
from triune.exchange.architectures._rotary import write_rotary
from triune.exchange.mapping import Entry, Ignored, RotaryPairs, TensorMapping, check_shapes, to_ours
from triune.exchange.parity import quiet_transformers
from triune.gguf_file import GgufFile
from triune.models.checks import check
from triune.models.config import ModelConfig, RotaryPosition
from triune.models.factory import build

_FACTORS = "rope_freqs.weight"
#: their config.json key -> key of the file, after `llama.`
_SETTINGS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
#: keys after `llama.` that change what is computed, and the value that they must have, if they are there
_FIXED = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "logit_scale": 0.0,
    "embedding_scale": 0.0,
    "residual_scale": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
#: their module -> the file's
_MODULES = {
    r"model\.embed_tokens": "token_embd",
    r"model\.norm": "output_norm",
    r"lm_head": "output",
    r"model\.layers\.(\d+)\.input_layernorm": r"blk.\1.attn_norm",
    r"model\.layers\.(\d+)\.post_attention_layernorm": r"blk.\1.ffn_norm",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj": r"blk.\1.attn_\2",
    r"model\.layers\.(\d+)\.self_attn\.o_proj": r"blk.\1.attn_output",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj": r"blk.\1.ffn_\2",
}


def read_gguf(path: Path) -> tuple[Architecture, ModelConfig, TokenIds, dict[str, Tensor]]:
    """What a GGUF file holds, as settings and fp32 tensors of ours.

    Raises UserError, naming file and tensor, where `GgufFile` does, for another architecture or a setting that ours can't do, and
    for tensors that are not what the file's settings say.
    """
    file = GgufFile(path)
    kind = file.metadata.get("general.architecture")
    if kind != "llama":
        raise UserError(
            f"{path}: general.architecture is {kind!r}, but triune reads GGUF files of llama only; take the model's safetensors "
            "(their architectures: docs/exchange.md)"
        )
    target = architecture("llama")
    config = _config(file, target)
    mapping = gguf_mapping(target.mapping(config), config)
    with torch.device("meta"):
        empty = dict(build(config).named_parameters())
    check_shapes(mapping, empty, {name: held.shape for name, held in file.tensors.items()}, place=path)
    wanted = [name for name in file.tensors if mapping.written_as(name) is not None]
    tensors = to_ours(mapping, {name: torch.from_numpy(file.values(name)) for name in wanted}, place=path)
    ids = {
        f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        for role, name in (("pad", "padding"), ("bos", "bos"), ("eos", "eos"))
    }
    return target, config, TokenIds.read(ids), tensors


def gguf_mapping(mapping: TensorMapping, config: ModelConfig) -> TensorMapping:
    """Llama's mapping under the names of GGUF, with the rotary pairs of queries and keys as neighbours."""

    def renamed(entry: Entry) -> Entry:
        parts = []
        for part in entry.theirs:
            names = tuple(map(_name, part.names))
            pairs = {"attn_q": config.heads, "attn_k": config.resolved_key_value_heads}.get(names[0].split(".")[-2])
            parts.append(replace(part, names=names, reshape=RotaryPairs(pairs) if pairs else part.reshape))
        return Entry(entry.ours, tuple(parts))

    return TensorMapping(
        entries=tuple(map(renamed, mapping.entries)),
        ignored=(Ignored(re.escape(_FACTORS), "is read as the scaling of the rotary positions"),),
    )


def load_reading(path: Path, target: Architecture, config: ModelConfig) -> nn.Module:
    """The yardstick: the reading of the same file by `transformers`, in fp32 and eval mode.

    It does not look at the scaling of rotary positions in GGUF files, which is given to it.
    """
    import transformers
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise UserError(
            f"{path}: the proof needs transformers' reading of the file, and that the accelerate package: "
            "pip install 'triune[gguf]'"
        )
    place = {"gguf_file": path.name, "local_files_only": True}
    with (
        quiet_transformers(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # its bar of de-quantized tensors has no switch
        made = getattr(transformers, target.classes(config).concrete)
        theirs = made.config_class.from_pretrained(path.parent, **place)
        if isinstance(config.position, RotaryPosition) and config.position.scaling != "none":
            theirs.rope_parameters = write_rotary(config)["rope_parameters"]
        options = {"config": theirs, "dtype": torch.float32, "attn_implementation": "eager"}
        model: nn.Module = made.from_pretrained(path.parent, **place, **options)
    return model.eval()


def _name(theirs: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, _, kind = theirs.rpartition(".")
    return next(re.sub(old, new, module) for old, new in _MODULES.items() if re.fullmatch(old, module)) + f".{kind}"


def _config(file: GgufFile, target: Architecture) -> ModelConfig:
    """The file's settings as ours, checked against one another."""
    held = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
    given = Settings(held, place=f"{file.path}: llama", names=frozenset(file.tensors))
    for key, value in _FIXED.items():
        given.only(key, value)
    values = {theirs: held[key] for theirs, key in _SETTINGS.items() if key in held}
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        if given.whole(key) < 1:
            raise given.refusal(key, held[key], "it must be at least 1")
    given.number("attention.layer_norm_rms_epsilon")
    if given.whole("block_count") > len(file.tensors):
        raise given.refusal("block_count", held["block_count"], f"the file holds {len(file.tensors):,} tensors in all")
    width = given.whole("attention.key_length", held["embedding_length"] // held["attention.head_count"])
    given.only("attention.value_length", width)
    given.only("rope.dimension_count", width)
    table = file.tensors.get("token_embd.weight")
    values |= {
        "head_dim": width,
        "vocab_size": given.whole(
            "vocab_size", table.shape[0] if table else len(file.metadata.get("tokenizer.ggml.tokens", []))
        ),
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _scaling(file, given, width),
    }
    config = target.read_config(
        Settings(values, place=f"{file.path}: read as config.json", names=frozenset(file.tensors))
    )
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{file.path}: read as settings of triune's, {error}") from error
    return config


def _scaling(file: GgufFile, given: Settings, width: int) -> dict[str, Any]:
    """The `rope_parameters` of the file: linear and YaRN from its metadata, Llama 3's from the table of factors that it holds."""
    base = given.number("rope.freq_base", 10000.0)
    kind = given.choice("rope.scaling.type", {"none": "default", "linear": "linear", "yarn": "yarn"}, default="none")
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": float(base)}
    if given.has("rope.scale_linear"):  # before there was a type
        kind = "linear" if given.number("rope.scale_linear") != 1 else kind
        found |= {"rope_type": kind, "factor": float(given.number("rope.scale_linear"))}
    if kind != "default":
        found["factor"] = float(given.number("rope.scaling.factor", found.get("factor", 1.0)))
    if kind == "yarn":
        found["original_max_position_embeddings"] = given.whole("rope.scaling.original_context_length")
    if _FACTORS not in file.tensors:
        return found
    if kind != "default":
        raise given.refusal(
            "rope.scaling.type", kind, f"the file has the factors of Llama 3's scaling too ({_FACTORS})"
        )
    return _llama3(file, base, width)


def _llama3(file: GgufFile, base: float, width: int) -> dict[str, Any]:
    """The settings of Llama 3's scaling that make the file's table: one factor a pair, by which its frequency is divided.

    1 / f = (1 - s) / factor + s, where s = (turns in the original context - 1) / 3, between 0 and 1. Fast pairs have f = 1, the slowest
    f = factor, and any pair between tells the original context.
    """
    factors = file.values(_FACTORS).astype(np.float64)
    if factors.shape != (width // 2,):
        raise UserError(f"{file.path}: {_FACTORS}: shape {list(factors.shape)}, expected [{width // 2}]")
    turns = base ** (-np.arange(0, width, 2) / width) / (2 * math.pi)  # a position
    factor = float(factors.max())
    between = (factors > 1 + 1e-3) & (factors < factor * (1 - 1e-3))
    contexts = (3 * (1 / factors[between] - 1 / factor) / (1 - 1 / factor) + 1) / turns[between]
    original = round(float(np.median(contexts))) if between.any() else 8192  # Llama 3's own
    share = ((turns * original - 1) / 3).clip(0, 1)
    # factors are fp32: 2^-24 of themselves, and of the frequencies that they were made of; a wrong context moves them by far more
    if not np.allclose(1 / factors, (1 - share) / factor + share, rtol=1e-4, atol=0):
        raise UserError(
            f"{file.path}: {_FACTORS}: are not the factors of Llama 3's scaling, which is the only one by a table that triune computes"
        )
    return {
        "rope_type": "llama3",
        "rope_theta": float(base),
        "factor": round(factor, 4),
        "original_max_position_embeddings": original,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }

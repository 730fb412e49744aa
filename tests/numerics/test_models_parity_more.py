"""More tiny random models of `transformers` against ours with the same weights, mapped by hand, in fp32: outputs, losses, gradients.

Tolerances: test_models_parity.py for outputs (1e-5 of the largest value), sparse_peers.py for gradients. A loss is a mean of
outputs: 1e-5 of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from sparse_peers import gradients, same_gradients, tied
from test_models_parity import close, fused, ids, load, peer, put, two
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.models.config import RotaryPosition
from triune.models.factory import build
from triune.models.layers.position import Rotary

V, M, E, INNER, H, LAYERS, T, S = 96, 32, 16, 48, 4, 2, 12, 9
Weights = dict[str, Tensor]
SHAPE = {
    "vocab_size": V, "hidden_size": M, "num_hidden_layers": LAYERS, "num_attention_heads": H, "intermediate_size": INNER,
}  # fmt: skip
OURS: dict[str, Any] = {"vocabulary": V, "width": M, "layers": LAYERS, "heads": H}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def padded(length: int, pad: int = 0) -> tuple[Tensor, Tensor, SequenceLayout]:
    """Two rows of ids, the second one padded on the right, with their mask and layout."""
    inputs, mask = ids(2, length), torch.ones(2, length, dtype=torch.long)
    mask[1, length - 5 :] = 0
    inputs[mask == 0] = pad
    return inputs, mask, SequenceLayout.from_lengths([length, length - 5], length)


def agree(ours: Tensor, theirs: Tensor, real: Tensor | None = None) -> None:
    """Equal at real tokens; then both go backwards from the same random weights of these."""
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    if real is not None:
        ours, theirs, weights = ours[real], theirs[real], weights[real]
    close(ours, theirs.detach())
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()


def same_model_gradients(ours: nn.Module, theirs: nn.Module, mapped: Callable[[Weights], Weights]) -> None:
    same_gradients(ours, mapped(gradients(theirs)))


# ---- decoders ---------------------------------------------------------------------------------------------------------


def neox(w: Weights) -> Weights:
    ours = {"embedding.weight": w["gpt_neox.embed_in.weight"], "head.weight": w["lm_head.weight"]}
    put(ours, "stack.norm", two("gpt_neox.final_layer_norm", w))
    for i in range(LAYERS):
        a, b = f"gpt_neox.layers.{i}", f"stack.blocks.{i}"
        put(ours, f"{b}.attention_residual.norm_before", two(f"{a}.input_layernorm", w))
        put(ours, f"{b}.feed_forward_residual.norm_before", two(f"{a}.post_attention_layernorm", w))
        for name, tensor in two(
            f"{a}.attention.query_key_value", w
        ).items():  # theirs: query, key, value of head 1, of head 2
            parts = tensor.unflatten(0, (H, 3, M // H)).transpose(0, 1)
            ours[f"{b}.attention.query_key_value.{name}"] = parts.flatten(0, 2)
        put(ours, f"{b}.attention.output", two(f"{a}.attention.dense", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.mlp.dense_h_to_4h", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.mlp.dense_4h_to_h", w))
    return ours


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(parallel: bool) -> None:
    rotary = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    config = transformers.GPTNeoXConfig(
        **SHAPE, use_parallel_residual=parallel, max_position_embeddings=64, rope_parameters=rotary
    )
    theirs = peer(transformers.GPTNeoXForCausalLM, config)
    model = build(
        OURS, family="decoder", context=64, tie_embeddings=False, parallel=parallel,
        position={"kind": "rotary", "base": 500.0, "fraction": 0.25}, feed_forward={"kind": "gelu", "width": INNER},
    ).eval()  # fmt: skip
    load(model, neox(theirs.state_dict()))
    x = ids(2, 40)
    hidden = model(x)
    close(hidden, theirs.gpt_neox(x).last_hidden_state.detach())
    agree(model.head.logits(hidden), theirs(x).logits)
    same_model_gradients(model, theirs, neox)


def qwen(w: Weights) -> Weights:
    """Qwen 2, whose queries, keys and values have biases, and Qwen 3, whose queries and keys have norms."""
    ours = {"embedding.weight": w["model.embed_tokens.weight"], "head.weight": w["lm_head.weight"]}
    ours["stack.norm.weight"] = w["model.norm.weight"]
    for i in range(LAYERS):
        a, b = f"model.layers.{i}", f"stack.blocks.{i}"
        attention = f"{a}.self_attn"
        biased = f"{attention}.q_proj.bias" in w
        put(ours, f"{b}.attention.query_key_value", fused(w, [f"{attention}.{n}_proj" for n in "qkv"], bias=biased))
        if not biased:
            ours[f"{b}.attention.query_norm.weight"] = w[f"{attention}.q_norm.weight"]
            ours[f"{b}.attention.key_norm.weight"] = w[f"{attention}.k_norm.weight"]
        put(ours, f"{b}.feed_forward.up", fused(w, [f"{a}.mlp.gate_proj", f"{a}.mlp.up_proj"], bias=False))
        ours[f"{b}.attention.output.weight"] = w[f"{attention}.o_proj.weight"]
        ours[f"{b}.feed_forward.down.weight"] = w[f"{a}.mlp.down_proj.weight"]
        ours[f"{b}.attention_residual.norm_before.weight"] = w[f"{a}.input_layernorm.weight"]
        ours[f"{b}.feed_forward_residual.norm_before.weight"] = w[f"{a}.post_attention_layernorm.weight"]
    return ours


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1000000.0])
def test_rotary_frequencies_to_the_last_bit(base: float) -> None:
    config = transformers.LlamaConfig(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": base})
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    ours = Rotary(RotaryPosition(), base=base, head_width=128, context=64)
    assert torch.equal(ours.frequencies(), theirs.inv_freq)


@pytest.mark.parametrize("version", [2, 3])
def test_qwen(version: int) -> None:
    """Qwen 3's heads are 12 wide, not width / heads; Qwen 2's second layer sees a window."""
    more: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6}
    more["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    if version == 2:
        layers = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
        theirs = peer(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**SHAPE, **more, **layers))
        own = {"qkv_bias": True, "attention": {"pattern": ["causal()", "window(7, 0)"]}}
    else:
        theirs = peer(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**SHAPE, **more, head_dim=12))
        own = {"head_width": 12, "attention": {"qk_norm": True}}
    model = build(
        OURS, family="decoder", context=64, key_value_heads=2, bias=False, tie_embeddings=False,
        norm={"kind": "rms", "epsilon": 1e-6}, feed_forward={"kind": "swiglu", "width": INNER},
        position={"kind": "rotary", "base": 500.0}, **own,
    ).eval()  # fmt: skip
    load(model, qwen(theirs.state_dict()))
    x = ids(2, 40)
    agree(model.head.logits(model(x)), theirs(x).logits)
    same_model_gradients(model, theirs, qwen)


# ---- images -----------------------------------------------------------------------------------------------------------


def vit(w: Weights) -> Weights:
    tables = "vit.embeddings"
    ours = {
        "embedding.projection.weight": w[f"{tables}.patch_embeddings.projection.weight"].flatten(1),
        "embedding.projection.bias": w[f"{tables}.patch_embeddings.projection.bias"],
        "embedding.class_token": w[f"{tables}.cls_token"].flatten(),
        "input.positions.weight": w[f"{tables}.position_embeddings"].squeeze(0),
    }
    put(ours, "stack.norm", two("vit.layernorm", w))
    put(ours, "head", two("classifier", w))
    for i in range(LAYERS):
        a, b = f"vit.layers.{i}", f"stack.blocks.{i}"
        attention = f"{a}.attention"
        qkv = [f"{attention}.{name}_proj" for name in "qkv"]
        put(ours, f"{b}.attention.query_key_value", fused(w, qkv, bias=f"{qkv[0]}.bias" in w))
        put(ours, f"{b}.attention.output", two(f"{attention}.o_proj", w))
        put(ours, f"{b}.attention_residual.norm_before", two(f"{a}.layernorm_before", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.mlp.fc1", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.mlp.fc2", w))
        put(ours, f"{b}.feed_forward_residual.norm_before", two(f"{a}.layernorm_after", w))
    return ours


@pytest.mark.parametrize("biased", [True, False])
def test_vit(biased: bool) -> None:
    shape = {name: value for name, value in SHAPE.items() if name != "vocab_size"}
    config = transformers.ViTConfig(
        **shape, image_size=12, patch_size=4, num_channels=2, num_labels=5, qkv_bias=biased, layer_norm_eps=1e-6
    )
    theirs = peer(transformers.ViTForImageClassification, config)
    model = build(
        {"width": M, "layers": LAYERS, "heads": H}, family="encoder", context=10, qkv_bias=biased,
        input={"kind": "patches", "image": 12, "patch": 4, "channels": 2}, position={"kind": "learned"},
        norm={"epsilon": 1e-6}, feed_forward={"kind": "gelu", "width": INNER}, head={"kind": "classes", "labels": 5},
    ).eval()  # fmt: skip
    load(model, vit(theirs.state_dict()))
    images, labels = torch.randn(3, 2, 12, 12), torch.tensor([4, 0, 2])
    answer = theirs(images, labels=labels, output_hidden_states=True)
    hidden = model(images)
    close(hidden, theirs.vit(images).last_hidden_state.detach())
    close(model.head.logits(hidden), answer.logits.detach())
    loss = model.head.loss(hidden, labels, torch.ones(3))
    close(loss.total / loss.weight, answer.loss.detach())
    (loss.total / loss.weight).backward()
    answer.loss.backward()
    same_model_gradients(model, theirs, vit)


# ---- encoder-decoders -------------------------------------------------------------------------------------------------


def marian(w: Weights) -> Weights:
    """Marian, post-norm without a final one, and Pegasus, pre-norm with one in each tower."""
    ours = {"embedding.weight": w["model.shared.weight"]}
    final = "model.encoder.layer_norm.weight" in w
    norm = "norm_before" if final else "norm_sum"
    for side in ("encoder", "decoder"):
        if final:
            put(ours, f"{side}.norm", two(f"model.{side}.layer_norm", w))
        for i in range(LAYERS):
            a, b = f"model.{side}.layers.{i}", f"{side}.blocks.{i}"
            names = {
                "attention.output": "self_attn.out_proj",
                f"attention_residual.{norm}": "self_attn_layer_norm",
                "feed_forward.up": "fc1",
                "feed_forward.down": "fc2",
                f"feed_forward_residual.{norm}": "final_layer_norm",
            }
            put(ours, f"{b}.attention.query_key_value", fused(w, [f"{a}.self_attn.{name}_proj" for name in "qkv"]))
            if side == "decoder":
                memory = fused(w, [f"{a}.encoder_attn.{name}_proj" for name in "kv"])
                put(ours, f"{b}.cross_attention.key_value", memory)
                names |= {
                    "cross_attention.query": "encoder_attn.q_proj",
                    "cross_attention.output": "encoder_attn.out_proj",
                    f"cross_residual.{norm}": "encoder_attn_layer_norm",
                }
            for name, source in names.items():
                put(ours, f"{b}.{name}", two(f"{a}.{source}", w))
    return ours


@pytest.mark.parametrize("kind", ["marian", "pegasus"])
def test_marian_and_pegasus(kind: str) -> None:
    """Their position tables are computed, in halves; the last of 1024 positions counts as the first does."""
    shape = {
        "vocab_size": V, "d_model": M, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": H,
        "decoder_attention_heads": H, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_position_embeddings": 1024,
        "scale_embedding": True, "pad_token_id": 0, "decoder_start_token_id": 0,
    }  # fmt: skip
    if kind == "marian":
        cls, config = transformers.MarianMTModel, transformers.MarianConfig(**shape, activation_function="swish")
    else:
        cls, config = (
            transformers.PegasusForConditionalGeneration,
            transformers.PegasusConfig(**shape, activation_function="relu"),
        )
    tables = {side: cls(config).state_dict()[f"model.{side}.embed_positions.weight"] for side in ("encoder", "decoder")}
    theirs = peer(cls, config)
    with torch.no_grad():
        for side, table in tables.items():
            getattr(theirs.model, side).embed_positions.weight.copy_(table)
        theirs.final_logits_bias.normal_()
    model = build(
        OURS, family="encoder_decoder", context=1024, position={"kind": "sinusoidal", "layout": "halves"},
        norm={"placement": "post" if kind == "marian" else "pre"}, scale_embeddings=True, head={"bias": True},
        feed_forward={"kind": "silu" if kind == "marian" else "relu", "width": INNER},
    ).eval()  # fmt: skip
    load(model, tied(marian(theirs.state_dict())) | {"head.bias": theirs.final_logits_bias[0]})
    source, mask, layout = padded(S)
    target = ids(2, T)
    answer = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target)
    close(model.encode(source, layout)[mask.bool()], answer.encoder_last_hidden_state.detach()[mask.bool()])
    agree(model.head.logits(model(target, source=source, source_layout=layout)), answer.logits)
    same_model_gradients(model, theirs, marian)
    positions = torch.arange(1024)
    zeros = model.encoder_input(torch.zeros(1, 1024, M), SequenceLayout.plain_rows(1, 1024))
    # theirs is made in fp64 and rounded once, ours too: the last bit of a number up to 1
    assert float((zeros[0] - tables["encoder"][positions]).abs().max()) <= 2**-24

"""Tiny random models of `transformers` against ours with the same weights, mapped by hand, in fp32.

Tolerance: both run the same few dozen fp32 operations in another order. Each rounds to 2^-24 = 6e-8 of its result, sums run
over at most 64 terms and 2 layers have about 30 operations in a row: 30 x 6e-8 x sqrt(64) = 1.4e-5 of the largest value
is the worst to expect if every rounding pushed the same way; we ask for 1e-5 of the largest value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from triune.attention.layout import SequenceLayout
from triune.models.factory import build

V, M, F, H, D, T, S = 96, 32, 48, 4, 8, 12, 9


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def peer(cls: Any, config: Any) -> Any:
    """A `transformers` model with weights large enough that every part of it shows in the output."""
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.2).add_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return model


def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Strict: every parameter of ours has a source."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not missing
    assert not unexpected


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, V, (batch, length))


def close(ours: Tensor, theirs: Tensor) -> None:
    bound = 1e-5 * float(theirs.abs().max())
    assert float((ours.detach() - theirs).abs().max()) <= bound


def two(prefix: str, weights: dict[str, Tensor], bias: bool = True) -> dict[str, Tensor]:
    names = ("weight", "bias") if bias else ("weight",)
    return {name: weights[f"{prefix}.{name}"] for name in names}


def put(target: dict[str, Tensor], prefix: str, tensors: dict[str, Tensor]) -> None:
    target.update({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})


def fused(weights: dict[str, Tensor], prefixes: list[str], bias: bool = True) -> dict[str, Tensor]:
    """Several linear layers stacked into one."""
    parts = [two(prefix, weights, bias) for prefix in prefixes]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_gpt2_equals_transformers() -> None:
    theirs = peer(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=M, n_layer=2, n_head=H, n_inner=F),
    )
    w = theirs.state_dict()
    ours: dict[str, Tensor] = {
        "embedding.weight": w["transformer.wte.weight"],
        "head.weight": w["transformer.wte.weight"],
        "input.positions.weight": w["transformer.wpe.weight"],
    }
    put(ours, "stack.norm", two("transformer.ln_f", w))
    for i in range(2):
        a, b = f"transformer.h.{i}", f"stack.blocks.{i}"
        put(ours, f"{b}.attention_residual.norm_before", two(f"{a}.ln_1", w))
        put(ours, f"{b}.feed_forward_residual.norm_before", two(f"{a}.ln_2", w))
        for name, source in {
            "attention.query_key_value": "attn.c_attn",
            "attention.output": "attn.c_proj",
            "feed_forward.up": "mlp.c_fc",
            "feed_forward.down": "mlp.c_proj",
        }.items():
            layer = two(f"{a}.{source}", w)
            put(ours, f"{b}.{name}", {"weight": layer["weight"].T, "bias": layer["bias"]})  # its Conv1D is transposed
    model = build(
        {},
        family="decoder", vocabulary=V, context=32, width=M, layers=2, heads=H, position={"kind": "learned"},
        feed_forward={"kind": "gelu_tanh", "width": F},
    ).eval()  # fmt: skip
    load(model, ours)
    x = ids(3, T)
    with torch.no_grad():
        hidden = model(x)
        close(hidden, theirs.transformer(x).last_hidden_state)
        close(model.head.logits(hidden), theirs(x).logits)


@pytest.mark.parametrize("offset", [0, 2], ids=["bert", "roberta"])
def test_bert_and_roberta_equal_transformers(offset: int) -> None:
    shape = {
        "vocab_size": V, "hidden_size": M, "num_hidden_layers": 2, "num_attention_heads": H, "intermediate_size": F,
        "max_position_embeddings": 32 + offset, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    if offset:
        theirs = peer(
            transformers.RobertaForMaskedLM,
            transformers.RobertaConfig(**shape, type_vocab_size=1, pad_token_id=1),
        )
        base, head = "roberta", {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
    else:
        theirs = peer(transformers.BertForMaskedLM, transformers.BertConfig(**shape, type_vocab_size=2))
        transform = "cls.predictions.transform"
        base, head = (
            "bert",
            {"dense": f"{transform}.dense", "norm": f"{transform}.LayerNorm", "bias": "cls.predictions.bias"},
        )
    w = theirs.state_dict()
    table = w[f"{base}.embeddings.word_embeddings.weight"]
    ours = {
        "embedding.weight": table,
        "head.weight": table,
        "head.bias": w[head["bias"]],
        "input.positions.weight": w[f"{base}.embeddings.position_embeddings.weight"],
        "input.token_types.weight": w[f"{base}.embeddings.token_type_embeddings.weight"],
    }
    put(ours, "input.norm", two(f"{base}.embeddings.LayerNorm", w))
    put(ours, "head.dense", two(head["dense"], w))
    put(ours, "head.norm", two(head["norm"], w))
    for i in range(2):
        a, b = f"{base}.encoder.layer.{i}", f"stack.blocks.{i}"
        put(
            ours,
            f"{b}.attention.query_key_value",
            fused(w, [f"{a}.attention.self.{n}" for n in ("query", "key", "value")]),
        )
        put(ours, f"{b}.attention.output", two(f"{a}.attention.output.dense", w))
        put(ours, f"{b}.attention_residual.norm_sum", two(f"{a}.attention.output.LayerNorm", w))
        put(ours, f"{b}.feed_forward.up", two(f"{a}.intermediate.dense", w))
        put(ours, f"{b}.feed_forward.down", two(f"{a}.output.dense", w))
        put(ours, f"{b}.feed_forward_residual.norm_sum", two(f"{a}.output.LayerNorm", w))
    model = build(
        {},
        family="encoder", vocabulary=V, context=32, width=M, layers=2, heads=H, token_types=1 if offset else 2,
        position={"kind": "learned", "offset": offset}, feed_forward={"kind": "gelu", "width": F},
        norm={"placement": "post", "epsilon": 1e-12, "embedding": True}, head={"transform": True, "bias": True},
    ).eval()  # fmt: skip
    load(model, ours)
    x, mask = ids(2, T), torch.ones(2, T, dtype=torch.long)
    mask[1, 7:] = 0
    if offset:
        x[mask == 0] = 1  # RoBERTa counts positions from its padding
    types = None if offset else torch.randint(0, 2, (2, T))
    real = mask.bool()
    with torch.no_grad():
        hidden = model(x, SequenceLayout.from_lengths([T, 7], T), token_types=types)
        answer = theirs(x, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
    close(hidden[real], answer.hidden_states[-1][real])
    close(model.head.logits(hidden)[real], answer.logits[real])


def test_modernbert_equals_transformers() -> None:
    theirs = peer(
        transformers.ModernBertForMaskedLM,
        transformers.ModernBertConfig(
            vocab_size=V, hidden_size=M, intermediate_size=F, num_hidden_layers=4, num_attention_heads=H,
            max_position_embeddings=64, local_attention=6, global_attn_every_n_layers=3, reference_compile=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        ),
    )  # fmt: skip
    w = theirs.state_dict()
    table = w["model.embeddings.tok_embeddings.weight"]
    ours = {
        "embedding.weight": table,
        "head.weight": table,
        "head.bias": w["decoder.bias"],
        "input.norm.weight": w["model.embeddings.norm.weight"],
        "stack.norm.weight": w["model.final_norm.weight"],
        "head.dense.weight": w["head.dense.weight"],
        "head.norm.weight": w["head.norm.weight"],
    }
    for i in range(4):
        a, b = f"model.layers.{i}", f"stack.blocks.{i}"
        ours[f"{b}.attention.query_key_value.weight"] = w[f"{a}.attn.Wqkv.weight"]
        ours[f"{b}.attention.output.weight"] = w[f"{a}.attn.Wo.weight"]
        ours[f"{b}.feed_forward.up.weight"] = w[f"{a}.mlp.Wi.weight"]
        ours[f"{b}.feed_forward.down.weight"] = w[f"{a}.mlp.Wo.weight"]
        ours[f"{b}.feed_forward_residual.norm_before.weight"] = w[f"{a}.mlp_norm.weight"]
        if i:
            ours[f"{b}.attention_residual.norm_before.weight"] = w[f"{a}.attn_norm.weight"]
    model = build(
        {},
        family="encoder", vocabulary=V, context=64, width=M, layers=4, heads=H, bias=False,
        attention={"pattern": ["full()", "window(3, 3)", "window(3, 3)"]},
        position={"kind": "rotary", "base": [160000.0, 10000.0, 10000.0]},
        norm={"embedding": True, "skip_first": True, "bias": False}, feed_forward={"kind": "geglu", "width": F},
        head={"transform": True, "transform_bias": False, "bias": True},
    ).eval()  # fmt: skip
    load(model, ours)
    x = ids(2, 24)
    with torch.no_grad():
        answer = theirs(x, attention_mask=torch.ones_like(x))
        close(model.head.logits(model(x)), answer.logits)


def test_llama_equals_transformers() -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    theirs = peer(
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            vocab_size=V, hidden_size=M, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, rope_parameters=scaling,
        ),
    )  # fmt: skip
    w = theirs.state_dict()
    ours = {
        "embedding.weight": w["model.embed_tokens.weight"],
        "head.weight": w["lm_head.weight"],
        "stack.norm.weight": w["model.norm.weight"],
    }
    for i in range(2):
        a, b = f"model.layers.{i}", f"stack.blocks.{i}"
        qkv = [f"{a}.self_attn.{name}_proj" for name in "qkv"]
        put(ours, f"{b}.attention.query_key_value", fused(w, qkv, bias=False))
        put(ours, f"{b}.feed_forward.up", fused(w, [f"{a}.mlp.gate_proj", f"{a}.mlp.up_proj"], bias=False))
        ours[f"{b}.attention.output.weight"] = w[f"{a}.self_attn.o_proj.weight"]
        ours[f"{b}.feed_forward.down.weight"] = w[f"{a}.mlp.down_proj.weight"]
        ours[f"{b}.attention_residual.norm_before.weight"] = w[f"{a}.input_layernorm.weight"]
        ours[f"{b}.feed_forward_residual.norm_before.weight"] = w[f"{a}.post_attention_layernorm.weight"]
    model = build(
        {},
        family="decoder", vocabulary=V, context=64, width=M, layers=2, heads=H, key_value_heads=2, bias=False,
        tie_embeddings=False, norm={"kind": "rms", "epsilon": 1e-6}, feed_forward={"kind": "swiglu", "width": F},
        position={"kind": "rotary", "base": 500.0, "scaling": "llama3", "factor": 4.0, "original_context": 16},
    ).eval()  # fmt: skip
    load(model, ours)
    x = ids(2, 40)
    with torch.no_grad():
        hidden = model(x)
        close(hidden, theirs.model(x).last_hidden_state)
        close(model.head.logits(hidden), theirs(x).logits)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5_equals_transformers(version: str) -> None:
    gated = version == "1.1"
    theirs = peer(
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            vocab_size=V, d_model=M, d_kv=6, d_ff=F, num_layers=2, num_decoder_layers=3, num_heads=H,
            relative_attention_num_buckets=8, relative_attention_max_distance=10, tie_word_embeddings=not gated,
            feed_forward_proj="gated-gelu" if gated else "relu", pad_token_id=0, decoder_start_token_id=0,
        ),
    )  # fmt: skip
    w = theirs.state_dict()
    ours = {"embedding.weight": w["shared.weight"], "head.weight": w["lm_head.weight" if gated else "shared.weight"]}
    for side, layers in (("encoder", 2), ("decoder", 3)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ours[f"{side}.relative.weight"] = w[table]
        ours[f"{side}.norm.weight"] = w[f"{side}.final_layer_norm.weight"]
        for i in range(layers):
            a, b = f"{side}.block.{i}.layer", f"{side}.blocks.{i}"
            attention, last = f"{a}.0.SelfAttention", f"{a}.{1 if side == 'encoder' else 2}"
            put(ours, f"{b}.attention.query_key_value", fused(w, [f"{attention}.{name}" for name in "qkv"], bias=False))
            ours[f"{b}.attention.output.weight"] = w[f"{attention}.o.weight"]
            ours[f"{b}.attention_residual.norm_before.weight"] = w[f"{a}.0.layer_norm.weight"]
            if side == "decoder":
                cross = f"{a}.1.EncDecAttention"
                ours[f"{b}.cross_attention.query.weight"] = w[f"{cross}.q.weight"]
                put(ours, f"{b}.cross_attention.key_value", fused(w, [f"{cross}.k", f"{cross}.v"], bias=False))
                ours[f"{b}.cross_attention.output.weight"] = w[f"{cross}.o.weight"]
                ours[f"{b}.cross_residual.norm_before.weight"] = w[f"{a}.1.layer_norm.weight"]
            up = [f"{last}.DenseReluDense.{name}" for name in (("wi_0", "wi_1") if gated else ("wi",))]
            put(ours, f"{b}.feed_forward.up", fused(w, up, bias=False))
            ours[f"{b}.feed_forward.down.weight"] = w[f"{last}.DenseReluDense.wo.weight"]
            ours[f"{b}.feed_forward_residual.norm_before.weight"] = w[f"{last}.layer_norm.weight"]
    model = build(
        {},
        family="encoder_decoder", vocabulary=V, context=64, width=M, layers=2, decoder_layers=3, heads=H, head_width=6,
        bias=False, norm={"kind": "rms", "epsilon": 1e-6}, attention={"scale": 1.0},
        position={"kind": "t5", "buckets": 8, "max_distance": 10}, tie_embeddings=not gated,
        feed_forward={"kind": "geglu_tanh" if gated else "relu", "width": F},
        head={"scale": None if gated else M**-0.5},
    ).eval()  # fmt: skip
    load(model, ours)
    source, target, mask = ids(2, S), ids(2, T), torch.ones(2, S, dtype=torch.long)
    mask[1, 5:] = 0
    layout = SequenceLayout.from_lengths([S, 5], S)
    with torch.no_grad():
        answer = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target, output_hidden_states=True)
        memory = model.encode(source, layout)
        hidden = model(target, source=source, source_layout=layout)
    close(memory[mask.bool()], answer.encoder_last_hidden_state[mask.bool()])
    close(hidden, answer.decoder_hidden_states[-1])
    close(model.head.logits(hidden), answer.logits)


def test_bart_equals_transformers() -> None:
    theirs = peer(
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(
            vocab_size=V, d_model=M, encoder_layers=2, decoder_layers=2, encoder_attention_heads=H,
            decoder_attention_heads=H, encoder_ffn_dim=F, decoder_ffn_dim=F, max_position_embeddings=32,
        ),
    )  # fmt: skip
    w = theirs.state_dict()
    ours = {"embedding.weight": w["model.shared.weight"], "head.weight": w["model.shared.weight"]}
    for side in ("encoder", "decoder"):
        ours[f"{side}_input.positions.weight"] = w[f"model.{side}.embed_positions.weight"]
        put(ours, f"{side}_input.norm", two(f"model.{side}.layernorm_embedding", w))
        for i in range(2):
            a, b = f"model.{side}.layers.{i}", f"{side}.blocks.{i}"
            put(ours, f"{b}.attention.query_key_value", fused(w, [f"{a}.self_attn.{name}_proj" for name in "qkv"]))
            names = {
                "attention.output": "self_attn.out_proj",
                "attention_residual.norm_sum": "self_attn_layer_norm",
                "feed_forward.up": "fc1",
                "feed_forward.down": "fc2",
                "feed_forward_residual.norm_sum": "final_layer_norm",
            }
            if side == "decoder":
                put(
                    ours, f"{b}.cross_attention.key_value", fused(w, [f"{a}.encoder_attn.{name}_proj" for name in "kv"])
                )
                names |= {
                    "cross_attention.query": "encoder_attn.q_proj",
                    "cross_attention.output": "encoder_attn.out_proj",
                    "cross_residual.norm_sum": "encoder_attn_layer_norm",
                }
            for name, source in names.items():
                put(ours, f"{b}.{name}", two(f"{a}.{source}", w))
    model = build(
        {},
        family="encoder_decoder", vocabulary=V, context=32, width=M, layers=2, heads=H,
        norm={"placement": "post", "embedding": True}, position={"kind": "learned", "offset": 2},
        feed_forward={"kind": "gelu", "width": F},
    ).eval()  # fmt: skip
    load(model, ours)
    source, target = ids(2, S), ids(2, T)
    with torch.no_grad():
        answer = theirs(input_ids=source, decoder_input_ids=target)
        hidden = model(target, source=source)
    close(model.encode(source), answer.encoder_last_hidden_state)
    close(model.head.logits(hidden) + w["final_logits_bias"], answer.logits)

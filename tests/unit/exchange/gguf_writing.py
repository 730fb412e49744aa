"""Small GGUF files as llama.cpp's converter writes them, made from a model of `transformers` with the `gguf` package's own writer."""

import json

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    module, kind = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def neighbours(rows, heads):
    """Rows of queries or keys as llama.cpp has them: pair (i, i + D/2) of each head becomes (2i, 2i + 1)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model):
    """A Llama of `transformers` under GGUF's names; a tied output is left out."""
    config = model.config
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = value.numpy().astype(np.float32)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        found[gguf_name(name)] = neighbours(rows, heads) if heads else rows
    return found


def settings_of(config):
    """The keys that llama.cpp's converter writes for a Llama."""
    return {
        "general.architecture": "llama",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.vocab_size": config.vocab_size,
    }


def byte_level_of(definition, *, pre="gpt-2", size=None):
    """The keys of a byte-level tokenizer.json; ids that it lacks, up to `size`, are unused tokens."""
    model = definition["model"]
    numbers = {number: token for token, number in model["vocab"].items()}
    special = {token["id"]: token["content"] for token in definition["added_tokens"]}
    count = size or 1 + max(numbers | special)
    tokens = [special.get(i) or numbers.get(i) or f"[PAD{i}]" for i in range(count)]
    kinds = [3 if i in special else 1 if i in numbers else 5 for i in range(count)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<pad>"),
    }


def definition_of(directory):
    """A tokenizer.json as an object."""
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))


def write_gguf(path, metadata, tensors, *, kind="F32", kinds=None):
    """Write a file; matrices as `kind` where their rows are whole blocks of it, `kinds` names others by tensor."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
                type(value)
            ](key, value)
    for name, value in tensors.items():
        chosen = gguf.GGMLQuantizationType[(kinds or {}).get(name, kind if value.ndim > 1 else "F32")]
        if chosen.name in ("F32", "F16"):
            writer.add_tensor(name, value.astype({"F32": np.float32, "F16": np.float16}[chosen.name]))
        else:
            writer.add_tensor(name, gguf.quantize(value, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unpacked(tensors, kind):
    """The numbers that remain of matrices after `kind`."""
    chosen = gguf.GGMLQuantizationType[kind]
    return {
        name: gguf.dequantize(gguf.quantize(value, chosen), chosen).astype(np.float32) if value.ndim > 1 else value
        for name, value in tensors.items()
    }

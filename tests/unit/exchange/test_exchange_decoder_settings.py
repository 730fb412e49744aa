"""Settings of Mistral, Qwen 2, Qwen 3 and GPT-NeoX: published configs, defaults, windows, refusals, old files, what exports to which."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from triune.errors import UserError
from triune.exchange.architecture import Settings, architecture
from triune.exchange.importing import from_huggingface
from triune.exchange.obstacles import choose, meaning, obstacles
from triune.models.checks import check
from triune.models.factory import resolve

PRESETS = Path(__file__).parents[3] / "configs" / "model"
CLASSES = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt_neox": "GPTNeoX"}

# What the released config.json of each holds that counts (transformers 4 wrote them).
PUBLISHED = {
    "mistral-7b": {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "pythia-160m": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304,
    },
}  # fmt: skip
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
SHAPE = {"family": "decoder", "vocabulary": 64, "context": 32, "width": 32, "layers": 3, "heads": 4}
LLAMA = {**SHAPE, "bias": False, "norm": {"kind": "rms"}, "feed_forward": {"kind": "swiglu"}}
MODELS = {
    "mistral": {**LLAMA, "attention": {"pattern": "window(6, 0)"}},
    "qwen2": {**LLAMA, "qkv_bias": True},
    "qwen3": {**LLAMA, "head_width": 10, "attention": {"qk_norm": True}},
    "gpt_neox": {
        **SHAPE,
        "position": {"kind": "rotary", "fraction": 0.25},
        "feed_forward": {"kind": "gelu"},
        "parallel": True,
    },
}


def read(model_type, **values):
    config = architecture(model_type).read_config(Settings(values, place="config.json"))
    check(config)
    return config


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_config_is_our_preset_and_exports_as_itself(preset):
    values = PUBLISHED[preset]
    found = read(**values)
    wanted = resolve(PRESETS / f"{preset}.yaml", context=found.context)
    assert meaning(found) == meaning(wanted)
    assert choose(wanted).model_type == values["model_type"]


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize(
    "given",
    [
        {},
        TINY,
        TINY | {"tie_word_embeddings": True},
        TINY | {"rope_theta": 500.0},
        TINY | {"rotary_emb_base": 500, "rotary_pct": 0.5},
        TINY | {"rotary_emb_base": 500, "rotary_pct": 0.5, "rope_theta": 7.0, "partial_rotary_factor": 1.0},
        TINY | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 500.0},
        TINY | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9}},
        TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9},
                "original_max_position_embeddings": 11},
        TINY | {"attention_dropout": 0.25, "hidden_dropout": 0.125},
        TINY | {"sliding_window": 5},
        TINY | {"sliding_window": None},
        TINY | {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
        TINY | {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 1},
        TINY | {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
    ],
    ids=lambda given: ", ".join(f"{key}={given[key]}" for key in given if key not in TINY) or f"{len(given)} keys",
)  # fmt: skip
def test_what_a_config_leaves_out_is_what_their_class_makes_of_it(model_type, given):
    """Read as given, and as their class writes it down in full."""
    theirs = getattr(transformers, f"{CLASSES[model_type]}Config")(**json.loads(json.dumps(given)))
    theirs.standardize_rope_params()  # as their models do once more
    theirs = theirs.to_dict()
    del theirs["model_type"]
    values = {key: value for key, value in given.items() if model_type != "mistral" or key != "layer_types"}
    assert meaning(read(model_type, **values)) == meaning(read(model_type, **theirs))
    assert read(model_type, **values).attention.dropout == theirs["attention_dropout"]
    assert read(model_type, **values).dropout == theirs.get("hidden_dropout", 0) * (model_type == "gpt_neox")


@pytest.mark.parametrize(
    ("model_type", "given", "pattern"),
    [
        ("mistral", {"sliding_window": 5}, "window(4, 0)"),
        ("mistral", {"sliding_window": 2}, "window(1, 0)"),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {}, "window(4095, 0)"),
        ("mistral", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 2}, "window(4, 0)"),
        ("qwen2", {"sliding_window": 5}, None),
        ("qwen2", {"sliding_window": 5, "max_window_layers": 0}, None),
        ("qwen2", {"use_sliding_window": True}, None),  # of 2 layers the window starts at the 28th
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, ["causal()", "window(4095, 0)"]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}, "window(4, 0)"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"],
                   "max_window_layers": 1}, ["window(4, 0)", "causal()"]),
        ("qwen3", {"layer_types": ["full_attention"] * 2, "max_window_layers": 0}, None),
    ],
    ids=str,
)  # fmt: skip
def test_a_window_of_theirs_counts_the_query_s_own_key(model_type, given, pattern):
    assert read(model_type, **TINY | given).attention.pattern == pattern


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("pattern", [None, "window(6, 0)", ["causal()", "window(6, 0)", "window(6, 0)"]], ids=str)
def test_releases_that_know_no_layer_types_read_the_same_windows(model_type, pattern):
    base = MODELS[model_type]
    config = resolve(base, attention={**base.get("attention", {}), "pattern": pattern})
    written = architecture(model_type).write_config(config)
    del written["layer_types"]
    assert meaning(read(model_type, **written)) == meaning(config)


@pytest.mark.parametrize(
    ("model_type", "given", "said"),
    [
        ("mistral", {"sliding_window": 1}, "sliding_window is 1"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window is 'wide'"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ("mistral", {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "layer_types is"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("mistral", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type is 'dynamic'"),
        ("mistral", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("mistral", {"num_attention_heads": 0}, "model.heads is 0"),
        ("qwen2", {"layer_types": ["full_attention"]}, "each of 2 layers"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types is"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 5}, "needs use_sliding_window"),
        ("qwen2", {"layer_types": "sliding_attention"}, "layer_types is 'sliding_attention'"),
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 1}, "sliding_window is 1"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias is False"),
        ("gpt_neox", {"num_attention_heads": 5}, "num_attention_heads is 5"),
        ("gpt_neox", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ("gpt_neox", {"rotary_pct": 0.1}, "rotary positions would turn 0 of the 8 numbers"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_ours_can_t_do_are_refused(model_type, given, said):
    with pytest.raises(UserError) as caught:
        read(model_type, **TINY | given)
    assert said in str(caught.value)


@pytest.mark.parametrize("model_type", CLASSES)
def test_its_own_settings_are_no_obstacle_and_it_is_chosen(model_type):
    assert obstacles(resolve(MODELS[model_type]), architecture(model_type)) == []
    assert choose(resolve(MODELS[model_type])).model_type == model_type


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("mistral", {"attention.pattern": None}, {}),
        ("mistral", {"attention.pattern": "window(6, 3) & causal()"}, {}),
        ("mistral", {"attention.pattern": ["window(6, 0)", "causal()", "causal()"]},
         {"attention.pattern": (["window(6, 0)", "causal()", "causal()"], ["window(6, 0)"] * 3)}),
        ("mistral", {"attention.pattern": "dilated(3, 0, step=2)"}, {"attention.pattern"}),
        ("mistral", {"qkv_bias": True}, {"qkv_bias": (True, False)}),
        ("mistral", {"bias": True}, {"bias": (True, False), "qkv_bias": (True, False)}),
        ("mistral", {"position": {"kind": "rotary", "fraction": 0.5}}, {"position.fraction": (0.5, 1.0)}),
        ("qwen2", {"attention.pattern": "window(6, 0)"}, {}),
        ("qwen2", {"attention.pattern": ["window(6, 0)", "causal()"]}, {}),
        ("qwen2", {"attention.pattern": ["window(6, 0)", "window(9, 0)", "causal()"]},
         {"attention.pattern": (["window(6, 0)", "window(9, 0)", "causal()"], ["window(6, 0)", "window(6, 0)", "causal()"])}),
        ("qwen2", {"qkv_bias": False}, {"qkv_bias": (False, True)}),
        ("qwen2", {"bias": True}, {"bias": (True, False)}),
        ("qwen2", {"attention.qk_norm": True}, {"attention.qk_norm": (True, False)}),
        ("qwen3", {"attention.qk_norm": False}, {"attention.qk_norm": (False, True)}),
        ("qwen3", {"attention.pattern": ["causal()", "window(6, 0)"]}, {}),
        ("qwen3", {"key_value_heads": 2}, {}),
        ("gpt_neox", {"parallel": False}, {}),
        ("gpt_neox", {"position.fraction": 1.0}, {}),
        ("gpt_neox", {"position.base": 500.0}, {}),
        ("gpt_neox", {"key_value_heads": 2}, {"key_value_heads": (2, 4)}),
        ("gpt_neox", {"qkv_bias": False}, {"qkv_bias": (False, True)}),
        ("gpt_neox", {"attention.pattern": "window(6, 0)"}, {"attention.pattern": (["window(6, 0)"] * 3, ["causal()"] * 3)}),
        ("gpt_neox", {"norm.kind": "rms"}, {"norm.kind": ("rms", "layer"), "norm.bias": (False, True)}),
    ],
    ids=str,
)  # fmt: skip
def test_each_obstacle_has_its_value_and_what_would_export(model_type, changes, expected):
    found = {
        o.setting: (o.value, o.needed)
        for o in obstacles(resolve(MODELS[model_type], **changes), architecture(model_type))
    }
    assert (set(found) if isinstance(expected, set) else found) == expected


@pytest.fixture
def pythia(tmp_path):
    torch.manual_seed(0)
    shape = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape)).save_pretrained(tmp_path)
    return tmp_path


def same(one, other):
    found, wanted = dict(one.named_parameters()), dict(other.named_parameters())
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_old_pythia_file_with_its_masks_and_frequencies_is_read(pythia):
    """Files of 2022 hold buffers, and some name the head as the class does."""
    wanted, _ = from_huggingface(pythia)
    tensors = load_file(pythia / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    for layer in range(2):
        place = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{place}.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
        tensors[f"{place}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{place}.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(tensors, pythia / "model.safetensors", metadata={"format": "pt"})
    assert same(from_huggingface(pythia)[0], wanted)


def test_a_tied_pythia_file_may_hold_its_table_twice_but_not_two_tables(pythia):
    tensors = load_file(pythia / "model.safetensors")
    config = json.loads((pythia / "config.json").read_text())
    (pythia / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match="are one tensor"):
        from_huggingface(pythia)
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].clone()
    save_file(tensors, pythia / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(from_huggingface(pythia)[0].embedding.weight, tensors["embed_out.weight"])


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_tensors_of_another_of_llama_s_kin_are_listed(model_type, tmp_path):
    """Each differs from the next in a tensor or two: a config that lies about its kin is found out."""
    torch.manual_seed(0)
    name = CLASSES[model_type]
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**TINY, head_dim=8))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    other = {"mistral": "qwen2", "qwen2": "qwen3", "qwen3": "mistral"}[model_type]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": other}))
    listed = {
        "qwen2": "self_attn.q_proj.bias: missing", "qwen3": "self_attn.q_norm.weight: missing",
        "mistral": "self_attn.q_norm.weight: left over",
    }[other]  # fmt: skip
    with pytest.raises(UserError) as caught:
        from_huggingface(tmp_path)
    assert listed in str(caught.value)

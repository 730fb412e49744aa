"""ModernBERT, Longformer and BigBird: settings read and written, refused, and what stands in the way of an export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from triune.errors import UserError
from triune.exchange.architecture import Settings, TokenIds, architecture
from triune.exchange.architectures._both_ways import cycle
from triune.exchange.mapping import to_ours, to_theirs
from triune.exchange.obstacles import meaning, obstacles
from triune.models.checks import check
from triune.models.factory import build, resolve

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "model"
SHAPE = {"family": "encoder", "vocabulary": 64, "context": 40, "width": 32, "layers": 4, "heads": 4}
POST = {
    **SHAPE,
    "norm": {"placement": "post", "epsilon": 1e-12, "embedding": True},
    "token_types": 2,
    "head": {"transform": True, "bias": True},
}
MODERNBERT = {
    **SHAPE,
    "attention": {"pattern": ["full()", "window(3, 3)", "window(3, 3)"]},
    "position": {"kind": "rotary", "base": [160000.0, 10000.0, 10000.0]},
    "norm": {"bias": False, "embedding": True, "skip_first": True},
    "feed_forward": {"kind": "geglu", "width": 24},
    "head": {"transform": True, "transform_bias": False, "bias": True},
    "bias": False,
}
LONGFORMER = {
    **POST,
    "position": {"kind": "learned", "offset": 2},
    "attention": {"pattern": "window(4, 4) | global_tokens(first=1)"},
}
BIG_BIRD = {**POST, "position": {"kind": "learned"}}
MODELS = {"modernbert": MODERNBERT, "longformer": LONGFORMER, "big_bird": BIG_BIRD}

# as the Hub has them, less what no model computes with
PUBLISHED_MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}
PUBLISHED_LONGFORMER = {
    "architectures": ["LongformerForMaskedLM"],
    "attention_mode": "longformer",
    "attention_probs_dropout_prob": 0.1,
    "attention_window": [512] * 12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "ignore_attention_mask": False,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4098,
    "model_type": "longformer",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
PUBLISHED_BIG_BIRD = {
    "architectures": ["BigBirdForPreTraining"],
    "attention_probs_dropout_prob": 0.1,
    "attention_type": "block_sparse",
    "block_size": 64,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 4096,
    "model_type": "big_bird",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_random_blocks": 3,
    "pad_token_id": 0,
    "rescale_embeddings": False,
    "type_vocab_size": 2,
    "use_bias": True,
    "vocab_size": 50358,
}


def read(model_type, values):
    return architecture(model_type).read_config(Settings(values, place="config.json"))


def against(model_type, **changes):
    found = obstacles(resolve(MODELS[model_type], **changes), architecture(model_type))
    return {o.setting: (o.value, o.needed) for o in found}


@pytest.mark.parametrize(
    ("model_type", "values", "preset", "changes"),
    [
        ("modernbert", PUBLISHED_MODERNBERT, "modernbert-base", {}),
        ("longformer", PUBLISHED_LONGFORMER, "longformer-base",
         {"attention.pattern": "window(256, 256)", "attention.global_projections": True}),
        ("big_bird", PUBLISHED_BIG_BIRD, "bigbird-base", {"attention.pattern": "full()"}),
    ],
    ids=["modernbert", "longformer", "big_bird"],
)  # fmt: skip
def test_the_published_config_is_the_preset(model_type, values, preset, changes):
    """And each preset says what it leaves out of the published model."""
    found = read(model_type, values)
    check(found)
    assert meaning(found) == meaning(resolve(PRESETS / f"{preset}.yaml", **changes))


@pytest.mark.parametrize("model_type", MODELS)
def test_its_own_settings_are_no_obstacle(model_type):
    assert against(model_type) == {}


@pytest.mark.parametrize(
    "old",
    [
        {"global_attn_every_n_layers": 2, "global_rope_theta": 900.0, "local_rope_theta": 70.0},
        {"global_attn_every_n_layers": 1},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "local_rope_theta": 70.0},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 50.0}}},
        {"num_hidden_layers": 5},
    ],
    ids=str,
)
def test_modernbert_configs_of_before_v5_are_read_as_transformers_reads_them(old):
    values = {"num_hidden_layers": 6, "vocab_size": 50368, "local_attention": 10, **old}
    converted = transformers.ModernBertConfig(**values).to_dict()
    assert converted["layer_types"]
    assert meaning(read("modernbert", values)) == meaning(read("modernbert", converted))


def test_cycle_is_the_shortest_beginning_that_repeats():
    assert cycle([1, 1, 1]) == [1]
    assert cycle([1, 2, 2, 1, 2]) == [1, 2, 2]
    assert cycle([1, 2, 3]) == [1, 2, 3]
    assert cycle([7]) == [7]


@pytest.mark.parametrize(
    ("model_type", "values", "said"),
    [
        ("modernbert", {"attention_bias": True}, "attention_bias is True, but triune can do False only"),
        ("modernbert", {"sparse_prediction": True}, "sparse_prediction is True, but triune can do False only"),
        ("modernbert", {"layer_types": ["full_attention"] * 3}, "it must list num_hidden_layers = 22 layers"),
        ("modernbert", {"layer_types": 22}, "layer_types is 22, but it must list"),
        ("modernbert", {"layer_types": [{}] * 22}, "layer_types is {}, but triune can do full_attention, sliding"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 22}, "layer_types is 'chunked_attention', but"),
        ("modernbert", {"classifier_activation": "mish"}, "classifier_activation is 'mish', but"),
        ("modernbert", {"hidden_activation": "relu"}, "hidden_activation is 'relu', but"),
        ("modernbert", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic', but"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_parameters is .* but triune has one scaling for all layers"),
        ("modernbert", {"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}},
         "partial_rotary_factor is 0.5, but"),
        ("longformer", {"attention_window": 7}, "attention_window is 7, but it must be even"),
        ("longformer", {"attention_window": None}, "attention_window is None, but it must be even"),
        ("longformer", {"attention_window": 2}, "attention_window is 2, but .* at least 4"),
        ("longformer", {"attention_window": [8] * 11}, "it must have num_hidden_layers = 12 numbers"),
        ("longformer", {"attention_window": [8, 12] * 6}, "attention_window is .* the others must divide"),
        ("longformer", {"hidden_act": "tanh"}, "hidden_act is 'tanh', but"),
        ("longformer", {"max_position_embeddings": 2}, "max_position_embeddings is 2, but it must be above 2"),
        ("longformer", {"type_vocab_size": 0}, "type_vocab_size is 0, but"),
        ("big_bird", {"attention_type": "sparse"}, "attention_type is 'sparse', but .*original_full, block_sparse"),
        ("big_bird", {"is_decoder": True}, "is_decoder is True, but"),
        ("big_bird", {"add_cross_attention": True}, "add_cross_attention is True, but"),
        ("big_bird", {"hidden_act": "relu2"}, "hidden_act is 'relu2', but"),
        ("big_bird", {"type_vocab_size": 0}, "type_vocab_size is 0, but"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_ours_cannot_do_are_refused(model_type, values, said):
    with pytest.raises(UserError, match=f"config.json.*: .*{said}"):
        read(model_type, values)


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("modernbert", {"attention.pattern": "full()", "position.base": 160000.0}, {}),
        ("modernbert", {"attention.pattern": "window(5, 5)"}, {"position.base": ([160000.0, 10000.0, 10000.0, 160000.0], [160000.0] * 4)}),
        ("modernbert", {"attention.pattern": "window(5, 5)", "position.base": 300.0}, {}),
        ("modernbert", {"attention.pattern": "window(5, 2)", "position.base": 300.0},
         {"attention.pattern": (["window(5, 2)"] * 4, ["window(5, 5)"] * 4)}),
        ("modernbert", {"attention.pattern": ["window(5, 5)", "window(3, 3)"], "position.base": 300.0},
         {"attention.pattern": (["window(5, 5)", "window(3, 3)"] * 2, ["window(5, 5)"] * 4)}),
        ("modernbert", {"attention.pattern": ["full()", "window(3, 3) | global_tokens(first=1)"], "position.base": 9.0},
         {"attention.pattern": (["full()", "window(3, 3) | global_tokens(first=1)"] * 2, ["full()", "window(3, 3)"] * 2)}),
        ("modernbert", {"position.fraction": 0.5}, {"position.fraction": (0.5, 1.0)}),
        ("modernbert", {"position.scaling": "yarn", "position.factor": 4.0}, {}),
        ("modernbert", {"norm.skip_first": False}, {"norm.skip_first": (False, True)}),
        ("modernbert", {"bias": True}, {}),
        ("modernbert", {"qkv_bias": True}, {"qkv_bias": (True, False)}),
        ("modernbert", {"head": {"transform": False, "bias": False, "transform_bias": True}}, {}),
        ("longformer", {"attention.global_projections": True}, {}),
        ("longformer", {"attention.pattern": ["window(4, 4)", "window(8, 8)"]}, {}),
        ("longformer", {"attention.pattern": "window(4, 2)"},
         {"attention.pattern": (["window(4, 2)"] * 4, ["window(4, 4)"] * 4)}),
        ("longformer", {"attention.pattern": "window(4, 4) | global_tokens(indices=[3])"},
         {"attention.pattern": (["window(4, 4) | global_tokens(indices=[3])"] * 4, ["window(4, 4)"] * 4)}),
        ("longformer", {"attention.pattern": "window(4, 4) | global_tokens(indices=[0, 3])"},
         {"attention.pattern": (["window(4, 4) | global_tokens(indices=[0, 3])"] * 4,
                                ["window(4, 4) | global_tokens(first=1)"] * 4)}),
        ("longformer", {"attention.pattern": ["window(4, 4) | global_tokens(first=2)", "window(4, 4)"]},
         {"attention.pattern": (["window(4, 4) | global_tokens(first=2)", "window(4, 4)"] * 2,
                                ["window(4, 4) | global_tokens(first=2)"] * 4)}),
        ("longformer", {"attention.pattern": "full()"}, {"attention.pattern": (["full()"] * 4, ["window(40, 40)"] * 4)}),
        ("longformer", {"token_types": 0}, {"token_types": (0, 1)}),
        ("longformer", {"head.activation": "relu"}, {"head.activation": ("relu", "gelu")}),
        ("big_bird", {"attention.pattern": "block_local(4, 1, 1) | global_tokens(first=8)"},
         {"attention.pattern": (["block_local(4, 1, 1) | global_tokens(first=8)"] * 4, ["full()"] * 4)}),
        ("big_bird", {"scale_embeddings": True, "qkv_bias": False}, {}),
        ("big_bird", {"feed_forward.kind": "gelu_tanh"}, {"head.activation": ("gelu", "gelu_tanh")}),
        ("big_bird", {"feed_forward.kind": "gelu_tanh", "head.activation": "gelu_tanh"}, {}),
        ("big_bird", {"position.offset": 2}, {"position.offset": (2, 0)}),
    ],
    ids=str,
)  # fmt: skip
def test_each_obstacle_has_its_value_and_what_would_export(model_type, changes, expected):
    assert against(model_type, **changes) == expected


def test_a_window_that_theirs_fails_with_is_said_in_its_words():
    (found,) = obstacles(resolve(LONGFORMER, **{"attention.pattern": "window(1, 1)"}), architecture("longformer"))
    assert "attention_window is 2, but it must be even, or a list of even numbers, and at least 4" in str(found)


def test_a_plain_longformer_config_says_nothing_of_ours():
    longformer = architecture("longformer")
    plain = resolve(LONGFORMER, **{"attention.pattern": "window(4, 4)", "attention.global_projections": True})
    assert "triune" not in longformer.config_json(plain, TokenIds(pad=1))
    assert longformer.config_json(resolve(LONGFORMER), TokenIds(pad=1))["triune"] == {
        "global_tokens": 1,
        "global_projections": False,
    }


def test_shared_projections_are_written_twice_and_must_be_equal_when_read():
    config = resolve(LONGFORMER)
    mapping = architecture("longformer").mapping(config)
    tensors = {name: torch.randn_like(value) for name, value in build(config).named_parameters()}
    written = to_theirs(mapping, tensors)
    name = "longformer.encoder.layer.3.attention.self.key"
    assert torch.equal(written[f"{name}_global.weight"], written[f"{name}.weight"])
    back = to_ours(mapping, written)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())
    written[f"{name}_global.bias"][5] += 1
    with pytest.raises(UserError, match=r"layer.3.*key.bias and .*key_global.bias are one tensor"):
        to_ours(mapping, written)


def test_marks_are_the_first_real_tokens_and_none_without_global_ones():
    longformer = architecture("longformer")
    real = torch.tensor([[True] * 5, [True] + [False] * 4])
    config = resolve(LONGFORMER, **{"attention.pattern": "window(4, 4) | global_tokens(first=2)"})
    marked = longformer.arguments(config, real)
    assert marked["global_attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert longformer.arguments(resolve(LONGFORMER, **{"attention.pattern": "window(4, 4)"}), real) == {}


def test_special_ids_of_modernbert_are_those_of_the_tokenizer():
    values = architecture("modernbert").config_json(resolve(MODERNBERT), TokenIds(pad=0, bos=1, eos=2))
    assert (values["cls_token_id"], values["sep_token_id"], values["pad_token_id"]) == (1, 2, 0)


@pytest.mark.parametrize("model_type", MODELS)
def test_dropout_survives(model_type):
    config = resolve(MODELS[model_type], **{"dropout": 0.3, "attention.dropout": 0.2})
    back = read(model_type, architecture(model_type).write_config(config))
    assert (back.dropout, back.attention.dropout) == (0.3, 0.2)
    assert meaning(replace(back, dropout=0.0)) == meaning(config)


@pytest.mark.parametrize(
    ("model_type", "held"),
    [
        ("modernbert", ["decoder.weight"]),
        (
            "longformer",
            [
                "lm_head.decoder.weight",
                "lm_head.decoder.bias",
                "longformer.embeddings.position_ids",
                "longformer.pooler.dense.weight",
            ],
        ),
        (
            "big_bird",
            [
                "bert.embeddings.position_ids",
                "bert.embeddings.token_type_ids",
                "bert.pooler.bias",
                "cls.predictions.decoder.bias",
                "cls.predictions.decoder.weight",
                "cls.seq_relationship.weight",
            ],
        ),
    ],
    ids=MODELS,
)
def test_tensors_that_published_files_hold_besides_have_a_place(model_type, held):
    """Tied ones under their other names, buffers, and parts that masked-token models do not use."""
    mapping = architecture(model_type).mapping(resolve(MODELS[model_type]))
    assert [name for name in held if not mapping.known(name)] == []


def test_big_bird_is_written_with_full_attention():
    """Theirs is block-sparse where the config does not say otherwise."""
    assert architecture("big_bird").write_config(resolve(BIG_BIRD))["attention_type"] == "original_full"


@pytest.mark.parametrize(
    ("model_type", "made"),
    [
        ("modernbert", transformers.ModernBertConfig),
        ("longformer", transformers.LongformerConfig),
        ("big_bird", transformers.BigBirdConfig),
    ],
    ids=MODELS,
)
def test_a_key_left_out_is_the_default_of_their_class(model_type, made):
    said = {key: value for key, value in made().to_dict().items() if value is not None}
    assert read(model_type, {}) == read(model_type, said)

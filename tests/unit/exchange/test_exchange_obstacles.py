"""What stands in the way of an export, and which architecture is taken."""

import pytest

from triune.errors import UserError
from triune.exchange.architecture import Settings, architecture, known
from triune.exchange.obstacles import choose, obstacles
from triune.models.factory import resolve

LLAMA = {
    "family": "decoder",
    "vocabulary": 64,
    "context": 32,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "bias": False,
    "norm": {"kind": "rms"},
    "feed_forward": {"kind": "swiglu"},
}
GPT2 = {
    **{name: LLAMA[name] for name in ("family", "vocabulary", "context", "width", "layers", "heads")},
    "position": {"kind": "learned"},
    "feed_forward": {"kind": "gelu_tanh"},
}
BERT = {
    **{name: LLAMA[name] for name in ("vocabulary", "context", "width", "layers", "heads")},
    "family": "encoder",
    "position": {"kind": "learned"},
    "norm": {"placement": "post", "embedding": True},
    "head": {"transform": True, "bias": True},
    "token_types": 2,
}
T5 = {
    **LLAMA,
    "family": "encoder_decoder",
    "position": {"kind": "t5"},
    "attention": {"scale": 1.0},
    "feed_forward": {"kind": "relu"},
    "head": {"scale": 32**-0.5},
}
MODELS = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT, "t5": T5}


def against(model_type, base, **changes):
    return {o.setting: (o.value, o.needed) for o in obstacles(resolve(base, **changes), architecture(model_type))}


@pytest.mark.parametrize("model_type", MODELS)
def test_its_own_settings_are_no_obstacle_and_it_is_chosen(model_type):
    assert against(model_type, MODELS[model_type]) == {}
    assert choose(resolve(MODELS[model_type])).model_type == model_type
    assert choose(resolve(MODELS[model_type]), model_type).model_type == model_type


@pytest.mark.parametrize("model_type", MODELS)
def test_what_counts_in_training_and_speed_only_is_free(model_type):
    free = {
        "dropout": 0.3,
        "stochastic_depth": 0.2,
        "attention.dropout": 0.1,
        "attention.backend": "reference",
        "activation_checkpointing": True,
        "loss_chunk": 7,
        "feed_forward.chunk": 8,
        "feed_forward.dropout": 0.2,
        "initialization.kind": "normal",
    }
    assert against(model_type, MODELS[model_type], **free) == {}


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {"norm.kind": "layer"}, {"norm.kind": ("layer", "rms"), "norm.bias": (True, False)}),
        ("llama", {"norm.placement": "sandwich"}, {"norm.placement": ("sandwich", "pre")}),
        ("llama", {"attention.qk_norm": True}, {"attention.qk_norm": (True, False)}),
        ("llama", {"attention.scale": 1.0}, {"attention.scale": (1.0, None)}),
        ("llama", {"attention.scale": 8**-0.5}, {}),
        ("llama", {"attention.pattern": "window(3, 0)"}, {"attention.pattern": (["window(3, 0)"] * 2, ["causal()"] * 2)}),
        ("llama", {"attention.pattern": "causal()"}, {}),
        ("llama", {"qkv_bias": True}, {"qkv_bias": (True, False)}),
        ("llama", {"bias": True}, {}),
        ("llama", {"reversible": True}, {"reversible": (True, False)}),
        ("llama", {"parallel": True}, {"parallel": (True, False)}),
        ("llama", {"position.scaling": "ntk", "position.factor": 2.0},
         {"position.scaling": ("ntk", "none"), "position.factor": (2.0, 1.0)}),
        ("llama", {"position.scaling": "yarn", "position.factor": 4.0}, {}),
        ("llama", {"position.base": [10000.0, 500.0]}, {"position.base": ([10000.0, 500.0], [10000.0] * 2)}),
        ("llama", {"position.base": [500.0]}, {}),
        ("llama", {"position.fraction": 0.5}, {"position.fraction": (0.5, 1.0)}),
        ("llama", {"head.bias": True}, {"head.bias": (True, False)}),
        ("llama", {"head.scale": 0.5}, {"head.scale": (0.5, 1.0)}),
        ("llama", {"head.scale": 1.0}, {}),
        ("llama", {"feed_forward.kind": "gelu"}, {"feed_forward.kind": ("gelu", "geglu")}),
        ("llama", {"feed_forward.kind": "geglu_tanh"}, {}),
        ("llama", {"feed_forward.kind": "relu_squared"}, {"feed_forward.kind": ("relu_squared", "swiglu")}),
        ("gpt2", {"feed_forward.kind": "swiglu"}, {"feed_forward.kind": ("swiglu", "silu")}),
        ("gpt2", {"key_value_heads": 2}, {"key_value_heads": (2, 4)}),
        ("gpt2", {"head_width": 10}, {"head_width": (10, 8)}),
        ("gpt2", {"position.offset": 2}, {"position.offset": (2, 0)}),
        ("bert", {"norm.placement": "pre"}, {"norm.placement": ("pre", "post"), "norm.final": (True, False)}),
        ("bert", {"head.activation": "relu"}, {"head.activation": ("relu", "gelu")}),
        ("t5", {"attention.scale": None}, {"attention.scale": (None, 1.0)}),
        ("t5", {"head.scale": None, "tie_embeddings": False}, {}),
        ("t5", {"head.scale": 0.5}, {"head.scale": (0.5, 32**-0.5)}),
        ("t5", {"feed_forward.kind": "geglu"}, {"feed_forward.kind": ("geglu", "relu")}),
        ("gpt2", {"family": "encoder"}, {"family": ("encoder", "decoder")}),
    ],
    ids=str,
)  # fmt: skip
def test_each_obstacle_has_its_value_and_what_would_export(model_type, changes, expected):
    assert against(model_type, MODELS[model_type], **changes) == expected


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("bert", {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}),
        ("gpt2", {"resid_pdrop": 0.2, "attn_pdrop": 0.3}),
        ("llama", {"attention_dropout": 0.3}),
        ("t5", {"dropout_rate": 0.3}),
    ],
)
def test_dropout_of_attention_comes_in_and_goes_out(model_type, values):
    """It is no obstacle, so that nothing else would notice it lost; fine-tuning from an import would."""
    target = architecture(model_type)
    config = target.read_config(Settings(values, place="config.json"))
    assert config.attention.dropout == 0.3
    assert values.items() <= target.write_config(config).items()


def test_a_bare_bert_has_no_table_of_scores():
    values = {"architectures": ["BertModel"], "tie_word_embeddings": False}
    assert architecture("bert").read_config(Settings(values, place="config.json")).tie_embeddings


def test_of_another_kind_only_the_kind_is_said():
    """Its own settings (an offset here, a base there) would export nothing."""
    bare = {key: value for key, value in LLAMA.items() if key != "position"}
    assert against("llama", bare, position={"kind": "learned", "offset": 2}) == {"position.kind": ("learned", "rotary")}


def test_what_only_their_class_refuses_is_said_in_its_words():
    found = obstacles(resolve(LLAMA, width=36, heads=5, head_width=8, key_value_heads=1), architecture("llama"))
    assert "num_attention_heads is 5, but it must divide hidden_size = 36" in str(found[0])


def test_no_twin_names_the_nearest_and_what_stands_in_the_way():
    with pytest.raises(UserError) as caught:
        choose(resolve(LLAMA, **{"norm.placement": "sandwich", "tie_embeddings": False}))
    said = str(caught.value)
    assert "no twin" in said
    assert "model.norm.placement is sandwich; pre would export" in said


@pytest.mark.parametrize("name", known())
def test_every_architecture_answers_for_every_model(name):
    """`write_config` is asked about models that have nothing in common with it; it must answer, not fail."""
    kinds = ("sinusoidal", "learned", "rotary", "alibi", "t5", "none")
    for base in MODELS.values():
        for kind in kinds:
            for feed_forward in ("gelu", "geglu", "relu_squared"):
                changes = {"position": {"kind": kind}, "feed_forward.kind": feed_forward}
                obstacles(resolve({k: v for k, v in base.items() if k != "position"}, **changes), architecture(name))

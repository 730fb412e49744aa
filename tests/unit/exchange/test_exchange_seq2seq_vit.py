"""BART, Marian, Pegasus and ViT: settings that ours can't do, settings that theirs can't say, and what goes along with weights."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from triune.cli import main
from triune.errors import UserError
from triune.exchange import from_huggingface, to_huggingface
from triune.exchange.architecture import Settings, TokenIds, architecture
from triune.exchange.carried import Carried
from triune.exchange.obstacles import choose, obstacles
from triune.exchange.parity import quiet_transformers
from triune.exchange.proof import Case, peer
from triune.models.factory import build, resolve

SEQ2SEQ = {"family": "encoder_decoder", "vocabulary": 64, "context": 32, "width": 32, "layers": 2, "heads": 4}
HALVES = {"kind": "sinusoidal", "layout": "halves"}
MODELS = {
    "bart": SEQ2SEQ | {"position": {"kind": "learned", "offset": 2}, "norm": {"placement": "post", "embedding": True}},
    "marian": SEQ2SEQ | {"position": HALVES, "norm": {"placement": "post"}, "scale_embeddings": True, "feed_forward": {"kind": "silu"}},
    "pegasus": SEQ2SEQ | {"position": HALVES, "norm": {"placement": "pre"}, "head": {"bias": True}, "feed_forward": {"kind": "relu"}},
    "vit": {
        "family": "encoder", "input": {"kind": "patches", "image": 8, "patch": 4, "channels": 1}, "context": 5, "width": 32, "layers": 2,
        "heads": 4, "position": {"kind": "learned"}, "head": {"kind": "classes", "labels": 3}, "qkv_bias": False,
    },
}  # fmt: skip
VIT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20, "image_size": 8, "patch_size": 4,
    "num_channels": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def read(model_type, /, names=(), **values):
    return architecture(model_type).read_config(Settings(values, place="config.json", names=frozenset(names)))


def against(model_type, **changes):
    found = obstacles(resolve(MODELS[model_type], **changes), architecture(model_type))
    return {one.setting: (one.value, one.needed) for one in found}


@pytest.mark.parametrize(
    ("model_type", "key", "value", "why"),
    [
        *[(name, "tie_word_embeddings", False, "one table") for name in ("bart", "marian", "pegasus")],
        *[
            (name, "decoder_attention_heads", 8, "encoder_attention_heads is 16")
            for name in ("bart", "marian", "pegasus")
        ],
        *[(name, "decoder_ffn_dim", 8, "encoder_ffn_dim is 4096") for name in ("bart", "marian", "pegasus")],
        *[(name, "is_decoder", True, "False only") for name in ("bart", "marian", "pegasus")],
        *[(name, "is_encoder_decoder", False, "True only") for name in ("bart", "marian", "pegasus")],
        *[(name, "activation_function", "mish", "gelu_new") for name in ("bart", "marian", "pegasus")],
        ("marian", "share_encoder_decoder_embeddings", False, "one table"),
        ("marian", "decoder_vocab_size", 99, "vocab_size = 58101"),
        ("marian", "static_position_embeddings", False, "True only"),
        ("marian", "normalize_before", True, "False only"),
        ("marian", "normalize_embedding", True, "False only"),
        ("marian", "add_final_layer_norm", True, "False only"),
        ("bart", "static_position_embeddings", True, "False only"),
        ("bart", "normalize_before", True, "False only"),
        ("bart", "normalize_embedding", False, "True only"),
        ("bart", "add_final_layer_norm", True, "False only"),
        ("pegasus", "static_position_embeddings", False, "True only"),
        ("pegasus", "normalize_before", False, "True only"),
        ("pegasus", "normalize_embedding", True, "False only"),
        ("pegasus", "add_final_layer_norm", False, "True only"),
        ("vit", "image_size", [224, 160], "squares"),
        ("vit", "patch_size", [16, 8], "squares"),
        ("vit", "patch_size", 0, "squares"),
        ("vit", "hidden_act", "mish", "gelu_new"),
        ("vit", "problem_type", "regression", "single_label_classification"),
        ("vit", "num_labels", 1, "regression"),
        ("vit", "id2label", {"0": "one"}, "regression"),
    ],
)
def test_what_ours_cannot_do_is_refused_with_key_and_value(model_type, key, value, why):
    with pytest.raises(UserError) as caught:
        read(model_type, **{key: value})
    said = str(caught.value)
    assert said.startswith("config.json: ")
    assert f"{'num_labels' if key == 'id2label' else key} is " in said
    assert why in said


def test_a_pooler_of_another_width_is_refused():
    with pytest.raises(UserError, match="pooler_output_size is 5"):
        read("vit", ["pooler.dense.weight"], architectures=["ViTModel"], pooler_output_size=5)
    with pytest.raises(UserError, match="pooler_act is 'mish'"):
        read("vit", ["pooler.dense.weight"], architectures=["ViTModel"], pooler_act="mish")
    read(
        "vit", ["layernorm.weight"], architectures=["ViTModel"], pooler_output_size=5
    )  # without a pooler it says nothing


@pytest.mark.parametrize("name", ["bart", "marian", "pegasus", "vit"])
def test_absent_keys_are_the_defaults_of_their_class(name):
    theirs = getattr(transformers, {"vit": "ViTConfig"}.get(name, f"{name.capitalize()}Config"))()
    assert read(name) == read(name, **json.loads(theirs.to_json_string(use_diff=False)))


@pytest.mark.parametrize("model_type", MODELS)
def test_rates_of_dropping_are_read_and_written(model_type):
    """No number of a trained model tells them, so that no case could."""
    rates = {"dropout": 0.4, "attention_dropout": 0.3, "activation_dropout": 0.2}
    if model_type == "vit":
        rates = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.3}
    config = read(model_type, **rates)
    found = (config.dropout, config.attention.dropout, config.feed_forward.dropout)
    assert found == (0.4, 0.3, 0.0 if model_type == "vit" else 0.2)
    written = architecture(model_type).config_json(config, TokenIds())
    assert {key: written[key] for key in rates} == rates


@pytest.mark.parametrize("model_type", MODELS)
def test_its_own_settings_are_no_obstacle_and_it_is_chosen(model_type):
    assert against(model_type) == {}
    assert choose(resolve(MODELS[model_type])).model_type == model_type


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("bart", {"position.offset": 0}, {"position.offset": (0, 2)}),
        ("bart", {"tie_embeddings": False}, {"tie_embeddings": (False, True)}),
        ("bart", {"key_value_heads": 2}, {"key_value_heads": (2, 4)}),
        ("bart", {"head_width": 6}, {"head_width": (6, 8)}),
        ("bart", {"norm.embedding": False}, {"norm.embedding": (False, True)}),
        ("bart", {"head.bias": True}, {}),
        ("bart", {"decoder_layers": 3}, {}),
        ("bart", {"attention.pattern": "window(2, 2)"}, {"attention.pattern": (["window(2, 2)"] * 2, ["full()"] * 2)}),
        ("marian", {"position.layout": "interleaved"}, {"position.layout": ("interleaved", "halves")}),
        ("marian", {"position.base": 500.0}, {"position.base": (500.0, 10000.0)}),
        ("marian", {"scale_embeddings": False}, {}),
        ("marian", {"norm.placement": "pre"}, {"norm.placement": ("pre", "post"), "norm.final": (True, False)}),
        ("pegasus", {"norm.epsilon": 1e-6}, {"norm.epsilon": (1e-6, 1e-5)}),
        ("pegasus", {"norm.final": False}, {"norm.final": (False, True)}),
        ("pegasus", {"bias": False}, {"bias": (False, True), "qkv_bias": (False, True)}),
        ("vit", {"head.pool": "mean"}, {"head.pool": ("mean", "first")}),
        ("vit", {"head.transform": True}, {"head.transform": (True, False)}),
        ("vit", {"head.labels": 0}, {}),
        ("vit", {"head.labels": 0, "head.transform": True}, {}),
        ("vit", {"qkv_bias": True}, {}),
        ("vit", {"input.class_token": False, "context": 4, "head.pool": "mean"},
         {"input.class_token": (False, True), "context": (4, 5), "head.pool": ("mean", "first")}),
        ("vit", {"norm.placement": "post"}, {"norm.placement": ("post", "pre"), "norm.final": (False, True)}),
    ],
    ids=str,
)  # fmt: skip
def test_each_obstacle_has_its_value_and_what_would_export(model_type, changes, expected):
    assert against(model_type, **changes) == expected


def test_one_yes_or_no_score_is_theirs_for_regression():
    found = obstacles(resolve(MODELS["vit"], **{"head.labels": 1}), architecture("vit"))
    assert "num_labels is 1" in str(found[0])


@pytest.mark.parametrize("model_type", MODELS)
def test_mappings_answer_for_models_of_other_kinds(model_type):
    """`obstacles` asks for the names of a model that may have nothing in common with the architecture."""
    if model_type == "vit":
        base = {
            "family": "encoder",
            "vocabulary": 64,
            "width": 32,
            "heads": 4,
            "head": {"kind": "classes", "pool": "none"},
        }
    else:
        base = SEQ2SEQ | {"norm": {"kind": "rms"}, "bias": False, "tie_embeddings": False}
    for kind in ("rotary", "t5", "learned", "sinusoidal"):
        assert obstacles(resolve(base, position={"kind": kind}), architecture(model_type))


# ---- files -------------------------------------------------------------------------------------------------------------


def save(model_type, directory, prepare=lambda model: None, **settings):
    """A tiny random model of theirs in a directory."""
    name = {"vit": "ViTForImageClassification", "bare": "ViTModel", "marian": "MarianMTModel"}[model_type]
    shape = VIT if "ViT" in name else {
        "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 24, "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    model = peer(Case(name="", model=name, settings=shape | settings, prepare=prepare))
    with quiet_transformers():
        model.save_pretrained(directory)
    return model


def change(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_position_table_in_the_file_must_be_the_one_that_ours_computes(tmp_path):
    """Files of the first releases hold Marian's tables."""
    theirs = save("marian", tmp_path)
    table = theirs.model.encoder.embed_positions.weight.detach().clone()
    change(tmp_path, lambda tensors: tensors.update({"model.encoder.embed_positions.weight": table}))
    from_huggingface(tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"model.encoder.embed_positions.weight": table.flip(0)}))
    with pytest.raises(UserError, match=r"model\.encoder\.embed_positions\.weight.*is not the table"):
        from_huggingface(tmp_path)


def test_tables_that_differ_are_refused(tmp_path):
    save("marian", tmp_path)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t["model.shared.weight"] + 1}))
    with pytest.raises(UserError, match=r"model\.shared\.weight and lm_head\.weight are one tensor"):
        from_huggingface(tmp_path)


def test_the_number_that_first_releases_hold_is_left_out(tmp_path):
    save("marian", tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"model.encoder.version": torch.ones(1)}))
    from_huggingface(tmp_path)


def test_vit_reads_the_names_of_both_releases(tmp_path):
    """Files have those of before transformers 5; its modules have others."""
    theirs = save("vit", tmp_path, num_labels=4)
    old, _ = from_huggingface(tmp_path)
    assert any("attention.attention.query" in name for name in load_file(tmp_path / "model.safetensors"))
    save_file({name: p.detach().clone() for name, p in theirs.named_parameters()}, tmp_path / "model.safetensors")
    new, _ = from_huggingface(tmp_path)
    for name, tensor in old.named_parameters():
        assert torch.equal(tensor, new.get_parameter(name))


def test_a_bare_vit_without_a_pooler(tmp_path):
    """Ours gives the first token. Opened again, `transformers` makes a new pooler, and says so: nothing else is new."""
    theirs = save("bare", tmp_path / "theirs", prepare=lambda model: setattr(model, "pooler", None))
    model, config = from_huggingface(tmp_path / "theirs")
    assert (config.head.labels, config.head.transform) == (0, False)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state[:, 0]
        # triune.exchange.parity.tolerance: rounding of one block comes to 1e-5 of a number's size at most
        torch.testing.assert_close(
            model.head.logits(model(images)), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )
    to_huggingface(model, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with quiet_transformers():
        _, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_head_without_labels_learns_nothing():
    model = build(MODELS["vit"], **{"head.labels": 0})
    assert not [name for name, _ in model.named_parameters() if name.startswith("head.")]
    hidden = model(torch.zeros(2, 1, 8, 8))
    assert torch.equal(model.head.logits(hidden), hidden[:, 0])
    with pytest.raises(UserError, match=r"model\.head\.labels is 0"):
        model.head.loss(hidden, torch.zeros(2, dtype=torch.long), torch.ones(2))


def test_vit_goes_in_and_out_without_a_tokenizer_and_with_what_prepares_its_images(tmp_path, capsys):
    theirs, ours, back = (tmp_path / name for name in ("theirs", "ours", "back"))
    model = save("vit", theirs, num_labels=4)
    prepared = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.4, 0.5, 0.6],
        "size": {"height": 8, "width": 8},
    }
    (theirs / "preprocessor_config.json").write_text(json.dumps(prepared))
    assert main(["import", str(theirs), str(ours)]) == 0
    assert "triune generate" not in capsys.readouterr().out
    assert main(["export", str(ours), str(back)]) == 0
    assert "AutoTokenizer" not in capsys.readouterr().out
    assert json.loads((back / "preprocessor_config.json").read_text()) == prepared
    assert not (back / "generation_config.json").exists()
    again = transformers.AutoModelForImageClassification.from_pretrained(back, attn_implementation="eager")
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(images).logits, model(images).logits)


@pytest.mark.parametrize("name", ["generation_config.json", "preprocessor_config.json"])
def test_a_damaged_file_of_settings_is_named(name, tmp_path, capsys):
    save("vit", tmp_path / "theirs", num_labels=4)
    (tmp_path / "theirs" / name).write_text("[1, 2")
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_carried_has_the_last_word_on_tokens():
    carried = Carried(generation={"eos_token_id": [5, 6], "decoder_start_token_id": 4, "forced_eos_token_id": [9, 8]})
    assert carried.ids(TokenIds(pad=1, eos=2, decoder_start=3)) == TokenIds(pad=1, eos=5, decoder_start=4)
    assert carried.opening(7) == [4]
    assert carried.closed([1, 2, 3], 3) == [1, 2, 9]
    assert carried.closed([1, 2], 3) == [1, 2]
    assert Carried().opening(7) == [7]
    assert Carried().closed([1, 2], 2) == [1, 2]
    assert Carried().ids(TokenIds(pad=1)) == TokenIds(pad=1)

"""What RoBERTa and its twins, DistilBERT, ELECTRA and ESM read, refuse and can't say. That they compute the same: see
test_exchange_parity.py."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from triune.errors import UserError
from triune.exchange.architecture import Settings, TokenIds, architecture
from triune.exchange.exporting import to_huggingface
from triune.exchange.files import CONFIG, WEIGHTS
from triune.exchange.importing import from_huggingface, read_foreign
from triune.exchange.obstacles import choose, obstacles
from triune.exchange.parity import load_theirs, prove, quiet_transformers
from triune.models.config import ClassHeadConfig
from triune.models.factory import build, resolve

BERT = {
    "vocabulary": 40, "context": 12, "width": 16, "layers": 2, "heads": 4, "family": "encoder", "position": {"kind": "learned"},
    "norm": {"placement": "post", "embedding": True}, "feed_forward": {"kind": "gelu", "width": 24},
    "head": {"transform": True, "bias": True}, "token_types": 1,
}  # fmt: skip
ROBERTA = {**BERT, "position": {"kind": "learned", "offset": 2}}
DISTILBERT = {**BERT, "token_types": 0, "norm": {"placement": "post", "embedding": True, "epsilon": 1e-12}}
GENERATOR = {**BERT, "embedding_width": 10}
DISCRIMINATOR = {
    **BERT,
    "head": {"kind": "classes", "labels": 1, "pool": "none", "transform": True, "activation": "gelu"},
}
ESM = {
    **BERT, "position": {"kind": "rotary"}, "norm": {"placement": "pre"}, "token_types": 0, "token_dropout": {"mask": 3},
}  # fmt: skip
MODELS = {
    "roberta": ROBERTA, "camembert": ROBERTA, "xlm-roberta": ROBERTA, "distilbert": DISTILBERT, "electra": GENERATOR, "esm": ESM,
}  # fmt: skip

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "model"
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TINY = {
    "roberta": {**SMALL, "max_position_embeddings": 14, "type_vocab_size": 1},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 12},
    "electra": {**SMALL, "embedding_size": 10, "max_position_embeddings": 12},
    "esm": {
        **SMALL, "max_position_embeddings": 14, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 3,
        "token_dropout": True,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def read(model_type, names=(), **changes):
    settings = Settings(TINY[model_type] | changes, place="config.json", names=frozenset(names))
    return architecture(model_type).read_config(settings)


def against(model_type, base, ids=None, **changes):
    return {o.setting: (o.value, o.needed) for o in obstacles(resolve(base, **changes), architecture(model_type), ids)}


def saved(place, name, model_type, **changes):
    """A directory with a random model of theirs."""
    made = getattr(transformers, name)
    with quiet_transformers():
        model = made(made.config_class(**TINY[model_type] | changes)).eval()
        model.save_pretrained(place)
    return model


def rewritten(place, change):
    """Change the tensors of a directory in place."""
    tensors = load_file(place / WEIGHTS)
    change(tensors)
    save_file(tensors, place / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("model_type", MODELS)
def test_its_own_settings_are_no_obstacle(model_type):
    assert against(model_type, MODELS[model_type]) == {}


@pytest.mark.parametrize(
    ("expected", "base"),
    [
        ("roberta", ROBERTA),
        ("distilbert", DISTILBERT),
        ("electra", GENERATOR),
        ("electra", DISCRIMINATOR),
        ("esm", ESM),
    ],
)
def test_which_architecture_is_taken(expected, base):
    assert choose(resolve(base)).model_type == expected


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("roberta-base", "roberta"), ("distilbert-base", "distilbert"), ("electra-base", "electra"), ("esm2-8m", "esm")],
)
def test_presets_are_what_they_are_called(preset, expected):
    assert choose(resolve(PRESETS / f"{preset}.yaml")).model_type == expected


def test_a_twin_is_taken_only_where_it_is_wanted():
    """camembert comes before roberta in the alphabet."""
    for name in ("camembert", "xlm-roberta"):
        assert choose(resolve(ROBERTA), name).model_type == name


@pytest.mark.parametrize(
    ("model_type", "base", "changes", "expected"),
    [
        ("roberta", ROBERTA, {"token_types": 0}, {"token_types": (0, 1)}),
        ("roberta", ROBERTA, {"head.activation": "relu"}, {"head.activation": ("relu", "gelu")}),
        ("roberta", ROBERTA, {"feed_forward.kind": "relu"}, {}),
        ("roberta", ROBERTA, {"tie_embeddings": False}, {}),
        ("roberta", ROBERTA, {"head.transform": False, "head.bias": False}, {}),
        ("roberta", ROBERTA, {"head.transform": False, "head.bias": False, "tie_embeddings": False}, {"tie_embeddings": (False, True)}),
        ("distilbert", DISTILBERT, {"norm.epsilon": 1e-5}, {"norm.epsilon": (1e-5, 1e-12)}),
        ("distilbert", DISTILBERT, {"token_types": 2}, {"token_types": (2, 0)}),
        ("distilbert", DISTILBERT, {"position.offset": 2}, {"position.offset": (2, 0)}),
        ("distilbert", DISTILBERT, {"feed_forward.kind": "relu"}, {"head.activation": ("gelu", "relu")}),
        ("electra", GENERATOR, {"head.activation": "relu"}, {"head.activation": ("relu", "gelu")}),
        ("electra", GENERATOR, {"feed_forward.kind": "relu"}, {}),
        ("electra", GENERATOR, {"embedding_width": None}, {}),
        # two classes of a token, and one of a text, are other classes of theirs, with heads of their own
        ("electra", DISCRIMINATOR, {"head.labels": 2}, {"head.transform": (True, False), "head.activation": ("gelu", "tanh")}),
        ("electra", DISCRIMINATOR, {"head.pool": "first"}, {"head.problem": ("single_label", "multi_label")}),
        ("electra", DISCRIMINATOR, {"head.transform": False}, {"head.transform": (False, True), "head.activation": ("tanh", "gelu")}),
        ("electra", DISCRIMINATOR, {"feed_forward.kind": "relu"}, {"head.activation": ("gelu", "relu")}),
        ("esm", ESM, {"feed_forward.kind": "relu"}, {"feed_forward.kind": ("relu", "gelu")}),
        ("esm", ESM, {"token_dropout.rate": 0.2}, {"token_dropout.rate": (0.2, 0.12)}),
        ("esm", ESM, {"token_dropout": None}, {}),
        ("esm", ESM, {"position.base": 500.0}, {}),
        ("esm", ESM, {"position.fraction": 0.5}, {"position.fraction": (0.5, 1.0)}),
        ("esm", ESM, {"norm.embedding": True}, {}),
        ("esm", ESM, {"norm.final": False}, {"norm.final": (False, True)}),
        ("esm", ESM, {"token_types": 2}, {"token_types": (2, 0)}),
    ],
    ids=str,
)  # fmt: skip
def test_each_obstacle_has_its_value_and_what_would_export(model_type, base, changes, expected):
    assert against(model_type, base, **changes) == expected


@pytest.mark.parametrize("offset", [1, 2, 6])
def test_positions_are_counted_from_the_padding_of_the_tokenizer(offset):
    """Where nothing says what fills rows, it is the id before the first position's row."""
    assert against("roberta", ROBERTA, **{"position.offset": offset}) == {}
    assert against("roberta", ROBERTA, TokenIds(pad=offset - 1), **{"position.offset": offset}) == {}
    found = against("roberta", ROBERTA, TokenIds(pad=9), **{"position.offset": offset})
    assert found["position.offset"] == (offset, 10)


def test_rotary_positions_care_for_no_padding():
    assert against("esm", ESM, TokenIds(pad=9)) == {}


@pytest.mark.parametrize(
    "base", [{**ESM, "position": {"kind": "learned", "offset": 6}, "norm": {"embedding": True}}, ESM]
)
def test_esm_positions_come_back(base):
    assert against("esm", base) == {}


def test_what_the_rows_of_positions_come_to():
    assert read("roberta", max_position_embeddings=514).context == 512
    assert read("roberta", max_position_embeddings=39, pad_token_id=5).context == 33
    assert read("roberta", max_position_embeddings=39, pad_token_id=5).position.offset == 6
    assert read("roberta", pad_token_id=None).position.offset == 2  # the class's own
    assert read("esm", max_position_embeddings=1026).context == 1024
    assert read("esm", max_position_embeddings=1026, position_embedding_type="absolute").context == 1024


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("roberta", {"is_decoder": True}, "is_decoder is True"),
        ("roberta", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings is 2, but it must be above 2"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("roberta", {"type_vocab_size": 0}, "type_vocab_size is 0"),
        ("roberta", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ("distilbert", {"activation": "mish"}, "activation is 'mish'"),
        ("electra", {"is_decoder": True}, "is_decoder is True"),
        ("electra", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("electra", {"position_embedding_type": "relative_key_query"}, "position_embedding_type is"),
        ("electra", {"type_vocab_size": 0, "architectures": ["ElectraForMaskedLM"]}, "type_vocab_size is 0"),
        (
            "electra",
            {"architectures": ["ElectraModel"]},
            "embedding_size is 10, but the file has no head that leads back",
        ),
        ("esm", {"is_decoder": True}, "is_decoder is True"),
        ("esm", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("esm", {"is_folding_model": True}, "is_folding_model is True"),
        ("esm", {"position_embedding_type": "relative_key"}, "triune can do rotary, absolute"),
        ("esm", {"max_position_embeddings": 2}, "max_position_embeddings is 2, but it must be above 2"),
        ("esm", {"mask_token_id": None}, "has no 'mask_token_id'"),
        ("esm", {"vocab_size": None}, "has no 'vocab_size'"),
    ],
    ids=str,
)
def test_what_ours_does_not_compute_is_refused(model_type, changes, said):
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        read(model_type, **changes)
    assert said in str(caught.value)


def test_the_head_of_electra_is_that_of_its_class_or_else_of_the_file():
    named = {name: read("electra", architectures=[name]) for name in ("ElectraForMaskedLM", "ElectraForPreTraining")}
    assert isinstance(named["ElectraForPreTraining"].head, ClassHeadConfig)
    assert read("electra", {"generator_lm_head.bias"}) == named["ElectraForMaskedLM"]
    assert read("electra", {"discriminator_predictions.dense.bias"}) == named["ElectraForPreTraining"]
    bare = read("electra", {"electra.embeddings.LayerNorm.weight"}, embedding_size=16)
    assert not bare.head.transform


def test_a_discriminator_is_no_generator_whatever_the_config_says(tmp_path):
    saved(tmp_path, "ElectraForPreTraining", "electra")
    values = json.loads((tmp_path / CONFIG).read_text()) | {"architectures": ["ElectraForMaskedLM"]}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"discriminator_predictions\.dense\.weight: left over"):
        read_foreign(tmp_path)


@pytest.mark.parametrize(
    ("name", "model_type"), [("RobertaModel", "roberta"), ("DistilBertModel", "distilbert"), ("EsmModel", "esm")]
)
def test_a_file_without_head_is_the_same_encoder(name, model_type, tmp_path):
    """Their pooler, which reads the first token, is left out; the class with a head has none."""
    saved(tmp_path, name, model_type, tie_word_embeddings=False)
    ours, config = from_huggingface(tmp_path)
    assert not config.head.transform
    target = architecture(model_type)
    theirs = load_theirs(tmp_path, target, config)
    parity = prove(ours, theirs, target, ids=read_foreign(tmp_path).ids, what="bare")
    assert {"embeddings", "layer 0", "layer 1"} <= parity.compared[0].states.keys()


def test_roberta_without_a_tokenizer_is_exported_with_the_padding_of_its_positions(tmp_path):
    words = 8  # so few that the proof would draw the padding, 5, as one of them
    model = build(ROBERTA, vocabulary=words, **{"position.offset": 6}).eval()
    to_huggingface(model, tmp_path / "out", architecture="roberta")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["pad_token_id"] == 5


def test_another_padding_than_that_of_the_positions_is_no_roberta(tmp_path):
    with pytest.raises(UserError, match=r"model\.position\.offset is 2; 1 would export"):
        to_huggingface(build(ROBERTA).eval(), tmp_path / "out", architecture="roberta", ids=TokenIds(pad=0))
    assert not (tmp_path / "out").exists()


def _old_layers(tensors):
    """As published: the frequencies in each layer, and a table of positions that nothing reads."""
    frequencies = tensors.pop("esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
    for layer in range(2):
        tensors[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    tensors["esm.embeddings.position_embeddings.weight"] = torch.randn(14, 16)
    tensors["esm.embeddings.position_ids"] = torch.arange(14).unsqueeze(0)


def _no_contacts(tensors):
    del tensors["esm.contact_head.regression.weight"], tensors["esm.contact_head.regression.bias"]


@pytest.mark.parametrize(
    "change", [lambda tensors: None, _old_layers, _no_contacts], ids=["5.23", "published", "headless"]
)
def test_esm_files_of_each_age_are_read(change, tmp_path):
    """5.23 saves norms as gamma and beta and one table of frequencies under a star."""
    theirs = saved(tmp_path, "EsmForMaskedLM", "esm")
    assert "esm.encoder.layer.0.LayerNorm.gamma" in load_file(tmp_path / WEIGHTS)
    rewritten(tmp_path, change)
    ours, _ = from_huggingface(tmp_path)
    norm = theirs.esm.encoder.layer[1].LayerNorm
    assert torch.equal(ours.stack.blocks[1].feed_forward_residual.norm_before.weight, norm.weight)


def test_other_frequencies_are_refused(tmp_path):
    saved(tmp_path, "EsmForMaskedLM", "esm")
    rewritten(tmp_path, lambda t: t["esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"].mul_(0.99))
    with pytest.raises(UserError, match=r"inv_freq.*is not the table that this architecture computes"):
        read_foreign(tmp_path)


def test_contacts_are_left_out_and_written_as_zeros(tmp_path):
    theirs = saved(tmp_path / "theirs", "EsmForMaskedLM", "esm")
    assert theirs.esm.contact_head.regression.weight.abs().min() > 0
    ours, _ = from_huggingface(tmp_path / "theirs")
    to_huggingface(ours, tmp_path / "out", architecture="esm")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert torch.equal(written["esm.contact_head.regression.weight"], torch.zeros(1, 8))
    assert torch.equal(written["esm.contact_head.regression.bias"], torch.zeros(1))


def test_contacts_of_another_shape_are_a_lie_of_the_config(tmp_path):
    saved(tmp_path, "EsmForMaskedLM", "esm")
    rewritten(tmp_path, lambda t: t.update({"esm.contact_head.regression.weight": torch.zeros(1, 9)}))
    with pytest.raises(UserError, match=r"esm\.contact_head\.regression\.weight: \[1, 9\], expected \[1, 8\]"):
        read_foreign(tmp_path)


def test_norms_named_as_in_tensorflow_are_read(tmp_path):
    """`bert-base-uncased` and its like, whose files began there."""
    theirs = saved(tmp_path, "BertForMaskedLM", "roberta")

    def older(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
                tensors.pop(name)
            )

    rewritten(tmp_path, older)
    ours, _ = from_huggingface(tmp_path)
    assert torch.equal(ours.head.norm.bias, theirs.cls.predictions.transform.LayerNorm.bias)

"""Heads of tasks: which shape each architecture's class has, what stands in the way of another, and names of classes that are none."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from triune.errors import UserError
from triune.exchange import from_huggingface, to_huggingface
from triune.exchange.architecture import Settings, TokenIds, architecture, known
from triune.exchange.importing import as_saved, read_foreign
from triune.exchange.labels import check_labels, read_labels, write_labels
from triune.exchange.obstacles import choose, obstacles
from triune.exchange.task_heads import head_for, kind_of, task_of
from triune.models.config import ClassHeadConfig, HeadConfig, ModelConfig
from triune.models.factory import build
from triune.tree import construct
from triune.units import Count

#: small models as each architecture's config says them
TINY = {
    "bert": {"hidden_size": 16, "num_attention_heads": 2},
    "roberta": {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 34},
    "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 1},
    "electra": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "embedding_size": 12,
        "architectures": ["ElectraForMaskedLM"],
    },
    "modernbert": {"hidden_size": 16, "num_attention_heads": 2, "classifier_activation": "silu"},
    "llama": {"hidden_size": 16, "num_attention_heads": 2},
    "mistral": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
    },
    "qwen2": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
    "qwen3": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 6},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1},
    "gpt_neox": {"hidden_size": 16, "num_attention_heads": 2},
    "t5": {"d_model": 16, "num_heads": 2, "d_kv": 8, "num_layers": 1},
    "bart": {
        "d_model": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
}
LINEAR = {"transform": False, "norm": False, "bias": True}
DENSE = {"transform": True, "transform_bias": True, "norm": False, "bias": True}
HEAD = {"transform": True, "transform_bias": False, "activation": "silu", "norm": True, "bias": True}
SCORE = {"pool": "last", "transform": False, "bias": False}
#: architecture -> the head over a text, and over tokens (None: there is no such class)
SHAPES = {
    "bert": (DENSE | {"pool": "first", "activation": "tanh"}, LINEAR),
    "roberta": (DENSE | {"pool": "first", "activation": "tanh"}, LINEAR),
    "distilbert": (DENSE | {"pool": "first", "activation": "relu"}, LINEAR),
    "electra": (DENSE | {"pool": "first", "activation": "gelu"}, LINEAR),
    "modernbert": (HEAD | {"pool": "first"}, HEAD),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"), (SCORE, LINEAR)),
    **dict.fromkeys(("t5", "bart"), (DENSE | {"pool": "last", "activation": "tanh"}, None)),
}


def pretrained(model_type):
    """An imported model, as ours, with its head over the vocabulary."""
    target = architecture(model_type)
    return target.read_config(
        Settings({"num_hidden_layers": 1, "vocab_size": 64} | TINY[model_type], place="config.json")
    )


def headed(config, **settings):
    return dataclasses.replace(config, head=construct(ClassHeadConfig, settings, "model.head"))


def test_every_architecture_that_has_classes_of_tasks_is_tried_here():
    assert set(SHAPES) == {name for name in known() if architecture(name).tasks and not architecture(name).twin}


@pytest.mark.parametrize("model_type", SHAPES)
@pytest.mark.parametrize("wanted", ["text", "tokens", "span"])
def test_a_pretrained_model_gets_the_head_with_which_it_exports(model_type, wanted):
    config = pretrained(model_type)
    problem, labels, pool = {
        "text": ("multi_label", 5, None),
        "tokens": ("single_label", 5, "none"),
        "span": ("span", 2, "none"),
    }[wanted]
    text, tokens = SHAPES[model_type]
    shape = text if wanted == "text" else tokens
    if wanted == "span" and tokens is None:
        shape = (
            LINEAR  # an encoder-decoder's answers are read from the decoder's tokens, of which theirs makes no classes
        )
    found = head_for(config, None, problem, labels, pool=pool)
    assert head_for(config, model_type, problem, labels, pool=pool) == found
    if shape is None:
        assert found == {}
        return
    assert shape.items() <= found.items()
    made = headed(config, labels=labels, problem=problem, **found)
    assert obstacles(made, architecture(model_type)) == []
    assert not choose(made).twin
    written = architecture(model_type).config_json(made, TokenIds(pad=1))
    back = architecture(model_type).read_config(Settings(written, place="config.json"))
    assert back.head == made.head  # dropout and all


def test_a_task_s_pool_is_kept_and_decides_whether_there_is_a_twin():
    assert head_for(pretrained("modernbert"), None, "single_label", 3, pool="mean")["pool"] == "mean"
    for model_type in ("bert", "llama", "t5"):
        assert head_for(pretrained(model_type), None, "single_label", 3, pool="mean") == {}
    nobody = ModelConfig(family="encoder", vocabulary=Count(64))  # rotary positions and biases
    assert head_for(nobody, None, "single_label", 3) == {}
    unset = dataclasses.replace(pretrained("llama"), vocabulary=None)
    assert head_for(unset, None, "single_label", 3)["pool"] == "last"


def test_a_head_that_is_fine_tuned_again_keeps_its_twin():
    config = headed(pretrained("modernbert"), labels=3, **head_for(pretrained("modernbert"), None, "single_label", 3))
    assert head_for(config, "modernbert", "single_label", 7) == head_for(
        pretrained("modernbert"), None, "single_label", 7
    )


@pytest.mark.parametrize(
    ("model_type", "head", "said"),
    [
        ("llama", {"pool": "last", "bias": False, "transform": True}, "model.head.transform is true; false would export"),
        ("llama", {"pool": "last"}, "model.head.bias is true; false would export"),
        ("llama", {"pool": "mean", "bias": False}, "model.head.pool is mean; last would export"),
        ("bert", {"pool": "first"}, "model.head.transform is false; true would export"),
        ("bert", {"pool": "first", "transform": True, "activation": "gelu"}, "model.head.activation is gelu; tanh would export"),
        ("bert", {"pool": "first", "transform": True, "labels": 1}, "model.head.problem is single_label; multi_label would export"),
        ("bert", {"labels": 0, "problem": "match"}, "transformers has no class of bert for vectors without scores"),
        ("t5", {"pool": "none"}, "transformers has no class of t5 for a class of each token"),
        ("marian", {"pool": "last"}, "model.head.kind is classes; vocabulary would export"),
    ],
)  # fmt: skip
def test_a_head_that_their_class_does_not_have_is_named(model_type, head, said):
    family = {"marian": "encoder_decoder"}.get(model_type)
    config = ModelConfig(family=family, vocabulary=Count(64)) if family else pretrained(model_type)
    with pytest.raises(UserError) as raised:
        choose(headed(config, **{"labels": 3} | head), model_type)
    assert said in str(raised.value)


def test_dropout_of_the_head_stands_in_no_one_s_way_and_comes_back():
    config = headed(pretrained("bert"), labels=3, pool="first", transform=True, dropout=0.35)
    assert obstacles(config, architecture("bert")) == []
    written = architecture("bert").config_json(config, TokenIds())
    assert written["classifier_dropout"] == 0.35
    assert architecture("bert").read_config(Settings(written, place="")).head == config.head


def read(**values):
    return read_labels(Settings(values, place="config.json"))


def test_names_of_classes():
    assert read(id2label={"1": "no", "0": "yes"}) == (2, ["yes", "no"])
    assert read(id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}) == (3, None)
    assert read(num_labels=4) == (4, None)
    assert read() == (2, None)
    assert read(id2label={"0": 1, "1": 2}, num_labels=2) == (2, ["1", "2"])  # stars, as numbers
    names = [f"c{number}" for number in range(12)]  # in the order of numbers, not of spellings
    assert read(**write_labels(names)) == (12, names)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"id2label": {"0": "a", "2": "c"}}, "1 is missing"),
        ({"id2label": {"1": "a", "2": "c"}}, "0 is missing"),
        ({"id2label": {"zero": "a"}}, "0 is missing"),
        ({"id2label": {"0": "a", "1": "a"}}, "a stands for two classes"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3, but id2label names 2 classes"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"id2label": ["a", "b"]}, "it must be a JSON object"),
    ],
)
def test_names_that_are_none(values, said):
    with pytest.raises(UserError, match=r"config\.json") as raised:
        read(**values)
    assert said in str(raised.value)


def test_names_are_checked_against_the_head():
    check_labels(None, 3)
    check_labels(["a", "b"], 2)
    with pytest.raises(UserError, match=r"2 names \(a, b\), but model.head.labels is 3"):
        check_labels(["a", "b"], 3)
    with pytest.raises(UserError, match="a stands for two classes"):
        check_labels(["a", "b", "a"], 3)


def test_the_task_of_a_head():
    def kind(**settings):
        return kind_of(ClassHeadConfig(**settings))

    assert kind_of(HeadConfig()) is None
    assert (kind(labels=3), kind(labels=3, pool="none"), kind(problem="span", pool="none")) == (
        "sequence",
        "tokens",
        "span",
    )
    assert kind(labels=0, problem="match", pool="mean") is None
    assert kind(labels=1, pool="none", transform=True) is None  # ELECTRA's discriminator
    found = task_of(ClassHeadConfig(labels=2, problem="multi_label", pool="last"), ["a", "b"])
    assert found["labels"] == ["a", "b"]
    assert {"kind": "classification", "multi_label": True, "pool": "last"}.items() <= found["objective"].items()
    assert task_of(ClassHeadConfig(labels=1, problem="regression"), None)["objective"]["kind"] == "regression"
    assert task_of(ClassHeadConfig(labels=4, pool="none"), None)["objective"]["kind"] == "token_classification"
    assert task_of(ClassHeadConfig(problem="span", pool="none"), None)["objective"]["kind"] == "question_answering"
    assert task_of(HeadConfig(), None) is None


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """An exported BERT of three named classes."""
    torch.manual_seed(0)
    config = headed(pretrained("bert"), labels=3, pool="first", transform=True)
    directory = tmp_path_factory.mktemp("classifier") / "out"
    to_huggingface(build(config).eval(), directory, labels=["north", "south", "süd"])
    return directory


def changed(classifier, place, **values):
    """The same directory with other values in its config; its proof stays behind."""
    place.mkdir()
    config = json.loads((classifier / "config.json").read_text()) | values
    (place / "config.json").write_text(json.dumps(config))
    save_file(load_file(classifier / "model.safetensors"), place / "model.safetensors", metadata={"format": "pt"})
    return place


def test_a_classifier_comes_back_with_its_names_and_its_task(classifier):
    found = read_foreign(classifier)
    assert found.labels == ["north", "south", "süd"]
    assert (found.objective, found.task["labels"]) == ("classification", ["north", "south", "süd"])
    model, config = from_huggingface(classifier)
    assert config.head == ClassHeadConfig(labels=3, pool="first", transform=True)
    assert model.head.weight.shape == (3, 16)


def test_a_number_of_classes_that_the_tensors_do_not_have(classifier, tmp_path):
    lie = changed(classifier, tmp_path / "lie", **write_labels(["a", "b"]))
    with pytest.raises(UserError, match=r"classifier.weight: \[3, 16\], expected \[2, 16\]"):
        read_foreign(lie)


def test_a_class_that_triune_has_no_task_for(classifier, tmp_path):
    choice = changed(classifier, tmp_path / "choice", architectures=["BertForMultipleChoice"])
    with pytest.raises(UserError, match=r"architectures is .BertForMultipleChoice.*BertForSequenceClassification"):
        read_foreign(choice)


def test_labels_that_do_not_fit_write_nothing(classifier, tmp_path):
    model, _ = from_huggingface(classifier)
    with pytest.raises(UserError, match="2 names"):
        to_huggingface(model, tmp_path / "out", labels=["a", "b"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"model\.head\.labels is 0"):
        to_huggingface(build(pretrained("llama")), tmp_path / "out", labels=["a"])


def test_an_encoder_decoder_s_classifier_needs_to_know_where_texts_end(tmp_path):
    config = headed(pretrained("t5"), labels=3, **head_for(pretrained("t5"), None, "single_label", 3))
    with pytest.raises(UserError, match="needs eos"):
        to_huggingface(build(config), tmp_path / "out")


def test_finetune_from_a_classifier_reads_its_task(classifier, tmp_path, monkeypatch):
    import triune.exchange.importing as importing

    class Words:
        fingerprint = "f"

    monkeypatch.setattr(importing, "_tokenizer", lambda place: Words())
    saved = as_saved(classifier)
    assert (saved.objective, saved.task["labels"]) == ("classification", ["north", "south", "süd"])
    plain = as_saved(changed(classifier, tmp_path / "unnamed", **write_labels(["LABEL_0", "LABEL_1", "LABEL_2"])))
    assert plain.task["labels"] is None

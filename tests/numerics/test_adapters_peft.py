"""An adapter written here, loaded by `peft` onto the exported base, computes what ours does; and the way back."""

import copy
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ids, tiny

from triune.adapters import attach, merged_copy
from triune.adapters.config import LoraAdapter
from triune.adapters.placement import adapted
from triune.errors import UserError
from triune.exchange.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from triune.exchange.adapter_names import Names
from triune.exchange.architecture import architecture
from triune.exchange.exporting import write_model
from triune.exchange.importing import model_of, read_foreign
from triune.exchange.parity import Difference, load_theirs, quiet_transformers, tolerance
from triune.exchange.probe import ask_ours, ask_theirs, random_probe
from triune.exchange.proof import Case, peer

peft = pytest.importorskip("peft", reason="peft is a development dependency")

JOBS = Path(__file__).resolve().parents[2] / "jobs" / "parity"
sys.path.insert(0, str(JOBS))
try:
    from all_cases import all_cases
finally:
    sys.path.remove(str(JOBS))

CASES = all_cases()
LORA = LoraAdapter(rank=3, alpha=5.0)
DORA = LoraAdapter(kind="dora", rank=3, alpha=5.0)
STABLE = LoraAdapter(kind="dora", rank=3, alpha=5.0, rank_stabilised=True, dropout=0.1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def imported(case, place):
    """(our model, its architecture, ids), with the base as exported in place/base."""
    with quiet_transformers():
        peer(case).save_pretrained(place / "theirs", **case.saving)
    found = read_foreign(place / "theirs")
    model = model_of(found)
    (place / "base").mkdir()
    write_model(model, place / "base", found.architecture, ids=found.ids)
    return model, found


@torch.no_grad()
def trained(model):
    """As if the adapters had been trained: every number of them shows in the output."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            parameter.normal_(0, 0.2)
        elif name.endswith("lora_magnitude"):
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        elif parameter.requires_grad and "lora" not in name:
            parameter.add_(0.2 * torch.randn_like(parameter))


def logits(answer):
    return answer.states["the stack"] if answer.logits is None else answer.logits


def with_peft(place, found):
    """The exported base with the adapter on it; PEFT warns of tensors that are missing or left over, which fails here."""
    base = load_theirs(place / "base", found.architecture, found.config)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        return peft.PeftModel.from_pretrained(base, place / "adapter").eval()


def check(case, config, place):
    model, found = imported(case, place)
    probe = random_probe(model.config, found.ids)
    with torch.no_grad():
        before = logits(ask_ours(model, probe, found.architecture))
        attach(model, config)
        trained(model)
        ours = logits(ask_ours(model, probe, found.architecture))
        save_adapter(
            model,
            place / "adapter",
            config,
            base=str(place / "base"),
            architecture=found.architecture.model_type,
            ids=found.ids,
        )
        wrapped = with_peft(place, found)
        theirs = logits(ask_theirs(wrapped.base_model.model, probe, found.architecture, found.config))
    allowed = tolerance(model.config)
    found_difference = Difference.between(ours, theirs)
    assert found_difference.within(allowed), found_difference
    assert Difference.between(before, theirs).relative > 1000 * allowed  # the adapter shows
    return model, found, wrapped, probe


PEFT_NAMES = sorted(set(CASES) - {"vit"})


@pytest.mark.parametrize("model_type", PEFT_NAMES)
def test_peft_loads_an_adapter_of_every_architecture(model_type, tmp_path):
    check(CASES[model_type][0], LORA, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [("llama", DORA), ("gpt2", DORA), ("gpt_neox", DORA), ("t5", DORA), ("bert", STABLE), ("llama", STABLE)],
)
def test_peft_loads_dora_and_rank_stabilised_scales(model_type, config, tmp_path):
    check(CASES[model_type][0], config, tmp_path)


def test_a_head_of_classes_travels_whole(tmp_path):
    case = next(case for case in CASES["electra"] if case.model == "ElectraForPreTraining")
    check(case, LORA, tmp_path)
    values = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert set(values["modules_to_save"]) == {
        "discriminator_predictions.dense",
        "discriminator_predictions.dense_prediction",
    }


@pytest.mark.parametrize(
    ("model_type", "name", "whole"),
    [
        ("bert", "BertForSequenceClassification", ["bert.pooler.dense", "classifier"]),
        ("llama", "LlamaForSequenceClassification", ["score"]),
        ("distilbert", "DistilBertForQuestionAnswering", ["qa_outputs"]),
    ],
)
def test_heads_of_tasks_too(model_type, name, whole, tmp_path):
    labels = 2 if name.endswith("Answering") else 3
    settings = {**CASES[model_type][0].settings, "num_labels": labels, "pad_token_id": 0}
    check(Case(name=name, model=name, settings=settings), DORA, tmp_path)
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["modules_to_save"] == whole


def test_a_class_without_a_head_has_no_prefix(tmp_path):
    check(Case(name="bare", model="BertModel", settings=CASES["bert"][0].settings), LORA, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "targets", "written"),
    [
        ("llama", ["stack.blocks.1.*"], "model.layers.1.self_attn.q_proj"),
        ("t5", ["encoder.blocks.*.attention.*", "decoder.blocks.0.*"], "encoder.block.0.layer.0.SelfAttention.q"),
        ("gpt2", ["feed_forward"], "mlp.c_proj"),
    ],
)
def test_some_layers_alone(model_type, targets, written, tmp_path):
    """Where the end of a name would also be that of a layer without an adapter, the whole name is written."""
    check(CASES[model_type][0], replace(LORA, targets=targets), tmp_path)
    assert written in json.loads((tmp_path / "adapter" / CONFIG).read_text())["target_modules"]


@pytest.mark.parametrize(("model_type", "config"), [("llama", STABLE), ("gpt_neox", DORA), ("electra", LORA)])
def test_what_was_saved_is_read_back_to_the_bit(model_type, config, tmp_path):
    model, found, _, _ = check(CASES[model_type][3 if model_type == "electra" else 0], config, tmp_path)
    again = model_of(found)
    read = load_adapter(again, tmp_path / "adapter", architecture=model_type, ids=found.ids)
    assert replace(read, targets=config.targets) == config
    assert read.targets == list(adapted(model))
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.requires_grad == theirs[name].requires_grad, name


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_merged_weights_export_to_what_the_adapter_computes(model_type, tmp_path):
    model, found, wrapped, probe = check(CASES[model_type][0], DORA, tmp_path)
    (tmp_path / "merged").mkdir()
    write_model(merged_copy(model), tmp_path / "merged", found.architecture, ids=found.ids)
    theirs = load_theirs(tmp_path / "merged", found.architecture, found.config)
    with torch.no_grad():
        whole = logits(ask_theirs(theirs, probe, found.architecture, found.config))
        apart = logits(ask_theirs(wrapped.base_model.model, probe, found.architecture, found.config))
    assert Difference.between(whole, apart).within(tolerance(found.config))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "k_proj", "down_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 9}},
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {r"layers.1.self_attn.v_proj": 11}},
    ],
    ids=str,
)
def test_an_adapter_that_peft_trained_is_read_and_written_again(options, tmp_path):
    """Its projections have an A each, where ours have one for all that are fused."""
    model, found = imported(CASES["llama"][1], tmp_path)
    settings = peft.LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(load_theirs(tmp_path / "base", found.architecture, found.config), settings).eval()
    probe = random_probe(model.config, found.ids)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path / "adapter")
        expected = logits(ask_theirs(theirs.base_model.model, probe, found.architecture, found.config))
        read = load_adapter(model, tmp_path / "adapter")
        ours = logits(ask_ours(model, probe, found.architecture))
        save_adapter(model, tmp_path / "adapter", read)
        again = with_peft(tmp_path, found).base_model.model
        back = logits(ask_theirs(again, probe, found.architecture, found.config))
    assert Difference.between(ours, expected).within(tolerance(model.config))
    assert Difference.between(back, expected).within(tolerance(model.config))


def test_a_vocabulary_that_peft_trained_whole_is_read_and_trains_on(tmp_path):
    model, found = imported(CASES["llama"][0], tmp_path)  # untied
    settings = peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load_theirs(tmp_path / "base", found.architecture, found.config), settings).eval()
    probe = random_probe(model.config, found.ids)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path / "adapter")
        expected = logits(ask_theirs(theirs.base_model.model, probe, found.architecture, found.config))
        load_adapter(model, tmp_path / "adapter")
        ours = logits(ask_ours(model, probe, found.architecture))
    assert Difference.between(ours, expected).within(tolerance(model.config))
    assert model.head.weight.requires_grad
    assert not model.embedding.weight.requires_grad


def test_a_model_without_a_twin_is_written_under_our_names(tmp_path):
    model = tiny("decoder", **{"norm.placement": "sandwich"})
    plain = copy.deepcopy(model)
    attach(model, DORA)
    trained(model)
    save_adapter(model, tmp_path / "adapter", DORA)
    assert load_adapter(plain, tmp_path / "adapter").targets == list(adapted(model))
    inputs = ids(2, 9)
    assert torch.equal(plain(inputs), model(inputs))


def test_no_adapter_files_under_names_that_transformers_changes(tmp_path):
    model, found = imported(CASES["vit"][0], tmp_path)
    attach(model, LORA)
    with pytest.raises(UserError, match=r"vit otherwise than its files"):
        save_adapter(model, tmp_path / "adapter", LORA, architecture="vit")
    assert not (tmp_path / "adapter").exists()
    save_adapter(model, tmp_path / "adapter", LORA)
    again = model_of(found)
    load_adapter(again, tmp_path / "adapter")
    assert all(map(torch.equal, model.parameters(), again.parameters()))


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """(a plain tiny decoder, the directory of an adapter of its twin)."""
    model = tiny("decoder", head={})
    plain = copy.deepcopy(model)
    attach(model, LORA)
    save_adapter(model, tmp_path / "adapter", LORA)
    return plain, tmp_path / "adapter"


def changed(directory, **values):
    file = directory / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type is 'IA3', but triune reads LORA"),
        ({"bias": "all"}, r"bias is 'all', but triune's LoRA has 'none' alone"),
        ({"lora_bias": True}, r"lora_bias is True"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            r"init_lora_weights is 'pissa_niter_4', which changed the base as well",
        ),
        ({"r": "8"}, r"r is '8' and lora_alpha 5.0, but both must be numbers"),
    ],
)
def test_other_adapters_are_refused(written, values, message):
    plain, directory = written
    changed(directory, **values)
    with pytest.raises(UserError, match=message):
        load_adapter(plain, directory)
    assert not adapted(plain)


def test_an_adapter_of_another_base_is_refused_and_leaves_the_model(written):
    _, directory = written
    wide = tiny("decoder", head={}, width=64)
    with pytest.raises(
        UserError, match=r"lora_A.weight: \[3, 32\], expected \[rank, 64\]: it is the adapter of another base"
    ):
        load_adapter(wide, directory)
    shallow = tiny("decoder", head={}, layers=1)
    with pytest.raises(UserError, match=r"tensors belong to no linear layer of this model"):
        load_adapter(shallow, directory)
    assert not adapted(wide)
    assert all(parameter.requires_grad for parameter in [*wide.parameters(), *shallow.parameters()])


def test_missing_and_broken_files_are_said(written, tmp_path):
    plain, directory = written
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_adapter(plain, tmp_path / "nowhere")
    tensors = load_file(directory / WEIGHTS)
    first = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, directory / WEIGHTS)
    with pytest.raises(UserError, match=r"lora_B.weight: is missing"):
        load_adapter(plain, directory)
    save_file({**tensors, first: tensors[first] * float("nan")}, directory / WEIGHTS)
    with pytest.raises(UserError, match="NaN or infinite"):
        load_adapter(plain, directory)
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_adapter(plain, directory)


def test_nothing_to_save_and_a_second_adapter_are_refused(written, tmp_path):
    plain, directory = written
    with pytest.raises(UserError, match="no adapter to save"):
        save_adapter(plain, tmp_path / "out", LORA)
    load_adapter(plain, directory)
    with pytest.raises(UserError, match="has an adapter already"):
        load_adapter(plain, directory)


def test_an_architecture_that_the_model_is_not_is_refused(written, tmp_path):
    plain, _ = written
    attach(plain, LORA)
    with pytest.raises(UserError, match="is no bert"):
        save_adapter(plain, tmp_path / "out", LORA, architecture="bert")


def test_a_convolution_is_refused(tmp_path):
    model, _ = imported(CASES["vit"][0], tmp_path)
    names = Names(entries={entry.ours: entry for entry in architecture("vit").mapping(model.config).entries})
    with pytest.raises(UserError, match="is a convolution there"):
        names.pieces("embedding.projection")

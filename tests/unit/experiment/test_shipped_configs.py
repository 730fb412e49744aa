"""Every YAML under configs/ is an experiment (or a part of one) that constructs, and every option has its line of meaning."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from triune.experiment import Experiment, check, dump, load
from triune.models.checks import check as check_model
from triune.objectives.task_config import TASK_FAMILIES
from triune.tree import construct, describe, load_yaml

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
COMPLETE = [
    path for path in CONFIGS if path.parent.name in ("pretrain", "finetune") and not path.stem.endswith("-data")
]


#: experiments whose model is that of the weights they start from
INHERITING = [path for path in COMPLETE if path.parent.name == "finetune" and "model" not in load_yaml(path)]


def _relative(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", CONFIGS, ids=_relative)
def test_constructs_and_reads_back(path, tmp_path):
    experiment = load(path)
    check_model(experiment.model)
    again = tmp_path / "again.yaml"
    again.write_text(dump(experiment))
    assert load(again) == experiment


@pytest.mark.parametrize("path", [path for path in COMPLETE if path not in INHERITING], ids=_relative)
def test_complete_experiments_pass_every_check(path):
    check(load(path))
    assert load(path).name == path.stem


@pytest.fixture
def beneath(monkeypatch):
    """What fine-tuning takes from `runs/pretrain/<name>`, as if `configs/pretrain/<name>.yaml` had been run."""
    from triune.training import inheritance

    def read(source):
        assert Path(source).parent == Path("runs/pretrain")
        model = load(ROOT / "configs/pretrain" / f"{Path(source).name}.yaml").model
        return SimpleNamespace(model=model, tokenizer="a fingerprint", path=Path(source) / "model")

    monkeypatch.setattr(inheritance, "read_weights", read)
    return inheritance.beneath


@pytest.mark.parametrize("path", INHERITING, ids=_relative)
def test_fine_tunings_pass_every_check_over_the_model_that_they_start_from(path, beneath):
    experiment = load(path, beneath=beneath)
    check(experiment)
    assert experiment.name == path.stem
    assert experiment.data.tokenizer.kind == "pretrained"
    served = TASK_FAMILIES[experiment.objective.kind]
    assert experiment.model.family in served
    assert experiment.model.family.replace("_", "-") in experiment.init.from_


def test_every_task_has_a_config():
    assert {load(path).objective.kind for path in INHERITING} == set(TASK_FAMILIES)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name == "model"], ids=_relative)
def test_a_preset_fills_the_model_alone(path):
    assert set(load_yaml(path)) == {"model"}


def test_the_three_tiny_experiments_share_their_shards():
    tiny = [load(path) for path in COMPLETE if path.parent.name == "pretrain" and path.stem.startswith("tiny-")]
    assert {experiment.model.family for experiment in tiny} == {"encoder", "decoder", "encoder_decoder"}
    shared = [
        (experiment.data.train, experiment.data.tokenizer, experiment.data.seed, experiment.data.cache)
        for experiment in tiny
    ]
    assert all(each == shared[0] for each in shared)


def test_fine_tuning_on_own_text_is_one_override():
    path = ROOT / "configs/finetune/tiny-decoder.yaml"
    check(load(path, ["data.train.0.path=my/*.txt"]))


def test_every_option_of_the_tree_has_a_meaning():
    notes = list(describe(Experiment))  # KeyError where an `Args:` line is missing
    assert len(notes) > 150
    assert all(len(note.meaning) > 5 and note.meaning.endswith(".") for note in notes)


def test_an_empty_mapping_is_all_defaults():
    assert construct(Experiment, {}) == Experiment()

"""Mistakes with `triune finetune`: one screen that names option, value and a way out; exit code 2; no traceback; nothing left behind."""

import json

import pytest
from finetune_cases import settings, write, write_records

from triune.cli import main


@pytest.fixture
def refused(capsys, monkeypatch, pretrained, tmp_path):
    """refused(*arguments) -> what is said of a fine-tuning of a classifier with these; files lie in the current directory."""
    monkeypatch.chdir(tmp_path)
    tree = settings("classification", pretrained("encoder"), tmp_path)
    config = write(tree, tmp_path / "tune.yaml")

    def run(*arguments):
        capsys.readouterr()
        assert main(["finetune", str(config), *arguments]) == 2
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert told.err.startswith("triune: ")
        assert len(told.err.splitlines()) <= 25
        assert not list((tmp_path / "runs").glob("finetune/*/model"))
        return told.err.removeprefix("triune: ")

    return run


def csv(name, *lines):
    with open(name, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return f"data.train={name}"


@pytest.mark.slow
def test_weights_that_are_not_there(refused, tmp_path):
    assert refused("--from=nowhere").startswith("init.from: nowhere does not exist; give a run directory")
    (tmp_path / "hollow").mkdir()
    assert "hollow holds no weights of ours" in refused("--from=hollow")


@pytest.mark.slow
def test_files_that_are_not_as_they_should_be(refused, tmp_path):
    told = refused("data.train=nowhere.csv")
    assert "nowhere.csv" in told
    told = refused(csv("other.csv", "sentence,label", "a cat,cat"))
    assert "other.csv:2: no column 'text' among sentence, label" in told
    assert "columns: {text: <column>}" in told
    told = refused(csv("semicolon.csv", "text;label", "a cat;cat"))
    assert "this header is a single column" in told
    told = refused(csv("empty.csv"))
    assert "empty.csv" in told
    told = refused(csv("header.csv", "text,label"))
    assert "header.csv" in told
    assert "no records" in told
    told = refused(csv("alike.csv", "text,label", "a cat,cat", "the cat,cat"))
    assert told.startswith("data.train: every example has the label 'cat', so that there is nothing to tell apart")
    write_records("token_classification", tmp_path / "tags.jsonl", 4)
    assert "no column 'text' among words, tags" in refused("data.train=tags.jsonl")
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": []}]}))
    assert "squad.json" in refused("data.train=squad.json")


@pytest.mark.slow
def test_settings_that_do_not_fit(refused):
    told = refused("objective.kind=clasification")
    assert "did you mean 'classification'?" in told
    told = refused("objective={kind: masked}", "run.epochs=2")
    assert "run.epochs: 2.0 is for supervised tasks" in told
    told = refused("objective.class_weights={bird: 2}")
    assert "objective.class_weights: 'bird' is none of the classes; they are cat, dog, house" in told
    told = refused("objective.labels=[cat, dog]")
    assert "the label 'house' is none of the 2 classes" in told
    assert "objective.label_smoothing" in refused("objective.label_smoothing=1")
    told = refused("run.best=bleu")
    assert told == (
        "run.best: 'bleu' is no metric of this task; its metrics are accuracy, macro_f1, matthews_correlation, loss\n"
    )
    assert "run.patience: 0 must be 1 or more" in refused("run.patience=0")
    assert "seeds: 0 must be 1 or more" in refused("seeds=0")


@pytest.mark.slow
def test_ways_of_tuning_that_do_not_fit(refused):
    told = refused("adapter.targets=[atention]")
    assert told.startswith(
        "adapter.targets: 'atention' names no linear layer of this encoder; did you mean 'attention'?"
    )
    told = refused("adapter={rank: 2}", "tuning.freeze=embeddings")
    assert told.startswith("tuning.freeze: embeddings with adapter.kind: lora, which freezes all weights")
    assert "adapter.rank: 64 is above 32" in refused("adapter.rank=64")
    assert "tuning.freeze_layers: 3 is more than the 2 blocks" in refused(
        "tuning={freeze: embeddings, freeze_layers: 3}"
    )

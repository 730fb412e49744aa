"""`triune evaluate`: a fine-tuned model on other data, its figures beside it; what cannot be measured is answered in a sentence."""

import csv
import json

import pytest
from finetune_cases import _texts, finetune, report, settings, write, write_records

from triune import run as runs
from triune import verdict
from triune.cli import main

QUIET = "tracking.mode=disabled"


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the one sentence that is said of a mistake."""

    def run(*arguments):
        capsys.readouterr()
        assert main(["evaluate", *map(str, arguments)]) == 2
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert told.err.startswith("triune: ")
        assert len(told.err.splitlines()) <= 4
        return told.err

    return run


def measured(place):
    """(figures, predictions) of an evaluation."""
    lines = (place / "predictions.jsonl").read_text().splitlines()
    return json.loads((place / "evaluation.json").read_text()), [json.loads(line) for line in lines]


def values(found):
    return {score["name"]: score["value"] for score in found["scores"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "family"), [("classification", "encoder"), ("sequence_to_sequence", "encoder_decoder")]
)
def test_the_records_of_validation_give_what_the_run_reported(task, family, finetuned, tmp_path, capsys):
    config, run = finetuned(task, family)
    data = config.parent / f"{task}-validation.jsonl"
    for name, place in (("run", run), ("model", run / "model"), ("checkpoint", run / "checkpoints" / "best")):
        assert main(["evaluate", str(place), "--data", str(data), "--output", str(tmp_path / name), QUIET]) == 0
        found, lines = measured(tmp_path / name)
        told = {score["name"]: score for score in report(run)["report"]["scores"]}
        assert values(found) == {name: score["value"] for name, score in told.items()}
        assert [score["interval"] for score in found["scores"]] == [score["interval"] for score in told.values()]
        assert (found["records"], len(lines)) == (5, 5)
        shown = capsys.readouterr().out
        assert all(name in shown for name in told)
        assert str(tmp_path / name / "predictions.jsonl") in shown


@pytest.mark.slow
def test_columns_of_another_name_are_mapped_and_all_lies_beside_the_run(finetuned, tmp_path):
    _, run = finetuned("classification", "encoder")
    data = tmp_path / "my test.csv"
    with data.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence", "animal"])
        rows.writerows([_texts(n)["text"], _texts(n)["label"]] for n in range(12, 17))
    mapped = ["data.train.0.columns.text=sentence", "data.train.0.columns.label=animal"]
    assert main(["evaluate", str(run), "--data", str(data), *mapped, "--resamples=50", QUIET]) == 0
    place = run / "evaluations" / "my-test.csv"
    found, lines = measured(place)
    assert values(found) == {score["name"]: score["value"] for score in report(run)["report"]["scores"]}
    assert lines[0]["where"].endswith("my test.csv:2")
    assert lines[0]["record"] == {"text": _texts(12)["text"], "label": _texts(12)["label"]}
    assert set(lines[0]["prediction"]["scores"]) == {"cat", "dog", "house"}


@pytest.mark.slow
def test_a_label_that_training_never_saw_is_a_miss(finetuned, tmp_path):
    _, run = finetuned("classification", "encoder")
    data = write_records("classification", tmp_path / "four.jsonl", 4)
    assert main(["evaluate", str(run), "--data", str(data), "--output", str(tmp_path / "known"), QUIET]) == 0
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    hits = [line["prediction"]["label"] == line["record"]["label"] for line in measured(tmp_path / "known")[1]]
    lines[0]["label"], hits[0] = "bird", False
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["evaluate", str(run), "--data", str(data), "--output", str(tmp_path / "unknown"), QUIET]) == 0
    assert values(measured(tmp_path / "unknown")[0])["accuracy"] == sum(hits) / 4


@pytest.mark.slow
def test_settings_of_the_task_may_be_others(finetuned, tmp_path):
    config, run = finetuned("multi_label", "decoder")
    data = config.parent / "multi_label-validation.jsonl"
    assert (
        main(["evaluate", str(run), "--data", str(data), "objective.threshold=0.001", "--output", str(tmp_path), QUIET])
        == 0
    )
    assert all(len(line["prediction"]["labels"]) == 5 for line in measured(tmp_path)[1])  # 2 colours, 3 animals


@pytest.mark.slow
def test_mistakes(refused, pretrained, finetuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, run = finetuned("classification", "encoder")
    write_records("classification", tmp_path / "good.jsonl", 3)
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "other.csv").write_text("sentence,label\na cat,cat\n")
    write_records("token_classification", tmp_path / "tags.jsonl", 3)

    told = refused(pretrained("encoder"), "--data", "good.jsonl")
    assert "were not fine-tuned on a task (objective masked)" in told
    assert "give a run of `triune finetune`" in told
    assert "--data: no file is given" in refused(run)
    assert "nowhere.csv" in refused(run, "--data", "nowhere.csv")
    assert "model: nowhere does not exist" in refused("nowhere", "--data", "good.jsonl")
    assert "no records" in refused(run, "--data", "empty.csv")
    told = refused(run, "--data", "other.csv")
    assert "other.csv:2: no column 'text' among sentence, label" in told
    assert "no column 'text' among words, tags" in refused(run, "--data", "tags.jsonl")
    assert "data.trian" in refused(run, "--data", "good.jsonl", "data.trian.0.column=x")
    told = refused(run, "--data", "good.jsonl", "data.train.0.columns.txt=x")
    assert "'txt' is no field of this task; did you mean 'text'?" in told
    assert "objective.treshold" in refused(run, "--data", "good.jsonl", "objective.treshold=0.2")
    assert not (tmp_path / "evaluations").exists()
    assert not (run / "evaluations" / "good.jsonl").exists()


# ---- lineage ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_fine_tuning_and_evaluation_are_one_group(pretrain, tmp_path, monkeypatch):
    jobs = []
    for module in (runs, verdict):
        build = module.build_loggers

        def recorded(*given, build=build, **named):
            jobs.append(named["job_type"])
            return build(*given, **named)

        monkeypatch.setattr(module, "build_loggers", recorded)
    offline = "tracking.mode=offline"
    source = pretrain("encoder", offline, name="origin")
    config = write(settings("classification", source, tmp_path), tmp_path / "tune.yaml")
    run = finetune(config, "tune", offline, "trainer.max_steps=2")
    data = tmp_path / "classification-validation.jsonl"
    assert main(["evaluate", str(run), "--data", str(data), "--output", str(tmp_path / "out"), offline]) == 0
    found = [json.loads((place / "wandb.json").read_text()) for place in (source, run, tmp_path / "out")]
    assert [one["group"] for one in found] == ["origin"] * 3
    assert len({one["id"] for one in found}) == 3
    assert jobs == ["pretrain", "finetune", "evaluate"]


@pytest.mark.parametrize(
    ("sources", "group", "expected"), [({}, None, "many"), ({}, "mine", "mine"), ({"from": "x"}, None, None)]
)
def test_seeds_without_a_source_share_a_group(sources, group, expected, monkeypatch, tmp_path):
    from triune.experiment import Experiment
    from triune.tree import construct

    seen = []
    monkeypatch.setattr(runs, "train", lambda one, stage, restart: seen.append(one))
    tree = {
        "name": "many",
        "seeds": 2,
        "init": sources,
        "tracking": {"group": group},
        "run": {"directory": str(tmp_path)},
    }
    assert runs.pretrain(construct(Experiment, tree)) == 0
    assert [(one.name, one.seeds, one.run.seed, one.tracking.group) for one in seen] == [
        ("many-seed-1", 1, 1, expected)
    ]

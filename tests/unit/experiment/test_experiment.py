"""The experiment: load, name, dump, check, and what may differ on a continue."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.data.config import SourceConfig
from triune.errors import UserError
from triune.experiment import (
    CONTINUE_MAY_CHANGE,
    Experiment,
    check,
    differences,
    digest,
    dump,
    load,
    total_steps,
)
from triune.objectives.config import FAMILY
from triune.objectives.task_config import TASK_FAMILIES
from triune.tree import construct, describe, override, to_tree

SMALL = """
name: inherited
model: {context: 64, width: 64, layers: 2, heads: 2}
data: {train: [{path: corpus.txt}], tokenizer: {vocabulary: 512}}
run: {tokens: 64k, batch_tokens: 640}
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return "small.yaml"


def test_a_name_is_the_files_own_or_its_stem_and_never_inherited(small, tmp_path):
    (tmp_path / "child.yaml").write_text("base: small.yaml\n")
    (tmp_path / "named.yaml").write_text("base: small.yaml\nname: own\n")
    assert load(small).name == "inherited"
    assert load("child.yaml").name == "child"
    assert load("named.yaml").name == "own"
    assert load("child.yaml", ["name=said"]).name == "said"
    assert load("named.yaml", ["name=said"], name="flag").name == "flag"


def test_dump_reads_back_equal(small, tmp_path):
    experiment = load(
        small, ["objective={kind: prefix}", "schedule.warmup=100 steps", "trainer.max_steps=7", "init.from=x"]
    )
    (tmp_path / "again.yaml").write_text(dump(experiment))
    assert load("again.yaml") == experiment


def test_every_variant_of_every_union_reads_back_equal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variants = [(note.path, note.type) for note in describe(Experiment) if note.path.endswith(".kind") and note.kind]
    # positions, objectives, tasks, optimizers, schedules, inputs, heads
    assert len(variants) == 6 + 7 + 7 + 3 + 4 + 2 + 2
    for path, kind in variants:
        experiment = construct(Experiment, override({"name": "x"}, [f"{path}={kind}"]))
        (tmp_path / "x.yaml").write_text(dump(experiment))
        assert load("x.yaml") == experiment
        section, _, _ = path.rpartition(".")
        value = experiment
        for step in section.split("."):
            value = getattr(value, step)
        assert value.kind == kind


@pytest.mark.parametrize("overrides", [[], ["run.batch_tokens=64"], ["run.tokens=640"], ["data.rows.length=64"]])
def test_a_sound_experiment_passes(small, overrides):
    check(load(small, overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.kind=masked"],
            "objective.kind: 'masked' trains a model.family of 'encoder', not 'decoder'; use model.family=encoder, "
            f"or objective.kind=causal or prefix or fill_in_the_middle or {' or '.join(TASK_FAMILIES)}",
        ),
        (
            ["run.epochs=3"],
            "run.epochs: 3.0 is for supervised tasks; objective.kind='causal' has run.tokens and the loss",
        ),
        (
            ["run.best=accuracy"],
            "run.best: accuracy is for supervised tasks; objective.kind='causal' has run.tokens and the loss",
        ),
        (
            ["objective.kind=classification"],
            "data.tokenizer.kind: byte_bpe is trained on text, and labelled records are no corpus; give init.from, whose tokenizer "
            "is taken, or data.tokenizer: {kind: pretrained, path: ...}",
        ),
        (["objective.kind=classification", "run.epochs=0"], "run.epochs: 0.0 must be above 0"),
        (["run.patience=0"], "run.patience: 0 must be 1 or more"),
        (["run.batch_rows=0"], "run.batch_rows: 0 must be 1 or more"),
        (["seeds=0"], "seeds: 0 must be 1 or more"),
        (
            ["init.layers=first"],
            "init.layers: says how weights are taken over, but none are named; set init.from, or init.encoder and init.decoder",
        ),
        (
            ["model.head={kind: classes, labels: 3}"],
            "model.head.kind: 'classes' is built, imported and exported, but objective.kind='causal' trains a model.head.kind of "
            "'vocabulary' only",
        ),
        (["run.batch_tokens=63"], "run.batch_tokens: 63 is less than one row of 64 tokens; use at least 64"),
        (
            ["trainer.devices=8", "trainer.num_nodes=2"],
            "run.batch_tokens: 640 is less than one row of 64 tokens on each of 16 devices; use at least 1024",
        ),
        (
            ["run.tokens=639"],
            "run.tokens: 639 is less than one optimizer step of run.batch_tokens=640; use at least 640",
        ),
        (
            ["data.rows.length=65"],
            "data.rows.length: 65 is more than model.context=64; use at most 64, or a longer context",
        ),
        (
            ["schedule={kind: warmup_stable_decay, warmup: 60 steps, decay: 0.5}"],
            "schedule: warm-up (60 steps) and decay (50 steps) are longer than the run of 100 steps; "
            "shorten schedule.warmup or schedule.decay, or raise run.tokens",
        ),
        (
            ["schedule.warmup=30min"],
            "schedule.warmup: 30min is a time; this option needs tokens, steps or a fraction of the run",
        ),
        (
            ["model.vocabulary=511"],
            "model.vocabulary: 511 is less than data.tokenizer.vocabulary=512; "
            "leave model.vocabulary out to take the tokenizer's",
        ),
        (["data.train=[]"], "data.train: no source; name one, such as `train: [{path: corpus/*.txt}]`"),
        (
            ["model.family=encoder_decoder", "objective.kind=translation"],
            "data.train.0.target_column: null, but objective.kind=translation reads pairs; "
            "name the column of the target text",
        ),
        (
            ["data.validation_share=0"],
            "data.validation_share: 0 leaves nothing to validate on; use for example 0.02, or name data.validation sources",
        ),
        (
            ["name=a/b"],
            "name: 'a/b' cannot name a directory; use at most 100 letters, digits and . _ - +, "
            "beginning with a letter or digit",
        ),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate: 0.0 must be above 0"),
        (["optimizer.betas=[0.9, 1]"], "optimizer.betas.1: 1.0 must be 0 or more and below 1"),
        (["schedule.final=1.5"], "schedule.final: 1.5 must be from 0 to 1"),
        (["run.batch_tokens=0"], "run.batch_tokens: 0 must be 1 or more"),
        (["run.keep=-1"], "run.keep: -1 must be 0 or more"),
    ],
)
def test_what_cannot_go_together_is_refused(small, overrides, message):
    with pytest.raises(UserError) as error:
        check(load(small, overrides))
    assert str(error.value) == message


def test_a_section_that_refuses_itself_is_named_with_its_line(small):
    with pytest.raises(UserError, match=r"^small\.yaml:4: data\.train\.0: .*exactly one of.* has path and package$"):
        load(small, ["data.train.0.package=chitchat-dataset"])
    with pytest.raises(UserError, match=r"^small\.yaml:4: data\.tokenizer\.path: 'x' with kind 'byte_bpe'"):
        load(small, ["data.tokenizer.path=x"])


def test_heads_that_do_not_divide_the_width_are_refused(small):
    with pytest.raises(UserError, match=r"model\.heads.* 5.*model\.width.* 64"):
        check(load(small, ["model.heads=5"]))


def test_contradictions_are_collected(small):
    with pytest.raises(UserError) as error:
        check(load(small, ["objective.kind=masked", "run.tokens=1", "model.heads=5", "name=..", "data.train=[]"]))
    assert [line.split(" ")[2].rstrip(":") for line in str(error.value).splitlines()[1:]] == [
        "name",
        "objective.kind",
        "model.heads",
        "run.tokens",
        "data.train",
    ]


@pytest.mark.parametrize("name", ["..", ".", "", "a b", "-x", "x" * 101, "a\nb"])
def test_names_unfit_for_a_directory(small, name):
    with pytest.raises(UserError, match="cannot name a directory"):
        check(dataclasses.replace(load(small), name=name))


@pytest.mark.parametrize("name", ["a", "tiny-decoder", "größe_2.5+x", "7"])
def test_names_fit_for_a_directory(small, name):
    check(dataclasses.replace(load(small), name=name))


def test_max_steps_wins_over_tokens(small):
    assert total_steps(load(small)) == 100
    assert total_steps(load(small, ["run.tokens=64001"])) == 101
    assert total_steps(load(small, ["trainer.max_steps=7"])) == 7
    assert total_steps(load(small, ["trainer.max_steps=-1"])) == 100
    check(load(small, ["trainer.max_steps=7", "run.tokens=1"]))


def test_every_bound_names_a_field():
    from triune.experiment import _BOUNDS

    known = {note.path.replace(".0.", ".*.") for note in describe(Experiment)} | {"optimizer.betas.*"}
    assert set(_BOUNDS) <= known


def test_everything_that_may_change_names_a_field():
    assert set(CONTINUE_MAY_CHANGE) <= {note.path for note in describe(Experiment)}


_CHANGES = {
    "name=other": True,
    "run.tokens=1M": True,
    "run.keep=9": True,
    "run.validate_every=100 steps": True,
    "run.checkpoint_every=30min": True,
    "run.micro_batch=2": True,
    "run.patience=3": True,
    "run.epochs=2": True,
    "run.directory=elsewhere": True,
    "trainer.devices=2": True,
    "tracking.tags=[a]": True,
    "data.workers=2": True,
    "model.attention.backend=reference": True,
    "model.width=128": False,
    "model.attention.pattern=window(8, 0)": False,
    "objective.kind=prefix": False,
    "data.train.0.path=other.txt": False,
    "data.train.1.path=more.txt": False,
    "data.seed=3": False,
    "optimizer.kind=muon": False,
    "optimizer.learning_rate=1e-4": False,
    "schedule.warmup=10 steps": False,
    "run.seed=2": False,
    "run.batch_tokens=1280": False,
    "run.gradient_clip=0.5": False,
    "init.from=x": False,
    "objective.kind=classification": False,
    "run.best=loss": False,
    "tuning.layer_decay=0.9": False,
    "adapter={rank: 4}": False,
}


@pytest.mark.parametrize(("change", "continues"), _CHANGES.items())
def test_what_may_differ_on_a_continue(small, change, continues):
    before, now = load(small), load(small, [change])
    assert before != now
    assert (digest(before) == digest(now)) is continues
    assert (differences(before, now) == []) is continues


@given(st.lists(st.sampled_from(sorted(_CHANGES)), max_size=4, unique=True))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_digest_and_differences_agree(changes):
    before = construct(Experiment, {"data": {"train": [{"path": "a"}]}})
    now = construct(Experiment, override(to_tree(before), changes))
    assert (digest(before) == digest(now)) is (not differences(before, now))
    assert differences(before, before) == []


def test_differences_are_readable(small):
    before = load(small)
    now = load(small, ["model.width=128", "data.train.1.path=more.txt", "optimizer.kind=adafactor"])
    lines = differences(before, now)
    assert "model.width: 64 there, 128 here" in lines
    assert 'data.train.1.path: absent there, "more.txt" here' in lines
    assert 'optimizer.kind: "adamw" there, "adafactor" here' in lines
    assert "optimizer.epsilon: 1e-08 there, absent here" in lines


def test_a_digest_is_the_same_in_another_process(small):
    code = "import sys; from triune.experiment import digest, load; print(digest(load(sys.argv[1])))"
    told = subprocess.run([sys.executable, "-c", code, small], capture_output=True, text=True, check=True).stdout
    assert told.strip() == digest(load(small))


def test_families_of_objectives_cover_every_kind():
    kinds = {note.type for note in describe(Experiment) if note.path == "objective.kind"}
    assert {*FAMILY, *TASK_FAMILIES} == kinds
    assert not set(FAMILY) & set(TASK_FAMILIES)


TOKENIZER = "data.tokenizer={kind: pretrained, path: x}"


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("kind", TASK_FAMILIES)
def test_a_task_passes_with_the_families_that_can_do_it_and_is_refused_with_the_others(small, kind, family):
    experiment = load(small, [f"objective.kind={kind}", f"model.family={family}", TOKENIZER])
    if family in TASK_FAMILIES[kind]:
        check(experiment)
        return
    with pytest.raises(UserError) as error:
        check(experiment)
    [first] = str(error.value).splitlines()
    families = "' or '".join(TASK_FAMILIES[kind])
    assert first.startswith(f"objective.kind: '{kind}' trains a model.family of '{families}', not '{family}'; use ")


def test_a_tasks_head_of_classes_is_no_mistake(small):
    check(load(small, ["objective.kind=classification", "model.head={kind: classes, labels: 3}", TOKENIZER]))


def test_batch_rows_are_rows_of_the_experiments_length(small):
    assert load(small, ["run.batch_rows=3"]).run.batch_tokens == 3 * 64
    assert load(small, ["run.batch_rows=3", "data.rows.length=32"]).run.batch_tokens == 3 * 32
    assert load(small, ["run.batch_rows=3", "run.batch_tokens=7"]).run.batch_tokens == 3 * 64


def test_settings_beneath_lie_under_what_the_file_says(small):
    def beneath(data):
        assert data["model"]["width"] == 64
        return {"model": {"width": 128, "layers": 2, "dropout": 0.25}, "data": {"seed": 9}}

    experiment = load(small, ["model.layers=4"], beneath=beneath)
    assert (experiment.model.width, experiment.model.layers, experiment.model.dropout) == (64, 4, 0.25)
    assert (experiment.data.seed, experiment.data.tokenizer.vocabulary) == (9, 512)


def test_sources_are_read_as_sources(small):
    assert load(small).data.train == [SourceConfig(path="corpus.txt")]

"""What fine-tuning starts from: a run, its model directory, a checkpoint, Hugging Face's; what the file says wins; heads kept and fresh."""

import json
import re
import shutil

import pytest
import torch
import yaml
from finetune_cases import (
    TASKS,
    WEIGHTS,
    assert_same_run,
    finetune,
    killed_at,
    predictions,
    report,
    settings,
    write,
    write_records,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from triune.cli import main
from triune.exchange.model_directory import read_model
from triune.experiment import load

WORDS = ["the", "green", "blue", "cat", "dog", "house", "sees", "a", "young", "old", "garden", "and"]


@pytest.fixture
def tune(tmp_path):
    """tune(name, source, *assignments, task=..., **sections) -> run directory of a fine-tuning of three steps."""

    def run(name, source, *more, task="classification", **sections):
        tree = settings(task, source, tmp_path) | sections
        config = write(tree, tmp_path / f"{name}.yaml")
        return finetune(config, name, "trainer.max_steps=3", *more)

    return run


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> the one sentence that is said of a mistake."""

    def run(*arguments):
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert told.err.startswith("triune: ")
        return told.err.removeprefix("triune: ").rstrip("\n")

    return run


def weights(run):
    return load_file(run / WEIGHTS)


def started_from(run):
    """The first weights of a run, as its conversion says where each came from."""
    return (run / "init.txt").read_text()


@pytest.mark.slow
def test_a_run_its_model_and_its_checkpoint_are_one_start(tune, pretrained):
    source = pretrained("encoder")
    runs = [
        tune(name, place)
        for name, place in (
            ("run", source),
            ("model", source / "model"),
            ("last", source / "checkpoints" / "last"),
        )
    ]
    first = read_model(source / "model").model
    for run in runs:
        saved = read_model(run / "model")
        assert (saved.model.context, saved.model.width, saved.model.dropout) == (first.context, first.width, 0.1)
        assert saved.tokenizer == read_model(source / "model").tokenizer
        assert (run / WEIGHTS).read_bytes() == (runs[0] / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_keys_of_the_file_win_over_the_weights(tune, pretrained):
    run = tune("own", pretrained("encoder"), "model.dropout=0.25", "data.rows.length=32")
    saved = load(run / "experiment.yaml")
    assert (saved.model.dropout, saved.model.width, saved.model.context) == (0.25, 32, 48)
    assert saved.run.batch_tokens == 4 * 32


@pytest.mark.slow
def test_a_head_is_kept_for_the_same_classes_and_drawn_anew_for_others(tune, pretrained, tmp_path):
    first = tune("first", pretrained("decoder"))
    kept = tune("kept", first, "optimizer.learning_rate=1e-9")  # as good as not trained
    before, after = weights(first), weights(kept)
    assert read_model(kept / "model").task["labels"] == ["cat", "dog", "house"]
    torch.testing.assert_close(after["head.weight"], before["head.weight"], rtol=0, atol=1e-6)

    # fewer classes in the data than the head knows: its classes stand
    few = write_records("classification", tmp_path / "few.jsonl", 12)
    few.write_text("".join(line + "\n" for line in few.read_text().splitlines() if "house" not in line))
    fewer = tune("fewer", first, f"data.train={few}", "optimizer.learning_rate=1e-9")
    torch.testing.assert_close(weights(fewer)["head.weight"], before["head.weight"], rtol=0, atol=1e-6)

    other = tmp_path / "other.jsonl"
    other.write_text(few.read_text().replace('"label": "cat"', '"label": "bird"'))
    fresh = tune("fresh", first, f"data.train={other}", f"data.validation={other}", "optimizer.learning_rate=1e-9")
    assert read_model(fresh / "model").task["labels"] == ["bird", "dog"]
    assert weights(fresh)["head.weight"].shape[0] == 2
    assert "head.weight" in started_from(fresh)
    assert "drawn as model.initialization says" in started_from(fresh)
    # as many others: the shape would fit, the meaning does not
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text((tmp_path / "classification-train.jsonl").read_text().replace('"label": "', '"label": "x'))
    others = tune(
        "others", first, f"data.train={renamed}", f"data.validation={renamed}", "optimizer.learning_rate=1e-9"
    )
    assert weights(others)["head.weight"].shape == before["head.weight"].shape
    assert (weights(others)["head.weight"] - before["head.weight"]).abs().max() > 1e-3
    shared = [name for name in before if ".blocks." in name]
    assert len(shared) > 8
    for name in shared:
        torch.testing.assert_close(weights(fresh)[name], before[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fresh_takes_shape_and_tokenizer_alone(tune, pretrained):
    source = pretrained("encoder")
    run = tune("fresh", source, "init.fresh=true", "optimizer.learning_rate=1e-9")
    mine, theirs = weights(run), weights(source)
    assert read_model(run / "model").tokenizer == read_model(source / "model").tokenizer
    matrices = [name for name in mine if name in theirs and mine[name].ndim == 2]
    assert len(matrices) > 8
    for name in matrices:
        assert (mine[name] - theirs[name]).abs().max() > 1e-3
    again = tune("again", source, "init.fresh=true", "optimizer.learning_rate=1e-9", "run.seed=2")
    assert not torch.equal(weights(again)[matrices[0]], mine[matrices[0]])


@pytest.mark.slow
def test_a_task_that_a_family_cannot_do_is_refused_with_those_that_can(refused, pretrained, tmp_path):
    config = write(settings("response_selection", pretrained("encoder_decoder"), tmp_path), tmp_path / "x.yaml")
    told = refused("finetune", config)
    assert (
        "objective.kind: 'response_selection' trains a model.family of 'encoder' or 'decoder', not 'encoder_decoder'"
        in told
    )
    config = write(settings("instruction", pretrained("encoder"), tmp_path), tmp_path / "x.yaml")
    told = refused("finetune", config)
    assert "'instruction' trains a model.family of 'decoder' or 'encoder_decoder', not 'encoder'" in told
    assert not (tmp_path / "runs").exists()


def test_without_weights_there_is_nothing_to_fine_tune(refused, tmp_path):
    tree = settings("classification", "x", tmp_path)
    del tree["init"]
    tree["run"]["tokens"] = "100k"
    tree["data"]["tokenizer"] = {"kind": "pretrained", "path": str(tmp_path)}
    told = refused("finetune", write(tree, tmp_path / "x.yaml"))
    assert (
        told
        == "init.from: fine-tuning starts from weights; give a run directory, a checkpoint or a model/ directory (FROM=...)"
    )


@pytest.mark.slow
def test_a_run_goes_on_from_its_own_file_after_its_source_is_gone(pretrained, tmp_path):
    source = shutil.copytree(pretrained("encoder"), tmp_path / "source")
    config = write(settings("classification", source, tmp_path), tmp_path / "tune.yaml")
    whole = finetune(config, "whole")
    with killed_at(5):
        finetune(config, "cut")
    own = whole.with_name("cut") / "experiment.yaml"
    shutil.rmtree(source)
    assert main(["finetune", str(own)]) == 0
    assert_same_run(own.parent, whole)


# ---- from Hugging Face --------------------------------------------------------------------------------------------


def words_tokenizer(directory, frame):
    """A tokenizer of whole words, as `tokenizers` writes it."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    if frame:
        backend.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    backend.save(str(directory / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    ends = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if frame else {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special, **ends})
    )
    return len(vocabulary)


def huggingface(directory, kind):
    """A tiny random model as transformers saves it."""
    import transformers

    directory.mkdir()
    entries = words_tokenizer(directory, kind == "bert")
    shape = {"vocab_size": entries, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 48}  # fmt: skip
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**shape, num_key_value_heads=2, bos_token_id=2, eos_token_id=3, pad_token_id=0)
        )
    model.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family", "task"), [("bert", "encoder", "pairs"), ("llama", "decoder", "classification")]
)
def test_a_directory_of_hugging_faces_is_a_start_as_a_run_is(kind, family, task, tune, tmp_path):
    source = huggingface(tmp_path / kind, kind)
    run = tune(kind, source, "optimizer.learning_rate=1e-9", task=task)
    saved = read_model(run / "model")
    assert (saved.model.family, saved.model.width, saved.model.context) == (family, 32, 48)
    assert len(predictions(run)) == 5
    assert re.search(r"head", started_from(run))
    theirs, mine = load_file(source / "model.safetensors"), weights(run)
    name = "bert.embeddings.word_embeddings.weight" if kind == "bert" else "model.embed_tokens.weight"
    table = next(tensor for tensor in mine.values() if tensor.shape[1:] == (32,) and len(tensor) >= len(theirs[name]))
    torch.testing.assert_close(table[: len(theirs[name])], theirs[name], rtol=0, atol=1e-6)
    assert report(run)["steps"] == 3
    kept = yaml.safe_load((run / "experiment.yaml").read_text())
    assert kept["data"]["tokenizer"]["kind"] == "pretrained"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "question_answering", "response_selection"])
def test_a_plan_of_a_task_says_what_it_costs_and_starts_nothing(task, pretrained, tmp_path, capsys):
    config = write(settings(task, pretrained("encoder"), tmp_path), tmp_path / "x.yaml")
    capsys.readouterr()
    assert main(["finetune", str(config), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "nothing has been started" in told
    assert f"kind: {TASKS[task][0]['kind']}" in told
    assert "9 steps of 192 tokens" in told
    assert not (tmp_path / "runs").exists()

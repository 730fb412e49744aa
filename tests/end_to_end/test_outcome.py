"""What a run leaves: the report beside its baselines, one token cache for three families, text from `generate`."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from triune.cli import main

SHORT = {"run": {"tokens": 12 * 128}}
PROMPTS = {"decoder": "the old", "encoder": "the <mask> dog", "encoder_decoder": "the <extra_id_0> dog"}


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_a_finished_run_reports_and_writes(family, write_config, tmp_path, capsys):
    assert main(["pretrain", str(write_config(family, SHORT))]) == 0
    run = tmp_path / "runs" / "pretrain" / "run"
    shown = capsys.readouterr().out
    assert "most frequent token" in shown
    assert ("bigram" in shown) == (family == "decoder")
    assert ("accuracy, text alone" in shown) == (family == "encoder_decoder")
    assert "run.tokens=3072" in shown  # continue it
    assert f"init.from={run}" in shown.replace("\n", "")  # fine-tune it
    report = json.loads((run / "report.json").read_text())
    assert report["steps"] == 12
    assert math.isfinite(report["validation"]["validation/loss"])
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {p.name for p in (run / "model").iterdir()}
    assert (run / "checkpoints" / "last").resolve().name == "step-00000012"
    length = [] if family == "encoder" else ["--max_new_tokens", "5"]  # masks are filled, whatever their number
    assert main(["generate", str(run), "--prompt", PROMPTS[family], *length]) == 0
    assert capsys.readouterr().out.strip()


def test_three_families_read_one_token_cache(write_config, tmp_path):
    own = tmp_path / "own-cache"
    stamps = set()
    for family in ("decoder", "encoder", "encoder_decoder"):
        extra = {**SHORT, "data": {"cache": str(own)}}
        assert main(["pretrain", str(write_config(family, extra, name=family))]) == 0
        stamps.add(tuple(sorted((p.name, p.stat().st_mtime_ns) for p in own.rglob("*.bin"))))
    assert len(stamps) == 1


def test_the_reported_bigram_beats_the_unigram(write_config, tmp_path):
    """Words are drawn independently here, but the pieces inside a word are not. (The models' own figures: test_baselines.)"""
    assert main(["pretrain", str(write_config("decoder", SHORT))]) == 0
    found = json.loads((tmp_path / "runs" / "pretrain" / "run" / "report.json").read_text())["baselines"][
        "bits_per_byte"
    ]
    assert 0 < found["bigram"] < found["unigram"]


@pytest.mark.slow
def test_compiled_trains_as_eager_does(write_config, tmp_path):
    proportional = {"kind": "adamw", "epsilon": 1.0}  # updates in proportion to the gradient, not to its sign
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        extra = {"model": {"dropout": 0.0}, "run": {"tokens": 3 * 128}, "optimizer": proportional}
        assert main(["pretrain", str(write_config("decoder", extra, name=name)), f"run.compile={compiled}"]) == 0
    eager, compiled = (
        load_file(tmp_path / "runs" / "pretrain" / name / "model" / "model.safetensors")
        for name in ("eager", "compiled")
    )
    assert eager.keys() == compiled.keys()
    # three steps of learning rate 1e-3 with gradients clipped to norm 1, equal up to the order of fp32 sums (1e-4 of them)
    assert max((eager[n] - compiled[n]).abs().max().item() for n in eager) < 3 * 1e-3 * 1e-4


def test_the_fine_tuning_command_that_a_run_prints_works(write_config, tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(write_config("decoder", SHORT))]) == 0
    printed = re.search(r"make finetune CONFIG=(\S+) NAME=(\S+) ARGS=\"(.*?)\"", capsys.readouterr().out)
    assert printed
    config, name, overrides = printed.groups()
    Path("my.txt").write_text(corpus.read_text().replace("\n", "\n\n"))  # a paragraph each
    assert len(shlex.split(overrides)) == 4
    assert main(["finetune", config, "--name", name, "--overrides", overrides]) == 0
    assert (tmp_path / "runs" / "finetune" / name / "model" / "model.safetensors").exists()

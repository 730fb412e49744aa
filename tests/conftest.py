"""A tiny corpus, a tiny experiment of each family, and the command line as a user starts it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MODELS = {
    "decoder": {"model": {"family": "decoder"}, "objective": {"kind": "causal"}},
    "encoder": {"model": {"family": "encoder", "head": {"transform": True}}, "objective": {"kind": "masked"}},
    "encoder_decoder": {"model": {"family": "encoder_decoder"}, "objective": {"kind": "span_corruption"}},
}
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "hears",
    "old",
    "young",
    "house",
    "garden",
    "and",
    "or",
    "with",
    "under",
    "over",
    "quickly",
    "slowly",
    ".",
    ",",
    "green",
    "blue",
]


def merge(base, extra):
    """`extra` over `base`, mappings merged."""
    out = dict(base)
    for key, value in extra.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """400 short documents, one a line."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(400)) + "\n")
    return file


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One token cache for every run of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def write_config(tmp_path, corpus, cache):
    """write_config(family, extra) -> path of a YAML whose run takes a second or two."""

    def write(family, extra=None, name="run"):
        tree = {
            "name": name,
            "model": {"context": 32, "width": 32, "layers": 2, "heads": 2, "dropout": 0.1},
            "data": {
                "train": [{"path": str(corpus), "document": "line"}],
                "validation_share": 0.1,
                "tokenizer": {"kind": "byte_bpe", "vocabulary": 400, "sentinels": 20},
                "cache": str(cache),
            },
            "optimizer": {"kind": "muon"},
            "run": {
                "tokens": 120 * 128,
                "batch_tokens": 128,
                "micro_batch": 2,
                "validate_every": "20 steps",
                "validate_tokens": 640,
                "checkpoint_every": "5 steps",
                "directory": str(tmp_path / "runs"),
            },
            "tracking": {"mode": "disabled", "samples": 0},
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(merge(merge(tree, MODELS[family]), extra or {})))
        return file

    return write


def command(*arguments):
    """`triune …` as a process would be started."""
    return [sys.executable, "-m", "triune.cli", *map(str, arguments)]


def environment(tmp_path):
    """No account, no network, one thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST"))}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture
def triune(tmp_path):
    """triune(*arguments) -> the finished process."""

    def run(*arguments, timeout=240):
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def start(tmp_path):
    """start(*arguments) -> a running process; all are killed at the end."""
    running = []

    def begin(*arguments):
        log = (tmp_path / f"process-{len(running)}.log").open("w")
        process = subprocess.Popen(
            command(*arguments), cwd=tmp_path, env=environment(tmp_path), stdout=log, stderr=subprocess.STDOUT
        )
        process.log = Path(log.name)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()

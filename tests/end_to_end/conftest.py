"""Tiny pretrained runs of each family and fine-tunings of them, each made once a session by the command line."""

import pytest
import yaml
from finetune_cases import finetune, settings, write

from triune.cli import main

OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "span_corruption"}


@pytest.fixture(scope="session")
def pretrain(tmp_path_factory, corpus, cache):
    """pretrain(family, *settings, name=...) -> run directory of a model that saw a few batches."""

    def run(family, *more, name=None):
        directory = tmp_path_factory.mktemp("pretrained")
        tree = {
            "name": name or family.replace("_", "-"),
            "model": {"family": family, "context": 48, "width": 32, "layers": 2, "heads": 2, "dropout": 0.1},
            "objective": {"kind": OBJECTIVES[family]},
            "data": {
                "train": [{"path": str(corpus), "document": "line"}],
                "validation_share": 0.1,
                "tokenizer": {"kind": "byte_bpe", "vocabulary": 400, "sentinels": 20},
                "cache": str(cache),
            },
            "run": {
                "tokens": 6 * 192,
                "batch_tokens": 192,
                "validate_every": 1.0,
                "validate_tokens": 192,
                "checkpoint_every": 1.0,
                "directory": str(directory / "runs"),
            },
            "trainer": {"enable_progress_bar": False},
            "tracking": {"mode": "disabled", "samples": 0},
        }
        file = directory / f"{tree['name']}.yaml"
        file.write_text(yaml.safe_dump(tree))
        assert main(["pretrain", str(file), *more]) == 0
        return directory / "runs" / "pretrain" / tree["name"]

    return run


@pytest.fixture(scope="session")
def pretrained(pretrain):
    """pretrained(family) -> its run directory, made at the first call."""
    made = {}

    def run(family):
        if family not in made:
            made[family] = pretrain(family)
        return made[family]

    return run


@pytest.fixture(scope="session")
def finetuned(pretrained, tmp_path_factory):
    """finetuned(task, family) -> (config, its run directory), made at the first call."""
    made = {}

    def run(task, family):
        if (task, family) not in made:
            directory = tmp_path_factory.mktemp(f"{task}-{family}")
            config = write(settings(task, pretrained(family), directory), directory / "tune.yaml")
            made[task, family] = config, finetune(config, "whole")
        return made[task, family]

    return run

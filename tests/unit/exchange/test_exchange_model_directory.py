"""Our own model directory: what a supervised task was and what its classes are called comes back with the weights."""

import json

import pytest

from triune.exchange.model_directory import describe, fill_directory, read_model, saved_from
from triune.models.config import ClassHeadConfig, ModelConfig
from triune.models.factory import build
from triune.units import Count

TASK = {"objective": {"kind": "classification", "multi_label": False}, "labels": ["ham", "späm"]}


@pytest.fixture(scope="module")
def model():
    shape = ModelConfig(vocabulary=Count(40), context=Count(16), width=16, layers=1, heads=2, head=ClassHeadConfig())
    return build(shape)


def test_a_task_comes_back_from_a_directory_and_from_a_checkpoint_s_facts(model, tmp_path):
    fill_directory(model, None, tmp_path, objective="classification", task=TASK)
    found = read_model(tmp_path)
    assert (found.objective, found.task) == ("classification", TASK)
    facts = describe(model, objective="classification", tokenizer="", task=TASK)
    assert saved_from(tmp_path, json.loads(json.dumps(facts)), {}).task == TASK


def test_without_a_task_nothing_is_written_and_old_directories_read(model, tmp_path):
    fill_directory(model, None, tmp_path, objective="causal")
    assert "task" not in json.loads((tmp_path / "config.json").read_text())
    assert "task" not in describe(model, objective="causal", tokenizer="")
    assert read_model(tmp_path).task is None

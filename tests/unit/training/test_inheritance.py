"""What fine-tuning takes over beside the weights: the model's settings and the tokenizer, under what the file says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triune.experiment import Experiment, dump, load
from triune.models.config import ModelConfig
from triune.training import inheritance
from triune.training.inheritance import beneath
from triune.tree import to_tree

MODEL = ModelConfig(width=96, layers=3, heads=3, context=64, vocabulary=512)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Weights that were read."""
    found: list[str] = []

    def read(source: str) -> Any:
        found.append(source)
        return SimpleNamespace(model=MODEL, tokenizer="" if source == "bare" else "print", path=tmp_path)

    monkeypatch.setattr(inheritance, "read_weights", read)
    return found


def test_model_and_tokenizer_come_from_the_weights(tmp_path: Path, asked: list[str]) -> None:
    found = beneath({"init": {"from": "run"}})
    assert found == {
        "model": to_tree(MODEL),
        "data": {"tokenizer": {"kind": "pretrained", "path": str(tmp_path)}},
    }
    assert asked == ["run"]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"init": None},
        {"init": {}},
        {"init": {"from": None}},
        {"init": {"encoder": "run"}},
        {"init": {"from": "run", "decoder": "other"}},
        {"init": {"from": "run", "layers": "first"}},
        {"init": {"from": "run", "decoder_layers": "first"}},
    ],
)
def test_a_start_in_parts_leaves_the_model_to_the_file(data: dict[str, Any], asked: list[str]) -> None:
    assert beneath(data) == {}
    assert asked == []


def test_a_tokenizer_of_the_file_is_kept_and_weights_without_one_give_none() -> None:
    given = {"init": {"from": "run"}, "data": {"tokenizer": {"kind": "pretrained", "path": "own"}}}
    assert set(beneath(given)) == {"model"}
    assert set(beneath({"init": {"from": "bare"}})) == {"model"}


def test_the_files_keys_win(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("init: {from: run}\nmodel: {dropout: 0.25, layers: 2}\n")
    model = load(tmp_path / "x.yaml", beneath=beneath).model
    assert (model.width, model.heads, model.context, model.dropout, model.layers) == (96, 3, 64, 0.25, 2)


def test_what_a_run_keeps_says_everything_itself(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "x.yaml").write_text("init: {from: run}\n")
    experiment = load(tmp_path / "x.yaml", beneath=beneath)
    (tmp_path / "kept.yaml").write_text(dump(experiment))
    again = load(tmp_path / "kept.yaml", beneath=beneath)
    assert isinstance(again, Experiment)
    assert again == load(tmp_path / "kept.yaml")
    assert asked == ["run"]  # the second time nothing was read: the source may be gone

"""Labelled data split into training and validation: the same side as in pretraining, and a digest of all of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from record_cases import ANSWERING, LABEL, MESSAGES, TARGET, TEXT

import triune.data.corpora as corpora
from triune.data.config import DataConfig, SourceConfig, TokenizerConfig
from triune.data.holdout import hash_of
from triune.data.prepare import prepare
from triune.data.records import Supervised, read_supervised
from triune.errors import UserError
from triune.objectives.record import Field


def rows(path: Path, count: int, **more: Any) -> SourceConfig:
    lines = [
        {"text": f"text {number}", "label": str(number % 3), "target": f"text, {number}"} | more
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SourceConfig(path=str(path), column="text", target_column="target")


def texts(records: list[Any]) -> list[str]:
    return [record.fields["text"] for record in records]


def read(sources: list[SourceConfig], *fields: Field, **options: Any) -> Supervised:
    return read_supervised(DataConfig(train=sources, **options), fields or (TEXT, LABEL))


def test_a_share_of_each_source_is_held_out_and_nothing_is_lost(tmp_path: Path) -> None:
    sources = [rows(tmp_path / "a.jsonl", 400), rows(tmp_path / "b.jsonl", 300)]
    data = read(sources, validation_share=0.1)
    assert [len(part) for part in data.train] == [len(set(texts(part))) for part in data.train]
    assert 40 < len(data.validation) < 100  # 70 expected
    assert sorted(texts(data.train[0] + data.train[1] + data.validation)) == sorted(
        [f"text {n}" for n in range(400)] + [f"text {n}" for n in range(300)]
    )
    assert not set(texts(data.validation)) & set(texts(data.train[0] + data.train[1]))
    assert texts(read(sources, validation_share=0.1, seed=1).validation) != texts(data.validation)


def test_at_least_one_on_each_side(tmp_path: Path) -> None:
    for share in (1e-9, 0.999999):
        data = read([rows(tmp_path / "a.jsonl", 5)], validation_share=share)
        assert data.train[0]
        assert data.validation
    alike = rows(tmp_path / "b.jsonl", 3, text="x", label="x", target="x")
    with pytest.raises(UserError, match="cannot be held out, because all its records are alike"):
        read([alike])
    assert len(read([alike], validation_share=0).train[0]) == 3


def test_validation_sources_are_taken_whole(tmp_path: Path) -> None:
    data = read([rows(tmp_path / "a.jsonl", 50)], validation=[rows(tmp_path / "b.jsonl", 7)])
    assert (len(data.train[0]), len(data.validation)) == (50, 7)


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train=mine\.csv"):
        read([])
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"a\.csv': no records"):
        read([SourceConfig(path=str(tmp_path / "a.csv"))])


def test_questions_on_one_context_stay_together(tmp_path: Path) -> None:
    lines = [
        {"context": f"context {n % 20}", "question": f"q {n}", "answers": [{"text": "context", "answer_start": 0}]}
        for n in range(200)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read([SourceConfig(path=str(tmp_path / "a.jsonl"))], *ANSWERING, validation_share=0.3)
    held = Counter(record.fields["context"] for record in data.validation)
    assert set(held.values()) == {10}


def test_the_fingerprint_follows_records_and_not_places(tmp_path: Path) -> None:
    first = read([rows(tmp_path / "a.jsonl", 20)]).fingerprint
    assert read([rows(tmp_path / "b.jsonl", 20)]).fingerprint == first
    changed = (tmp_path / "a.jsonl").read_text().replace('"text 7", "label": "1"', '"text 7", "label": "2"')
    (tmp_path / "a.jsonl").write_text(changed)
    assert read([SourceConfig(path=str(tmp_path / "a.jsonl"))]).fingerprint != first
    assert read([rows(tmp_path / "b.jsonl", 20)], validation_share=0).fingerprint != first
    lines = (tmp_path / "b.jsonl").read_text().splitlines(keepends=True)
    prints = set()
    for cut in (5, 6):  # the same records in the same order, dealt to two sources otherwise
        for name, part in (("c", lines[:cut]), ("d", lines[cut:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(part))
        parts = [SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in "cd"]
        prints.add(read(parts, validation_share=0).fingerprint)
    assert len(prints) == 2


def test_the_hash_is_what_it_always_was() -> None:
    """A change would move documents across the split of every prepared corpus."""
    assert [hash_of("text", 0), hash_of("text", 1), hash_of("a\0b", -3)] == [
        7149664607750961692,
        5795145719362181170,
        7199391483846446442,
    ]


def pretrained(source: SourceConfig, cache: Path, **options: Any) -> list[str]:
    """The texts that `prepare` holds out, back from its shards."""
    tokenizer = TokenizerConfig(vocabulary=300, sentinels=0)  # type: ignore[arg-type]
    prepared = prepare(DataConfig(train=[source], tokenizer=tokenizer, cache=str(cache), **options), progress=False)
    (shards,) = prepared.validation
    return [prepared.tokenizer.decode(ids) for ids in shards]


def conversations() -> dict[str, Any]:
    said = [["Hello", "hi there", f"number {number}"] for number in range(150)]
    return {
        str(number): {"messages": [[{"sender": "xy"[turn % 2], "text": text}] for turn, text in enumerate(texts)]}
        for number, texts in enumerate([*said, [" "]])
    }


@pytest.mark.parametrize(("share", "seed"), [(0.1, 0), (0.1, 5), (1e-9, 0), (0.9999, 3)])
def test_pretraining_and_fine_tuning_hold_out_the_same_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, seed: int
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(conversations()))
    monkeypatch.setattr(corpora, "_folder", lambda package: tmp_path)
    monkeypatch.setattr("triune.data.sources.package_identity", lambda package: "0")
    source, options = SourceConfig(package="chitchat-dataset"), {"validation_share": share, "seed": seed}
    data = read([source], MESSAGES, **options)
    held = pretrained(source, tmp_path / "cache", **options)
    assert held
    assert sorted(str(record.key) for record in data.validation) == sorted(held)
    assert len(data.train[0]) + len(data.validation) == 150
    assert data.validation[0].key.splitlines()[0] == "A: Hello"  # type: ignore[union-attr]


def parallel(folder: Path, count: int) -> SourceConfig:
    for name in ("en", "es"):
        (folder / f"a.{name}").write_text("".join(f"{name} {number}\n" for number in range(count)))
    return SourceConfig(path=str(folder / "a.en"), target_path=str(folder / "a.es"))


@pytest.mark.parametrize("of_files", [False, True])
def test_a_pair_of_texts_falls_on_the_side_that_pretraining_gave_it(tmp_path: Path, of_files: bool) -> None:
    source = parallel(tmp_path, 200) if of_files else rows(tmp_path / "a.jsonl", 200)
    data = read([source], TEXT, TARGET, validation_share=0.1)
    held = pretrained(source, tmp_path / "cache", validation_share=0.1)
    assert sorted(record.fields["text"] + record.fields["target"] for record in data.validation) == sorted(held)

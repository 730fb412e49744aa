"""Labelled rows of files with columns and of datasets: every kind of field, and what each mistake says."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_cases import (
    ANSWERING,
    ANSWERS,
    CONTEXT,
    LABEL,
    LABELS,
    MESSAGES,
    SCORE,
    TAGS,
    TARGET,
    TEXT,
    WORDS,
    complaint,
    records,
    values,
)

from triune.data.config import SourceConfig
from triune.objectives.record import Answer, Message

ROWS = [{"text": 'a "fine", film\n', "label": "good"}, {"text": "\tété 🎬", "label": "bad"}]
CHAT = [Message("system", "Be kind."), Message("user", "Hello"), Message("assistant", "Hi\nyou")]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def spelled(suffix: str, rows: list[dict[str, str]]) -> bytes:
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".tsv":
        return "".join("\t".join(cells) + "\n" for cells in [rows[0], *(row.values() for row in rows)]).encode()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".jsonl.gz", ".csv.gz"])
def test_every_format_with_columns_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    rows = ROWS if suffix != ".tsv" else [{"text": 'a "fine" film', "label": "good"}]
    content = spelled(suffix.removesuffix(".gz"), rows)
    path = write(tmp_path / f"a{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    assert values(path, TEXT, LABEL) == rows
    assert values(path, TEXT) == [row["text"] for row in rows]
    review = replace(LABEL, name="verdict")
    assert values(path, review, columns={"verdict": "label"}) == [row["label"] for row in rows]


def test_where_a_record_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\none,1\n\n"two\nlines",2\n')
    assert [record.where for record in records(path, [TEXT, LABEL])] == [f"{path}:2", f"{path}:5"]
    assert records(write(tmp_path / "a.parquet", spelled(".parquet", ROWS)), [TEXT])[1].where.endswith(
        "a.parquet: row 2"
    )


@given(rows=st.lists(st.tuples(st.text(), st.text()), min_size=1))
@settings(deadline=None, max_examples=40, derandomize=True)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[Any]) -> None:
    clean = [
        tuple(cell.replace("\0", "").replace("\r", "").encode("utf-8", "ignore").decode() for cell in row)
        for row in rows
    ]
    kept = [{"text": text, "label": label.strip()} for text, label in clean if text.strip() and label.strip()]
    if kept:
        path = write(tmp_path_factory.mktemp("round") / f"a{suffix}", spelled(suffix, kept))
        assert values(path, TEXT, LABEL) == kept


def test_a_directory_a_glob_and_a_text_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", {"text": "two"})
    write(tmp_path / "a.csv", "text\none\n")
    assert values(tmp_path, TEXT) == ["one", "two"] == values(tmp_path / "*.*", TEXT)
    text = write(tmp_path / "c.txt", "three\n\nfour\n")
    assert values(text, TEXT, document="line") == ["three", "four"]
    assert [record.where for record in records(text, [TEXT], document="line")] == [f"{text}:1", f"{text}:3"]
    assert "no column 'label' among text" in complaint(text, TEXT, LABEL)


def test_the_old_names_of_columns_still_map(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"translation": {"en": "dog", "de": "Hund"}})
    expected = [{"text": "dog", "target": "Hund"}]
    assert values(path, TEXT, TARGET, column="translation.en", target_column="translation.de") == expected
    assert values(path, TEXT, TARGET, columns={"text": "translation.en", "target": "translation.de"}) == expected
    assert "did you mean 'translation'" in complaint(path, TEXT, columns={"text": "tranlsation.en"})


def test_a_bare_text_in_jsonl_is_the_only_field(tmp_path: Path) -> None:
    assert values(jsonl(tmp_path / "a.jsonl", "one"), TEXT) == ["one"]
    assert values(tmp_path / "a.jsonl", TEXT, replace(TARGET, optional=True)) == [{"text": "one"}]
    assert "expected an object with columns, found str: 'one'" in complaint(tmp_path / "a.jsonl", TEXT, LABEL)


def test_an_optional_field_may_be_missing_or_blank_but_not_when_it_is_mapped(tmp_path: Path) -> None:
    optional = replace(TARGET, optional=True)
    assert values(write(tmp_path / "a.csv", "text\none\n"), TEXT, optional) == [{"text": "one"}]
    assert values(write(tmp_path / "b.csv", "text,target\none,\n"), TEXT, optional) == [{"text": "one"}]
    assert "no column 'tgt' among text" in complaint(tmp_path / "a.csv", TEXT, optional, columns={"target": "tgt"})
    path = write(tmp_path / "a.parquet", spelled(".parquet", ROWS))
    assert values(path, TEXT, optional) == [{"text": row["text"]} for row in ROWS]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("good", "good"), (" good ", "good"), (3, "3"), (3.0, "3"), (True, "true"), ("01", "01")],
)
def test_labels_from_numbers_and_texts(tmp_path: Path, value: Any, expected: str) -> None:
    assert values(jsonl(tmp_path / "a.jsonl", {"label": value}), LABEL) == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", 2], ["a", "2"]),
        ("a|b", ["a", "b"]),
        (" a | b|a", ["a", "b"]),
        ("", []),
        (None, []),
        ([], []),
        ('["x|y"]', ["x|y"]),
    ],
)
def test_several_labels(tmp_path: Path, value: Any, expected: list[str]) -> None:
    assert values(jsonl(tmp_path / "a.jsonl", {"labels": value}), LABELS) == [expected]


@pytest.mark.parametrize(("value", "expected"), [(3, 3.0), ("3.5", 3.5), (" -1e-3 ", -0.001), (0, 0.0)])
def test_numbers(tmp_path: Path, value: Any, expected: float) -> None:
    (read,) = values(jsonl(tmp_path / "a.jsonl", {"score": value}), SCORE)
    assert read == expected
    assert type(read) is float


def test_words_and_tags_from_lists_and_texts(tmp_path: Path) -> None:
    rows = [{"words": ["New", "York"], "tags": [1, 2]}, {"words": " New  York ", "tags": '["B", "I"]'}]
    read = values(jsonl(tmp_path / "a.jsonl", *rows), WORDS, TAGS)
    assert read == [{"words": ["New", "York"], "tags": tags} for tags in (["1", "2"], ["B", "I"])]


@pytest.mark.parametrize(
    "value",
    [
        [
            {"role": "system", "content": "Be kind."},
            {"role": "User", "content": "Hello"},
            {"role": "assistant", "content": "Hi\nyou"},
        ],
        [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hello"},
            {"from": "gpt", "value": "Hi\nyou"},
        ],
    ],
)
def test_messages_as_openai_and_sharegpt_write_them(tmp_path: Path, value: Any) -> None:
    assert values(jsonl(tmp_path / "a.jsonl", {"messages": value}), MESSAGES) == [CHAT]
    assert values(
        jsonl(tmp_path / "a.jsonl", {"conversations": value}), MESSAGES, columns={"messages": "conversations"}
    ) == [CHAT]
    assert values(jsonl(tmp_path / "a.jsonl", {"messages": json.dumps(value)}), MESSAGES) == [CHAT]


def test_messages_from_a_prompt_and_its_response(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "prompt": "Hello", "response": "Hi\nyou"}
    assert values(jsonl(tmp_path / "a.jsonl", row), MESSAGES) == [CHAT]
    path = write(tmp_path / "a.csv", 'question,reply,system\nHello,"Hi\nyou",\n')
    assert values(path, MESSAGES, columns={"prompt": "question", "response": "reply"}) == [CHAT[1:]]
    said = complaint(jsonl(tmp_path / "a.jsonl", {"prompt": "x"}), MESSAGES)
    assert "no column 'messages' among prompt\n" in said
    assert "columns: {messages: <column>} or {prompt: <column>, response: <column>}" in said


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "Ödön", "answer_start": 3}],
        {"text": ["Ödön"], "answer_start": [3]},
        {"text": "Ödön", "start": 3},
        '[{"text": "Ödön", "answer_start": 3}]',
    ],
)
def test_answers(tmp_path: Path, answers: Any) -> None:
    row = {"context": "🎬: Ödön.", "question": "Who?", "answers": answers}
    (read,) = records(jsonl(tmp_path / "a.jsonl", row), ANSWERING)
    assert read.fields["answers"] == [Answer("Ödön", 3)]
    assert read.key == row["context"]  # all questions on a context stay on one side of the split
    for nothing in ([], None, {"text": [], "answer_start": []}):
        assert values(jsonl(tmp_path / "a.jsonl", row | {"answers": nothing}), CONTEXT, ANSWERS)[0]["answers"] == []


@pytest.mark.parametrize(
    ("fields", "row", "words"),
    [
        ([TEXT], {"text": " "}, ["column 'text' holds ' '; expected a text that is not blank"]),
        ([TEXT], {"text": None}, ["holds None", "expected a text"]),
        ([TEXT], {"text": 3}, ["holds 3", "expected a text"]),
        ([LABEL], {"label": ""}, ["holds ''", "name or the number of a class"]),
        ([LABEL], {"label": 0.5}, ["holds 0.5", "name or the number of a class"]),
        ([LABEL], {"label": math.nan}, ["holds nan", "name or the number of a class"]),
        ([LABEL], {"label": ["a"]}, ["holds ['a']", "name or the number of a class"]),
        ([LABELS], {"labels": "a||b"}, ["holds 'a||b'", "none of them blank"]),
        ([LABELS], {"labels": 3}, ["holds 3", "'a|b'"]),
        ([LABELS], {"labels": "['a', 'b']"}, ["JSON in a cell"]),
        ([SCORE], {"score": "four"}, ["column 'score' holds 'four'; expected a finite number such as 3.5"]),
        ([SCORE], {"score": math.nan}, ["holds nan", "finite"]),
        ([SCORE], {"score": "inf"}, ["holds 'inf'", "finite"]),
        ([SCORE], {"score": "1_000"}, ["holds '1_000'"]),
        ([SCORE], {"score": True}, ["holds True"]),
        ([SCORE], {"score": ""}, ["holds ''"]),
        ([WORDS], {"words": []}, ["at least one word"]),
        ([WORDS], {"words": "['a' 'b']"}, ["JSON in a cell"]),
        ([WORDS], {"words": ["a", " "]}, ["number 2 is ' '"]),
        ([WORDS, TAGS], {"words": ["a", "b"], "tags": ["X"]}, ["2 words and 1 tags", "['a', 'b'] and ['X']"]),
        ([MESSAGES], {"messages": []}, ["holds []", "expected messages such as [{'role': 'user'"]),
        ([MESSAGES], {"messages": "Hello"}, ["holds 'Hello'", "expected messages such as"]),
        (
            [MESSAGES],
            {"messages": [{"role": "tool", "content": "x"}]},
            ["message 1 has the role 'tool'", "known: system"],
        ),
        ([MESSAGES], {"messages": [{"from": 3, "value": "x"}]}, ["message 1 has the from 3"]),
        ([MESSAGES], {"messages": [{"role": "user", "content": " "}]}, ["message 1 says ' '", "not blank"]),
        ([MESSAGES], {"messages": [{"role": "user"}]}, ["message 1 is {'role': 'user'}"]),
        ([MESSAGES], {"prompt": "x", "response": ""}, ["message 2 says ''"]),
        (
            ANSWERING,
            {"answers": [{"text": "c", "answer_start": 1}]},
            ["'c' is not at character 1", "has 'b' there", "stands at 2"],
        ),
        (ANSWERING, {"answers": [{"text": "z", "answer_start": 1}]}, ["'z' is not at", "stands nowhere in it"]),
        (ANSWERING, {"answers": [{"text": "c", "answer_start": 99}]}, ["not at character 99"]),
        (ANSWERING, {"answers": [{"text": "c", "answer_start": -1}]}, ["expected answers such as [{'text': 'Denver'"]),
        (ANSWERING, {"answers": [{"text": "c"}]}, ["expected answers such as"]),
        (ANSWERING, {"answers": "abc"}, ["holds 'abc'", "expected answers such as"]),
        (ANSWERING, {"answers": {"text": ["c"], "answer_start": []}}, ["as many starts as texts"]),
    ],
)
def test_the_first_bad_row_is_shown_with_what_was_expected(
    tmp_path: Path, fields: Any, row: Any, words: list[str]
) -> None:
    good = {
        "text": "x",
        "label": "x",
        "labels": "x",
        "score": 1,
        "words": ["x"],
        "tags": ["x"],
        "context": "abc",
        "question": "x",
        "answers": [{"text": "b", "answer_start": 1}],
        "messages": [{"role": "user", "content": "x"}],
    }
    if "prompt" in row:
        good = {"prompt": "x", "response": "x"}
    path = jsonl(tmp_path / "a.jsonl", good, good | row, {"also": "bad"})
    said = complaint(path, *fields)
    assert said.startswith(f"{path}:2: ")
    for word in words:
        assert word in said, said


def test_a_column_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sentence,lable\na fine film,good\n")
    said = complaint(path, TEXT, LABEL, columns={"text": "sentence"})
    assert said.splitlines() == [
        f"{path}:2: no column 'label' among sentence, lable; did you mean 'lable'?",
        "  it should hold label: its class; say where that is with columns: {label: <column>}",
        "  the row: {'sentence': 'a fine film', 'lable': 'good'}",
    ]
    assert "no column 'label' among sentence, lable" in complaint(
        write(tmp_path / "a.parquet", spelled(".parquet", [{"sentence": "x", "lable": "y"}])), LABEL
    )
    path = jsonl(tmp_path / "b.jsonl", {"text": "x", "label": "y"}, {"text": "x"})
    assert complaint(path, TEXT, LABEL).startswith(f"{path}:2: no column 'label' among text\n")


def test_a_mapping_of_a_field_that_the_task_has_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,y\n")
    said = complaint(path, TEXT, LABEL, columns={"lable": "label"})
    assert said == (
        "data source columns: 'lable' is no field of this task; did you mean 'label'?; its fields are "
        "text (what is classified), label (its class)"
    )
    assert "'prompt' is no field" in complaint(path, TEXT, columns={"prompt": "text"})


def test_two_columns_of_one_name_and_a_header_of_another_separator(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,text\na,b,c\n")
    assert "a.csv:1: 2 columns are called 'text'" in complaint(path, TEXT, LABEL)
    assert values(path, LABEL) == ["b"]
    path = write(tmp_path / "b.csv", "text;label\na;b\n")
    assert "this header is a single column: columns stand apart by commas in csv" in complaint(path, TEXT, LABEL)


def test_files_that_hold_nothing_or_are_not_known(tmp_path: Path) -> None:
    assert "empty file" in complaint(write(tmp_path / "a.csv", ""), TEXT)
    assert "did you mean '.conll'" in complaint(write(tmp_path / "a.conl", "x"), TEXT)
    assert "did you mean 'a.csv'" in complaint(tmp_path / "a.cvs", TEXT)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": names,
            "labels": datasets.List(names),
            "inner": {"label": names},
            "answers": datasets.Sequence({"text": datasets.Value("string"), "class": names}),
            "score": datasets.Value("int64"),
        }
    )
    row = {"text": "x", "label": 1, "labels": [1, 0], "inner": {"label": 0}, "score": 1}
    rows = [row | {"answers": {"text": ["x"], "class": [1]}}, row | {"label": -1, "answers": {"text": [], "class": []}}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_numbers_of_classes_in_a_dataset_become_their_names(dataset: Path) -> None:
    source = SourceConfig(huggingface=str(dataset))
    assert values(source, LABELS) == [["pos", "neg"]] * 2
    assert values(source, replace(LABEL, name="score")) == ["1", "1"]
    inner = SourceConfig(huggingface=str(dataset), columns={"label": "inner.label", "labels": "answers.class"})
    assert values(inner, LABEL, LABELS)[0] == {"label": "neg", "labels": ["pos"]}
    said = complaint(source, TEXT, LABEL)
    assert said.startswith(f"{dataset}: row 1: column 'label' holds None")
    assert "no column 'lable' among text, label, labels" in complaint(source, replace(LABEL, name="lable"))

"""Annotated sentences, questions and parallel texts: CoNLL, CoNLL-U, SQuAD and lines that pair."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_cases import ANSWERING, ANSWERS, LABEL, QUESTION, TAGS, TARGET, TEXT, WORDS, complaint, records, values

from triune.data.config import SourceConfig
from triune.data.sources import Document, documents, identity
from triune.errors import UserError
from triune.objectives.record import Answer, Field

CONLL = """-DOCSTART- -X- O O

# sent_id = 1
EU NNP I-NP B-ORG
# # # O
rejects  VBZ I-VP O


Peter NNP I-NP B-PER"""
CONLLU = """# sent_id = fr-1
# text = Il va au parc
1-2\tIl-va\t_\t_\t_\t_\t_\t_\t_\t_
1\tIl\til\tPRON\tP\t_\t2\tnsubj\t_\t_
2\tva\taller\tVERB\tV\tTense=Pres\t0\troot\t_\t_
2.1\tlà\t_\tADV\t_\t_\t_\t_\t_\t_
3-4\tau\t_\t_\t_\t_\t_\t_\t_\t_
3\tà\tà\tADP\tE\t_\t5\tcase\t_\t_
4\tle\tle\tDET\tD\t_\t5\tdet\t_\t_
5\tparc\tparc\tNOUN\tN\t_\t2\tobl\t_\t_

1\t_\t_\tSYM\t_\t_\t0\troot\t_\t_
"""
IDENTIFIER = Field(name="id", kind="text", meaning="names the question")
QUESTIONS = {
    "version": "v2.0",
    "data": [
        {
            "title": "Broncos",
            "paragraphs": [
                {
                    "context": "The Denver Broncos won.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Who won?",
                            "answers": [
                                {"text": "Denver Broncos", "answer_start": 4},
                                {"text": "Broncos", "answer_start": 11},
                            ],
                        },
                        {
                            "id": 7,
                            "question": "Who lost?",
                            "is_impossible": True,
                            "answers": [{"text": "Denver", "answer_start": 4}],
                            "plausible_answers": [{"text": "Denver", "answer_start": 4}],
                        },
                    ],
                }
            ],
        }
    ],
}


def write(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.txt", "a.conll.gz"])
def test_conll(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, CONLL)
    read = records(path, [WORDS, TAGS])
    assert [dict(record.fields) for record in read] == [
        {"words": ["EU", "#", "rejects"], "tags": ["B-ORG", "O", "O"]},
        {"words": ["Peter"], "tags": ["B-PER"]},
    ]
    assert [record.where for record in read] == [f"{path}:4", f"{path}:9"]
    assert values(path, TAGS, columns={"tags": 1}) == [["NNP", "#", "VBZ"], ["NNP"]]
    assert values(path, TAGS, columns={"tags": -2}) == [["I-NP", "#", "I-VP"], ["I-NP"]]
    assert "no column '9' among 0, 1, 2, 3" in complaint(path, TAGS, columns={"tags": 9})
    assert "no column '-9' among" in complaint(path, TAGS, columns={"tags": -9})


def test_conll_with_tabs_keeps_hashtags_and_odd_spaces(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "# 12\n#nlp\tO\nNew York\tB-LOC\na\u00a0b \tO\r\n\n# tokens = 1\n#\tO\n")
    assert values(path, WORDS, TAGS) == [
        {"words": ["#nlp", "New York", "a\u00a0b"], "tags": ["O", "B-LOC", "O"]},
        {"words": ["#"], "tags": ["O"]},
    ]


TOKEN = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"], exclude_characters="\ufeff"), min_size=1
)


@given(sentences=st.lists(st.lists(st.tuples(TOKEN, TOKEN), min_size=1), min_size=1))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_conll_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, sentences: Any) -> None:
    content = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences)
    path = write(tmp_path_factory.mktemp("conll") / "a.conll", content)
    expected = [{"words": [word for word, _ in one], "tags": [tag for _, tag in one]} for one in sentences]
    assert values(path, WORDS, TAGS) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a O\nb\n", [":2: 1 column in 'b' where the line before has 2"]),
        ("a\nb\n", [":1: words and tags are both column '0' of 0"]),
        ("a\tO\n\tO\n", [":1: column '0' (words) holds ['a', '']", "number 2 is ''"]),
    ],
)
def test_mistakes_in_conll(tmp_path: Path, content: str, words: list[str]) -> None:
    said = complaint(write(tmp_path / "a.conll", content), WORDS, TAGS)
    for word in words:
        assert word in said, said


def test_conllu(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conllu", CONLLU)
    read = records(path, [WORDS, TAGS])
    assert [dict(record.fields) for record in read] == [
        {"words": ["Il", "va", "à", "le", "parc"], "tags": ["PRON", "VERB", "ADP", "DET", "NOUN"]},
        {"words": ["_"], "tags": ["SYM"]},
    ]
    assert [record.where for record in read] == [f"{path}:4", f"{path}:12"]
    assert values(path, TAGS, columns={"tags": "deprel"})[0] == ["nsubj", "root", "case", "det", "obl"]
    optional = replace(TEXT, optional=True)
    assert values(path, optional, WORDS)[0]["text"] == "Il va au parc"
    assert "text" not in values(path, optional, WORDS)[1]
    assert "no column 'depre' among" in complaint(path, TAGS, columns={"tags": "depre"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\ta\n", [":1: 2 columns in '1\ta'; CoNLL-U has ten"]),
        (CONLLU.replace("5\tparc", "6\tparc"), [":10: word 6 where word 5"]),
        (CONLLU.replace("5\tparc", "x\tparc"), [":10: ID 'x' is no number"]),
    ],
)
def test_mistakes_in_conllu(tmp_path: Path, content: str, words: list[str]) -> None:
    said = complaint(write(tmp_path / "a.conllu", content), WORDS, TAGS)
    for word in words:
        assert word in said, said


def test_squad(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", json.dumps(QUESTIONS))
    first, second = records(path, [*ANSWERING, IDENTIFIER])
    assert first.fields == {
        "context": "The Denver Broncos won.",
        "question": "Who won?",
        "answers": [Answer("Denver Broncos", 4), Answer("Broncos", 11)],
        "id": "q1",
    }
    assert (second.fields["id"], second.fields["answers"]) == ("7", [])
    assert first.where == f"{path}: question q1"
    assert first.key == second.key == "The Denver Broncos won."
    assert values(path, replace(LABEL, name="title"))[0] == "Broncos"


def changed(change: Any) -> str:
    copy = json.loads(json.dumps(QUESTIONS))
    change(copy["data"][0]["paragraphs"][0])
    return json.dumps(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p: p["qas"][0]["answers"][1].update(answer_start=12),
            ["question q1:", "'Broncos' is not at character 12", "at 11"],
        ),
        (
            lambda p: p["qas"][0].pop("answers"),
            ["data.0.paragraphs.0.qas.0 is an object with id, question", "'answers' there"],
        ),
        (lambda p: p.pop("context"), ["data.0.paragraphs.0 is an object with qas", "'context' there"]),
        (lambda p: p["qas"][0].update(question=""), ["question q1:", "column 'question' holds ''"]),
    ],
)
def test_mistakes_in_squad(tmp_path: Path, change: Any, words: list[str]) -> None:
    said = complaint(write(tmp_path / "a.json", changed(change)), QUESTION, *ANSWERING[:1], ANSWERS)
    for word in words:
        assert word in said, said


def test_a_json_that_only_looks_like_squad_is_a_row(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.json", '{"text": "x", "data": [1]}'), TEXT) == ["x"]


def pair(folder: Path, first: str, second: str, suffix: str = "") -> SourceConfig:
    paths = write(folder / f"train.en{suffix}", first), write(folder / f"train.es{suffix}", second)
    return SourceConfig(path=str(paths[0]), target_path=str(paths[1]))


@pytest.mark.parametrize("suffix", ["", ".gz", ".txt"])
def test_parallel_texts(tmp_path: Path, suffix: str) -> None:
    source = pair(tmp_path, "one\n\ntwo", "uno\n\ndos\n", suffix)
    assert values(source, TEXT, TARGET) == [{"text": "one", "target": "uno"}, {"text": "two", "target": "dos"}]
    assert records(source, [TEXT])[1].where == f"{source.path}:3"
    assert list(documents(source)) == [Document("one", "uno"), Document("two", "dos")]
    before = identity(source)
    write(Path(str(source.target_path)), "other")
    assert identity(source) != before


@pytest.mark.parametrize(("first", "second"), [("a\nb\nc\n", "a\nb\n"), ("a\nb\n", "a\nb\nc\n")])
def test_parallel_texts_of_different_lengths_name_both(tmp_path: Path, first: str, second: str) -> None:
    source = pair(tmp_path, first, second)
    said = complaint(source, TEXT, TARGET)
    counts = first.count("\n"), second.count("\n")
    assert said.startswith(f"{source.path} has {counts[0]} lines and {source.target_path} has {counts[1]};")


def test_mistakes_in_parallel_texts(tmp_path: Path) -> None:
    said = complaint(pair(tmp_path, "a\nb\n", "a\n \n"), TEXT, TARGET)
    assert "train.en:2: column 'target' holds ' '; expected a text that is not blank" in said
    gone = SourceConfig(path=str(tmp_path / "train.en"), target_path=str(tmp_path / "train.ess"))
    assert "did you mean 'train.es'" in complaint(gone, TEXT, TARGET)
    table = SourceConfig(path=str(write(tmp_path / "a.csv", "text\nx")), target_path=str(tmp_path / "train.es"))
    assert "a.csv: target_path pairs two plain text files" in complaint(table, TEXT, TARGET)
    with pytest.raises(UserError, match="it goes with path, and without target_column"):
        SourceConfig(path="a", target_path="b", target_column="c")
    with pytest.raises(UserError, match="it goes with path"):
        SourceConfig(package="babel", target_path="b")

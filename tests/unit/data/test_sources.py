"""Documents out of files, datasets and packages: what is read, in which order, and what each mistake says."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import sys
from pathlib import Path

import pytest

from triune.data.config import DataConfig, SourceConfig, TokenizerConfig
from triune.data.sources import Document, documents, identity
from triune.errors import UserError

ROWS = [
    {"text": "one", "target": "eins"},
    {"text": 'two "2",\nlines', "target": "zwei"},
    {"text": "é中", "target": "drei"},
]


def read(path: object, **options: object) -> list[Document]:
    return list(documents(SourceConfig(path=str(path), **options)))  # type: ignore[arg-type]


def texts(path: object, **options: object) -> list[str]:
    return [document.text for document in read(path, **options)]


def complaint(path: object, **options: object) -> str:
    with pytest.raises(UserError) as raised:
        read(path, **options)
    return str(raised.value)


def encode_rows(suffix: str, rows: list[dict[str, str]], folder: Path) -> bytes:
    if suffix == ".jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode() + b"\n\n"
    if suffix == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False).encode()
    if suffix == ".tsv":
        return "".join(f"{a}\t{b}\n" for a, b in [("text", "target"), *(row.values() for row in rows)]).encode()
    path = folder / f"written{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["text", "target"])
            writer.writeheader()
            writer.writerows(rows)
    content = path.read_bytes()
    path.unlink()
    return content


def compress(suffix: str, content: bytes) -> bytes:
    if suffix == ".zst":
        import pyarrow

        return pyarrow.Codec("zstd").compress(content, asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](content)


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str, compression: str) -> None:
    rows = [row for row in ROWS if suffix != ".tsv" or "\n" not in row["text"]]
    if suffix == ".tsv":
        rows = [*rows, {"text": 'a "quoted', "target": "vier"}]  # a lone quotation mark is text in tsv
    path = tmp_path / f"data{suffix}{compression}"
    path.write_bytes(compress(compression, encode_rows(suffix, rows, tmp_path)))
    if suffix == ".parquet" and compression:
        assert "unknown kind of file" in complaint(path)
        return
    assert read(path, target_column="target") == [Document(row["text"], row["target"]) for row in rows]
    assert read(path) == [Document(row["text"]) for row in rows]


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz", ".zst"])
def test_what_a_document_of_a_txt_file_is(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(compress(compression, "\ufeffone\r\ntwo\n \n\n\nthree\nfour".encode()))
    assert texts(path) == ["one\ntwo\n \n\n\nthree\nfour"]
    assert texts(path, document="paragraph") == ["one\ntwo", "three\nfour"]
    assert texts(path, document="line") == ["one", "two", "three", "four"]


def test_a_file_longer_than_the_first_look_keeps_every_line(tmp_path: Path) -> None:
    lines = [f"line {i} " + "x" * (i % 97) for i in range(2000)]
    (tmp_path / "long.txt").write_text("\n".join(lines))
    assert texts(tmp_path / "long.txt", document="line") == lines
    assert texts(tmp_path / "long.txt") == ["\n".join(lines)]


def test_directories_and_globs_are_sorted_and_searched_in_depth(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.txt", "a/b/c.jsonl", "c.txt.gz", "notes.md", ".git/x.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"text": name}).encode() if "jsonl" in name else name.encode()
        path.write_bytes(compress(".gz", content) if name.endswith(".gz") else content)
    assert texts(tmp_path) == ["a/b/c.jsonl", "a/z.txt", "b.txt", "c.txt.gz"]
    assert texts(tmp_path / "*.txt") == ["b.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a/z.txt", "b.txt"]


def test_blank_and_null_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n{"text": null}\n{"text": "x"}\n"bare"\n')
    assert texts(tmp_path / "a.jsonl") == ["x", "bare"]


def test_a_dotted_column_reaches_into_objects(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"translation": {"en": "dog", "de": "Hund"}}\n')
    expected = [Document("dog", "Hund")]
    assert read(tmp_path / "a.jsonl", column="translation.en", target_column="translation.de") == expected
    assert "did you mean 'de'" in complaint(tmp_path / "a.jsonl", column="translation.dee")


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.txt", b"", {}, ["a.txt: empty file"]),
        ("a.txt.gz", gzip.compress(b"", mtime=0), {}, ["a.txt.gz: empty file"]),
        ("a.parquet", b"", {}, ["a.parquet: empty file"]),
        ("a.txt", b"ok\nab\0c", {}, ["a.txt:2:", "NUL at byte 5", "binary"]),
        ("a.txt", b"x\n" * 5000 + b"ab\0c", {}, ["a.txt:5001:", "NUL at byte 10002"]),
        ("a.txt", b"ok\nf\xfcr", {}, ["a.txt:2:", "0xfc at offset 4", "iconv"]),
        ("a.csv", b"text\nok\nf\xfcr\n", {}, ["a.csv:3:", "0xfc at offset 9"]),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', {}, ["a.jsonl:3: malformed JSON"]),
        ("a.json", b'[{"text": "a"},\n {"text" 1}]', {}, ["a.json:2: malformed JSON"]),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', {}, ["a.json:2:", ".jsonl"]),
        ("a.jsonl", b'{"txet": "a"}\n', {}, ["a.jsonl:1: no column 'text'", "did you mean 'txet'"]),
        ("a.jsonl", b'{"text": 3}\n', {}, ["a.jsonl:1:", "holds int, not text"]),
        ("a.jsonl", b"[1]\n", {}, ["a.jsonl:1: expected an object", "list"]),
        ("a.csv", b"text,b\n1,2\n1,2,3\n", {}, ["a.csv:3: 3 fields where the header has 2"]),
        ("a.csv", b"text,b\n1\n", {}, ["a.csv:2: 1 fields where the header has 2"]),
        ("a.csv", b'text,b\n"1,2\n', {}, ["a.csv:2: malformed row"]),
        ("a.csv", b"body\nx\n", {"column": "bodi"}, ["a.csv:2: no column 'bodi'", "did you mean 'body'"]),
        ("a.parquet", b"PAR1 not really", {}, ["a.parquet: not a readable parquet file"]),
        ("a.jsnol", b"x", {}, ["a.jsnol: unknown kind of file", "did you mean '.jsonl'"]),
        ("a.txt.gz", b"not gzip", {}, ["a.txt.gz: damaged .gz"]),
        ("a.txt.gz", gzip.compress(os.urandom(99_999))[:5000], {}, ["a.txt.gz"]),
        ("a.txt.bz2", b"not bzip2", {}, ["a.txt.bz2: damaged .bz2"]),
        ("a.txt.xz", b"not xz", {}, ["a.txt.xz: damaged .xz"]),
        ("a.txt.zst", b"not zstd", {}, ["a.txt.zst: damaged .zst"]),
        ("a.txt", b"x", {"target_column": "de"}, ["a.txt: target_column 'de'"]),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, content: bytes, options: dict, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    said = complaint(tmp_path / name, **options)
    for word in words:
        assert word in said, said


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    assert "did you mean 'corpus.txt'" in complaint(tmp_path / "corpsu.txt")
    assert "no file matches" in complaint(tmp_path / "*.jsonl")
    assert "no file under the directory" in complaint(tmp_path / "empty")


def test_parquet_names_the_nearest_column(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(encode_rows(".parquet", ROWS, tmp_path))
    assert "did you mean 'target'" in complaint(tmp_path / "a.parquet", column="tarket")


def test_zstd_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(compress(".zst", b"x"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in complaint(tmp_path / "a.txt.zst")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_huggingface_dataset_saved_to_disk(hub_cache: Path) -> None:
    import datasets

    folder = hub_cache / "saved"
    dataset = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": dataset, "test": dataset.select([2])}).save_to_disk(folder)
    pairs = SourceConfig(huggingface=str(folder), target_column="target")
    assert list(documents(pairs)) == [Document(row["text"], row["target"]) for row in ROWS]
    assert [d.text for d in documents(SourceConfig(huggingface=str(folder), split="test"))] == ["é中"]
    with pytest.raises(UserError, match="did you mean 'test'"):
        list(documents(SourceConfig(huggingface=str(folder), split="tset")))
    with pytest.raises(UserError, match="no column 'txt' among text, target; did you mean 'text'"):
        list(documents(SourceConfig(huggingface=str(folder), column="txt")))
    dataset.save_to_disk(hub_cache / "single")
    assert len(list(documents(SourceConfig(huggingface=str(hub_cache / "single"))))) == 3


def test_huggingface_directory_of_parquet(hub_cache: Path) -> None:
    folder = hub_cache / "files"
    folder.mkdir()
    (folder / "part-0.parquet").write_bytes(encode_rows(".parquet", ROWS, hub_cache))
    source = SourceConfig(huggingface=str(folder))
    assert [d.text for d in documents(source)] == [row["text"] for row in ROWS]
    before = identity(source)
    os.utime(folder / "part-0.parquet", ns=(1, 1))
    assert identity(source) != before


def test_huggingface_failure_says_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)'no/such-dataset' \(en\) cannot be loaded: .*save_to_disk"):
        list(documents(SourceConfig(huggingface="no/such-dataset", subset="en")))


def test_demo_corpus_is_a_conversation_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chitchat_dataset")
    source = SourceConfig(package="chitchat-dataset")
    conversations = [document.text for document in documents(source)]
    assert len(conversations) == 7168
    assert conversations[0].startswith("A: Hello\nA: How are you doing today?\nB: whats up MD\nB: im doing good\n")
    lines = (line for text in conversations for line in text.split("\n"))
    assert all(re.match(r"[A-Z]: \S", line) for line in lines)
    assert "0.9.0" in identity(source)["package"]


def test_packages_that_are_unknown_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean 'chitchat-dataset'"):
        list(documents(SourceConfig(package="chit-chat")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "triune\[demo\]"'):
        list(documents(SourceConfig(package="chitchat-dataset")))


def test_identity_follows_files_and_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = identity(SourceConfig(path=str(path)))
    assert identity(SourceConfig(path=str(path), weight=3.0)) == first
    assert identity(SourceConfig(path=str(path), document="line")) != first
    path.write_text("three")
    assert identity(SourceConfig(path=str(path))) != first


def test_configs_refuse_what_cannot_be_meant() -> None:
    for wrong in ({}, {"path": "a.txt", "package": "b"}, {"path": "a.txt", "weight": 0.0}):
        with pytest.raises(UserError):
            SourceConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="validation_share"):
        DataConfig(validation_share=1.0)
    with pytest.raises(UserError, match="weight"):
        DataConfig(train=[SourceConfig(path="a", weight=1.0), SourceConfig(path="b")])
    for wrong in ({"kind": "pretrained"}, {"path": "x"}, {"lowercase": True}, {"sentinels": -1}):
        with pytest.raises(UserError):
            TokenizerConfig(**wrong)  # type: ignore[arg-type]

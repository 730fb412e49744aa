"""Shards: what is written is what is read, and nothing half-written or altered is believed."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triune.data.shards as under_test
from triune.data.shards import Shards, ShardWriter, room_on_disk
from triune.errors import UserError

DOCUMENTS = [[1, 2, 3], [4], [5, 6], [65_535, 0, 7, 8]]


def write(
    directory: Path,
    documents: list[list[int]] = DOCUMENTS,
    dtype: str = "<u2",
    pairs: bool = False,
    file_bytes: int = 2**30,
) -> Path:
    writer = ShardWriter(directory, dtype=np.dtype(dtype), tokenizer="abc", pairs=pairs, file_bytes=file_bytes)
    with writer:
        for number, ids in enumerate(documents):
            writer.add(np.array(ids), size=10 * number + 1, split=len(ids) // 2 if pairs else None)
    return directory


@given(
    documents=st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9), max_size=12),
    wide=st.booleans(),
    pairs=st.booleans(),
    file_bytes=st.sampled_from([1, 8, 20, 2**30]),
)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, documents: list, wide: bool, pairs: bool, file_bytes: int
) -> None:
    dtype = "<u4" if wide else "<u2"
    shards = Shards.open(write(tmp_path_factory.mktemp("shards"), documents, dtype, pairs, file_bytes))
    assert [shards.ids(i).tolist() for i in range(shards.documents)] == documents
    assert [ids.tolist() for ids in shards] == documents
    assert shards.lengths.tolist() == [len(ids) for ids in documents]
    assert shards.sizes.tolist() == [10 * i + 1 for i in range(len(documents))]
    assert (shards.splits is None) != pairs
    if shards.splits is not None:
        assert shards.splits.tolist() == [len(ids) // 2 for ids in documents]
    manifest = shards.manifest
    assert (manifest.documents, manifest.tokens) == (len(documents), sum(map(len, documents)))
    assert (manifest.bytes, manifest.dtype) == (sum(10 * i + 1 for i in range(len(documents))), dtype)
    for wrong in (-1, len(documents)):
        with pytest.raises(IndexError):
            shards.ids(wrong)


def test_files_are_cut_at_their_size_and_no_scraps_are_left(tmp_path: Path) -> None:
    write(tmp_path, file_bytes=6)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "00000.bin",
        "00000.idx",
        "00001.bin",
        "00001.idx",
        "00002.bin",
        "00002.idx",
        "manifest.json",
        "verified.json",
    ]


def test_ids_are_a_read_only_view_of_the_file(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path))
    assert not shards.ids(0).flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        shards.ids(0)[0] = 9


def test_pickle_carries_the_path_and_not_the_content(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path, [list(range(5000))]))
    pickled = pickle.dumps(shards)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).ids(0).tolist() == list(range(5000))


@pytest.mark.parametrize("name", ["00000.bin", "00000.idx", "00001.bin"])
def test_one_altered_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, file_bytes=8) / name
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # not even the time of change tells
    with pytest.raises(UserError, match=rf"{name}: altered .* delete .* prepare"):
        Shards.open(tmp_path)
    Shards.open(tmp_path, verify=False)


@pytest.mark.parametrize("name", ["00000.bin", "00000.idx", "00001.bin"])
def test_half_written_and_missing_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, file_bytes=8) / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{name}: half-written"):
        Shards.open(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        Shards.open(tmp_path)


def test_a_large_one_is_verified_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_ALWAYS_VERIFIED", 0)
    hashed = []
    check = under_test._check_content
    monkeypatch.setattr(
        under_test, "_check_content", lambda path, digest: (hashed.append(path.name), check(path, digest))
    )
    write(tmp_path)
    Shards.open(tmp_path)
    assert hashed == []  # the stamps of the writer hold
    os.utime(tmp_path / "00000.bin", ns=(5, 5))
    Shards.open(tmp_path)
    assert hashed == ["00000.bin", "00000.idx"]
    Shards.open(tmp_path)
    assert len(hashed) == 2  # stamped anew
    Shards.open(tmp_path, verify=True)
    assert len(hashed) == 4
    (tmp_path / "00000.bin").write_bytes(b"\0" * (tmp_path / "00000.bin").stat().st_size)
    with pytest.raises(UserError, match="altered"):
        Shards.open(tmp_path)


def test_manifest_missing_damaged_or_of_another_version(tmp_path: Path) -> None:
    path = write(tmp_path) / "manifest.json"
    whole = json.loads(path.read_text())
    for content, words in [("{", "damaged"), (json.dumps(whole | {"version": 99}), "format 99"), ("[]", "damaged")]:
        path.write_text(content)
        with pytest.raises(UserError, match=rf"manifest.json: .*{words}"):
            Shards.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json: missing, so these shards were not finished"):
        Shards.open(tmp_path)


def write_and_fail(directory: Path) -> None:
    with ShardWriter(directory, dtype=np.dtype("<u2"), tokenizer="abc", file_bytes=2) as writer:
        writer.add(np.array([1, 2]), size=2)
        writer.add(np.array([1, 2]), size=2, split=1)


def test_an_error_while_writing_leaves_nothing_that_opens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split position"):
        write_and_fail(tmp_path)
    with pytest.raises(UserError, match="missing"):
        Shards.open(tmp_path)


def test_a_writer_never_adds_to_finished_shards(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(FileExistsError):
        write(tmp_path)


def test_tokenizer_must_match(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path))
    shards.check_tokenizer("abc")
    with pytest.raises(UserError, match="made with tokenizer abc, not with xyz"):
        shards.check_tokenizer("xyz")


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first, again = Shards.open(write(tmp_path / "a")), Shards.open(write(tmp_path / "b"))
    other = Shards.open(write(tmp_path / "c", [[1]]))
    assert first.manifest.fingerprint == again.manifest.fingerprint != other.manifest.fingerprint


def test_only_a_full_disk_is_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room on disk"), room_on_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), room_on_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")

"""Preparation: once for each set of inputs, split by document, safe against other processes, deaths and full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import triune.data.prepare as under_test
import triune.data.shards
from triune.data.config import DataConfig, SourceConfig, TokenizerConfig
from triune.data.prepare import Prepared, prepare
from triune.data.tokenizers import Tokenizer
from triune.errors import UserError

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def lines(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"{i} " + " ".join(generator.choice(WORDS, size=8)) for i in range(count)]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(200)))
    return DataConfig(
        train=[SourceConfig(path=str(tmp_path / "corpus.txt"), document="line")],
        validation_share=0.1,
        tokenizer=TokenizerConfig(vocabulary=300, sentinels=4),
        cache=str(tmp_path / "cache"),
    )


def texts(prepared: Prepared, part: str) -> list[list[str]]:
    shards = [s for s, _ in prepared.train] if part == "train" else prepared.validation
    return [[prepared.tokenizer.decode(ids) for ids in one] for one in shards]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of texts in each call of `encode_batch`."""
    calls: list[int] = []
    encode = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, batch: calls.append(len(batch)) or encode(self, batch))
    return calls


def test_every_document_is_in_exactly_one_split_in_order(config: DataConfig) -> None:
    prepared = prepare(config, progress=False)
    (train,), (held,) = texts(prepared, "train"), texts(prepared, "validation")
    assert sorted(train + held) == sorted(lines(200))
    order = {text: i for i, text in enumerate(lines(200))}
    for part in (train, held):
        assert part == sorted(part, key=order.__getitem__)
    # 200 draws at 0.1: mean 20, standard deviation 4.2; ±5 of these
    assert 1 <= len(held) <= 41
    assert prepared.validation[0].sizes.tolist() == [len(text) for text in held]
    total = sum(map(len, held))
    assert prepared.bytes_per_token == total / prepared.validation[0].tokens


def test_split_follows_the_seed_and_not_the_other_documents(config: DataConfig, tmp_path: Path) -> None:
    (held,) = texts(prepare(config, progress=False), "validation")
    (other,) = texts(prepare(dataclasses.replace(config, seed=1), progress=False), "validation")
    assert held != other
    (tmp_path / "corpus.txt").write_text("\n".join([*lines(200), *lines(50, seed=9)]))
    (more,) = texts(prepare(config, progress=False), "validation")
    assert set(held) <= set(more)


def test_copies_of_a_document_stay_on_one_side(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(40) * 5))
    prepared = prepare(config, progress=False)
    (train,), (held,) = texts(prepared, "train"), texts(prepared, "validation")
    assert held
    assert not set(train) & set(held)


def test_at_least_one_document_is_held_out(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(lines(3)))
    for seed in range(5):
        prepared = prepare(dataclasses.replace(config, validation_share=0.001, seed=seed), progress=False)
        assert prepared.validation[0].documents == 1
        assert prepared.train[0][0].documents == 2
        almost_all = prepare(dataclasses.replace(config, validation_share=0.999, seed=seed), progress=False)
        assert almost_all.train[0][0].documents == 1


def test_the_second_call_reads_the_cache_and_says_so(
    config: DataConfig, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    first = prepare(config)
    said = capsys.readouterr()
    assert sum(encoded) == 200
    assert said.out == ""
    assert "prepared in" in said.err
    assert "bytes/token" in said.err
    encoded.clear()
    second = prepare(dataclasses.replace(config, workers=3))
    assert encoded == []
    assert capsys.readouterr().err == f"data: prepared before, read from {first.directory}\n"
    assert second.fingerprint == first.fingerprint
    prepare(config, progress=False)
    assert capsys.readouterr().err == ""


def test_what_changes_the_cache_and_what_does_not(config: DataConfig, tmp_path: Path) -> None:
    first = prepare(config, progress=False)
    tokenizer = config.tokenizer
    others = [
        dataclasses.replace(config, seed=3),
        dataclasses.replace(config, validation_share=0.2),
        dataclasses.replace(config, tokenizer=dataclasses.replace(tokenizer, vocabulary=310)),
        dataclasses.replace(config, tokenizer=dataclasses.replace(tokenizer, sentinels=5)),
        dataclasses.replace(
            config, train=[dataclasses.replace(config.train[0], document="paragraph")], validation_share=0.0
        ),
        dataclasses.replace(config, validation=config.train),
    ]
    directories = {prepare(other, progress=False).directory for other in others}
    assert len(directories | {first.directory}) == len(others) + 1
    weighted = dataclasses.replace(config, train=[dataclasses.replace(config.train[0], weight=2.0)])
    assert prepare(weighted, progress=False).directory == first.directory
    os.utime(tmp_path / "corpus.txt", ns=(7, 7))
    again = prepare(config, progress=False)
    assert again.directory != first.directory
    assert again.fingerprint == first.fingerprint  # of the content


def test_several_sources_with_weights_and_without(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in lines(60, seed=5)))
    both = [*config.train, SourceConfig(path=str(tmp_path / "other.jsonl"))]
    plain = prepare(dataclasses.replace(config, train=both), progress=False)
    tokens = [shards.tokens for shards, _ in plain.train]
    assert [share for _, share in plain.train] == pytest.approx([t / sum(tokens) for t in tokens])
    assert len(plain.validation) == 2
    weighted = [dataclasses.replace(source, weight=w) for source, w in zip(both, (3.0, 1.0), strict=True)]
    assert [share for _, share in prepare(dataclasses.replace(config, train=weighted), progress=False).train] == [
        0.75,
        0.25,
    ]


def test_validation_sources_take_the_place_of_the_share(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("\n".join(lines(7, seed=8)))
    held = SourceConfig(path=str(tmp_path / "held.txt"), document="line")
    prepared = prepare(dataclasses.replace(config, validation=[held]), progress=False)
    assert texts(prepared, "train") == [lines(200)]
    assert texts(prepared, "validation") == [lines(7, seed=8)]


def test_pairs_keep_their_split(config: DataConfig, tmp_path: Path) -> None:
    rows = [{"en": text, "de": f"{text.upper()} !"} for text in lines(50)] + [{"en": "alone", "de": " "}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = SourceConfig(path=str(tmp_path / "pairs.jsonl"), column="en", target_column="de")
    prepared = prepare(dataclasses.replace(config, train=[source], validation_share=0.0), progress=False)
    ((shards, _),) = prepared.train
    assert prepared.validation == []
    assert shards.splits is not None
    decode = prepared.tokenizer.decode
    assert [(decode(ids[:split]), decode(ids[split:])) for ids, split in zip(shards, shards.splits, strict=True)] == [
        (row["en"], row["de"]) for row in rows[:-1]
    ]


def test_tokenizer_learns_from_training_documents_only_and_from_a_sample(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = under_test.train_tokenizer
    monkeypatch.setattr(under_test, "train_tokenizer", lambda c, texts: train(c, (seen.append(t) or t for t in texts)))
    prepared = prepare(config, progress=False)
    assert seen == texts(prepared, "train")[0]
    seen.clear()
    size = sum(map(len, lines(200)))
    sampled = dataclasses.replace(config.tokenizer, sample_bytes=size // 4)
    prepare(dataclasses.replace(config, tokenizer=sampled), progress=False)
    # 180 draws at 1/4: mean 45, standard deviation 5.8; ±5 of these
    assert 16 <= len(seen) <= 74
    seen.clear()
    prepare(dataclasses.replace(config, tokenizer=dataclasses.replace(sampled, sample_bytes=1)), progress=False)
    assert len(seen) >= 1


def test_pretrained_tokenizer_is_taken_as_it_is(config: DataConfig, tmp_path: Path) -> None:
    first = prepare(config, progress=False)
    first.tokenizer.save(tmp_path / "tok")
    loaded = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="pretrained", path=str(tmp_path / "tok")))
    second = prepare(loaded, progress=False)
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert second.fingerprint == first.fingerprint
    assert second.directory != first.directory
    other = prepare(dataclasses.replace(config, seed=4), progress=False)
    assert other.tokenizer.fingerprint != first.tokenizer.fingerprint
    other.tokenizer.save(tmp_path / "tok")  # the same path, another tokenizer: not the same cache
    assert prepare(loaded, progress=False).directory != second.directory


def test_an_exchanged_tokenizer_and_altered_shards_are_refused(config: DataConfig) -> None:
    first = prepare(config, progress=False)
    other = prepare(dataclasses.replace(config, seed=4), progress=False)
    other.tokenizer.save(first.directory / "tokenizer")
    with pytest.raises(UserError, match="made with tokenizer"):
        prepare(config, progress=False)
    path = other.directory / "train-0" / "00000.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-0/00000\.bin: altered"):
        prepare(dataclasses.replace(config, seed=4), progress=False)
    (other.directory / "prepared.json").unlink()
    with pytest.raises(UserError, match=r"prepared\.json"):
        prepare(dataclasses.replace(config, seed=4), progress=False)


def test_mistakes(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train"):
        prepare(dataclasses.replace(config, train=[]), progress=False)
    (tmp_path / "blank.txt").write_text(" \n\n ")
    blank = SourceConfig(path=str(tmp_path / "blank.txt"))
    for wrong in ({"train": [blank]}, {"validation": [blank]}):
        with pytest.raises(UserError, match=r"blank\.txt': no documents"):
            prepare(dataclasses.replace(config, **wrong), progress=False)
    whole = SourceConfig(path=str(tmp_path / "corpus.txt"))
    with pytest.raises(UserError, match=r"data\.validation_share: 0\.1 .* document: paragraph or line"):
        prepare(dataclasses.replace(config, train=[whole]), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: .* cannot be written"):
        prepare(dataclasses.replace(config, cache=str(tmp_path / "file" / "below")), progress=False)
    assert leftovers(config) == []


def leftovers(config: DataConfig) -> list[str]:
    return [path.name for path in Path(config.cache).iterdir() if not path.name.endswith(".lock")]


def test_a_full_disk_is_said_and_leaves_nothing(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(triune.data.shards.os, "fsync", full)
        with pytest.raises(UserError, match="no room on disk"):
            prepare(config, progress=False)
    assert leftovers(config) == []
    assert prepare(config, progress=False).train[0][0].documents > 0


def test_what_a_dead_process_left_is_cleared(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepare(config, progress=False).directory
    directory.rename(directory.with_name(f".{directory.name}.99999.partial"))
    prepare(config, progress=False)
    assert leftovers(config) == [directory.name]


def _prepare_in_process(config: DataConfig, barrier: Any, queue: Any) -> None:
    made = []
    make = under_test._make
    under_test._make = lambda *arguments: (made.append(1), make(*arguments))  # type: ignore[assignment]
    barrier.wait()
    queue.put((len(made), prepare(config, progress=False).fingerprint, len(made)))


def test_processes_at_once_prepare_once(config: DataConfig) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare_in_process, args=(config, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(made for _, _, made in results) == [0, 1]
    assert len({fingerprint for _, fingerprint, _ in results}) == 1
    assert len(leftovers(config)) == 1

"""Text to shards, once for each set of sources and tokenizer; every objective and family reads the same cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from triune.data.config import DataConfig, SourceConfig, TokenizerConfig
from triune.data.holdout import HASHES, hash_of, threshold_of
from triune.data.meter import Meter, say
from triune.data.shards import Shards, ShardWriter, room_on_disk, sync_directory, write_atomically
from triune.data.sources import Document, describe, documents, identity
from triune.data.tokenizers import Tokenizer, pieces, train_tokenizer
from triune.errors import UserError

VERSION = 1  # raised whenever the same settings would give other shards
_SUMMARY = "prepared.json"
_BATCH_BYTES = 2_000_000  # text encoded at a time


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Tokenized text, ready to be mapped.

    Args:
        tokenizer: the tokenizer of all shards.
        train: the shards of each training source with its share of training; shares add up to 1.
        validation: shards of the held-out documents, or of the validation sources; may be empty.
        directory: where all of it lies.
        fingerprint: digest of the ids; equal for equal data wherever it was prepared.
    """

    tokenizer: Tokenizer
    train: list[tuple[Shards, float]]
    validation: list[Shards]
    directory: Path
    fingerprint: str

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes for each id of the validation documents (of the training documents where none is held out)."""
        shards = self.validation or [part for part, _ in self.train]
        return sum(part.manifest.bytes for part in shards) / sum(part.tokens for part in shards)


def prepare(config: DataConfig, *, progress: bool = True) -> Prepared:
    """The prepared data of `config`: from the cache, or made now and left there.

    Processes that ask for the same data at once wait for the first; a process that dies leaves nothing half-made behind.
    With `progress`, bars and a few lines go to standard error.
    Raises UserError for sources that cannot be read or hold nothing, shards that were altered, and a full disk.
    """
    if not config.train:
        raise UserError("data.train: no source is given; add one, for example {path: corpus/*.txt}")
    inputs = _inputs(config)
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(config.cache).expanduser() / key
    made = False
    if not directory.is_dir():
        with _alone(directory.with_name(f".{key}.lock"), progress):
            if made := not directory.is_dir():
                with room_on_disk(directory.parent):
                    _make(config, inputs, directory, progress)
    prepared = _open(config, directory)
    if progress and not made:
        say(f"data: prepared before, read from {directory}")
    return prepared


def _inputs(config: DataConfig) -> dict[str, Any]:
    """Everything that the shards depend on, as JSON; weights, rows and objectives are not among it."""
    inputs = {
        "version": VERSION,
        "seed": config.seed,
        "tokenizer": _tokenizer_identity(config.tokenizer),
        "train": [identity(source) for source in config.train],
        "validation": [identity(source) for source in config.validation],
    }
    return inputs if config.validation else inputs | {"validation_share": config.validation_share}


def _tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    if config.kind != "pretrained":
        return asdict(config)
    folder = Path(str(config.path))
    names = ("tokenizer.json", "tokenizer_config.json", "special_roles.json", "special_tokens_map.json")
    files = [folder] if folder.is_file() else [folder / name for name in names]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return {"kind": config.kind, "path": str(folder.resolve()) if folder.exists() else config.path, "files": sums}


@contextmanager
def _alone(path: Path, progress: bool) -> Iterator[None]:
    """Hold the lock file `path`; say so where another process holds it and we wait."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            say(f"data: another process is preparing the same data ({path}); waiting for it")
        lock.acquire()
    except OSError as error:
        raise UserError(f"data.cache: '{path.parent}' cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


def _open(config: DataConfig, directory: Path) -> Prepared:
    try:
        summary = json.loads((directory / _SUMMARY).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / _SUMMARY}: damaged ({error}); delete {directory} and prepare again") from error
    tokenizer = Tokenizer.load(directory / "tokenizer")
    train = [Shards.open(directory / name) for name in summary["train"]]
    validation = [Shards.open(directory / name) for name in summary["validation"]]
    for shards in train + validation:
        shards.check_tokenizer(tokenizer.fingerprint)
    weights = [
        float(shards.tokens) if source.weight is None else source.weight
        for shards, source in zip(train, config.train, strict=True)
    ]
    digest = "\n".join(
        [
            tokenizer.fingerprint,
            *(s.manifest.fingerprint for s in train),
            "",
            *(s.manifest.fingerprint for s in validation),
        ]
    )
    return Prepared(
        tokenizer=tokenizer,
        train=[(shards, weight / sum(weights)) for shards, weight in zip(train, weights, strict=True)],
        validation=validation,
        directory=directory,
        fingerprint=hashlib.sha256(digest.encode()).hexdigest(),
    )


def _make(config: DataConfig, inputs: dict[str, Any], directory: Path, progress: bool) -> None:
    """Prepare beside `directory`, under the lock, and rename: it exists whole or not at all."""
    for stale in directory.parent.glob(f".{directory.name}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    started = time.monotonic()
    try:
        summary = _write(config, partial, progress)
        summary |= {"seconds": round(time.monotonic() - started, 2), "inputs": inputs}
        write_atomically(partial / _SUMMARY, json.dumps(summary, indent=1).encode())
        sync_directory(partial)
        os.replace(partial, directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if progress:
        say(_report(config, directory, summary))


def _write(config: DataConfig, partial: Path, progress: bool) -> dict[str, Any]:
    """Scan, learn the tokenizer, encode. Returns the names of the shards."""
    share = 0.0 if config.validation else config.validation_share
    with Meter(progress) as meter:
        train = [_scan(source, config.seed, share, meter) for source in config.train]
        validation = [_scan(source, config.seed, 0.0, meter) for source in config.validation]
        if share > 0 and not any(scan.threshold for scan in train):
            raise UserError(
                f"data.validation_share: {share} of {describe(config.train[0])} cannot be held out, because all of it is one "
                "document; set document: paragraph or line for txt files, name data.validation, or set the share to 0"
            )
        tokenizer = train_tokenizer(config.tokenizer, _sample(config, train, meter))
        tokenizer.save(partial / "tokenizer")
        meter.begin("encoding", sum(scan.bytes for scan in train + validation))
        names: dict[str, Any] = {"train": [], "validation": []}
        for number, scan in enumerate(train):
            names["train"].append(f"train-{number}")
            held = f"validation-{number}" if scan.threshold else None
            names["validation"] += [held] if held else []
            _encode(scan, tokenizer, partial / f"train-{number}", partial / held if held else None, meter)
        for number, scan in enumerate(validation):
            names["validation"].append(f"validation-{number}")
            _encode(scan, tokenizer, partial / f"validation-{number}", None, meter)
    return names


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What a first pass learnt of a source. A document is held out where its hash is below `threshold`."""

    source: SourceConfig
    documents: int
    bytes: int
    threshold: int
    seed: int

    def holds_out(self, document: Document) -> bool:
        return _hash(document, self.seed) < self.threshold


def _hash(document: Document, seed: int) -> int:
    return hash_of(document.text if document.target is None else f"{document.text}\0{document.target}", seed)


def _scan(source: SourceConfig, seed: int, share: float, meter: Meter) -> _Scan:
    """Count the documents, and find the threshold that holds out `share` of them, but at least one."""
    meter.begin(f"reading {describe(source)}", None)
    count = size = highest = 0
    lowest = HASHES
    for document in documents(source):
        number = _hash(document, seed)
        lowest, highest = min(lowest, number), max(highest, number)
        count += 1
        size += _size(document)
        meter.advance(_size(document))
    if not count:
        raise UserError(f"data source '{describe(source)}': no documents (no text, or nothing but blank text)")
    threshold = threshold_of(lowest, highest, share)
    return _Scan(source=source, documents=count, bytes=size, threshold=threshold, seed=seed)


def _size(document: Document) -> int:
    return len(document.text.encode()) + len((document.target or "").encode())


def _sample(config: DataConfig, scans: list[_Scan], meter: Meter) -> Iterator[str]:
    """The training text that the tokenizer learns from: all of it, or pieces drawn by hash up to about `sample_bytes`."""
    total = sum(scan.bytes for scan in scans)
    bound = round(min(1.0, config.tokenizer.sample_bytes / total) * HASHES)
    meter.begin("learning the tokenizer", min(total, config.tokenizer.sample_bytes))
    first = True
    for scan in scans:
        for document in documents(scan.source):
            if scan.holds_out(document):
                continue
            for piece in (piece for text in (document.text, document.target) if text for piece in pieces(text)):
                if first or _hash(Document(piece), config.seed + 1) < bound:
                    first = False
                    meter.advance(len(piece.encode()))
                    yield piece


def _encode(scan: _Scan, tokenizer: Tokenizer, kept: Path, held: Path | None, meter: Meter) -> None:
    pairs = scan.source.is_paired
    with ExitStack() as stack:

        def writer(directory: Path) -> ShardWriter:
            return stack.enter_context(
                ShardWriter(directory, dtype=tokenizer.dtype, tokenizer=tokenizer.fingerprint, pairs=pairs)
            )

        writers = [writer(kept)] + ([writer(held)] if held else [])
        for batch in _batches(documents(scan.source)):
            texts = tokenizer.encode_batch([document.text for document in batch])
            targets = tokenizer.encode_batch([document.target or "" for document in batch]) if pairs else None
            tokens = 0
            for number, document in enumerate(batch):
                ids, split = texts[number], None
                if targets is not None:
                    ids, split = np.concatenate([ids, targets[number]]), len(ids)
                tokens += len(ids)
                if len(ids) and split != 0 and split != len(ids):  # a text may normalise to nothing
                    writers[scan.holds_out(document)].add(ids, _size(document), split)
            meter.advance(sum(_size(document) for document in batch), tokens)
    for directory in [kept] + ([held] if held else []):
        if not Shards.open(directory, verify=False).documents:
            raise UserError(f"data source '{describe(scan.source)}': no tokens in the documents of {directory.name}")


def _batches(stream: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    waiting = 0
    for document in stream:
        batch.append(document)
        waiting += len(document.text) + len(document.target or "")
        if waiting >= _BATCH_BYTES:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch


def _report(config: DataConfig, directory: Path, summary: dict[str, Any]) -> str:
    """What was prepared: a line for each source and split."""
    lines = [f"data: prepared in {summary['seconds']:.1f} s, kept in {directory}"]
    for names, sources in (
        (summary["train"], config.train),
        (summary["validation"], config.validation or config.train),
    ):
        for name in names:
            split, _, number = name.rpartition("-")
            manifest = Shards.open(directory / name, verify=False).manifest
            lines.append(
                f"  {split:<10} {describe(sources[int(number)])}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, "
                f"{manifest.tokens:,} tokens, {manifest.bytes_per_token:.2f} bytes/token"
            )
    return "\n".join(lines)

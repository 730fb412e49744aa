"""Token files on disk, read through memory maps; a half-written or altered one is refused by name.

A directory of shards holds, all little-endian:

    00000.bin      the ids of its documents one after the other: uint16, or uint32 for vocabularies beyond 65,536
    00000.idx      int64: n+1 offsets into the .bin (ids), n document sizes (bytes of UTF-8 text) and, for pairs,
                   n split positions (ids before the target)
    00001.bin ...  further files, once one is full
    manifest.json  counts, dtype, the tokenizer's fingerprint, and size and SHA-256 of every file; written last
    verified.json  sizes and times of change under which the checksums were last found right

Opening always compares sizes. Checksums are compared as well where all files together stay below 1 GB, and beyond
that whenever a file's size or time of change is not the one in verified.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from triune.errors import UserError

VERSION = 1
_MANIFEST = "manifest.json"
_STAMPS = "verified.json"
_ALWAYS_VERIFIED = 10**9  # bytes; about a second of hashing
_FILE_BYTES = 2**30
_INDEX = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a directory of shards holds. `files` maps each file name to its size in bytes and its SHA-256."""

    documents: int
    tokens: int
    bytes: int  # of UTF-8 text
    dtype: str
    pairs: bool
    tokenizer: str  # fingerprint
    file_documents: list[int] = field(default_factory=list)  # documents in each .bin
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = VERSION

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each id (special tokens are not stored and not counted)."""
        return self.bytes / self.tokens

    @property
    def fingerprint(self) -> str:
        """Digest of the contents: equal for equal ids, wherever and whenever they were written."""
        sums = [f"{name} {entry['sha256']}" for name, entry in sorted(self.files.items())]
        return hashlib.sha256("\n".join([self.dtype, self.tokenizer, *sums]).encode()).hexdigest()


@contextmanager
def room_on_disk(directory: Path) -> Iterator[None]:
    """Turn "no space left" into a UserError that names the directory."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"no room on disk under {directory} ({error.strerror}): free some, or set data.cache to a larger disk; "
            "nothing half-written is used"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, force it to the disk, rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def sync_directory(directory: Path) -> None:
    """Force the names in `directory` to the disk, so that a rename survives a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ShardWriter:
    """Writes documents into `directory`; only leaving the `with` block without an error makes the shards readable.

    Args:
        directory: made if it is missing; must hold no shards.
        dtype: uint16 or uint32.
        tokenizer: fingerprint of the tokenizer.
        pairs: whether every document has a split position.
        file_bytes: size at which the next file begins.
    """

    def __init__(
        self, directory: Path, *, dtype: np.dtype, tokenizer: str, pairs: bool = False, file_bytes: int = _FILE_BYTES
    ) -> None:
        self._directory = directory
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._file_bytes = file_bytes
        self._lengths: list[int] = []
        self._sizes: list[int] = []
        self._splits: list[int] = []
        self._file_documents: list[int] = []
        self._files: dict[str, dict[str, Any]] = {}
        self._tokens = self._bytes = 0
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / _MANIFEST).exists():
            raise FileExistsError(f"{directory} holds shards already")
        self._begin()

    def _begin(self) -> None:
        self._stream = open(self._path("bin.partial"), "wb")  # noqa: SIM115  (open across calls; closed in _finish)
        self._digest = hashlib.sha256()

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{len(self._file_documents):05d}.{suffix}"

    def add(self, ids: np.ndarray, size: int, split: int | None = None) -> None:
        """Append a document of `size` bytes; `split` is the number of ids before the target of a pair."""
        if (split is not None) != self._pairs:
            raise ValueError("every document of a pair source has a split position, and no other has")
        data = np.ascontiguousarray(ids, dtype=self._dtype).tobytes()
        self._stream.write(data)
        self._digest.update(data)
        self._lengths.append(len(ids))
        self._sizes.append(size)
        if split is not None:
            self._splits.append(split)
        self._tokens += len(ids)
        self._bytes += size
        if self._stream.tell() >= self._file_bytes:
            self._finish()
            self._begin()

    def _finish(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        binary = self._path("bin")
        os.replace(self._path("bin.partial"), binary)
        self._record(binary, self._digest.hexdigest())
        offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        index = np.concatenate([offsets, self._sizes, self._splits]).astype(_INDEX).tobytes()
        write_atomically(self._path("idx"), index)
        self._record(self._path("idx"), hashlib.sha256(index).hexdigest())
        self._file_documents.append(len(self._lengths))
        self._lengths, self._sizes, self._splits = [], [], []

    def _record(self, path: Path, digest: str) -> None:
        self._files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError):
                self._stream.close()
            return
        if self._lengths or not self._file_documents:
            self._finish()
        else:  # the last document filled its file: drop the one begun after it
            self._stream.close()
            self._path("bin.partial").unlink()
        manifest = Manifest(
            documents=sum(self._file_documents),
            tokens=self._tokens,
            bytes=self._bytes,
            dtype=self._dtype.str,
            pairs=self._pairs,
            tokenizer=self._tokenizer,
            file_documents=self._file_documents,
            files=self._files,
        )
        write_atomically(self._directory / _MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
        _write_stamps(self._directory, manifest)
        sync_directory(self._directory)


class Shards:
    """The documents of one source and split, by number, without loading them. Made by `Shards.open`.

    Pickles as its directory, so that loader workers map the files anew instead of receiving their contents.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._first = np.concatenate([[0], np.cumsum(manifest.file_documents, dtype=np.int64)])  # [files + 1]
        self._ids = [self._map(file, "bin", np.dtype(manifest.dtype)) for file in range(len(manifest.file_documents))]
        self._index = [self._map(file, "idx", _INDEX) for file in range(len(manifest.file_documents))]

    @classmethod
    def open(cls, directory: str | Path, *, verify: bool | None = None) -> Shards:
        """Open shards. `verify` forces (True) or skips (False) the comparison of checksums; None decides by the rule above.

        Raises UserError, naming the file, where one is missing, half-written, altered or of another version.
        """
        folder = Path(directory)
        manifest = _read_manifest(folder)
        for name, entry in manifest.files.items():
            _check_size(folder / name, entry["bytes"])
        if verify is None:
            total = sum(entry["bytes"] for entry in manifest.files.values())
            verify = total < _ALWAYS_VERIFIED or _read_stamps(folder) != _stamps(folder, manifest)
        if verify:
            for name, entry in manifest.files.items():
                _check_content(folder / name, entry["sha256"])
            if _read_stamps(folder) != _stamps(folder, manifest):
                with suppress(OSError):  # a read-only copy is verified each time
                    _write_stamps(folder, manifest)
        return cls(folder, manifest)

    def _map(self, file: int, suffix: str, dtype: np.dtype) -> np.ndarray:
        path = self.directory / f"{file:05d}.{suffix}"
        if path.stat().st_size == 0:
            return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Shards, (self.directory, self.manifest))

    def __len__(self) -> int:
        return self.documents

    @property
    def documents(self) -> int:
        """N, the number of documents."""
        return self.manifest.documents

    @property
    def tokens(self) -> int:
        """Ids in all documents, without special tokens."""
        return self.manifest.tokens

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each id."""
        return self.manifest.bytes_per_token

    @cached_property
    def lengths(self) -> np.ndarray:
        """[N] int64: ids in each document."""
        return self._concatenated([np.diff(index[: n + 1]) for index, n in self._parts()])

    @cached_property
    def sizes(self) -> np.ndarray:
        """[N] int64: bytes of UTF-8 text in each document (both texts of a pair)."""
        return self._concatenated([index[n + 1 : 2 * n + 1] for index, n in self._parts()])

    @cached_property
    def splits(self) -> np.ndarray | None:
        """[N] int64: ids before the target in each pair; None where documents are single texts."""
        if not self.manifest.pairs:
            return None
        return self._concatenated([index[2 * n + 1 :] for index, n in self._parts()])

    def _parts(self) -> Iterator[tuple[np.ndarray, int]]:
        return zip(self._index, self.manifest.file_documents, strict=True)

    @staticmethod
    def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def ids(self, document: int) -> np.ndarray:
        """[n] unsigned ids of a document, a read-only view of the file. IndexError outside 0..N-1."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        file = int(np.searchsorted(self._first, document, side="right")) - 1
        local = document - int(self._first[file])
        start, end = self._index[file][local : local + 2]
        return self._ids[file][start:end]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.ids(document) for document in range(self.documents))

    def check_tokenizer(self, fingerprint: str) -> None:
        """UserError unless these ids were made by the tokenizer with that fingerprint."""
        if fingerprint != self.manifest.tokenizer:
            raise UserError(
                f"{self.directory}: these shards were made with tokenizer {self.manifest.tokenizer[:12]}, not with "
                f"{fingerprint[:12]}: their ids mean other tokens. Prepare the data again with this tokenizer"
            )


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; delete {path.parent} and prepare the data again")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    try:
        data = json.loads(path.read_bytes())
        if data.get("version") != VERSION:
            raise _refused(path, f"shards of format {data.get('version')}, and this version reads format {VERSION}")
        return Manifest(**data)
    except FileNotFoundError as error:
        raise _refused(path, "missing, so these shards were not finished") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise _refused(path, f"damaged ({error})") from error


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise _refused(path, "missing, though the manifest names it")
    if path.stat().st_size != expected:
        raise _refused(path, f"half-written: {path.stat().st_size:,} bytes where the manifest has {expected:,}")


def _check_content(path: Path, expected: str) -> None:
    with open(path, "rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
            raise _refused(path, "altered since it was written (its checksum differs from the manifest's)")


def _stamps(folder: Path, manifest: Manifest) -> dict[str, list[int]]:
    stats = {name: (folder / name).stat() for name in manifest.files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _read_stamps(folder: Path) -> Any:
    try:
        return json.loads((folder / _STAMPS).read_bytes())
    except (OSError, ValueError):
        return None


def _write_stamps(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / _STAMPS, json.dumps(_stamps(folder, manifest)).encode())

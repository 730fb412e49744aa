"""A GGUF file as it lies on disk: metadata, and tensors that are de-quantized when asked for.

The format (ggml's docs/gguf.md, versions 2 and 3, little endian): magic, version, two counts, metadata, one entry a tensor, and the
numbers, each tensor at a multiple of the alignment. The header is read here, since the `gguf` package takes 7 s for the 98,000 strings of
a vocabulary of 49,152 where this takes 0.1 s, and does not check bounds; the package says how numbers are packed, and unpacks them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # type -> struct's
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4  # ggml's own limit


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file, by its ending."""
    return Path(path).suffix.lower() == ".gguf"


@dataclass(frozen=True)
class Packed:
    """A tensor in the file.

    Args:
        shape: as torch and NumPy have it; the file's dimensions are in the other order.
        kind: the number of its quantization.
        start: its first byte in the file.
        size: its bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GgufFile:
    """A GGUF file. Nothing but its header is read until `values` is called.

    Args:
        path: the file.

    Raises UserError where it is missing, no GGUF file, of another version, truncated, damaged, one of several parts, or has a
    quantization that cannot be unpacked; and where the `gguf` package is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._gguf = _package(path)
        try:
            content = self.path.read_bytes() if self.path.stat().st_size < 24 else self._mapped()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        self._content = content
        if content[:4] != _MAGIC:
            raise UserError(
                f"{path}: is no GGUF file: it begins with {bytes(content[:4])!r}, which must be {_MAGIC!r}; fetch it again"
            )
        header = _Header(content)
        try:
            self.version, count, keys = header.numbers("IQQ")
            if self.version not in _VERSIONS:
                raise UserError(f"{path}: is GGUF version {self.version}, but triune reads 2 and 3, little endian")
            self.metadata: dict[str, Any] = {}
            for _ in range(keys):
                key = header.string()
                self.metadata[key] = header.value(*header.numbers("I"))
            entries = [header.tensor() for _ in range(count)]
        except (struct.error, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise UserError(
                f"{path}: its header is truncated or damaged at byte {header.at:,} of {len(content):,}: fetch it again"
            ) from error
        if (parts := self.metadata.get("split.count", 1)) not in (0, 1):
            raise UserError(f"{path}: is one of {parts} parts; join them first (llama-gguf-split --merge)")
        self.tensors = self._placed(entries, header.at)

    def values(self, name: str) -> np.ndarray:
        """[shape] fp32 and writable: the numbers of a tensor. UserError where one of them is not finite."""
        import numpy as np

        packed = self.tensors[name]
        rows = np.frombuffer(self._content, dtype=np.uint8, count=packed.size, offset=packed.start)
        kind = self._gguf.GGMLQuantizationType(packed.kind)
        plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
        if plain is not None:
            found = rows.view(plain).reshape(packed.shape).astype(np.float32)
        else:
            width = packed.size // max(1, prod(packed.shape[:-1]))
            found = self._gguf.dequantize(rows.reshape(*packed.shape[:-1], width), kind)
        finite = np.isfinite(found)
        if not finite.all():
            raise UserError(
                f"{self.path}: {name}: {int((~finite).sum())} of {found.size} numbers are NaN or infinite: the file is damaged; "
                "fetch it again"
            )
        return np.ascontiguousarray(found, dtype=np.float32)

    def _mapped(self) -> Any:
        import mmap

        with self.path.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def _placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], end: int) -> dict[str, Packed]:
        """Where each tensor is, once all are found to lie in the file and apart from one another."""
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise UserError(f"{self.path}: general.alignment is {alignment!r}, but it must be a power of two")
        start = -(-end // alignment) * alignment
        tensors: dict[str, Packed] = {}
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise UserError(f"{self.path}: {name}: is there twice: the file is damaged; fetch it again")
            tensors[name] = Packed(shape, kind, start + offset, self._size(name, shape, kind))
        ordered = sorted(tensors.items(), key=lambda item: item[1].start)
        for (before, one), (name, other) in pairwise(ordered):
            if other.start < one.start + one.size:
                raise UserError(f"{self.path}: {name}: begins inside {before}: the file is damaged; fetch it again")
        for name, packed in ordered:
            if packed.start + packed.size > len(self._content):
                raise UserError(
                    f"{self.path}: {name}: ends at byte {packed.start + packed.size:,}, but the file has {len(self._content):,}: "
                    "truncated or damaged; fetch it again"
                )
        return tensors

    def _size(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        """Bytes of a tensor; UserError for a quantization that cannot be unpacked."""
        import numpy as np

        known = self._gguf.GGMLQuantizationType
        try:
            block, width = self._gguf.GGML_QUANT_SIZES[known(kind)]
            if known(kind).name not in ("F32", "F16"):
                self._gguf.dequantize(np.zeros((1, width), dtype=np.uint8), known(kind))
        except (ValueError, KeyError, NotImplementedError) as error:
            label = known(kind).name if kind in known.__members__.values() else f"number {kind}"
            raise UserError(
                f"{self.path}: {name}: is quantized as {label}, which gguf {_version()} cannot unpack; "
                "update the gguf package, or take a version of the model in another quantization (Q8_0, F16)"
            ) from error
        if shape[-1] % block:
            raise UserError(f"{self.path}: {name}: rows of {shape[-1]} are no whole blocks of {block}: fetch it again")
        return prod(shape) // block * width


class _Header:
    """Reads the header of a file from the front; an error of `struct` where the file ends."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.at = len(_MAGIC)

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self.content, self.at)
        self.at += struct.calcsize("<" + form)
        return found

    def string(self) -> str:
        (length,) = self.numbers("Q")
        end = self.at + length
        if end > len(self.content):
            raise ValueError("a string ends beyond the file")
        text = self.content[self.at : end].decode("utf-8")
        self.at = end
        return str(text)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"metadata of type {kind}")
        inner, count = self.numbers("IQ")
        if count > len(self.content):  # each element takes a byte at least: nothing is reserved for a count that lies
            raise ValueError("an array ends beyond the file")
        if inner in _SCALARS:
            return list(self.numbers(f"{count}{_SCALARS[inner]}"))
        return [self.value(inner) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, quantization, offset from the first tensor)."""
        name = self.string()
        (dimensions,) = self.numbers("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        kind, offset = self.numbers("IQ")
        return name, tuple(reversed(shape)), kind, offset


def _package(path: object) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"{path}: reading a GGUF file needs the gguf package: pip install 'triune[gguf]'") from error
    return gguf


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")

"""Weights in files of Hugging Face's layout: headers checked before a number is read, nothing half-written, no pickle executed.

A safetensors file is a length (8 bytes, little endian), a JSON header of that length (name -> dtype, shape, offsets) and the
numbers, end to end. It has no checksum: a flipped bit among the numbers can be told only where it makes one that is not finite,
or where a `parity.json` beside the file has its SHA-256, as every export and import of ours does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triune.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROOF = "parity.json"
_PICKLE = "pytorch_model.bin"
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class Held:
    """A tensor in a file: where it is and its shape, not yet its numbers."""

    file: Path
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of a directory, by name: shapes at once, numbers when asked for.

    Args:
        directory: holds `model.safetensors`, shards with their index, or, failing these, `pytorch_model.bin`.

    Raises UserError, naming file and tensor, where a file is missing, truncated or not what its header says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pickled: dict[str, Tensor] = {}
        files, self.listed = _files_of(directory)
        self.files = files
        self.held: dict[str, Held] = {}
        for file in files:
            shapes = self._unpickle(file) if file.suffix == ".bin" else _header(file)
            self.held |= {name: Held(file, shape) for name, shape in shapes.items()}
        for name, shard in self.listed.items():
            if name not in self.held or self.held[name].file.name != shard:
                raise UserError(
                    f"{directory / shard}: {name}: the index lists it there, but the file has no such tensor"
                )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: held.shape for name, held in self.held.items()}

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors, all of them or `names`.

        Raises UserError for numbers that are not finite, or in a file that is not the one its parity.json was made of.
        """
        self._check_sums()
        wanted = set(self.held if names is None else names)
        found = {name: tensor for name, tensor in self._pickled.items() if name in wanted}
        for file in self.files:
            if file.suffix == ".safetensors":
                found |= _numbers(file, wanted)
        for name, tensor in found.items():
            _check_finite(self.held[name].file, name, tensor)
        return found

    def _unpickle(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            with warnings.catch_warnings(action="ignore"):  # of a pickle's protocol, just before it is refused
                state = torch.load(file, map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # a foreign pickle makes it raise anything; SystemExit and the like can't come: no code runs
            raise UserError(
                f"{file}: is no plain file of weights: torch.load(weights_only=True) refused it, so that no code in it has run; "
                "take the safetensors version of this model"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(
                f"{file}: holds something else than tensors by name; take the safetensors version of this model"
            )
        self._pickled |= state
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def _check_sums(self) -> None:
        proof = self.directory / PROOF
        if not proof.is_file():
            return
        for name, expected in read_json(proof).get("files", {}).items():
            file = self.directory / name
            if file.is_file() and checksum(file) != expected:
                raise UserError(
                    f"{file}: is not the file that {proof.name} beside it was made of (its SHA-256 differs): it is damaged, or was "
                    f"written anew; fetch it again or, if it was changed on purpose, delete {proof}"
                )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file; UserError where it is missing, damaged or holds numbers that are not finite."""
    if not file.is_file():
        raise UserError(f"{file}: is missing")
    tensors = _numbers(file, _header(file))
    for name, tensor in tensors.items():
        _check_finite(file, name, tensor)
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: holds a {type(values).__name__}, but must hold a JSON object")
    return values


def checksum(file: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def draft_of(directory: Path) -> Iterator[Path]:
    """A new directory that takes the name `directory` at the end, in place of what was there; on an error nothing is left of it."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file, but a directory is to be written there; give another name")
    draft = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    draft.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def write_weights(tensors: Mapping[str, Tensor], directory: Path, *, shard_size: int) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `shard_size` bytes with their index; the files of weights."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_size
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = shard_size
        shards[-1][name] = tensor.contiguous()
        room -= size
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
        listed = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name, metadata={"format": "pt"})
    return [directory / name for name in names]


def _files_of(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Files of weights, and tensor -> file name where an index says so; safetensors first, a pickle only where there are none."""
    for name in (WEIGHTS, _PICKLE):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name], {}
        if index.is_file():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise UserError(f"{index}: has no weight_map (tensor -> file)")
            for tensor, file in listed.items():
                if Path(str(file)).name != file or not (directory / file).is_file():
                    raise UserError(
                        f"{directory / str(file)}: this shard is missing; {index.name} lists {tensor} there"
                    )
            return [directory / file for file in dict.fromkeys(listed.values())], listed
    raise UserError(f"{directory}: holds no weights ({WEIGHTS}, its shards with {WEIGHTS}.index.json, or {_PICKLE})")


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, once its header has been found to be true of the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise UserError(
                f"{file}: is truncated or damaged: {size:,} bytes, but its header claims {length:,}; fetch it again"
            )
        try:
            header = json.loads(opened.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: its header is damaged ({error}); fetch it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{file}: its header is damaged: no JSON object; fetch it again")
    header.pop("__metadata__", None)
    spans = {name: _span(file, name, facts) for name, facts in header.items()}
    _check_spans(file, spans, size - 8 - length)
    return {name: tuple(facts["shape"]) for name, facts in header.items()}


def _check_finite(file: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{file}: {name}: {bad} of {tensor.numel()} numbers are NaN or infinite: the file is damaged, or its training "
            "diverged; fetch it again or take another checkpoint"
        )


def _numbers(file: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """The wanted tensors of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if name in wanted}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: is damaged: {error}; fetch it again") from error


def _span(file: Path, name: str, facts: Any) -> tuple[int, int]:
    """Where a tensor's numbers begin and end; UserError where dtype, shape and offsets do not agree."""
    try:
        dtype, shape, (start, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
        whole = all(type(value) is int and value >= 0 for value in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {name}: its entry in the header is damaged ({facts}); fetch it again") from error
    if dtype not in _SIZES:
        raise UserError(
            f"{file}: {name}: its dtype is {dtype!r}, but triune reads {', '.join(_SIZES)}; take a version of the model that is "
            "not quantized, or fetch it again if it is damaged"
        )
    if not whole or prod(shape) * _SIZES[dtype] != end - start:
        raise UserError(
            f"{file}: {name}: shape {shape} of {dtype} does not fill bytes {start} to {end}: fetch it again"
        )
    return start, end


def _check_spans(file: Path, spans: Mapping[str, tuple[int, int]], size: int) -> None:
    ordered = sorted(spans.items(), key=lambda item: item[1])
    for (_, (_, end)), (name, (start, _)) in pairwise([("", (0, 0)), *ordered]):
        if start != end:
            raise UserError(
                f"{file}: {name}: begins at byte {start}, but the tensor before it ends at {end}: fetch it again"
            )
    if ordered and ordered[-1][1][1] != size:
        name, (_, end) = ordered[-1]
        raise UserError(
            f"{file}: {name}: ends at byte {end} of the numbers, but the file has {size}: truncated or damaged; fetch it again"
        )

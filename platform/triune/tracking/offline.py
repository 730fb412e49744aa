"""Reads back what wandb wrote to disk, to know how far a run that was killed had come.

A `.wandb` file is a 7-byte header, then records in the framing of LevelDB's log (blocks of 32 KiB; each fragment is a CRC-32,
a length, a kind and its bytes), each holding one protocol buffer. wandb writes it in bursts of up to 15 seconds, so that the
file of a killed run ends early, or in the middle of a record: reading stops there.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32 * 1024
_FRAGMENT = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def files(run_directory: str | os.PathLike[str], run_id: str) -> list[Path]:
    """The `.wandb` files of every part of the run that is on this disk, oldest first."""
    found = (Path(run_directory) / "wandb").glob(f"*run-[0-9]*-{run_id}*/run-{run_id}.wandb")
    # the folder's name holds the time at which the part was started
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def records(path: Path) -> Iterator[Any]:
    """The `wandb_internal_pb2.Record`s of one file, up to the first that is not whole."""
    from wandb.proto import wandb_internal_pb2

    message: Any = wandb_internal_pb2
    data = path.read_bytes()
    position, body = _HEADER, b""
    while position + _FRAGMENT.size <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _FRAGMENT.size:  # too little for a fragment: the rest of the block is padding
            position += room
            continue
        checksum, length, kind = _FRAGMENT.unpack_from(data, position)
        start = position + _FRAGMENT.size
        fragment = data[start : start + length]
        if len(fragment) < length or checksum != zlib.crc32(fragment, zlib.crc32(bytes([kind]))):
            return
        body = fragment if kind in (_FULL, _FIRST) else body + fragment
        position = start + length
        if kind in (_FULL, _LAST):
            yield message.Record.FromString(body)


def last_step(run_directory: str | os.PathLike[str], run_id: str) -> int | None:
    """The largest step that the run's files on this disk hold; None where they hold none."""
    steps = [
        record.history.step.num
        for path in files(run_directory, run_id)
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
    return max(steps, default=None)

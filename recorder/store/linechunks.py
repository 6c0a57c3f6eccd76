"""Chunks of JSON lines: what API events and looks are kept in. A line belongs to an id, and ids rise. Pure.

A chunk is one of the format that recordings have (`chunk.py`). Its frames hold whole lines, and the times of a frame
are those of its first and last id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from recorder.model import id_time
from recorder.store.chunk import (
    FOOTER,
    DamagedChunkError,
    Frame,
    assemble,
    frame_rows,
    pack,
    read_trailer,
    trailer_size,
    unpack,
)

# Bytes of a frame's text.
FRAME = 128 << 10


def beginning(what: str, day: str) -> str:
    """What the first chunk of a day names as the one before it. what: of which kind the lines are."""
    return hashlib.sha256(f"recorder {what} 1\n{day}".encode()).hexdigest()


def write_lines(lines: Iterable[tuple[str, bytes]], meta: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """A chunk of lines with their ids, and its SHA-256. meta: what its trailer says besides. previous: the SHA-256 of
    the chunk before it, or `beginning`."""
    frames: list[Frame] = []
    gathered: list[tuple[str, bytes]] = []
    size = 0
    for identifier, line in lines:
        gathered.append((identifier, line))
        size += len(line)
        if size >= FRAME:
            frames.append(_frame(gathered))
            gathered, size = [], 0
    if gathered:
        frames.append(_frame(gathered))
    data, row = assemble(frames, meta, seq=0, offset=0, previous=previous)
    return data, row.sha256


def _frame(lines: list[tuple[str, bytes]]) -> Frame:
    text = b"".join(line for _, line in lines)
    return Frame(pack(text), len(text), id_time(lines[0][0]), id_time(lines[-1][0]), len(lines))


def read_lines(data: bytes) -> list[bytes]:
    """The lines of a chunk. Raises one of DAMAGES."""
    rows = frame_rows(read_trailer(data), len(data) - trailer_size(data[-FOOTER:]))
    return b"".join(unpack(data[row.position : row.position + row.packed], row.size) for row in rows).splitlines()


# What `read_lines`, and reading JSON out of the lines, may raise for a chunk that is damaged.
DAMAGES = (DamagedChunkError, ValueError, KeyError, TypeError, RecursionError)

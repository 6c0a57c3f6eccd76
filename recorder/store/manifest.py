"""recording.json: what a recording that is over is, in one small object beside its chunks. Pure.

It is written last, so where it is there everything is there. The header line stands in it as it was sent. `head` is the
SHA-256 of the last chunk: with the chain inside of the chunks it stands for every byte of the recording.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recorder.model import End, Recording, Source, id_day, parse_json
from recorder.store.chunk import ChunkRow, chunk_name
from recorder.store.errors import DamagedError

MANIFEST = "recording.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A recording that is over, and its chunks."""

    recording: Recording
    header_line: bytes
    chunks: tuple[ChunkRow, ...]
    head: str


def folder(identifier: str) -> str:
    """Where the parts of a recording are. Raises ValueError for what is no id."""
    return f"recordings/{id_day(identifier)}/{identifier}"


def manifest_key(identifier: str) -> str:
    """The key of its recording.json. Raises ValueError for what is no id."""
    return f"{folder(identifier)}/{MANIFEST}"


def chunk_key(identifier: str, seq: int) -> str:
    """The key of a chunk. Raises ValueError for what is no id."""
    return f"{folder(identifier)}/{chunk_name(seq)}"


def parse_header(line: bytes, *, sent: bool = False) -> dict[str, Any]:
    """The header of a cast. sent: just now, so that it may still be refused. Raises ValueError for what is none of
    version 2."""
    try:
        header = parse_json(line) if sent else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the first line is {error if sent else 'not JSON'}") from None
    if not isinstance(header, dict) or header.get("version") != 2 or isinstance(header["version"], bool):
        raise ValueError("the first line is not the header of an asciicast of version 2")
    return header


def write_manifest(recording: Recording, header_line: bytes, chunks: Sequence[ChunkRow], head: str) -> bytes:
    """recording.json."""
    value = {
        "version": 1,
        "id": recording.id,
        "header": header_line.decode("utf-8", "surrogateescape"),
        "source": recording.source.values(),
        "started": recording.started,
        "ended": recording.ended,
        "end": recording.end.value,
        "size": recording.size,
        "duration": recording.duration,
        "events": recording.events,
        "damaged": recording.damaged,
        "head": head,
        "chunks": [row.values() for row in chunks],
    }
    return json.dumps(value, separators=(",", ":")).encode()


def read_manifest(data: bytes, identifier: str) -> Manifest:
    """recording.json. Raises DamagedError for what is none, or another recording's."""
    try:
        value = json.loads(data)
        if value["version"] != 1 or value["id"] != identifier:
            raise ValueError("another one")
        header_line = str(value["header"]).encode("utf-8", "surrogateescape")
        recording = Recording(
            id=identifier,
            header=parse_header(header_line),
            source=Source.of(value["source"]),
            started=float(value["started"]),
            ended=None if value["ended"] is None else float(value["ended"]),
            end=End(value["end"]),
            size=int(value["size"]),
            duration=float(value["duration"]),
            events=int(value["events"]),
            damaged=bool(value["damaged"]),
        )
        return Manifest(recording, header_line, tuple(map(ChunkRow.of, value["chunks"])), str(value["head"]))
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise DamagedError(f"the manifest of {identifier} cannot be read") from None

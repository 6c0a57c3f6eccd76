"""What is in a store, to be signed as it stands there, where nobody has it in memory any more as it was put."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog

from recorder.model import id_day, is_id
from recorder.proof.days import is_day
from recorder.proof.documents import Part, Sealed
from recorder.proof.parts import hash_of, look
from recorder.store.blobs import Blobs

_log = structlog.get_logger(__name__)


async def seal(blobs: Blobs, identifier: str, origin: str) -> Sealed | None:
    """A recording by what is in the store, each byte of it read; None for one that is not over. Raises StoreError."""
    looked = await look(blobs, identifier)
    recording = looked.recording
    if recording is None or recording.ended is None:
        return None
    if looked.fault:
        _log.error("recording_faulty_when_sealed", recording=identifier, fault=looked.fault)
    return Sealed(
        id=identifier,
        ended=recording.ended,
        end=recording.end.value,
        size=recording.size,
        header="" if looked.encrypted else looked.header,
        head="" if looked.encrypted else looked.head,
        parts=tuple(looked.parts),
        fault=looked.fault,
        origin=origin,
    )


async def recordings_of(raw: Blobs) -> AsyncIterator[str]:
    """The ids of all recordings. Raises StoreError."""
    for day in [name.rstrip("/") async for name, _ in raw.names("recordings")]:
        if is_day(day):
            for name in [name.rstrip("/") async for name, _ in raw.names(f"recordings/{day}")]:
                if is_id(name) and id_day(name) == day:
                    yield name


async def events_of(raw: Blobs) -> AsyncIterator[Part]:
    """All chunks of API events. Raises StoreError."""
    for day in [name.rstrip("/") async for name, _ in raw.names("events")]:
        if is_day(day):
            for name in [name async for name, _ in raw.names(f"events/{day}")]:
                if (
                    is_id(name.removesuffix(".chunk"))
                    and (part := await part_of(raw, f"events/{day}/{name}")) is not None
                ):
                    yield part


async def part_of(raw: Blobs, key: str) -> Part | None:
    """A chunk of a day, by its key; None where it is not there. Raises StoreError."""
    try:
        data = await raw.get(key)
    except KeyError:
        return None
    return Part(key.partition("/")[2], len(data), await hash_of(data))

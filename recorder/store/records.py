"""What stands in the journal: batches of records, each batch whole or ignored. Pure.

    batch    magic "RJ01", length of what follows the head (u32), crc32 of number and payload (u32), number (u64)
    record   kind (u8), id (26 ASCII characters), offset (u64), length of the data (u32), the data

All numbers are big-endian. A batch is what one commit made safe, so it is the unit of damage too: the first batch of a
segment that is short, has another number than the one before plus one, or a wrong sum ends the segment. Nothing good
can follow it: the writer cuts a failed batch off, or else goes on in a new segment.

DATA carries cast bytes with their offset in the recording's text, so replaying a record twice changes nothing.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

_BATCH = struct.Struct(">4sIIQ")
_NUMBER = struct.Struct(">Q")
_RECORD = struct.Struct(">B26sQI")
_MAGIC = b"RJ01"
BATCH_HEAD = _BATCH.size

# Bytes from which on a batch is made in room that is there: smaller ones have small pieces, which are joined faster.
_ROOMY = 256 << 10
# Bytes of one batch: what is queued between two commits is bounded by backpressure to a part of this.
MAX_BATCH = 1 << 30


class Kind(enum.IntEnum):
    """BEGIN: JSON {"source", "started"}; the header line follows as DATA at 0. END: JSON {"end", "ended", "size"}.
    EVENT: one event as its JSON line. RUNNING: like BEGIN, of a recording that ran when the segment was begun.
    REMOVE: the recording is to be removed."""

    BEGIN = 1
    DATA = 2
    END = 3
    EVENT = 4
    RUNNING = 5
    REMOVE = 6


@dataclass(slots=True)
class Item:
    """One record to write. pieces: its data. size: their bytes."""

    kind: Kind
    id: str
    offset: int = 0
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read. data: a view into the batch; copy what is to be kept."""

    kind: Kind
    id: str
    offset: int
    data: memoryview


def head(kind: Kind, identifier: str, offset: int, size: int) -> bytes:
    """What stands before the data of a record."""
    return _RECORD.pack(kind, identifier.encode("ascii"), offset, size)


def seal(number: int, pieces: list[bytes], room: bytearray | None = None) -> memoryview:
    """A whole batch. pieces: the heads of its records and their data, in order. room: where it is made if it fits.

    It is put together before it is summed up: a sum over each of a thousand pieces would give up the interpreter's
    lock, and wait for it, a thousand times."""
    size = BATCH_HEAD + sum(map(len, pieces))
    if room is None or not _ROOMY <= size <= len(room):
        batch = memoryview(bytearray().join((bytes(BATCH_HEAD), *pieces)))
    else:
        batch = memoryview(room)[:size]
        at = BATCH_HEAD
        for piece in pieces:
            end = at + len(piece)
            batch[at:end] = piece
            at = end
    crc = zlib.crc32(batch[BATCH_HEAD:], zlib.crc32(_NUMBER.pack(number)))
    _BATCH.pack_into(batch, 0, _MAGIC, size - BATCH_HEAD, crc, number)
    return batch


class Reader:
    """Reads one segment, given in pieces, up to its end or its first damage.

    number: of the last whole batch, 0 before the first. damaged: bytes came that are no whole batch.
    """

    def __init__(self) -> None:
        self.number = 0
        self._buffer = bytearray()
        self._broken = False

    @property
    def damaged(self) -> bool:
        """Whether something is left that is no batch: a torn tail, if the segment has ended."""
        return self._broken or bool(self._buffer)

    def feed(self, data: bytes | bytearray) -> Iterator[list[Record]]:
        """The batches that are whole now, each as its records."""
        if self._broken:
            return
        self._buffer += data
        while len(self._buffer) >= BATCH_HEAD:
            magic, size, crc, number = _BATCH.unpack_from(self._buffer)
            if magic != _MAGIC or size > MAX_BATCH or (self.number and number != self.number + 1):
                self._broken = True
                return
            if len(self._buffer) < BATCH_HEAD + size:
                return
            payload = bytes(memoryview(self._buffer)[BATCH_HEAD : BATCH_HEAD + size])
            if zlib.crc32(payload, zlib.crc32(_NUMBER.pack(number))) != crc:
                self._broken = True
                return
            del self._buffer[: BATCH_HEAD + size]
            records = _records(payload)
            if records is None:
                self._broken = True
                return
            self.number = number
            yield records


def _records(payload: bytes) -> list[Record] | None:
    """The records of a batch, None where the sum is right and the contents make no sense."""
    view, position, records = memoryview(payload), 0, []
    while position < len(payload):
        if len(payload) - position < _RECORD.size:
            return None
        kind, identifier, offset, size = _RECORD.unpack_from(payload, position)
        position += _RECORD.size
        if len(payload) - position < size:
            return None
        try:
            records.append(Record(Kind(kind), identifier.decode("ascii"), offset, view[position : position + size]))
        except ValueError:
            return None
        position += size
    return records

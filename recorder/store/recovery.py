"""After a crash: what the journal holds and the chunks do not becomes chunks, and what was running is ended as CUT.

A recording is a candidate if the journal speaks of it (BEGIN, RUNNING, DATA, END) and it has no recording.json. Its
chunks are read and their chain is followed from the header on; where the chain breaks, the chunks from there on do not
count, since the journal is kept until a chunk is safe. Then the DATA records are played in order: what a chunk has is
skipped, what follows is appended. An END record gives the end that the sender was told; without one it is CUT, and so
it is where something was damaged and less is there than END speaks of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from k8sproxy.common.formats.asciicast import MAX_HEADER_LINE
from recorder.model import End, Source, is_id
from recorder.store.blobs import Blobs
from recorder.store.builder import Builder
from recorder.store.chunk import (
    FOOTER,
    ChunkRow,
    DamagedChunkError,
    FrameRow,
    frame_rows,
    origin,
    read_trailer,
    row_of,
    trailer_size,
    unpack,
)
from recorder.store.eventlog import Journaled
from recorder.store.journal import Journal
from recorder.store.ledger import Ledger
from recorder.store.live import Live
from recorder.store.logs import Log
from recorder.store.manifest import MANIFEST, chunk_key, folder, parse_header
from recorder.store.records import Kind, Reader, Record

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Found:
    """What the journal says of one recording. text: the bytes of DATA before a header line was complete."""

    source: Source = field(default_factory=lambda: Source("", ""))
    started: float = 0.0
    live: Live | None = None
    text: bytearray = field(default_factory=bytearray)
    end: dict[str, Any] | None = None
    skip: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """The chunks of a recording that are there and hang together. unfinished: the text behind their last line feed."""

    header_line: bytes
    chunks: tuple[ChunkRow, ...]
    head: str
    source: Source
    started: float
    unfinished: bytes


async def read_chunks(blobs: Blobs, identifier: str) -> Stored | None:
    """The chunks of a recording without a manifest, as far as their chain holds. None without a first one.
    Raises StoreError."""
    rows: list[ChunkRow] = []
    header_line, head, source, started, unfinished = b"", "", Source("", ""), 0.0, b""
    while True:
        try:
            data = await blobs.get(chunk_key(identifier, len(rows)))
        except KeyError:
            break
        try:
            trailer_bytes = trailer_size(data[-FOOTER:])
            trailer = read_trailer(data)
            row = row_of(trailer, size=len(data), trailer_bytes=trailer_bytes, sha256=hashlib.sha256(data).hexdigest())
            frames = frame_rows(trailer, len(data) - trailer_bytes)
            if not rows:
                header_line = b""
                for frame in frames:  # a header line of 64 KiB may be longer than a frame
                    header_line += unpack(data[frame.position : frame.position + frame.packed], frame.size)
                    if b"\n" in header_line or len(header_line) > MAX_HEADER_LINE:
                        break
                header_line = header_line[: header_line.find(b"\n") + 1]
                parse_header(header_line)
                head = origin(identifier, header_line)
                source, started = Source.of(trailer.get("source")), float(trailer.get("started", 0.0))
            expected = rows[-1].offset + rows[-1].size if rows else 0
            if trailer.get("previous") != head or row.seq != len(rows) or row.offset != expected:
                raise DamagedChunkError("the chain is broken")
            unfinished = _unfinished(unfinished, data, frames)
        except (DamagedChunkError, ValueError, TypeError, IndexError) as error:
            _log.warning("chunk_ignored", recording=identifier, seq=len(rows), why=str(error))
            break
        rows.append(row)
        head = row.sha256
    if not rows:
        return None
    return Stored(header_line, tuple(rows), head, source, started, unfinished)


def _unfinished(before: bytes, data: bytes, frames: Sequence[FrameRow]) -> bytes:
    """The text behind the last line feed, where `before` was it before this chunk. Raises DamagedChunkError."""
    pieces: list[bytes] = []
    for frame in reversed(frames):
        text = unpack(data[frame.position : frame.position + frame.packed], frame.size)
        feed = text.rfind(b"\n") + 1
        pieces.append(text[feed:])
        if feed:
            return b"".join(reversed(pieces))
    return before + b"".join(reversed(pieces))


class Recovery:
    """One replay. lives: the recordings that were not over, as they are now. events: those of the journal, in order.
    removals: what was to be removed. whole: recordings that the journal speaks of and that have their recording.json.

    A recording is in the ledger as soon as it has a header, so that the builder can work on it meanwhile."""

    def __init__(self, blobs: Blobs, journal: Journal, ledger: Ledger[Live], builder: Builder) -> None:
        self.lives: list[Live] = []
        self.events: list[Journaled] = []
        self.removals: set[str] = set()
        self.whole: list[str] = []
        self._blobs = blobs
        self._journal = journal
        self._ledger = ledger
        self._builder = builder
        self._found: dict[str, Found] = {}

    async def read(self, log: Log, segment: int, last: bool) -> None:
        """Take in one segment; they come in order. Raises StoreError."""
        reader = Reader()
        async for piece in log.read(segment):
            for batch in reader.feed(piece):
                for record in batch:
                    await self._record(record, segment)
                await self._builder.relieved(self._ledger.pressure.MAX_HELD // 2)
        if reader.damaged:
            _log.warning("journal_tail_ignored", segment=segment, last=last)

    async def _record(self, record: Record, segment: int) -> None:
        if not is_id(record.id):
            return
        if record.kind is Kind.EVENT:
            self.events.append(Journaled(record.id, bytes(record.data), segment))
            return
        if record.kind is Kind.REMOVE:
            self.removals.add(record.id)
            return
        found = self._found.get(record.id)
        if found is None:
            found = self._found[record.id] = await self._find(record.id)
        if found.skip:
            return
        match record.kind:
            case Kind.BEGIN | Kind.RUNNING:
                meta = json.loads(bytes(record.data))
                found.source, found.started = Source.of(meta["source"]), float(meta["started"])
                if found.live is not None:
                    found.live.source, found.live.started = found.source, found.started
            case Kind.DATA:
                self._data(record, found, segment)
            case Kind.END:
                found.end = json.loads(bytes(record.data))

    async def _find(self, identifier: str) -> Found:
        try:
            await self._blobs.size(f"{folder(identifier)}/{MANIFEST}")
        except KeyError:
            pass
        else:
            self.whole.append(identifier)
            return Found(skip=True)
        stored = await read_chunks(self._blobs, identifier)
        found = Found()
        if stored is not None:
            found.source, found.started = stored.source, stored.started
            found.live = self._live(identifier, stored.header_line, found)
            found.live.restore_chunks(list(stored.chunks), stored.head, stored.unfinished)
            self._ledger.entered(found.live)
        return found

    def _live(self, identifier: str, header_line: bytes, found: Found) -> Live:
        header = parse_header(header_line)
        live = Live(identifier, header_line, header, found.source, found.started, self._journal, self._ledger)
        live.chunks.parts = None
        return live

    def _data(self, record: Record, found: Found, segment: int) -> None:
        live = found.live
        if live is None:
            if record.offset != len(found.text):
                return
            found.text += record.data
            feed = found.text.find(b"\n") + 1
            if not feed:
                return
            try:
                live = found.live = self._live(record.id, bytes(found.text[:feed]), found)
            except ValueError:
                found.skip = True
                return
            live.restore(bytes(found.text), segment)
            found.text.clear()
            self._ledger.entered(live)
            return
        skip = live.acked - record.offset
        if skip < 0:
            # Bytes of a commit that failed, behind which its recording has ended.
            return
        if skip < len(record.data):
            live.restore(bytes(record.data[skip:]), segment)

    def close(self, now: float) -> None:
        """All segments are in: end what they left open."""
        for identifier, found in self._found.items():
            if found.live is None and found.end is not None and identifier not in self.removals and not found.skip:
                _log.error("recording_lost", recording=identifier, size=found.end.get("size"))
            if found.skip or found.live is None:
                continue
            if identifier in self.removals:
                self._ledger.left(found.live)
                continue
            end, ended = End.CUT, now
            if found.end is not None:
                end, ended = End(found.end["end"]), float(found.end["ended"])
                if (size := found.end.get("size", 0)) > found.live.acked:
                    # A chunk or a batch of the journal is damaged: what follows it does not make it whole.
                    _log.error("recording_damaged", recording=identifier, size=found.live.acked, was=size)
                    end = End.CUT
            else:
                _log.info("recording_cut", recording=identifier, size=found.live.acked)
            found.live.restore_end(end, ended)
            self.lives.append(found.live)

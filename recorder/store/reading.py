"""Reading cast text back: from chunks, and for a recording that runs from what is still in memory too.

A position is an offset in the recording's text. Every read asks anew where the bytes from there on are, since a live
recording's bytes move from tail to frame to chunk while the reader waits. Chunks are read by ranges: the trailer, then
the frames that are wanted, some at a time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from k8sproxy.common.formats.asciicast import MAX_LINE, event_of
from recorder.store.blobs import Blobs
from recorder.store.chunk import ChunkRow, DamagedChunkError, FrameRow, frame_rows, read_trailer, unpack
from recorder.store.errors import DamagedError
from recorder.store.live import Life, Live
from recorder.store.manifest import chunk_key

# Bytes of text read at a time, if there are frames as small: 100 KiB or so of an object.
AHEAD = 1 << 20


@dataclass(slots=True)
class _Open:
    """The chunk that is being read."""

    row: ChunkRow
    frames: list[FrameRow]


class TextReader:
    """The text of one recording. live: None for one that is over and has nothing in memory."""

    def __init__(self, blobs: Blobs, identifier: str, chunks: Sequence[ChunkRow], live: Live | None = None) -> None:
        self._blobs = blobs
        self._id = identifier
        self._chunks = chunks
        self._live = live
        self._open: _Open | None = None

    @property
    def end(self) -> int:
        """The position behind what can be read now."""
        if self._live is not None:
            return self._live.acked
        return self._chunks[-1].offset + self._chunks[-1].size if self._chunks else 0

    async def seek(self, start: float) -> tuple[int, bool]:
        """Where to begin for the events from `start` seconds on, and whether that is inside of a line."""
        for row in tuple(self._chunks):
            if row.last >= start:
                for frame in (await self._chunk(row)).frames:
                    if frame.last >= start:
                        return frame.offset, frame.inside
        position, inside = (self._chunks[-1].offset + self._chunks[-1].size if self._chunks else 0), False
        if self._live is not None:
            for piece in self._live.text.frames:
                inside = piece.inside
                if piece.last >= start:
                    break
                position += piece.size
            else:
                inside = self._live.text.inside
        return position, inside

    async def read(self, position: int, end: float = math.inf) -> tuple[bytes, float]:
        """Some text from `position` on, never none while there is some, and the time of its first event (or one
        before). end: seconds; what lies past it is not read along. Raises StoreError."""
        here = self._live.text if self._live is not None else None
        if here is not None and position >= here.durable:
            at = here.durable
            for frame in here.frames:
                if position < at + frame.size:
                    return unpack(frame.packed, frame.size)[position - at :], frame.first
                at += frame.size
            text = b"".join((here.building, *here.tail))
            return text[position - here.framed :], here.last
        for row in reversed(self._chunks):
            if row.offset <= position < row.offset + row.size:
                return await self._read_chunk(row, position, end)
        raise DamagedError(f"a part of {self._id} is missing")

    async def _read_chunk(self, row: ChunkRow, position: int, end: float) -> tuple[bytes, float]:
        chunk = await self._chunk(row)
        wanted: list[FrameRow] = []
        for frame in chunk.frames:
            if frame.offset + frame.size > position:
                if wanted and (frame.offset + frame.size - wanted[0].offset > AHEAD or frame.first > end):
                    break
                wanted.append(frame)
        start = wanted[0].position
        packed = await self._range(row, start, wanted[-1].position + wanted[-1].packed - start)
        try:
            texts = [
                unpack(packed[frame.position - start : frame.position - start + frame.packed], frame.size)
                for frame in wanted
            ]
        except DamagedChunkError as error:
            raise DamagedError(f"chunk {row.seq} of {self._id} is damaged: {error}") from None
        return b"".join(texts)[position - wanted[0].offset :], wanted[0].first

    async def _chunk(self, row: ChunkRow) -> _Open:
        if self._open is None or self._open.row.seq != row.seq:
            trailer = await self._range(row, row.bytes - row.trailer, row.trailer)
            try:
                self._open = _Open(row, frame_rows(read_trailer(trailer), row.bytes - row.trailer))
            except DamagedChunkError as error:
                raise DamagedError(f"chunk {row.seq} of {self._id} is damaged: {error}") from None
        return self._open

    async def _range(self, row: ChunkRow, start: int, size: int) -> bytes:
        try:
            data = await self._blobs.get_range(chunk_key(self._id, row.seq), start, size)
        except KeyError:
            raise DamagedError(f"chunk {row.seq} of {self._id} is missing") from None
        if len(data) != size:
            raise DamagedError(f"chunk {row.seq} of {self._id} is cut")
        return data


async def read_lines(
    reader: TextReader, header_line: bytes, *, start: float = 0.0, end: float | None = None, live: Live | None = None
) -> AsyncGenerator[bytes, None]:
    """Whole lines, many at a time, the header line first. live: go on with it until it is over."""
    yield header_line
    position, inside = await reader.seek(start) if start > 0 else (0, False)
    if position < len(header_line):
        position, inside = len(header_line), False
    rest = b""
    while True:
        while position < reader.end:
            text, first = await reader.read(position, math.inf if end is None else end)
            if end is not None and first > end:
                return
            position += len(text)
            if inside:  # the line that we came into the middle of is not ours
                feed = text.find(b"\n") + 1
                if not feed:
                    continue
                text, inside = text[feed:], False
            cut = text.rfind(b"\n") + 1
            if cut:
                yield rest + text[:cut]
                rest = text[cut:]
            elif len(rest) + len(text) <= MAX_LINE:
                rest += text
            else:
                raise DamagedError("a line is too long")
        if live is None or (live.over and position >= live.acked):
            break
        if live.life in (Life.FAILED, Life.DROPPED) and position >= live.acked:
            break
        await live.changed()
    # What was cut off in its middle is no line; what only lacks its line feed is one.
    if rest and event_of(rest) is not None:
        yield rest + b"\n"

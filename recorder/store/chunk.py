"""A chunk: a part of one recording (or of a day's events), compressed, seekable, chained to the one before. Pure.

    frame    zstd, independent, of FRAME bytes of text or less, cut behind a line feed if there is one
    ...
    trailer  a zstd skippable frame (RFC 8878, 3.1.2): JSON, its length (u32, little-endian), the magic "RECCHNK1"

So `cat *.chunk | zstd -dc` gives the text without any help of ours, and a reader who wants minute 40 needs the trailer
and one frame. The trailer holds a row for each frame, the chunk's place in the recording, and `previous`: the SHA-256
of the whole chunk before it, or for the first one of what `origin` makes of the recording's id and header line. The
chain's head, the SHA-256 of the last chunk, stands for the whole recording.

Only the first and the last line of a frame are looked at for their times. Every line is looked at for whether it is an
event (`Soundness`); what is none is kept, and the frame in which it ends is marked as damaged.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from k8sproxy.common.formats.asciicast import MAX_TIME
from recorder.store.soundness import Soundness

# Bytes of text in a frame: what a seek has to read and unpack (about 15 KiB compressed), against compression, which
# gains little from more.
FRAME = 128 * 1024
# The fastest level: output compresses to a seventh at any level, and this one costs a fifth of a core at 100 MB/s.
LEVEL = 1

_SKIPPABLE = 0x184D2A5A
_SKIP_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_MAGIC = b"RECCHNK1"
FOOTER = _LENGTH.size + len(_MAGIC)
# Bytes. 100 bytes a frame, some hundred frames.
MAX_TRAILER = 16 << 20

_TIME = re.compile(rb"\s*\[\s*(-?\d{1,15}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,3})?)\s*,")

_LINE_FEED = 0x0A
# Line feeds that are searched for one by one; where there are more, lines are short, and counting is faster.
_SEARCHED = 64

_local = threading.local()


class DamagedChunkError(Exception):
    """A chunk that is not what it should be."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. packed: compressed bytes. size: bytes of text. first, last: seconds, of its first and last event (the
    same as `last` of the frame before it where it has none). events: ends of lines, the header line's not counted.
    inside: it begins inside of a line that is longer than a frame."""

    packed: bytes
    size: int
    first: float
    last: float
    events: int
    inside: bool = False
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class FrameRow:
    """A frame as its trailer has it. position: of its first byte in the chunk; offset: of its text in the recording."""

    position: int
    packed: int
    offset: int
    size: int
    first: float
    last: float
    inside: bool


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk as a recording's manifest has it. bytes: of the whole chunk; trailer: of its trailer; sha256: hex."""

    seq: int
    bytes: int
    trailer: int
    offset: int
    size: int
    first: float
    last: float
    events: int
    sha256: str
    damaged: bool = False

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        row: dict[str, Any] = {
            "seq": self.seq,
            "bytes": self.bytes,
            "trailer": self.trailer,
            "offset": self.offset,
            "size": self.size,
            "first": self.first,
            "last": self.last,
            "events": self.events,
            "sha256": self.sha256,
        }
        return row | {"damaged": True} if self.damaged else row

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> ChunkRow:
        """From JSON values of ours. Raises KeyError, TypeError, ValueError."""
        return cls(
            int(row["seq"]),
            int(row["bytes"]),
            int(row["trailer"]),
            int(row["offset"]),
            int(row["size"]),
            float(row["first"]),
            float(row["last"]),
            int(row["events"]),
            str(row["sha256"]),
            bool(row.get("damaged")),
        )


def chunk_name(seq: int) -> str:
    """The last part of a chunk's key."""
    return f"{seq:08d}.chunk"


def origin(identifier: str, header_line: bytes) -> str:
    """What the chain of a recording begins with, as hex."""
    return hashlib.sha256(b"recorder chain 1\n" + identifier.encode() + b"\n" + header_line).hexdigest()


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's own."""
    compressor = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    return compressor


def pack(text: bytes) -> bytes:
    """One zstd frame, with its length and a checksum."""
    packed: bytes = _compressor().compress(text)
    return packed


def unpack(packed: bytes, size: int) -> bytes:
    """The text of one frame. Raises DamagedChunkError."""
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(packed) != size:
            raise DamagedChunkError("a frame has another size than its trailer says")
        text: bytes = decompressor.decompress(packed, max_output_size=size)
    except zstandard.ZstdError:
        raise DamagedChunkError("a frame cannot be unpacked") from None
    return text


@dataclass(frozen=True, slots=True)
class Cut:
    """A frame that is not packed yet. See Frame."""

    text: bytes
    first: float
    last: float
    events: int
    inside: bool
    damaged: bool


def cut_frames(
    text: bytes, soundness: Soundness, *, offset: int, before: float, inside: bool, final: bool, size: int = FRAME
) -> tuple[list[Cut], bytes]:
    """Frames out of text, and what is left of it for the next time.

    soundness: of the recording up to this text; it is told what gets into frames. offset: of the text in the recording;
    the header line is at 0. before: seconds, of the last event before this text.
    inside: the text begins inside of a line. final: nothing follows, so leave nothing. size: bytes of a frame; lines
    that are longer have frames of up to FRAME bytes, so that few are cut in two.
    """
    cuts: list[Cut] = []
    position = 0
    while len(text) - position >= size or (final and position < len(text)):
        if len(text) - position <= size and final:
            end = len(text)
        else:
            end = text.rfind(b"\n", position, position + size) + 1
            end = end or text.find(b"\n", position + size, position + FRAME) + 1
            if not end:
                if len(text) - position < FRAME and not final:
                    break
                end = position + size
        piece = text[position:end]
        damaged = not soundness.feed(piece)
        cut = _cut(piece, has_header=offset + position == 0, before=before, inside=inside, damaged=damaged)
        before = cut.last
        inside = text[end - 1] != _LINE_FEED
        cuts.append(cut)
        position = end
    return cuts, text[position:]


def _cut(text: bytes, *, has_header: bool, before: float, inside: bool, damaged: bool) -> Cut:
    """One frame; see the top of this file for what is looked at."""
    start = (text.find(b"\n") + 1 or len(text)) if has_header or inside else 0
    end = text.rfind(b"\n") + 1
    lines = count_feeds(text, start, end)
    # The rest of a line that began in the frame before ends here.
    events = lines + (not has_header and start > 0 and text[start - 1] == _LINE_FEED)
    if lines <= 0:  # only a part of a line, or the rest of one and a part of the next
        return Cut(text, before, before, events, inside, damaged)
    first = line_time(text[start : start + 64])
    last = line_time(text[max(start, text.rfind(b"\n", 0, end - 1) + 1) : end][:64])
    latest = max(before, first or 0.0, last or 0.0)
    earliest = before if first is None or inside else first
    return Cut(text, earliest, latest, events, inside, damaged)


def count_feeds(text: bytes, start: int, end: int) -> int:
    """How many line feeds there are in text[start:end].

    Counting looks at each byte, with the interpreter's lock held; a search for one byte is thirty times as fast, and
    much output that comes fast comes in long lines."""
    lines = 0
    position = start
    while lines < _SEARCHED:
        feed = text.find(b"\n", position, end)
        if feed < 0:
            return lines
        lines += 1
        position = feed + 1
    return lines + text.count(b"\n", position, end)


def pack_frames(cuts: Sequence[Cut]) -> list[Frame]:
    """Pack many at once. In one call of the library where it can: a thread that asks for the interpreter's lock after
    each frame waits for it each time, while the loop is busy."""
    if not cuts:
        return []
    compressor = _compressor()
    if len(cuts) > 1 and hasattr(compressor, "multi_compress_to_buffer"):
        buffers = compressor.multi_compress_to_buffer([cut.text for cut in cuts])
        packed = [buffers[number].tobytes() for number in range(len(cuts))]
    else:
        packed = [compressor.compress(cut.text) for cut in cuts]
    return [
        Frame(data, len(cut.text), cut.first, cut.last, cut.events, cut.inside, cut.damaged)
        for data, cut in zip(packed, cuts, strict=True)
    ]


def line_time(line: bytes) -> float | None:
    """The time of an event, None where it has none that makes sense."""
    match = _TIME.match(line[:64])
    if match is None:
        return None
    seconds = float(match[1])
    return seconds if math.isfinite(seconds) and 0 <= seconds <= MAX_TIME else None


def assemble(
    frames: Sequence[Frame], meta: Mapping[str, Any], *, seq: int, offset: int, previous: str
) -> tuple[bytes, ChunkRow]:
    """A chunk's bytes and its row. meta: what else the trailer says. previous: the SHA-256 of the chunk before."""
    trailer = dict(meta) | {
        "version": 1,
        "seq": seq,
        "offset": offset,
        "size": sum(frame.size for frame in frames),
        "first": frames[0].first,
        "last": frames[-1].last,
        "events": sum(frame.events for frame in frames),
        "damaged": any(frame.damaged for frame in frames),
        "previous": previous,
        "frames": [[len(frame.packed), frame.size, frame.first, frame.last, int(frame.inside)] for frame in frames],
    }
    text = json.dumps(trailer, separators=(",", ":")).encode()
    head = _SKIP_HEAD.pack(_SKIPPABLE, len(text) + FOOTER)
    data = b"".join([*(frame.packed for frame in frames), head, text, _LENGTH.pack(len(text)), _MAGIC])
    row = ChunkRow(
        seq=seq,
        bytes=len(data),
        trailer=len(head) + len(text) + FOOTER,
        offset=offset,
        size=trailer["size"],
        first=trailer["first"],
        last=trailer["last"],
        events=trailer["events"],
        sha256=hashlib.sha256(data).hexdigest(),
        damaged=trailer["damaged"],
    )
    return data, row


def trailer_size(footer: bytes) -> int:
    """Bytes of the whole trailer, given the last FOOTER bytes of a chunk. Raises DamagedChunkError."""
    if len(footer) != FOOTER or not footer.endswith(_MAGIC):
        raise DamagedChunkError("a chunk has no trailer")
    size: int = _LENGTH.unpack_from(footer)[0]
    if size > MAX_TRAILER:
        raise DamagedChunkError("a trailer is too long")
    return _SKIP_HEAD.size + size + FOOTER


def read_trailer(data: bytes) -> dict[str, Any]:
    """A trailer's JSON, given the end of a chunk with at least all of the trailer. Raises DamagedChunkError."""
    size = trailer_size(data[-FOOTER:])
    if len(data) < size:
        raise DamagedChunkError("a trailer is cut")
    start = len(data) - size
    magic, length = _SKIP_HEAD.unpack_from(data, start)
    if magic != _SKIPPABLE or length != size - _SKIP_HEAD.size:
        raise DamagedChunkError("a trailer has no head")
    try:
        value = json.loads(data[start + _SKIP_HEAD.size : -FOOTER])
    except ValueError:
        raise DamagedChunkError("a trailer is not JSON") from None
    if not isinstance(value, dict) or value.get("version") != 1:
        raise DamagedChunkError("a trailer is not one of this recorder's")
    return value


def frame_rows(trailer: Mapping[str, Any], packed_size: int) -> list[FrameRow]:
    """The frames of a chunk. packed_size: bytes of the chunk before its trailer. Raises DamagedChunkError."""
    rows: list[FrameRow] = []
    try:
        position, offset = 0, int(trailer["offset"])
        for packed, size, first, last, inside in trailer["frames"]:
            rows.append(FrameRow(position, int(packed), offset, int(size), float(first), float(last), bool(inside)))
            position += int(packed)
            offset += int(size)
    except (KeyError, TypeError, ValueError):
        raise DamagedChunkError("a trailer is not one of this recorder's") from None
    if position != packed_size:
        raise DamagedChunkError("a trailer does not fit its chunk")
    return rows


def row_of(trailer: Mapping[str, Any], *, size: int, trailer_bytes: int, sha256: str) -> ChunkRow:
    """A chunk's row out of its trailer. Raises DamagedChunkError."""
    try:
        return ChunkRow.of(dict(trailer) | {"bytes": size, "trailer": trailer_bytes, "sha256": sha256})
    except (KeyError, TypeError, ValueError):
        raise DamagedChunkError("a trailer is not one of this recorder's") from None

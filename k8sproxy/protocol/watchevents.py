"""Where one event of a watch ends and the next begins, told from the body as it passes; nothing of it is held.

A watch may end between any two of its events: the client starts it anew from the last one. Chunks don't tell where that
is (Go cuts an event of more than 4 KiB into several), so the body is followed from its first byte:

    JSON, Tables too      one object a line, `{..}\\n` (apimachinery, json.Framer)
    Kubernetes' protobuf  frames: their length in four bytes, big-endian, and as many bytes (framer.lengthDelimited)
    gzip                  what ends must be a whole member (RFC 1952, 2.2), and an event of what is inside
    anything else         not told apart: such a watch goes on until it is cut as any request is

What does not look as it should is lost from there on: no place in it is taken for an end. A response that says nothing
of its type is read by its first byte; where that tells nothing either, each chunk counts as an event.
"""

from __future__ import annotations

import re
import zlib
from typing import Protocol

_FIELD = re.compile(rb"(?im)^(content-type|content-encoding):[ \t]*([^\r\n;]*?)[ \t]*(?:;[^\r\n]*)?\r\n")
# Bytes that one piece of gzip may inflate to, and bytes that are a unit of work: pieces have half a KiB (turns.STEP),
# and Kubernetes' objects shrink to a tenth. So a piece takes a millisecond at most.
MAX_INFLATED = 128 * 1024
_INFLATED_UNIT = 256
# Units of a member: a decompressor is made for each.
_MEMBER = 4
# Events in one read: less than 32 bytes each where a wire reads 64 KiB in a turn, and no event is as small as that.
# Reading them takes a millisecond or three. And those in one piece of gzip, in however many members.
MAX_EVENTS = 2048
_MAX_PIECE_EVENTS = 256


class Events(Protocol):
    """How far an event reaches. dear: few bytes may cost much, so they are to be shown in small pieces."""

    dear: bool

    @property
    def at_boundary(self) -> bool:
        """Whether what has been taken so far is whole events."""
        ...

    def take(self, data: memoryview) -> int:
        """Follow the next bytes. What that has cost, in units of Body.work."""
        ...


class JsonEvents:
    """One object a line. Looked at are the line feeds alone: each stands behind a `}` and before a `{`. An object
    that is written over several lines shows in the first of them (a JSON string holds no line feed), unless somebody
    breaks it right behind a `}`, which no serializer does."""

    __slots__ = ("_lost", "_tail")

    dear = False

    def __init__(self) -> None:
        self._tail = b""  # the last two bytes, less a line feed that has been looked at
        self._lost = False

    @property
    def at_boundary(self) -> bool:
        return not self._lost and self._tail in (b"", b"}\n")

    def take(self, data: memoryview) -> int:
        if self._lost or not len(data):
            return 0
        window = self._tail + data
        lines = 0
        self._lost = not self._tail and window[:1] != b"{"
        end = window.find(b"\n")
        while end >= 0 and not self._lost:
            lines += 1
            behind = window[end + 1 : end + 2]
            self._lost = window[end - 1 : end] != b"}" or behind not in (b"", b"{") or lines > MAX_EVENTS
            end = window.find(b"\n", end + 1)
        self._tail = window[-2:].removeprefix(b"\n")
        return lines


class ProtobufEvents:
    """Frames with their length before them."""

    __slots__ = ("_head", "_left", "_lost")

    dear = False

    def __init__(self) -> None:
        self._head = b""  # what there is of a length
        self._left = 0  # bytes of the current frame still to come
        self._lost = False

    @property
    def at_boundary(self) -> bool:
        return not self._lost and not self._left and not self._head

    def take(self, data: memoryview) -> int:
        position, size, frames = 0, len(data), 0
        while position < size and not self._lost:
            if self._left:
                step = min(self._left, size - position)
                self._left -= step
                position += step
                continue
            step = 4 - len(self._head)
            self._head += bytes(data[position : position + step])
            position += step
            if len(self._head) == 4:
                self._left = int.from_bytes(self._head)
                self._head = b""
                frames += 1
                self._lost = not self._left or frames > MAX_EVENTS  # an event is never empty
        return frames


class GzipEvents:
    """Members of gzip, one behind the other, and the events in them."""

    __slots__ = ("_inflate", "_inner", "_lost")

    dear = True

    def __init__(self, inner: Events) -> None:
        self._inner = inner
        self._inflate: zlib._Decompress | None = None  # None between two members
        self._lost = False

    @property
    def at_boundary(self) -> bool:
        return not self._lost and self._inflate is None and self._inner.at_boundary

    def take(self, data: memoryview) -> int:
        if self._lost:
            return 0
        room, rest, cost, events = MAX_INFLATED, bytes(data), 0, 0
        try:
            while rest:
                if self._inflate is None:
                    self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
                    cost += _MEMBER
                piece = self._inflate.decompress(rest, room)
                room -= len(piece)
                cost += 1 + len(piece) // _INFLATED_UNIT
                events += self._inner.take(memoryview(piece))
                rest = self._inflate.unused_data or self._inflate.unconsumed_tail
                if self._inflate.eof:
                    self._inflate = None
                if room <= 0 or events > _MAX_PIECE_EVENTS:
                    self._lost = True
                    break
        except zlib.error:
            self._lost = True
        return cost + events


class OpaqueEvents:
    """Nobody can tell."""

    at_boundary = False
    dear = False

    def take(self, data: memoryview) -> int:
        return 0


class UntypedEvents:
    """A response without a type: its first byte tells JSON, or a frame of less than 16 MiB. Of anything else each chunk
    is an event."""

    __slots__ = ("_found",)

    dear = False

    def __init__(self) -> None:
        self._found: Events | None = None

    @property
    def at_boundary(self) -> bool:
        return self._found is None or self._found.at_boundary

    def take(self, data: memoryview) -> int:
        if self._found is None:
            first = bytes(data[:1])
            if not first:
                return 0
            self._found = JsonEvents() if first == b"{" else ProtobufEvents() if first == b"\0" else _Chunks()
        return self._found.take(data)


class _Chunks:
    at_boundary = True
    dear = False

    def take(self, data: memoryview) -> int:
        return 0


def watch_events(fields: bytes) -> Events:
    """The reader for a watch's body. fields: the response's field lines, each with its CRLF."""
    said = [(name.lower(), value.lower()) for name, value in _FIELD.findall(fields)]
    kinds = [value for name, value in said if name == b"content-type"]
    codings = [value for name, value in said if name == b"content-encoding" and value not in (b"", b"identity")]
    if len(kinds) > 1 or codings not in ([], [b"gzip"]):
        return OpaqueEvents()
    events: Events
    if not kinds:
        events = UntypedEvents()
    elif kinds[0] == b"application/json" or kinds[0].endswith(b"+json"):
        events = JsonEvents()
    elif kinds[0] == b"application/vnd.kubernetes.protobuf":
        events = ProtobufEvents()
    else:
        events = OpaqueEvents()
    return GzipEvents(events) if codings else events

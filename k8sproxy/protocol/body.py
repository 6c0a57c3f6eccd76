"""Where a message body ends. Bodies are counted, never held: the bytes that pass are the bytes that came.

A counter is given what arrives and says how many bytes from its front belong to the body. `LengthBody` counts down;
`ChunkedBody` walks chunked coding (RFC 9112, 7.1) strictly: hexadecimal sizes, CRLF where CRLF belongs, extensions
and trailers bounded, and no trailer that would be another identity or framing; anything else is a ProtocolError,
since a lenient reader in front of another lenient reader is how requests are smuggled. `UntilClose` takes all.

`work` counts what the reading has cost, in microseconds or thereabouts; `run` is how many of the next bytes cost next
to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from k8sproxy.common.errors import ProtocolError

# A chunk's size line with its extensions, bytes. Nobody sends extensions; Go accepts 4 KiB, llhttp any length.
MAX_CHUNK_LINE = 256
# All trailer lines, bytes. Kubernetes sends none; gRPC-like users behind a service proxy send a few short ones.
MAX_TRAILERS = 8 * 1024

# 15 digits: sizes stay below 2^60. No blanks before an extension or behind the size: RFC 9112, 7.1.1 knows them as
# "bad", and llhttp refuses them.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[^\x00-\x08\x0a-\x1f\x7f]*")
# RFC 9110, 6.5.1: fields that frame, route, authenticate, say who asks or change how the head was read have no place in
# a trailer, where some servers would add them to the head's. An underscore counts as a hyphen.
_FORBIDDEN_TRAILERS = frozenset(
    (
        *(
            b"host",
            b"connection",
            b"content-length",
            b"transfer-encoding",
            b"upgrade",
            b"te",
            b"trailer",
            b"keep-alive",
        ),
        *(
            b"expect",
            b"authorization",
            b"cookie",
            b"set-cookie",
            b"content-encoding",
            b"content-type",
            b"content-range",
        ),
        *(b"forwarded", b"x-forwarded", b"x-remote", b"x-real-ip", b"location"),
    )
)
_FORBIDDEN_TRAILER_PREFIXES = (
    *(b"impersonate-", b"x-remote-", b"x-forwarded-", b"tailscale-"),
    *(b"sec-websocket-", b"proxy-auth", b"proxy-connection"),
)


# Bytes, more than there ever are.
_ALL: Final = 1 << 62


class Body(Protocol):
    """How far a body reaches. done: its last byte has been taken. boundary: it may be cut here and still be read."""

    done: bool

    @property
    def work(self) -> int:
        """What reading it has cost so far; it only grows."""
        ...

    @property
    def run(self) -> int:
        """How many of the next bytes cost next to nothing to read."""
        ...

    def take(self, data: memoryview) -> int:
        """How many bytes at the front of `data` belong to the body. Less than all of them only at its end."""
        ...

    @property
    def at_boundary(self) -> bool:
        """Whether a terminating chunk could be set here in place of the rest."""
        ...


class LengthBody:
    """A body of a known length, bytes (RFC 9112, 6.2). Zero is done at once."""

    __slots__ = ("_left", "done")

    work = 0
    run = _ALL

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def take(self, data: memoryview) -> int:
        size = len(data)
        if size < self._left:
            self._left -= size
            return size
        size = self._left
        self._left = 0
        self.done = True
        return size

    @property
    def at_boundary(self) -> bool:
        return False


class UntilClose:
    """A response body that ends with its connection (RFC 9112, 6.3 case 8)."""

    __slots__ = ("done",)

    work = 0
    run = _ALL

    def __init__(self) -> None:
        self.done = False

    def take(self, data: memoryview) -> int:
        return len(data)

    @property
    def at_boundary(self) -> bool:
        return False


class ChunkedBody:
    """A body in chunked coding. Holds at most one unfinished line (MAX_CHUNK_LINE or MAX_TRAILERS bytes).

    seen: is shown the data of the chunks as it passes, and says what that has cost. dear: that may be much, so the data
    is no `run`. may_end: once it is set, the body
    is done at the first place between two chunks where it says so; `cut` tells that it came to that, and that the last
    chunk (b"0") is still to be written.
    """

    __slots__ = ("_expect", "_left", "_line", "_trailers", "cut", "dear", "done", "may_end", "seen", "work")

    def __init__(self) -> None:
        self.done = False
        self.work = 0
        self.cut = False
        self.may_end: Callable[[], bool] | None = None
        self.seen: Callable[[memoryview], int] | None = None
        self.dear = False
        self._left = 0  # bytes of the current chunk's data still to come
        self._line = b""  # the unfinished line, from its first byte
        self._expect = "size"  # size | data | data-end | trailer
        self._trailers = 0

    @property
    def run(self) -> int:
        return self._left if self._expect == "data" and not self.dear else 0

    @property
    def at_boundary(self) -> bool:
        return self._expect == "size" and not self._line

    def take(self, data: memoryview) -> int:
        position = 0
        size = len(data)
        while position < size and not self.done:
            self.work += 1
            if self._expect == "data":
                step = min(self._left, size - position)
                self._left -= step
                if self.seen is not None:
                    self.work += self.seen(data[position : position + step])
                position += step
                if not self._left:
                    self._expect = "data-end"
            elif self._expect == "size" and not self._line and (match := _PLAIN_SIZE_LINE.match(data, position)):
                # A whole chunk at once where all of it is here: a watch or a log is many small ones.
                length = int(match[1], 16)
                position = match.end()
                end = position + length
                if not length:
                    self._expect = "trailer"
                elif end + 2 <= size and data[end] == 0x0D and data[end + 1] == 0x0A:
                    if self.seen is not None:
                        self.work += self.seen(data[position:end])
                    position = end + 2
                else:
                    self._left = length
                    self._expect = "data"
            else:
                position += self._take_line(data, position)
            if self.may_end is not None:
                self.try_end()
        return position

    def try_end(self) -> None:
        """End the body here if that may be (may_end)."""
        if self.may_end is not None and not self.done and self.at_boundary and self.may_end():
            self.done = self.cut = True

    def _take_line(self, data: memoryview, position: int) -> int:
        """Take one line, or what there is of it; returns the bytes taken."""
        if self._expect == "size":
            limit = MAX_CHUNK_LINE
        elif self._expect == "data-end":
            limit = 0
        else:
            limit = max(0, MAX_TRAILERS - self._trailers)
        held = len(self._line)
        piece = bytes(data[position : position + limit + 2 - held])
        line = self._line + piece
        end = line.find(b"\n", held)
        # The line without its end, or without what may be the first half of it.
        text = line[:end].removesuffix(b"\r") if end >= 0 else line.removesuffix(b"\r")
        if len(text) > limit or b"\r" in text or (end >= 0 and len(text) == end):
            raise ProtocolError("a malformed or overlong line in a chunked body")
        if end < 0:
            self._line = line
            return len(piece)
        self._line = b""
        self._line_done(text)
        return end + 1 - held

    def _line_done(self, line: bytes) -> None:
        if self._expect == "size":
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise ProtocolError("a malformed chunk size")
            self._left = int(match[1], 16)
            self._expect = "data" if self._left else "trailer"
        elif self._expect == "data-end":
            self._expect = "size"
        elif not line:
            self.done = True
        else:
            self._trailers += len(line) + 2
            match = _TRAILER.fullmatch(line)
            if match is None:
                raise ProtocolError("a malformed trailer field")
            name = match[1].lower().replace(b"_", b"-")
            if name in _FORBIDDEN_TRAILERS or name.startswith(_FORBIDDEN_TRAILER_PREFIXES):
                raise ProtocolError("a trailer field that has no place in a trailer")


def request_body(content_length: int | None, chunked: bool) -> Body:
    """The counter for a request's body (RFC 9112, 6.3): without a length or chunked coding there is none."""
    return ChunkedBody() if chunked else LengthBody(content_length or 0)


def response_body(method: str, status: int, content_length: int | None, chunked: bool) -> Body:
    """The counter for a final response's body (RFC 9112, 6.3)."""
    if method == "HEAD" or status in (204, 304):
        return LengthBody(0)
    if chunked:
        return ChunkedBody()
    return UntilClose() if content_length is None else LengthBody(content_length)

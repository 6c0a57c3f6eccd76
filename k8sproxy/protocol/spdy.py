"""SPDY/3.1 frames (draft 3, 2.2 and 2.6), read beside the bytes that pass.

A `FrameReader` is given one direction's bytes as they come and tells what they hold. DATA is told in pieces, slices of
what was given; nothing of it is held. A control frame is held until it is whole, and its header block is decompressed:
one running zlib state a direction, so every block has to be read, wanted or not.

The readers behind the proxy (moby/spdystream) are lenient, and where two readers disagree on a frame's end or a
stream's name something can be hidden from one of them. So a ProtocolError is: a version other than 3; a frame of fixed
length with another one (spdystream reads what it expects and goes on behind that); header bytes left over when a block
has ended (it would read them as the next block's beginning); a name in capitals or twice; a zlib stream that ends; a
reserved bit that is set. Control frames of unknown types are told as Other, with SETTINGS and WINDOW_UPDATE: both ends
skip them, as the draft asks. A reader may be told which types its side sends at all, and refuses the others.

`work` counts what the reading has cost, in microseconds or thereabouts (of a machine of 2025): one for a stretch of
DATA, three for a control frame, more for a header block. Whoever reads for many at once stops a reader by it (turns).
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import NamedTuple

from k8sproxy.common.errors import ProtocolError

# A control frame's payload, bytes. Kubernetes' largest, a SYN_STREAM of port-forward, has under 200; spdystream's own
# limit of 16 MiB would be held for each connection.
MAX_CONTROL = 16 * 1024
# A header block once decompressed, bytes. Kubernetes' have under 200; zlib can make 1000 bytes of one, and each of them
# is the loop's time.
MAX_HEADER_BLOCK = 4 * 1024
# Header fields in a block: Kubernetes sends three.
MAX_HEADERS = 16

FLAG_FIN = 0x01

_CONTROL_BIT = 0x80000000
_STREAM_ID = 0x7FFFFFFF
_VERSION = 0x80030000
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
# The control frames that a client of Kubernetes sends (moby/spdystream never sends SETTINGS, HEADERS, WINDOW_UPDATE).
CLIENT_FRAMES = frozenset((_SYN_STREAM, _RST_STREAM, _PING, _GOAWAY))
# Frames whose payload has one length, bytes (2.6.3, 2.6.5, 2.6.6, 2.6.8).
_FIXED = {_RST_STREAM: 8, _PING: 4, _GOAWAY: 8, _WINDOW_UPDATE: 8}
# Where a frame's header block begins in its payload (2.6.1, 2.6.2, 2.6.7).
_BLOCK_AT = {_SYN_STREAM: 10, _SYN_REPLY: 4, _HEADERS: 4}

_WORD = Struct(">I")
_WORDS = Struct(">II")

# The dictionary of draft 3, 2.6.10.1: words behind their lengths, then what servers were thought to say.
_WORDS_OF_DICTIONARY = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_REST_OF_DICTIONARY = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    b"403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    b"Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    b"chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    b"text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(_WORD.pack(len(word)) + word.replace("_", " ").encode("ascii") for word in _WORDS_OF_DICTIONARY.split(" "))
    + _REST_OF_DICTIONARY
)


class Data(NamedTuple):
    """A stretch of a DATA frame's payload, empty for a frame without any.

    data: a slice of what was given. fin: the last byte that this side sends on the stream is in it. start: where the
    frame's header began, an index in what was given, negative where that was in an earlier call; so in all of these.
    """

    stream: int
    data: "memoryview"  # noqa: UP037  (mypyc looks for a bare builtin among the names of this module)
    fin: bool
    start: int


class SynStream(NamedTuple):
    """A stream is opened. headers: by their names in lower case; a value is as it came, with NUL between several."""

    stream: int
    headers: dict[bytes, bytes]
    fin: bool
    start: int


class Reply(NamedTuple):
    """SYN_REPLY (opening: true) or HEADERS."""

    stream: int
    headers: dict[bytes, bytes]
    fin: bool
    opening: bool
    start: int


class Reset(NamedTuple):
    """RST_STREAM; status: draft 3, 2.6.3, where 5 is CANCEL."""

    stream: int
    status: int
    start: int


class Ping(NamedTuple):
    """PING; a client's own have odd ids and are answered by the same frame."""

    id: int
    start: int


class GoAway(NamedTuple):
    """GOAWAY; status: 0 for a clean end."""

    last: int
    status: int
    start: int


class Other(NamedTuple):
    """A control frame that Kubernetes' two ends pass over. payload: all behind its eight bytes of header."""

    kind: int
    payload: bytes
    start: int


ControlFrame = SynStream | Reply | Reset | Ping | GoAway | Other
Frame = Data | ControlFrame


class FrameReader:
    """Reads the frames of one direction. stream: of the DATA frame that is open or was read last.

    ends: whether nothing is read behind a GOAWAY, as spdystream does with its peer's. only: the types of control frames
    that this direction may hold, None for all. work: see above; it only grows.
    """

    __slots__ = (
        *("_ended", "_ends", "_failure", "_fin", "_held", "_inflate", "_left", "_need", "_only", "_start"),
        *("stream", "work"),
    )

    def __init__(self, *, ends: bool = False, only: frozenset[int] | None = None) -> None:
        self.work = 0
        self._ends = ends
        self._only = only
        self._ended = False
        self._failure: str | None = None
        self._held = bytearray()  # an unfinished header or control frame
        self._need = 8  # bytes that _held grows to next
        self._left = 0  # bytes of a DATA frame's payload still to come
        self._fin = False
        self._start = 0  # where the frame's header began, from the front of the present call's bytes
        self._inflate: zlib._Decompress | None = None
        self.stream = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two frames."""
        return not self._left and not self._held

    @property
    def unfinished(self) -> int:
        """Bytes so far of the frame that is not whole yet; 0 between two frames."""
        return 0 if self.at_boundary else -self._start

    @property
    def ending(self) -> int:
        """The stream that the DATA frame ends of which all has not come; 0 where it ends none, as far as is known."""
        if self._left:
            return self.stream if self._fin else 0
        held = self._held
        ends = len(held) >= 5 and held[0] < 0x80 and held[4] & FLAG_FIN
        return int.from_bytes(held[:4], "big") if ends else 0

    @property
    def data_left(self) -> int:
        """Bytes of an open DATA frame's payload still to come."""
        return self._left

    @property
    def needed(self) -> int:
        """Bytes that have to be seen before anything else can be told, where data_left is 0."""
        return self._need - len(self._held)

    def skip(self, size: int) -> bool:
        """Pass over `size` bytes of an open DATA frame, at most data_left, unseen. Returns whether its FIN came."""
        self._left -= size
        self._start -= size
        return self._fin and not self._left

    def receive_data(self, data: memoryview, into: list[Frame] | None = None) -> list[Frame]:
        """What the next bytes hold, in order. Raises ProtocolError, and again on every later call.

        into: a list that the frames are put into, so that those before a fault in the same bytes are known too.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure)
        frames: list[Frame] = [] if into is None else into
        try:
            self._read(data, frames)
        except ProtocolError as error:
            self._failure = error.message
            raise
        return frames

    def _read(self, data: memoryview, frames: list[Frame]) -> None:
        size = len(data)
        position = size if self._ended else 0
        while position < size:
            self.work += 1
            left = self._left
            if left:
                end = position + left
                if end > size:
                    frames.append(Data(self.stream, data[position:], False, self._start))
                    self._left = end - size
                    break
                frames.append(Data(self.stream, data[position:end], self._fin, self._start))
                self._left = 0
                position = end
                continue
            held = self._held
            if not held:
                self._start = position
                if size - position >= 8:
                    word, rest = _WORDS.unpack_from(data, position)
                    if word < _CONTROL_BIT:
                        position += 8
                        self._open(word, rest, data[position:position], frames)
                        continue
            end = position + self._need - len(held)
            held += data[position:end]
            position = min(end, size)
            if len(held) == self._need:
                self._advance(data[position:position], frames)
                if self._ended:
                    break
        self._start -= size

    def _open(self, stream: int, rest: int, nothing: memoryview, frames: list[Frame]) -> None:
        """Begin a DATA frame."""
        if not stream:
            raise ProtocolError("a SPDY DATA frame for a stream that does not exist")
        self.stream = stream
        self._fin = rest >> 24 & FLAG_FIN != 0
        self._left = rest & 0xFFFFFF
        if not self._left:
            frames.append(Data(stream, nothing, self._fin, self._start))

    def _advance(self, nothing: memoryview, frames: list[Frame]) -> None:
        """A header, or a whole control frame, is in _held."""
        held = self._held
        word, rest = _WORDS.unpack_from(held)
        if word < _CONTROL_BIT:
            held.clear()
            self._open(word, rest, nothing, frames)
            return
        length = rest & 0xFFFFFF
        if len(held) == 8 and length:
            if word & 0xFFFF0000 != _VERSION:
                raise ProtocolError("a SPDY control frame of another version")
            self._check_kind(word)
            if length > MAX_CONTROL:
                raise ProtocolError("a SPDY control frame that is too long")
            self._need = 8 + length
            return
        self._held = bytearray()
        self._need = 8
        frames.append(self._control(word, rest >> 24, memoryview(held)[8:]))

    def _control(self, word: int, flags: int, payload: memoryview) -> Frame:
        if word & 0xFFFF0000 != _VERSION:
            raise ProtocolError("a SPDY control frame of another version")
        self._check_kind(word)
        self.work += 2
        kind = word & 0xFFFF
        size = len(payload)
        if kind in _BLOCK_AT:
            return self._with_headers(kind, flags, payload)
        if kind in _FIXED:
            if size != _FIXED[kind]:
                raise ProtocolError("a SPDY control frame of the wrong length")
            first = _WORD.unpack_from(payload)[0]
            if kind == _PING:
                if not first or flags:
                    raise ProtocolError("a malformed SPDY PING")
                return Ping(first, self._start)
            second = _WORD.unpack_from(payload, 4)[0]
            if first > _STREAM_ID:
                raise ProtocolError("a SPDY stream id with its reserved bit set")
            if kind == _RST_STREAM:
                if not first or not second:
                    raise ProtocolError("a malformed SPDY RST_STREAM")
                return Reset(first, second, self._start)
            if kind == _GOAWAY:
                self._ended = self._ends
                return GoAway(first, second, self._start)
        elif kind == _SETTINGS and (size < 4 or _WORD.unpack_from(payload)[0] * 8 + 4 != size):
            raise ProtocolError("a malformed SPDY SETTINGS")
        return Other(kind, bytes(payload), self._start)

    def _check_kind(self, word: int) -> None:
        if self._only is not None and word & 0xFFFF not in self._only:
            raise ProtocolError("a SPDY control frame of a type that this side never sends")

    def _with_headers(self, kind: int, flags: int, payload: memoryview) -> Frame:
        at = _BLOCK_AT[kind]
        if len(payload) < at:
            raise ProtocolError("a SPDY control frame of the wrong length")
        stream = _WORD.unpack_from(payload)[0]
        if not 0 < stream <= _STREAM_ID:
            raise ProtocolError("a SPDY stream id of zero, or with its reserved bit set")
        headers = _headers(self._decompress(payload[at:]))
        self.work += 3 + len(headers)
        fin = flags & FLAG_FIN != 0
        if kind == _SYN_STREAM:
            return SynStream(stream, headers, fin, self._start)
        return Reply(stream, headers, fin, kind == _SYN_REPLY, self._start)

    def _decompress(self, block: memoryview) -> bytes:
        if self._inflate is None:
            # About 40 KiB, so not before there is something to decompress.
            self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        try:
            plain = self._inflate.decompress(block, MAX_HEADER_BLOCK + 1)
        except zlib.error:
            raise ProtocolError("a SPDY header block that can't be decompressed") from None
        self.work += len(plain) // 256
        if len(plain) > MAX_HEADER_BLOCK:
            raise ProtocolError("a SPDY header block that is too large")
        if self._inflate.eof:
            raise ProtocolError("a SPDY header block that ends its direction's compression")
        return plain

    def completion(self, streams: list[int]) -> bytes | None:
        """The bytes that bring this direction to the end of its frame; DATA is filled up with NUL.

        streams: ids that an unfinished one may still become. None for one of another stream, and for a control frame
        of which more is missing than an innocent PING could be made of.
        """
        if self._left:
            return bytes(self._left)
        held = bytes(self._held)
        if not held:
            return b""
        if held[0] & 0x80:
            # 2 is an even id: no PING of the client's own, so at most it answers.
            ping = ping_frame(2)
            return ping[len(held) :] if held == ping[: len(held)] or held[:8] == ping[:8] else None
        for stream in streams:
            header = held + _WORDS.pack(stream, 0)[len(held) :]
            if header[:4] == _WORD.pack(stream):
                return header[len(held) :] + bytes(int.from_bytes(header[5:], "big"))
        return None


def _headers(block: bytes) -> dict[bytes, bytes]:
    """The fields of a decompressed header block (2.6.10)."""
    headers: dict[bytes, bytes] = {}
    count, at = _length(block, 0)
    if count > MAX_HEADERS:
        raise ProtocolError("a SPDY header block with too many fields")
    for _ in range(count):
        name, at = _text(block, at)
        value, at = _text(block, at)
        if not name or name != name.lower() or name in headers:
            raise ProtocolError("a SPDY header field without a name, in capitals, or twice")
        headers[name] = value
    if at != len(block):
        raise ProtocolError("a SPDY header block with more than its fields")
    return headers


def _length(block: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(block):
        raise ProtocolError("a SPDY header block that is cut off")
    return _WORD.unpack_from(block, at)[0], at + 4


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    size, at = _length(block, at)
    end = at + size
    if end > len(block):
        raise ProtocolError("a SPDY header block that is cut off")
    return block[at:end], end


def data_frame(stream: int, data: bytes, *, fin: bool = False) -> bytes:
    """A whole DATA frame; data: under 16 MiB."""
    return _WORDS.pack(stream, (FLAG_FIN << 24 if fin else 0) | len(data)) + data


def reply_frame(stream: int) -> bytes:
    """A whole SYN_REPLY without headers, behind any other frame with a header block of its direction.

    The block is a stored one (RFC 1951, 3.2.4), which no state of the compression matters to, and an empty one behind
    it, the end of every block that zlib or Go has flushed: Go's reader hands out what it has there, and waits.
    """
    block = b"\x00\x04\x00\xfb\xff\x00\x00\x00\x00" + b"\x00\x00\x00\xff\xff"
    return _WORDS.pack(_VERSION | _SYN_REPLY, 4 + len(block)) + _WORD.pack(stream) + block


def ping_frame(ping: int) -> bytes:
    """A whole PING frame."""
    return _WORDS.pack(_VERSION | _PING, 4) + _WORD.pack(ping)


def goaway_frame(last: int, status: int = 0) -> bytes:
    """A whole GOAWAY frame. last: the last stream of the other side's that was taken; status: 0 for a clean end."""
    return _WORDS.pack(_VERSION | _GOAWAY, 8) + _WORDS.pack(last, status)

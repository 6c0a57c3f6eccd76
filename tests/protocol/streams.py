"""SPDY/3.1 and WebSocket written and read the simplest way there is, apart from k8sproxy's readers: for their tests.

The readers here take whole byte strings and fail with AssertionError; they stand for kubectl, which wants each message
to have a channel, DATA on streams that were accepted, and the end said properly.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass, field

# The SPDY/3 dictionary's Adler-32 (its bytes are checked against this number, which every zlib stream of it names).
DICTIONARY_ID = 0xE3C6A7C2

MASK = b"\x11\x82\x33\xf4"


def websocket(
    opcode: int, payload: bytes, *, mask: bytes | None = None, fin: bool = True, form: int | None = None, first: int = 0
) -> bytes:
    """One frame. mask: four bytes for a client's. form: bytes of the length's field, 0, 2 or 8. first: bits put in."""
    size = len(payload)
    if form is None:
        form = 0 if size < 126 else 2 if size < 1 << 16 else 8
    head = bytearray([opcode | first | (0x80 if fin else 0)])
    head.append((size if form == 0 else 126 if form == 2 else 127) | (0 if mask is None else 0x80))
    head += size.to_bytes(form, "big") if form else b""
    if mask is None:
        return bytes(head) + payload
    return bytes(head) + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def said(channel: int, payload: bytes = b"") -> bytes:
    """A server's message on a channel."""
    return websocket(2, bytes([channel]) + payload)


def typed(channel: int, payload: bytes = b"", mask: bytes = MASK) -> bytes:
    """A client's message on a channel."""
    return websocket(2, bytes([channel]) + payload, mask=mask)


def said64(channel: int, payload: bytes = b"") -> bytes:
    return websocket(1, b"%d" % channel + base64.b64encode(payload))


def typed64(channel: int, payload: bytes = b"") -> bytes:
    return websocket(1, b"%d" % channel + base64.b64encode(payload), mask=MASK)


@dataclass
class Heard:
    """What a client understood: channel or stream -> bytes; the close code or GOAWAY's status."""

    channels: dict[int, bytes] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    close: int | None = None

    def add(self, channel: int, payload: bytes) -> None:
        self.channels[channel] = self.channels.get(channel, b"") + payload


def heard_websocket(data: bytes, *, base64_text: bool = False) -> Heard:
    """What a kubectl understands of a server's frames, which have to be whole."""
    heard = Heard()
    message: bytes | None = None
    while data:
        assert heard.close is None, "bytes behind the close"
        first, second = data[0], data[1]
        size, at = second, 2
        if second >= 126:
            at = 4 if second == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        assert second < 128 and not first & 0x70 and len(data) >= at + size
        payload, data = data[at : at + size], data[at + size :]
        opcode = first & 15
        if opcode == 8:
            heard.close = int.from_bytes(payload[:2], "big")
        elif opcode < 3:
            assert (message is None) == (opcode != 0)
            message = (message or b"") + payload
            if first & 0x80:
                assert message, "a message without a channel"
                if base64_text:
                    heard.add(message[0] - 48, base64.b64decode(message[1:], validate=True))
                else:
                    heard.add(message[0], message[1:])
                message = None
        else:
            assert opcode in (9, 10) and first & 0x80
    assert message is None
    return heard


class SpdyWriter:
    """Writes one direction's frames, with its running compression."""

    def __init__(self, dictionary: bytes) -> None:
        assert zlib.adler32(dictionary) == DICTIONARY_ID
        self._deflate = zlib.compressobj(zdict=dictionary)

    def block(self, headers: dict[bytes, bytes] | list[tuple[bytes, bytes]] | bytes) -> bytes:
        if not isinstance(headers, bytes):
            pairs = list(headers.items()) if isinstance(headers, dict) else headers
            headers = struct.pack(">I", len(pairs)) + b"".join(
                struct.pack(">I", len(text)) + text for pair in pairs for text in pair
            )
        return self._deflate.compress(headers) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def opened(self, stream: int, kind: bytes, *, fin: bool = False) -> bytes:
        return self.syn_stream(stream, {b"streamtype": kind}, fin=fin)

    def syn_stream(
        self, stream: int, headers: dict[bytes, bytes] | list[tuple[bytes, bytes]] | bytes, *, fin: bool = False
    ) -> bytes:
        return control(1, struct.pack(">IIBB", stream, 0, 0, 0) + self.block(headers), 1 if fin else 0)

    def syn_reply(self, stream: int, *, fin: bool = False) -> bytes:
        return control(2, struct.pack(">I", stream) + self.block({}), 1 if fin else 0)

    def headers(self, stream: int, headers: dict[bytes, bytes], *, fin: bool = False) -> bytes:
        return control(8, struct.pack(">I", stream) + self.block(headers), 1 if fin else 0)


def control(kind: int, payload: bytes, flags: int = 0, *, version: int = 3) -> bytes:
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(payload)) + payload


def data(stream: int, payload: bytes, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, (1 << 24 if fin else 0) | len(payload)) + payload


def reset(stream: int, status: int = 5) -> bytes:
    return control(3, struct.pack(">II", stream, status))


def ping(number: int) -> bytes:
    return control(6, struct.pack(">I", number))


def goaway(last: int, status: int = 0) -> bytes:
    return control(7, struct.pack(">II", last, status))


def settings(*pairs: tuple[int, int]) -> bytes:
    return control(4, struct.pack(">I", len(pairs)) + b"".join(struct.pack(">II", *pair) for pair in pairs))


def window_update(stream: int, delta: int) -> bytes:
    return control(9, struct.pack(">II", stream, delta))


def heard_spdy(frames: bytes) -> Heard:
    """What a kubectl understands of a server's frames, which have to be whole."""
    heard = Heard()
    accepted = set()
    while frames:
        assert heard.close is None, "bytes behind GOAWAY"
        word, rest = struct.unpack_from(">II", frames)
        size = rest & 0xFFFFFF
        assert len(frames) >= 8 + size
        payload, frames = frames[8 : 8 + size], frames[8 + size :]
        if word < 1 << 31:
            assert word in accepted, "DATA before SYN_REPLY"
            if word not in heard.ended:
                heard.add(word, payload)
            if rest >> 24 & 1:
                heard.ended.add(word)
        elif word & 0xFFFF == 2:
            accepted.add(int.from_bytes(payload[:4], "big"))
        elif word & 0xFFFF == 3:
            heard.ended.add(int.from_bytes(payload[:4], "big"))
        elif word & 0xFFFF == 7:
            heard.close = int.from_bytes(payload[4:], "big")
    return heard

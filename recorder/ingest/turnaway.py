"""Turning away a connection whose peer may not come in: it is told why, in its own protocol, and nothing of it is kept.

HTTP/1.1 is answered once its first bytes are there. HTTP/2 gives its answer to a request, so the nine bytes in front of
each frame are looked at, until one is HEADERS; nothing of what a frame holds is read, and no header block is decoded.
The answer is the same for HEAD and POST, which are not told apart: it has no body, and says why in `Recorder-Error` and
in the GOAWAY behind it.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import cast

from hpack import Encoder
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame

from k8sproxy.common.errors import Refusal
from k8sproxy.common.formats.recorderapi import ERROR_FIELD

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Seconds that it lasts, from its first byte: for the request, and for the answer to be read. Closed with bytes unread,
# a connection is reset, and the answer may be lost with it.
LAST = 1.0
# Bytes that are looked at or passed over meanwhile.
MOST = 256 << 10
_HEADERS = 0x1


class TurnAway(asyncio.Protocol):
    """One connection's."""

    def __init__(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held = b""
        self._read = 0
        self._skip = 0  # bytes of a frame that are still to come
        self._is_h2 = False
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(LAST, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return False

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._read += len(data)
        if self._transport is None:
            return
        if self._read > MOST:
            self._transport.abort()
        elif not self._answered:
            self._look(data)

    def _look(self, data: bytes) -> None:
        data = self._held + data
        if not self._is_h2:
            if not data.startswith(PREFACE):
                if PREFACE.startswith(data) or b"HEAD ".startswith(data):
                    self._held = data
                else:
                    self._answer(_http1(self._refusal, data.startswith(b"HEAD ")))
                return
            self._is_h2 = True
            self._skip = len(PREFACE)
        at = 0
        while True:
            if self._skip > len(data) - at:
                self._skip -= len(data) - at
                self._held = b""
                return
            at += self._skip
            self._skip = 0
            if len(data) - at < 9:
                self._held = data[at:]
                return
            number = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
            if data[at + 3] == _HEADERS and number % 2:
                self._answer(_http2(self._refusal, number))
                return
            self._skip = 9 + int.from_bytes(data[at : at + 3], "big")

    def _answer(self, data: bytes) -> None:
        self._answered = True
        self._held = b""
        if self._transport is not None:
            self._transport.write(data)
            self._transport.write_eof()

    def _late(self) -> None:
        if self._is_h2 and not self._answered:
            self._answer(_http2(self._refusal, 0))
        if self._transport is not None:
            self._transport.close()


def field_value(message: str) -> str:
    """A message as the value of a field: printable ASCII (RFC 9110, 5.5)."""
    return "".join(character if " " <= character <= "~" else "?" for character in message)


def _http1(refusal: Refusal, head: bool) -> bytes:
    body = json.dumps({"error": refusal.message}).encode() + b"\n"
    return (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{ERROR_FIELD}: {field_value(refusal.message)}\r\nConnection: close\r\n\r\n"
    ).encode() + (b"" if head else body)


def _http2(refusal: Refusal, number: int) -> bytes:
    """number: of the request's stream, 0 where none has come."""
    frames = SettingsFrame(0).serialize()
    if number:
        fields = [(":status", str(refusal.status)), (ERROR_FIELD, field_value(refusal.message))]
        frames += HeadersFrame(number, Encoder().encode(fields), flags=["END_HEADERS", "END_STREAM"]).serialize()
    words = json.dumps({"error": refusal.message}).encode()
    return frames + GoAwayFrame(0, last_stream_id=number, additional_data=words).serialize()

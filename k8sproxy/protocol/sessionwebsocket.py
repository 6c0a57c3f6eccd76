"""A remotecommand session on WebSocket: a message's first byte is its channel, a digit where the rest is base64.

The theory is remotecommand's. Only base64 is decoded, and only upstream's; of it up to three characters are held.
"""

from __future__ import annotations

import binascii

from k8sproxy.errors import ProtocolError
from k8sproxy.protocol import websocket
from k8sproxy.protocol.session import (
    CLOSE,
    ERROR,
    MAX_FILLING,
    MAX_SIZE,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Closing,
    ErrorData,
    Event,
    Output,
    Ping,
    Sizes,
    Stdin,
    short,
)


class WebSocketSession:
    """The session on WebSocket: a message's first byte is its channel (of base64: a digit)."""

    __slots__ = (
        "_base64",
        "_base_channel",
        "_carry",
        "_client",
        "_client_channel",
        "_client_closed",
        "_client_text",
        "_close_size",
        "_closed",
        "_has_close",
        "_held_in_message",
        "_padded",
        "_sizes",
        "_upstream",
        "_upstream_channel",
        "unreadable",
    )

    def __init__(self, subprotocol: str, tty: bool) -> None:
        self._client = websocket.FrameReader(masked=True)
        self._upstream = websocket.FrameReader(masked=False)
        self._base64 = "base64" in subprotocol
        self._base_channel = 0x30 if self._base64 else 0
        self._has_close = subprotocol == "v5.channel.k8s.io"
        self._sizes = Sizes() if tty else None
        self._client_channel = -1  # of the message that is open; -1 where its channel has not come
        self._upstream_channel = -1
        self._client_text = b""  # base64 of an unfinished size
        self._close_size = 0  # bytes of a message on the channel that ends another
        self._carry = b""  # up to three characters of base64 that are not four yet
        self._padded = False
        self._held_in_message: bool | None = None  # whether the first ErrorData or Closing was inside a message
        self._client_closed = False
        self._closed = False
        self.unreadable = False

    @property
    def work(self) -> int:
        sizes = self._sizes
        return self._client.work + self._upstream.work + (sizes.work if sizes is not None else 0)

    @property
    def client_run(self) -> int:
        return 0 if self._client_channel == RESIZE else self._client.payload_left

    @property
    def upstream_run(self) -> int:
        return self._upstream.payload_left

    @property
    def at_boundary(self) -> bool:
        return self._upstream.at_boundary

    @property
    def undecided(self) -> int:
        upstream = self._upstream
        if upstream.payload_begun and self._upstream_channel in (STDOUT, STDERR):
            return 0
        return upstream.unfinished

    def from_client(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        if self._client_closed:
            return events
        typed = 0
        for piece in self._client.receive_data(data):
            if isinstance(piece, websocket.Control):
                if piece.opcode == websocket.PING:
                    events.append(Ping(websocket.frame(websocket.PONG, piece.payload)))
                elif piece.opcode == websocket.CLOSE:
                    self._client_closed = True
                    clean = websocket.close_code(piece.payload) == websocket.NORMAL_CLOSURE
                    events.append(Closing(clean, piece.start))
                    break
                continue
            view, mask, offset, opcode, fin, last, _ = piece
            begins = 0
            if not offset:
                if opcode != websocket.CONTINUATION:
                    self._client_channel = -1
                if view:
                    channel = (view[0] ^ mask[0]) - self._base_channel
                    if channel == RESIZE and not (fin and opcode != websocket.CONTINUATION):
                        raise ProtocolError("a terminal size in fragments, which servers read in two ways")
                    if self._client_channel == -1:
                        self._client_channel = channel
                        begins = 1
            channel = self._client_channel
            if channel == STDIN:
                typed += len(view) - begins
            elif channel == RESIZE and self._sizes is not None:
                self._resize(websocket.unmask(short(view), mask, offset)[begins:], last, events)
        if typed:
            events.append(Stdin(typed * 3 // 4 if self._base64 else typed))
        return events

    def _resize(self, text: bytes, last: bool, events: list[Event]) -> None:
        assert self._sizes is not None  # noqa: S101 - from_client has looked
        if not self._base64:
            self._sizes.feed(text, events)
            return
        self._client_text += text
        if len(self._client_text) > 2 * MAX_SIZE:
            raise ProtocolError("a terminal size that is too long")
        if last:
            self._sizes.feed(_decoded(self._client_text), events)
            self._client_text = b""

    def from_upstream(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        for piece in self._upstream.receive_data(data):
            if isinstance(piece, websocket.Control):
                if piece.opcode == websocket.CLOSE and not self._closed:
                    self._closed = True
                    self._mark(self._upstream.message_open)
                    clean = websocket.close_code(piece.payload) == websocket.NORMAL_CLOSURE
                    events.append(Closing(clean, piece.start))
                continue
            view, _, offset, opcode, fin, last, start = piece
            if not offset:
                if opcode != websocket.CONTINUATION:
                    self._upstream_channel = -1
                    self._padded = False
                    self._close_size = 0
                if self._upstream_channel == -1 and view:
                    self._upstream_channel = view[0] - self._base_channel
                    view = view[1:]
            if self._base64:
                view = self._decode(view, fin and last)
            if not view:
                continue
            channel = self._upstream_channel
            if channel in (STDOUT, STDERR):
                events.append(Output(channel, view, start))
            elif channel == ERROR:
                self._mark(opcode == websocket.CONTINUATION)
                events.append(ErrorData(view, start))
            elif channel != CLOSE or not self._has_close:
                raise ProtocolError("output on a channel that is not known to carry any")
            else:
                # One byte, the channel's. More would be held until the frame is whole, which may be never.
                self._close_size += len(view)
                if self._close_size > 1:
                    raise ProtocolError("a message that ends more than one channel")
        return events

    def _mark(self, in_message: bool) -> None:
        if self._held_in_message is None:
            self._held_in_message = in_message

    def _decode(self, view: memoryview, ends: bool) -> memoryview:
        text = self._carry + bytes(view)
        whole = len(text) & ~3
        self._carry = text[whole:]
        if (ends and self._carry) or (whole and self._padded):
            raise ProtocolError("base64 that is cut off, or goes on behind its end")
        self._padded = self._padded or text[:whole].endswith(b"=")
        return memoryview(_decoded(text[:whole]))

    def farewell(self, text: bytes, held: bool) -> bytes | None:
        if self._closed and not held:
            return None
        opening = bytes((self._base_channel + STDOUT,))
        if held:
            completion: bytes | None = websocket.frame(websocket.CONTINUATION, b"") if self._held_in_message else b""
        elif self._base64:
            fill = b"=" if self._carry.endswith(b"=") else b"A"
            completion = self._upstream.completion(opening, fill, limit=MAX_FILLING, quantum=4)
        else:
            completion = self._upstream.completion(opening, b"\0", limit=MAX_FILLING)
        if completion is None:
            return None
        opcode = websocket.TEXT if self._base64 else websocket.BINARY
        payload = bytes((self._base_channel + ERROR,)) + (
            binascii.b2a_base64(text, newline=False) if self._base64 else text
        )
        close = websocket.frame(websocket.CLOSE, websocket.NORMAL_CLOSURE.to_bytes(2, "big"))
        return completion + websocket.frame(opcode, payload) + close


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise ProtocolError("base64 that can't be decoded") from None

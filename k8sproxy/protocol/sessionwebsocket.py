"""A remotecommand session on WebSocket: a message's first byte is its channel, a digit where the rest is base64.

The theory is remotecommand's. Of base64 that upstream sends up to three characters are held.

A client's size in base64 counts as Go counts it: a message that can't be decoded whole is dropped whole (wsstream's
DataFromSocket), line feeds and carriage returns are passed over, and what stands in the bits behind the end does not
matter. Its sizes are read as it comes, and forgotten again where it turns out to be such a message.
"""

from __future__ import annotations

import binascii
import re
from collections import deque

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol import websocket
from k8sproxy.protocol.session import (
    CLOSE,
    ERROR,
    MAX_ERROR,
    MAX_FILLING,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN,
    Closing,
    ErrorData,
    Event,
    Hidden,
    Output,
    Ping,
    Resize,
    Stdin,
)
from k8sproxy.protocol.sizes import Sizes

# Payloads of the client's pings that upstream may still answer: kubectl sends one every five seconds.
_MAX_PINGS = 64
# Sizes that are held of one message of base64, which may be of any length: its last ones, as all come at one moment.
_MAX_SIZES = 64
# A channel that has not come yet: no byte less 0x30 is that.
_NONE = -256
_QUADS = re.compile(rb"[A-Za-z0-9+/]*+(={0,2})")


class _Sizes64:
    """One message of base64 on the channel of sizes. Takes effect with its end, if it is whole."""

    __slots__ = ("_broken", "_ended", "_sizes", "_text", "_told")

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes.copy()
        self._sizes.work += 6
        self._told: list[tuple[int, int]] = []
        self._text = b""  # up to three characters that are not four yet
        self._ended = False  # by padding
        self._broken = False

    @property
    def work(self) -> int:
        return self._sizes.work

    def feed(self, text: bytes) -> None:
        text = self._text + text.translate(None, b"\r\n")
        whole = len(text) & ~3
        self._text = text[whole:]
        text = text[:whole]
        if not text or self._broken:
            return
        match = _QUADS.fullmatch(text)
        if match is None or self._ended:
            self._broken = True
            return
        self._ended = match[1] != b""
        self._told += self._sizes.feed(binascii.a2b_base64(text))
        del self._told[:-_MAX_SIZES]

    def end(self) -> tuple[Sizes, list[tuple[int, int]]] | None:
        """The stream behind the message, and its sizes; None where it is dropped."""
        return None if self._broken or self._text else (self._sizes, self._told)


class WebSocketSession:
    """The session on WebSocket: a message's first byte is its channel (of base64: a digit)."""

    __slots__ = (
        "_base64",
        "_base_channel",
        "_carry",
        "_client",
        "_client_channel",
        "_client_closed",
        "_closed",
        "_closing",
        "_errors",
        "_given",
        "_has_close",
        "_held_in_message",
        "_message_at",
        "_padded",
        "_pings",
        "_sizes",
        "_sizes64",
        "_upstream",
        "_upstream_channel",
        "client_unreadable",
        "unreadable",
    )

    def __init__(self, subprotocol: str, tty: bool) -> None:
        self._client = websocket.FrameReader(masked=True)
        self._upstream = websocket.FrameReader(masked=False)
        self._base64 = "base64" in subprotocol
        self._base_channel = 0x30 if self._base64 else 0
        self._has_close = subprotocol == "v5.channel.k8s.io"
        self._sizes = Sizes() if tty else None
        self._sizes64: _Sizes64 | None = None  # of the message that is open
        self._client_channel = _NONE  # of the frame that is open
        self._closing = b""  # of a client's message that closes a channel: what has come of it
        # The client's, that upstream has not answered: payloads, and how many there are of each in a row.
        self._pings: deque[tuple[bytes, int]] = deque(maxlen=_MAX_PINGS)
        self._upstream_channel = _NONE  # of the message that is open
        self._given = 0  # upstream's bytes
        self._message_at: int | None = None  # where in them the message begins that is open
        self._errors = 0  # bytes on the error channel
        self._carry = b""  # up to three characters of base64 that are not four yet
        self._padded = False
        self._held_in_message: bool | None = None  # whether the first ErrorData or Closing was inside a message
        self._client_closed = False
        self._closed = False
        self.client_unreadable = False  # which changes nothing here
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
    def unfinished(self) -> int:
        return self._upstream.unfinished if self._message_at is None else self._given - self._message_at

    @property
    def undecided(self) -> int:
        upstream = self._upstream
        if upstream.payload_begun and self._upstream_channel in (STDOUT, STDERR):
            return 0
        return upstream.unfinished

    def from_client(self, data: memoryview, events: list[Event]) -> None:
        if self._client_closed:
            return
        pieces: list[websocket.Piece | websocket.Control] = []
        fault: ProtocolError | None = None
        try:
            self._client.receive_data(data, pieces)
        except ProtocolError as error:
            fault = error  # which stands behind the pieces
        typed = 0
        for piece in pieces:
            if isinstance(piece, websocket.Control):
                if piece.opcode == websocket.PING:
                    self._pinged(piece.payload)
                    events.append(Ping(websocket.frame(websocket.PONG, piece.payload)))
                elif piece.opcode == websocket.CLOSE:
                    self._client_closed = True
                    events.append(Closing(_is_clean(piece.payload), piece.start))
                    break
                continue
            view, mask, offset, _, _, last, _ = piece
            begins = 0
            if not offset:
                self._client_channel = _NONE
                self._closing = b""
                if view:
                    self._client_channel = (view[0] ^ mask[0]) - self._base_channel
                    begins = 1
            channel = self._client_channel
            if channel == STDIN:
                typed += len(view) - begins
            elif channel == RESIZE and self._sizes is not None and not self._sizes.stopped:
                self._resize(websocket.unmask(view, mask, offset)[begins:], last, events)
            elif channel == CLOSE and self._has_close:
                if len(self._closing) < 2:
                    self._closing += websocket.unmask(view[:3], mask, offset)[begins:]
                if last:
                    self._close_channel()
        if typed:
            events.append(Stdin(typed * 3 // 4 if self._base64 else typed))
        if fault is not None:
            raise fault

    def _close_channel(self) -> None:
        """The client ends a channel (v5). With one that there is not, or more than one, the server reads no more."""
        malformed = len(self._closing) != 1 or self._closing[0] > RESIZE
        if self._sizes is not None and (malformed or self._closing[0] == RESIZE):
            self._sizes.stop()

    def _resize(self, text: bytes, last: bool, events: list[Event]) -> None:
        assert self._sizes is not None  # noqa: S101 - from_client has looked
        if not self._base64:
            events += [Resize(*size) for size in self._sizes.feed(text)]
            return
        message = self._sizes64 = self._sizes64 or _Sizes64(self._sizes)
        message.feed(text)
        self._sizes.work = message.work
        if last:
            self._sizes64 = None
            if (ended := message.end()) is not None:
                self._sizes, sizes = ended
                events += [Resize(*size) for size in sizes]

    def from_upstream(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        for piece in self._upstream.receive_data(data):
            if isinstance(piece, websocket.Control):
                self._control(piece, events)
                continue
            view, _, offset, opcode, fin, last, start = piece
            if not offset:
                if opcode != websocket.CONTINUATION:
                    self._upstream_channel = _NONE
                    self._padded = False
                    self._message_at = self._given + start
                if self._upstream_channel == _NONE and view:
                    self._upstream_channel = view[0] - self._base_channel
                    view = view[1:]
                    self._begins(events, start)
            if fin and last:
                self._message_at = None
            if self._base64:
                view = self._decode(view, fin and last)
            if not view:
                continue
            channel = self._upstream_channel
            if channel in (STDOUT, STDERR):
                events.append(Output(channel, view, start))
            elif channel == ERROR and self._errors + len(view) <= MAX_ERROR:
                self._errors += len(view)
                self._mark(opcode == websocket.CONTINUATION)
                events.append(ErrorData(view, start))
            elif channel == CLOSE and self._has_close:
                # One byte, the channel that ends.
                if offset <= 1 and opcode != websocket.CONTINUATION and view[0] <= RESIZE:
                    view = view[1:]
                if view:
                    events.append(Output(UNKNOWN, view, start))
            else:
                events.append(Output(UNKNOWN, view, start))
        self._given += len(data)
        return events

    def _begins(self, events: list[Event], start: int) -> None:
        """A message's channel has come. One that nobody knows says a byte by itself."""
        channel = self._upstream_channel
        if not 0 <= channel <= RESIZE and not (channel == CLOSE and self._has_close):
            events.append(Hidden(bytes((channel + self._base_channel & 0xFF,)), start))

    def _control(self, frame: websocket.Control, events: list[Event]) -> None:
        payload = frame.payload
        if frame.opcode == websocket.CLOSE:
            if len(payload) > 2:
                events.append(Hidden(payload[2:], frame.start))
            if not self._closed:
                self._closed = True
                self._mark(self._upstream.message_open)
                events.append(Closing(_is_clean(payload), frame.start))
        elif payload and not (frame.opcode == websocket.PONG and self._answered(payload)):
            events.append(Hidden(payload, frame.start))

    def _pinged(self, payload: bytes) -> None:
        pings = self._pings
        count = pings.pop()[1] if pings and pings[-1][0] == payload else 0
        pings.append((payload, count + 1))

    def _answered(self, payload: bytes) -> bool:
        """Whether upstream answers a ping; all that came before that are answered, too (RFC 6455, 5.5.3)."""
        pings = self._pings
        if not any(payload == sent for sent, _ in pings):
            return False
        while True:
            sent, count = pings.popleft()
            if sent == payload:
                if count > 1:
                    pings.appendleft((sent, count - 1))
                return True

    def _mark(self, in_message: bool) -> None:
        if self._held_in_message is None:
            self._held_in_message = in_message

    def _decode(self, view: memoryview, ends: bool) -> memoryview:
        text = self._carry + bytes(view)
        whole = len(text) & ~3
        self._carry = text[whole:]
        if (ends and self._carry) or (whole and self._padded):
            raise ProtocolError("base64 that is cut off, or that continues after its end")
        self._padded = self._padded or text[:whole].endswith(b"=")
        return memoryview(_decoded(text[:whole]))

    def farewell(self, text: bytes, held: bool, early: bool, rest: int) -> bytes | None:
        if rest or (self._closed and not held):
            return None
        opening = bytes((self._base_channel + STDOUT,))
        if held:
            inside = self._held_in_message and not early
            completion: bytes | None = websocket.frame(websocket.CONTINUATION, b"") if inside else b""
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


def _is_clean(payload: bytes) -> bool:
    """Whether a close frame says that all has been said. Half a code says nothing."""
    return int.from_bytes(payload[:2], "big") == websocket.NORMAL_CLOSURE


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise ProtocolError("base64 that can't be decoded") from None

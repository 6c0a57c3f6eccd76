"""A Kubernetes port-forward on SPDY/3.1, SPDY inside WebSocket, or WebSocket channels, read beside the bytes that pass.

Nothing of it is recorded: a `PortForward` tells which ports are opened and counts what goes through each. On SPDY the
client opens a pair of streams, error and data, for every connection it forwards, each with a port and a request id.
kubectl since 1.31 sends the same in the binary messages of a WebSocket, cut anywhere; there only the frames' headers
are unmasked, never what is forwarded. The oldest form has two channels a port, 2n for data and 2n + 1 for errors, on
which the server first says the port, in two bytes, the low one first (k8s.io/cri-streaming's portforward/websocket.go).

A stream that servers turn down (no port, no known type) opens nothing and is not told. Since nothing hides here that
would otherwise be kept, unknown streams are passed over.
"""

from __future__ import annotations

import binascii
from typing import NamedTuple

from k8sproxy.common.errors import ProtocolError
from k8sproxy.protocol import spdy, websocket

SPDY_PROTOCOLS = frozenset(("portforward.k8s.io", ""))
TUNNEL_PROTOCOLS = frozenset(("SPDY/3.1+portforward.k8s.io",))
CHANNEL_PROTOCOLS = frozenset(("v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""))
WEBSOCKET_PROTOCOLS = TUNNEL_PROTOCOLS | CHANNEL_PROTOCOLS

# Forwarded connections that are open at once: 150 bytes each are held, which a user may have 256 sessions of. A browser
# opens some dozens, a test of load a thousand.
MAX_OPEN = 2000
# Ports in one session: each is kept, and told, to its end. kubectl forwards those that somebody has typed.
MAX_PORTS = 1024
# A request id's characters that are told; kubectl counts from 0.
MAX_REQUEST_ID = 64


class PortOpened(NamedTuple):
    """A connection to a port is forwarded. request_id: as the client says it, at most MAX_REQUEST_ID characters; ""
    where it gives none."""

    port: int
    request_id: str


class PortForward:
    """One session. upgrade: "spdy/3.1" or "websocket". subprotocol: the one that upstream chose, "" for none.

    sent, received: bytes from and to the client by port, without framing. Raises ProtocolError for an upgrade or a
    subprotocol that is not known.
    """

    __slots__ = ("_failure", "_transport", "received", "sent")

    def __init__(self, upgrade: str, subprotocol: str) -> None:
        self._failure: str | None = None
        self.sent: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self._transport: _Streams | _Tunnel | _Channels
        if upgrade == "spdy/3.1" and subprotocol in SPDY_PROTOCOLS:
            self._transport = _Streams(self.sent, self.received)
        elif upgrade == "websocket" and subprotocol in TUNNEL_PROTOCOLS:
            self._transport = _Tunnel(_Streams(self.sent, self.received))
        elif upgrade == "websocket" and subprotocol in CHANNEL_PROTOCOLS:
            self._transport = _Channels(self.sent, self.received, base64="base64" in subprotocol)
        else:
            raise ProtocolError("a port-forward protocol that is not known")

    @property
    def work(self) -> int:
        """What all the reading so far has cost, in microseconds or thereabouts."""
        return self._transport.work

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read: the rest of a payload."""
        return self._transport.client_run

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return self._transport.upstream_run

    def from_client(self, data: memoryview) -> list[PortOpened]:
        """What the client's next bytes open. Raises ProtocolError, and then always."""
        if self._failure is not None:
            raise ProtocolError(self._failure)
        try:
            return self._transport.from_client(data)
        except ProtocolError as error:
            self._failure = error.message
            raise

    def from_upstream(self, data: memoryview) -> list[PortOpened]:
        """What upstream's next bytes open. Raises ProtocolError, and then always."""
        if self._failure is not None:
            raise ProtocolError(self._failure)
        try:
            return self._transport.from_upstream(data)
        except ProtocolError as error:
            self._failure = error.message
            raise


class _Stream:
    """A data stream that is open, and which sides have ended theirs."""

    __slots__ = ("client_fin", "port", "upstream_fin")

    def __init__(self, port: int) -> None:
        self.port = port
        self.client_fin = False
        self.upstream_fin = False


class _Streams:
    """SPDY in both directions."""

    __slots__ = ("_open", "_received", "_sent", "client", "upstream")

    def __init__(self, sent: dict[int, int], received: dict[int, int]) -> None:
        self._sent = sent
        self._received = received
        self._open: dict[int, _Stream] = {}  # data streams by their ids, until both sides have ended them
        self.client = spdy.FrameReader(only=spdy.CLIENT_FRAMES)
        self.upstream = spdy.FrameReader()

    @property
    def work(self) -> int:
        return self.client.work + self.upstream.work

    @property
    def client_run(self) -> int:
        return self.client.data_left

    @property
    def upstream_run(self) -> int:
        return self.upstream.data_left

    def from_client(self, data: memoryview) -> list[PortOpened]:
        events: list[PortOpened] = []
        for frame in self.client.receive_data(data):
            if isinstance(frame, spdy.Data):
                self.count_sent(frame.stream, len(frame.data), frame.fin)
            elif isinstance(frame, spdy.SynStream):
                self._opened(frame, events)
            elif isinstance(frame, spdy.Reset):
                self._open.pop(frame.stream, None)
        return events

    def count_sent(self, number: int, size: int, fin: bool) -> None:
        stream = self._open.get(number)
        if stream is not None:
            self._sent[stream.port] += size
            if fin:
                stream.client_fin = True
                self._ended(number, stream)

    def from_upstream(self, data: memoryview) -> list[PortOpened]:
        for frame in self.upstream.receive_data(data):
            if isinstance(frame, spdy.Data):
                stream = self._open.get(frame.stream)
                if stream is not None:
                    self._received[stream.port] += len(frame.data)
                    if frame.fin:
                        stream.upstream_fin = True
                        self._ended(frame.stream, stream)
            elif isinstance(frame, spdy.Reset):
                self._open.pop(frame.stream, None)
        return []

    def _opened(self, frame: spdy.SynStream, events: list[PortOpened]) -> None:
        # As servers read them: the first of several values, with as many zeros in front as there may be.
        text = _first(frame, b"port")
        digits = text.lstrip(b"0")
        port = int(digits) if text.isdigit() and 0 < len(digits) <= 5 else 0
        if _first(frame, b"streamtype") != b"data" or not 0 < port < 1 << 16:
            return
        if len(self._open) >= MAX_OPEN:
            raise ProtocolError("more forwarded connections than the limit of this proxy")
        if port not in self._sent and len(self._sent) >= MAX_PORTS:
            raise ProtocolError("more forwarded ports than the limit of this proxy")
        self._open[frame.stream] = stream = _Stream(port)
        stream.client_fin = frame.fin
        self._sent.setdefault(port, 0)
        self._received.setdefault(port, 0)
        request = _first(frame, b"requestid")[: 4 * MAX_REQUEST_ID].decode("utf-8", "replace")
        events.append(PortOpened(port, request[:MAX_REQUEST_ID]))

    def _ended(self, number: int, stream: _Stream) -> None:
        if stream.client_fin and stream.upstream_fin:
            del self._open[number]


def _first(frame: spdy.SynStream, name: bytes) -> bytes:
    return frame.headers.get(name, b"").partition(b"\0")[0]


class _Tunnel:
    """SPDY as the payload of WebSocket messages, each cut anywhere."""

    __slots__ = ("_client", "_steps", "_streams", "_upstream")

    def __init__(self, streams: _Streams) -> None:
        self._streams = streams
        self._client = websocket.FrameReader(masked=True)
        self._upstream = websocket.FrameReader(masked=False)
        self._steps = 0

    @property
    def work(self) -> int:
        return self._steps + self._client.work + self._upstream.work + self._streams.work

    @property
    def client_run(self) -> int:
        return min(self._client.payload_left, self._streams.client_run)

    @property
    def upstream_run(self) -> int:
        return min(self._upstream.payload_left, self._streams.upstream_run)

    def from_client(self, data: memoryview) -> list[PortOpened]:
        events: list[PortOpened] = []
        streams = self._streams
        reader = streams.client
        for piece in self._client.receive_data(data):
            if isinstance(piece, websocket.Control):
                continue
            view = piece.data
            size = len(view)
            position = 0
            while position < size:
                self._steps += 1
                left = reader.data_left
                if left:
                    step = min(left, size - position)
                    streams.count_sent(reader.stream, step, reader.skip(step))
                else:
                    step = min(reader.needed, size - position)
                    part = view[position : position + step]
                    plain = websocket.unmask(part, piece.mask, piece.offset + position)
                    events += streams.from_client(memoryview(plain))
                position += step
        return events

    def from_upstream(self, data: memoryview) -> list[PortOpened]:
        for piece in self._upstream.receive_data(data):
            if isinstance(piece, websocket.Piece) and piece.data:
                self._streams.from_upstream(piece.data)
        return []


class _Channels:
    """Two channels a port, as a message's first byte says; a digit where the rest is base64."""

    __slots__ = (
        "_announced",
        "_base64",
        "_base_channel",
        "_client",
        "_client_channel",
        "_early",
        "_ports",
        "_received",
        "_sent",
        "_upstream",
        "_upstream_channel",
    )

    def __init__(self, sent: dict[int, int], received: dict[int, int], *, base64: bool) -> None:
        self._sent = sent
        self._received = received
        self._base64 = base64
        self._base_channel = 0x30 if base64 else 0
        self._client = websocket.FrameReader(masked=True)
        self._upstream = websocket.FrameReader(masked=False)
        self._client_channel = -1
        self._upstream_channel = -1
        self._ports: dict[int, int] = {}  # channel -> port
        self._announced: dict[int, bytes] = {}  # channel -> what came of the bytes that say its port
        self._early: dict[int, int] = {}  # channel -> bytes sent before that

    @property
    def work(self) -> int:
        return self._client.work + self._upstream.work

    @property
    def client_run(self) -> int:
        return self._client.payload_left

    @property
    def upstream_run(self) -> int:
        return self._upstream.payload_left

    def from_client(self, data: memoryview) -> list[PortOpened]:
        for piece in self._client.receive_data(data):
            if isinstance(piece, websocket.Control):
                continue
            size = len(piece.data)
            if not piece.offset:
                if piece.opcode != websocket.CONTINUATION:
                    self._client_channel = -1
                if self._client_channel == -1 and size:
                    self._client_channel = (piece.data[0] ^ piece.mask[0]) - self._base_channel
                    size -= 1
            channel = self._client_channel
            if size and not channel & 1:
                size = self._plain(size)
                if channel in self._ports:
                    self._sent[self._ports[channel]] += size
                else:
                    self._early[channel] = self._early.get(channel, 0) + size
        return []

    def from_upstream(self, data: memoryview) -> list[PortOpened]:
        events: list[PortOpened] = []
        for piece in self._upstream.receive_data(data):
            if isinstance(piece, websocket.Control):
                continue
            view = piece.data
            if not piece.offset:
                if piece.opcode != websocket.CONTINUATION:
                    self._upstream_channel = -1
                if self._upstream_channel == -1 and view:
                    self._upstream_channel = view[0] - self._base_channel
                    view = view[1:]
            channel = self._upstream_channel
            if view and not channel & 1:
                port = self._ports.get(channel)
                if port is None:
                    self._announce(channel, view, events)
                else:
                    self._received[port] += self._plain(len(view))
        return events

    def _plain(self, size: int) -> int:
        return size * 3 // 4 if self._base64 else size

    def _announce(self, channel: int, view: memoryview, events: list[PortOpened]) -> None:
        """Two bytes, or four characters that say them."""
        need = 4 if self._base64 else 2
        said = self._announced.get(channel, b"")
        part = view[: need - len(said)]
        said += bytes(part)
        self._announced[channel] = said
        if len(said) < need:
            return
        if self._base64:
            try:
                said = binascii.a2b_base64(said, strict_mode=True)
            except binascii.Error:
                raise ProtocolError("base64 that can't be decoded") from None
        port = int.from_bytes(said, "little")
        if len(said) != 2 or not port:
            raise ProtocolError("a channel that does not say its port")
        self._ports[channel] = port
        self._sent[port] = self._sent.get(port, 0) + self._early.pop(channel, 0)
        self._received[port] = self._received.get(port, 0) + self._plain(len(view) - len(part))
        events.append(PortOpened(port, ""))

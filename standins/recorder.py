"""A recorder of our own, for the tests: both versions of the wire and events, with faults on request.

    async with FakeRecorder() as recorder:
        recorder.version = 1                     # no HTTP/2: such bytes get an HTTP/1.1 400, as Go's server has it
        recorder.hang = "HEAD"                   # says nothing from this step on: see `Step`
        await recorder.until(lambda: recorder.sessions and recorder.sessions[0].accepted)
        recorder.sessions[0].ack(10)             # by hand, where `acks` is False

It shares nothing with the client under test: the server's side of HTTP/2 is h2's, HTTP/1.1 is read here by hand. Every
event that a test may wait for (bytes, an end, a connection's loss) wakes `until`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from types import TracebackType
from typing import Literal, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error, StreamClosedError
from h2.settings import SettingCodes, Settings

# accept: bytes are read, nothing is ever answered; SETTINGS: the preface is read and not answered; HEAD: the probe is
# not; POST: a session's head is not.
Step = Literal["", "accept", "SETTINGS", "HEAD", "POST"]


class FakeSession:
    """One session as it came. body: its bytes; end: clean, reset or lost, empty while it lasts."""

    def __init__(self, connection: _Connection, version: int, stream: int = 0) -> None:
        self.connection = connection
        self.version = version
        self.stream = stream
        self.body = bytearray()
        self.received = 0
        self.accepted = False
        self.reading = connection.recorder.reading
        self.acked = 0
        self.end = ""
        self._unread = 0

    # -- what a test makes it do

    def accept(self) -> None:
        self.accepted = True
        if self.version == 1:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self.connection.respond(self.stream, 200, self.connection.recorder.fields)
        self.connection.recorder.changed()

    def ack(self, count: int | None = None) -> None:
        """Says that `count` bytes (all that came) are stored."""
        self.acked = self.received if count is None else count
        self.send(json.dumps({"ack": self.acked}).encode() + b"\n")

    def error(self, words: str) -> None:
        self.send(json.dumps({"error": words}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        """These bytes of the response's body."""
        for at in range(0, len(data), 16384):
            self.connection.h2.send_data(self.stream, data[at : at + 16384])
        self.connection.flush()

    def finish(self, status: int = 200) -> None:
        """Ends the response."""
        if self.version == 1:
            self.connection.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
        else:
            self.connection.h2.end_stream(self.stream)
            self.connection.flush()

    def reset(self) -> None:
        self.connection.h2.reset_stream(self.stream, ErrorCodes.INTERNAL_ERROR)
        self.connection.flush()

    def read(self) -> None:
        """Reads on, where `reading` was False."""
        self.reading = True
        if self._unread:
            self.connection.h2.acknowledge_received_data(self._unread, self.stream)
            self._unread = 0
            self.connection.flush()
        self._ack_if_due()

    # -- what happens to it

    def _data(self, data: bytes, flow: int) -> None:
        recorder = self.connection.recorder
        self.received += len(data)
        if recorder.keep:
            self.body += data
        if self.version == 2:
            if self.reading:
                with contextlib.suppress(StreamClosedError):  # its reset came in the same piece
                    if flow:
                        self.connection.h2.acknowledge_received_data(flow, self.stream)
                    self._ack_if_due()
            else:
                self._unread += flow
                self._ack_header()
        recorder.changed()

    def _ack_header(self) -> None:
        """The one ack of a recorder that does not read on: senders show nothing before that."""
        if not self.acked and b"\n" in self.body and self.connection.recorder.acks and not self.end:
            self.ack(self.body.index(b"\n") + 1)

    def _ack_if_due(self) -> None:
        if self.connection.recorder.acks and not self.end and self.version == 2:
            self.ack()

    def _ended(self, how: str) -> None:
        if not self.end:
            self.end = how
            if how == "clean" and self.connection.recorder.finishes:
                self.finish(self.connection.recorder.final)
            self.connection.recorder.changed()


class FakeRecorder:
    """A recorder on a port of 127.0.0.1, from entering to leaving its context.

    version: 1 or 2. hang: the step from which on it says nothing. accepts: sessions are accepted at once; acks: all
    that comes is acked at once; finishes: a clean end is answered by one (with `final` where it is v1). statuses:
    what HEAD, POST (of a session) and EVENT answer instead of 200. fields: of the answer to a session's POST. keep:
    bodies are kept. reading: flow control is given back as bytes come; otherwise the header alone is acked. settings:
    of HTTP/2. dials: connections so far.
    event_batch: the value of Event-Batch. events: the bodies of POST /v2/event. dislikes: what none of them may hold.
    """

    def __init__(self) -> None:
        self.version = 2
        self.hang: Step = ""
        self.accepts = True
        self.acks = True
        self.finishes = True
        self.final = 200
        self.keep = True
        self.reading = True
        self.statuses: dict[str, int] = {}
        self.fields: dict[str, str] = {}
        self.settings: dict[SettingCodes, int] = {}
        self.connection_window = 0  # bytes on top of HTTP/2's 65535
        self.dials = 0
        self.probes = 0
        self.sessions: list[FakeSession] = []
        self.event_batch: int | None = None
        self.events: list[bytes] = []
        self.dislikes = b""  # refused as malformed, and not kept
        self.close_after_event = False  # each one answered with Connection: close
        self.port = 0
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._changes = asyncio.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeRecorder:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens, on the same port as before where there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Dies: nobody listens, every connection ends."""
        if self._server is not None:
            # asyncio leaks a connection that is taken in the very turn in which its server closes (3.11); so nothing
            # is taken from here on, and what has been taken gets its turns first.
            for listener in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
            self._server = None
        self.drop()
        await self.until(lambda: not self.connections)

    def drop(self) -> None:
        """Cuts all connections."""
        for connection in tuple(self.connections):
            connection.transport.abort()

    def goaway(self, last: int | None = None) -> None:
        """Says on all connections that they are to end; streams up to `last` may go on."""
        for connection in self.connections:
            number = connection.newest if last is None else last
            connection.write(
                b"\0\0\x08\x07\0\0\0\0\0" + number.to_bytes(4, "big") + int(ErrorCodes.NO_ERROR).to_bytes(4, "big")
            )

    def changed(self) -> None:
        self._changes.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until `condition` holds, looking at it whenever something has happened."""
        while not condition():
            self._changes.clear()
            await self._changes.wait()


class _Connection(asyncio.Protocol):
    def __init__(self, recorder: FakeRecorder) -> None:
        self.recorder = recorder
        self.transport: asyncio.Transport
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.newest = 0
        self._kind = ""
        self._held = b""
        self._streams: dict[int, FakeSession] = {}
        self._session: FakeSession | None = None
        self._left = -1  # bytes of the request's (chunk's) data still to come; -1: a line or a head is next
        self._event = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its type
        self.recorder.dials += 1
        self.recorder.connections.add(self)
        self.recorder.changed()

    def connection_lost(self, error: Exception | None) -> None:
        self.recorder.connections.discard(self)
        for session in (*self._streams.values(), self._session):
            if session is not None:
                session._ended("lost")
        self.recorder.changed()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def flush(self) -> None:
        self.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        if self.recorder.hang == "accept":
            return
        if not self._kind:
            self._held += data
            if len(self._held) < 14:
                return
            data, self._held = self._held, b""
            self._kind = "h2" if data.startswith(b"PRI * HTTP/2.0") else "h1"
            if self._kind == "h2":
                if self.recorder.version == 1:
                    self.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
                    self.transport.close()
                    return
                if self.recorder.hang == "SETTINGS":
                    self._kind = "mute"
                else:
                    self._start_h2()
        if self._kind == "h2":
            self._h2(data)
        elif self._kind == "h1":
            self._h1(data)

    # -- HTTP/2

    def _start_h2(self) -> None:
        if self.recorder.settings:
            self.h2.local_settings = Settings(client=False, initial_values=self.recorder.settings)
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.h2.initiate_connection()
        if self.recorder.connection_window:
            self.h2.increment_flow_control_window(self.recorder.connection_window)
        self.flush()

    def respond(self, stream: int, status: int, fields: dict[str, str], *, end: bool = False) -> None:
        with contextlib.suppress(StreamClosedError):  # its reset came in the same piece
            self.h2.send_headers(stream, [(":status", str(status)), *fields.items()], end_stream=end)
        self.flush()

    def _h2(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except H2Error:
            self.transport.abort()
            raise
        self.recorder.changed()  # a window, if nothing else
        for event in events:
            if isinstance(event, RequestReceived):
                assert event.stream_id is not None
                self._h2_request(event.stream_id, {str(name): str(value) for name, value in event.headers or ()})
            elif isinstance(event, DataReceived):
                assert event.stream_id is not None
                if event.stream_id in self._streams:
                    self._streams[event.stream_id]._data(event.data or b"", event.flow_controlled_length or 0)
            elif isinstance(event, StreamEnded | StreamReset):
                session = self._streams.get(event.stream_id or 0)
                if session is not None:
                    session._ended("clean" if isinstance(event, StreamEnded) else "reset")
        self.flush()

    def _h2_request(self, stream: int, fields: dict[str, str]) -> None:
        recorder = self.recorder
        self.newest = stream
        if fields[":method"] == "HEAD":
            recorder.probes += 1
            if recorder.hang != "HEAD":
                known = fields[":path"] == "/v2/record"
                self.respond(stream, recorder.statuses.get("HEAD", 200 if known else 404), {}, end=True)
            recorder.changed()
            return
        status = recorder.statuses.get("POST", 200)
        if status != 200 or fields[":path"] != "/v2/record":
            self.respond(stream, status if status != 200 else 404, {}, end=True)
            return
        session = self._streams[stream] = FakeSession(self, 2, stream)
        recorder.sessions.append(session)
        if recorder.accepts and recorder.hang != "POST":
            session.accept()
        recorder.changed()

    # -- HTTP/1.1

    def _h1(self, data: bytes) -> None:
        self._held += data
        while self._held and self._h1_step():
            pass

    def _h1_step(self) -> bool:
        """Takes one thing off what is held; False where more must come."""
        if self._left > 0:
            piece, self._held = self._held[: self._left], self._held[self._left :]
            self._left -= len(piece)
            if self._session is not None:
                self._session._data(piece, 0)
                if not self._left:
                    self._left = -2
            else:
                self._event += piece
                if not self._left:
                    self._event_done()
            return True
        if self._left == -2:  # behind a chunk's data
            if len(self._held) < 2:
                return False
            assert self._held.startswith(b"\r\n")
            self._held = self._held[2:]
            self._left = -1
            return True
        if self._session is not None:
            line, found, rest = self._held.partition(b"\r\n")
            if not found:
                return False
            self._left = int(line, 16)
            self._held = rest
            if not self._left:
                if len(rest) < 2:
                    self._held = line + found + rest
                    self._left = -1
                    return False
                session, self._held = self._session, rest[2:]
                session._ended("clean")
                self._session = None
            return True
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return False
        self._held = rest
        self._h1_request(head.decode())
        return True

    def _h1_request(self, head: str) -> None:
        recorder = self.recorder
        request, *lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._left = -1
        assert fields["host"] == recorder.address
        if request == "POST /record HTTP/1.1":
            assert fields["transfer-encoding"] == "chunked" and fields["expect"] == "100-continue"
            status = recorder.statuses.get("POST", 200)
            if status != 200:
                self.write(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno" % status)
                self.transport.close()
                return
            session = self._session = FakeSession(self, 1)
            recorder.sessions.append(session)
            if recorder.accepts and recorder.hang != "POST":
                session.accept()
        elif request == "HEAD /v2/event HTTP/1.1":
            recorder.probes += 1
            batch = "" if recorder.event_batch is None else f"Event-Batch: {recorder.event_batch}\r\n"
            status = recorder.statuses.get("HEAD", 200)
            if recorder.hang != "HEAD":
                self.write(f"HTTP/1.1 {status} X\r\n{batch}Content-Length: 7\r\n\r\n".encode())
        elif request == "POST /v2/event HTTP/1.1":
            assert fields["content-type"] == "application/json"
            self._left = int(fields["content-length"])
            self._event = b""
        else:
            self.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        recorder.changed()

    def _event_done(self) -> None:
        recorder = self.recorder
        self._left = -1
        if recorder.dislikes and recorder.dislikes in self._event:
            self.write(b"HTTP/1.1 400 X\r\nContent-Length: 12\r\n\r\nI don't like")
            return
        recorder.events.append(self._event)
        recorder.changed()
        if recorder.hang == "POST":
            return
        status = recorder.statuses.get("EVENT", 200)
        close = b"Connection: close\r\n" if recorder.close_after_event else b""
        self.write(b"HTTP/1.1 %d X\r\n%sContent-Length: 2\r\n\r\n{}" % (status, close))
        if close:
            self.transport.close()

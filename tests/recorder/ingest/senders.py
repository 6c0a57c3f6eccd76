"""What sends to the recorder in tests: a client of h2c that does as it is told, and raw HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.recorder.store.storing import HEADER


class H2Sender(asyncio.Protocol):
    """One connection. heads: response fields by stream. said: what came on a stream, each JSON object. ended, reset:
    streams whose other half has ended, or that were reset (with the code). lost: the connection is gone."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.heads: dict[int, dict[str, str]] = {}
        self.said: dict[int, list[dict[str, Any]]] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.names: dict[int, str] = {}  # for whoever wants to remember what a stream is
        self.lost = False
        self.goaway = False
        self.transport: asyncio.Transport | None = None
        self._bodies: dict[int, bytes] = {}
        self._changed = asyncio.Event()

    @classmethod
    async def connect(cls, port: int, *, receive: int = 0) -> H2Sender:
        """receive: bytes that the kernel takes for it while it does not read, where not as many as it likes."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        if receive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        _, protocol = await loop.create_connection(cls, sock=sock)
        return protocol

    @classmethod
    async def in_session(cls, port: int) -> tuple[H2Sender, int]:
        """A connection with one session, see `begin`."""
        sender = await cls.connect(port)
        return sender, await sender.begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        if self.transport is not None and (data := self.h2.data_to_send()):
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            events = []
        for event in events:
            number = getattr(event, "stream_id", 0) or 0
            match event:
                case h2.events.ResponseReceived():
                    self.heads[number] = {str(name): str(value) for name, value in event.headers or ()}
                case h2.events.DataReceived():
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
                    lines = (self._bodies.get(number, b"") + (event.data or b"")).split(b"\n")
                    self._bodies[number] = lines.pop()
                    self.said.setdefault(number, []).extend(map(json.loads, lines))
                case h2.events.StreamEnded():
                    self.ended.add(number)
                case h2.events.StreamReset():
                    self.reset[number] = int(event.error_code or 0)
                case h2.events.ConnectionTerminated():
                    self.goaway = True
        self._flush()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._changed.set()

    def request(self, method: str = "POST", path: str = "/v2/record", *, end: bool = False) -> int:
        number = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "recorder")]
        self.h2.send_headers(number, fields, end_stream=end)
        self._flush()
        return number

    async def begin(self) -> int:
        """A session whose header line is safe: its stream."""
        number = self.request()
        await self.send(number, HEADER)
        await self.until_acked(number, len(HEADER))
        return number

    async def send(self, number: int, data: bytes, *, end: bool = False, frame: int = 1 << 20) -> None:
        """All of it, as far as windows allow; ends early if the stream or connection is gone."""
        while data:
            if self.lost or number in self.reset:
                return
            size = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(data), frame)
            if size <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self.h2.send_data(number, data[:size])
            self._flush()
            data = data[size:]
        if end:
            self.h2.end_stream(number)
            self._flush()

    def acked(self, number: int) -> int:
        return max([message["ack"] for message in self.said.get(number, []) if "ack" in message], default=0)

    def error(self, number: int) -> str:
        return "".join(message["error"] for message in self.said.get(number, []) if "error" in message)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_ended(self, number: int) -> None:
        await self.until(lambda: number in self.ended or number in self.reset or self.lost)

    async def until_acked(self, number: int, size: int) -> None:
        await self.until(lambda: self.acked(number) >= size)

    async def until_acked_in_all(self, size: int) -> None:
        await self.until(lambda: sum(map(self.acked, self.said)) >= size)

    async def until_lost(self) -> None:
        await self.until(lambda: self.lost)

    async def until_head(self, number: int) -> None:
        await self.until(lambda: number in self.heads or number in self.reset)

    async def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        await self.until(lambda: self.lost)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other end has closed the connection, or reset it."""
    data = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(1 << 16):
                data += piece
    return data


async def exchange(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One HTTP/1.1 request on a connection of its own, sent as it is; status, fields and what follows the head, until
    the connection is closed or the announced length is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        body = b"" if request.startswith(b"HEAD") else await reader.readexactly(int(fields.get("content-length", "0")))
        return int(lines[0].split()[1]), fields, body
    finally:
        writer.close()
        await writer.wait_closed()


def chunked(data: bytes, size: int = 1000) -> bytes:
    """A whole chunked body."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

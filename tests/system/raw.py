"""HTTP spelled by hand over one connection: what no client library would send, and what must stay one connection."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import threading
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k8sproxy.protocol import spdy
from tests.bed import Node


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        """The message of a Kubernetes Status."""
        return str(json.loads(self.body)["message"])

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection to a proxy; it is never opened again behind the test's back."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    def open(
        cls, host: str, port: int, *, through: Node | None = None, ca: Path | None = None, first: bytes = b""
    ) -> Connection:
        """host: a tailnet name where `through` is the node that dials, else an address of this machine.

        ca: what TLS is checked against, None for plain HTTP. first: bytes sent before TLS (a PROXY header).
        """
        sock = through.dial(host, port) if through else socket.create_connection((host, port), 30)
        try:
            sock.settimeout(30)
            if first:
                sock.sendall(first)
            if ca is not None:
                sock = ssl.create_default_context(cafile=str(ca)).wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Write a request as it stands: the target is not touched."""
        lines = [f"{method} {target} HTTP/1.1", "Host: bed"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def begin(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        """Send a request and read the head of its response; the body is the caller's to read."""
        self.send(method, target, headers)
        response = http.client.HTTPResponse(self.sock, method=method)
        response.begin()
        return response

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """A request and its whole response. An upgrade (101) is taken as an answer without a body."""
        self.send(method, target, headers, body)
        with http.client.HTTPResponse(self.sock, method=method) as response:
            response.begin()
            content = b"" if response.status == 101 else response.read()
            return Answer(response.status, content, dict(response.getheaders()))


def in_query(*words: str) -> str:
    """The words of an exec's command as they stand in its query."""
    return "&".join(f"command={urllib.parse.quote(word, safe='')}" for word in words)


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """One frame of a client: masked (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((0x80 * final | opcode,)) + length + mask + masked


class WebSocket:
    """A WebSocket that is asked for over a connection; whatever comes back, as it comes.

    protocols: what is offered, in the order and spelling given; None for no such field. status, headers: of the answer;
    body: where that is no 101.
    """

    def __init__(
        self,
        connection: Connection,
        target: str,
        protocols: str | None = "v4.channel.k8s.io",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.sock = connection.sock
        fields = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            **({"Sec-WebSocket-Protocol": protocols} if protocols is not None else {}),
            **(headers or {}),
        }
        connection.send("GET", target, fields)
        self._got = b""
        lines = self._take(self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        self.body = b"" if self.status == 101 else self._take_exactly(int(self.headers.get("content-length", 0)))

    @property
    def protocol(self) -> str | None:
        """The one that was chosen."""
        return self.headers.get("sec-websocket-protocol")

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.sock.sendall(frame(opcode, payload))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(opcode, payload), until the connection ends. A time-out leaves an unfinished frame to the next call."""
        while self._more(2):
            opcode, size = self._got[0] & 15, self._got[1] & 127
            assert not self._got[1] & 128, "a server's frame is not masked"
            behind = 2 + {126: 2, 127: 8}.get(size, 0)
            if behind > 2 and self._more(behind):
                size = int.from_bytes(self._got[2:behind], "big")
            yield opcode, self._take_exactly(behind + size)[behind:]

    def until(self, wanted: int) -> tuple[bytes, bytes]:
        """The payload of the next frame with that opcode, and those of the data frames before it, one after another."""
        before = bytearray()
        for opcode, payload in self.frames():
            if opcode == wanted:
                return payload, bytes(before)
            if opcode < CLOSE:
                before += payload
        raise AssertionError(f"no frame with opcode {wanted}, but {bytes(before)!r}")

    def channels(self) -> dict[int, bytes]:
        """What came on each channel, until the connection ends. (A message is one frame, as these servers write.)"""
        said: dict[int, bytes] = {}
        for opcode, payload in self.frames():
            if opcode < CLOSE and payload:
                text = opcode == TEXT and payload[:1].isdigit()
                number = int(payload[:1]) if text else payload[0]
                said[number] = said.get(number, b"") + (base64.b64decode(payload[1:]) if text else payload[1:])
        return said

    def _more(self, count: int) -> bool:
        """Whether `count` bytes came before the end."""
        while len(self._got) < count:
            try:
                data = self.sock.recv(64 * 1024)
            except ConnectionResetError:
                data = b""
            if not data:
                return False
            self._got += data
        return True

    def _until(self, mark: bytes) -> int:
        while mark not in self._got:
            assert self._more(len(self._got) + 1), f"the connection ended behind {self._got!r}"
        return self._got.index(mark) + len(mark)

    def _take(self, count: int) -> bytes:
        taken, self._got = self._got[:count], self._got[count:]
        return taken

    def _take_exactly(self, count: int) -> bytes:
        assert self._more(count), f"the connection ended within a frame: {self._got[:80]!r}"
        return self._take(count)


class Spdy:
    """A session's SPDY/3.1 behind its 101, spelled by hand. Streams are numbered from 1 in the order of `open`."""

    def __init__(self, connection: Connection, target: str, protocol: str = "v4.channel.k8s.io") -> None:
        self.sock = connection.sock
        self._deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
        self._streams: list[str] = []
        upgrade = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol}
        connection.send("POST", target, upgrade)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.sock.recv(1)
        self.status = int(head.split()[1])

    def open(self, kind: str) -> int:
        """A new stream; returns its id."""
        self._streams.append(kind)
        stream = 2 * len(self._streams) - 1
        name, value = b"streamtype", kind.encode()
        plain = b"".join(number.to_bytes(4, "big") for number in (1, len(name)))
        plain += name + len(value).to_bytes(4, "big") + value
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        body = stream.to_bytes(4, "big") + bytes(6) + block
        self.sock.sendall(b"\x80\x03\x00\x01" + len(body).to_bytes(4, "big") + body)
        return stream

    def said(self) -> dict[str, bytes]:
        """What came on each stream, until upstream says no more."""
        said: dict[str, bytes] = {}
        with contextlib.suppress(EOFError, ConnectionResetError):
            for stream, payload in self.frames():
                kind = self._streams[(stream - 1) // 2]
                said[kind] = said.get(kind, b"") + payload
        return said

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(stream, payload) of the frames with data. Raises EOFError or ConnectionResetError where upstream ends."""
        while True:
            word = int.from_bytes(self._exactly(4), "big")
            payload = self._exactly(int.from_bytes(self._exactly(4)[1:], "big"))
            if word < 1 << 31:
                yield word, payload

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data


@contextlib.contextmanager
def local_port(node: Node, host: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to host:port of the tailnet, for clients that speak no SOCKS5."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as sockets:
        threads: list[threading.Thread] = []

        def pump(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(64 * 1024):
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    inner, _ = server.accept()
                    outer = node.dial(host, port)
                    outer.settimeout(None)
                    sockets.callback(_end, inner)
                    sockets.callback(_end, outer)
                    for pair in ((inner, outer), (outer, inner)):
                        threads.append(threading.Thread(target=pump, args=pair, daemon=True))
                        threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes accept()
            accepting.join(5)
            sockets.close()
            for thread in threads:
                thread.join(5)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()

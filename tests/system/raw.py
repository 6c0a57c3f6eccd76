"""HTTP spelled by hand over one connection: what no client library would send, and what must stay one connection."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

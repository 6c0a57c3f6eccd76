"""What the commands talk to, each in a thread of its own, since a command runs its own loop."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from standins.tailscaled import Answer, FakeTailscaled


@contextlib.contextmanager
def tailscaled(path: Path, peers: dict[str, Answer]) -> Iterator[FakeTailscaled]:
    """A stand-in daemon on the socket `path`."""
    ready: threading.Event = threading.Event()
    state: dict[str, object] = {}

    async def serve() -> None:
        async with FakeTailscaled(path) as daemon:
            daemon.peers = peers
            stop = asyncio.Event()
            state.update(daemon=daemon, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    daemon, stop, loop = state["daemon"], state["stop"], state["loop"]
    assert isinstance(daemon, FakeTailscaled)
    assert isinstance(stop, asyncio.Event)
    assert isinstance(loop, asyncio.AbstractEventLoop)
    try:
        yield daemon
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@contextlib.contextmanager
def https(
    context: ssl.SSLContext | None, answers: dict[str, tuple[int, bytes]], seen: list[dict[str, str]] | None = None
) -> Iterator[int]:
    """An HTTP(S) server on loopback that knows some paths. Gives its port; seen: the headers of each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            if seen is not None:
                seen.append({name.lower(): value for name, value in self.headers.items()})
            status, body = answers.get(self.path.partition("?")[0], (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # so that leaving waits for them

        def get_request(self) -> tuple[socket.socket, object]:
            connection, address = super().get_request()
            if context is None:
                return connection, address
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that don't like the certificate

    with _running(Server(("127.0.0.1", 0), Handler)) as port:
        yield port


@contextlib.contextmanager
def socks5(user: bytes, password: bytes, resolve: Callable[[str], tuple[str, int]]) -> Iterator[int]:
    """A SOCKS5 proxy on loopback that wants a password. resolve: where a name really is. Gives its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            sock: socket.socket = self.request
            methods = sock.recv(2)[1]
            if b"\x02" not in sock.recv(methods):
                sock.sendall(b"\x05\xff")
                return
            sock.sendall(b"\x05\x02")
            wanted = bytes((1, len(user))) + user + bytes((len(password),)) + password
            if sock.recv(len(wanted)) != wanted:
                sock.sendall(b"\x01\x01")
                return
            sock.sendall(b"\x01\x00")
            head = sock.recv(5)
            name = sock.recv(head[4]).decode()
            sock.recv(2)
            try:
                with socket.create_connection(resolve(name)) as other:
                    sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
                    back = threading.Thread(target=_copy, args=(other, sock))
                    back.start()
                    _copy(sock, other)
                    back.join()
            except OSError:
                sock.sendall(b"\x05\x04\x00\x01" + bytes(6))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with _running(Server(("127.0.0.1", 0), Handler)) as port:
        yield port


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _running(server: socketserver.TCPServer) -> Iterator[int]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)

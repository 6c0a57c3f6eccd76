"""A stage for the data plane: the real listener, spine, relay and WhoIs between a client and an API server whose
every byte, end and silence the test decides.

    async with Stage(tls=True) as stage:
        client = await stage.client()
        await client.send(get("/api/v1/pods"))
        upstream = await stage.api.accept()
        assert b"GET /api/v1/pods" in await upstream.head()

`Raw` is one end of a connection, plain or TLS, without a buffer of its own for what it sends: a `send` that the other
side does not read waits. Its ends are told apart: `end` (FIN, with TLS behind close_notify), `cut` (FIN alone),
`reset`; and so is what the other side does: `rest` raises Truncated or ConnectionResetError where it was no clean end.

Leaving the stage drains it and asserts that nothing is left: no connection, no count, no descriptor, no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

from k8sproxy.access.decision import Snapshot
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.entry import Trail
from k8sproxy.audit.events import Events, EventSettings
from k8sproxy.audit.sinks import sinks_of
from k8sproxy.clusters.account import Account, AccountState
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.localapi import LocalAPI
from k8sproxy.common.tailnet.peer import Peer
from k8sproxy.common.tailnet.whois import WhoIs
from k8sproxy.dataplane.connection import Connection
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.listener import Server, Terms, Trust
from k8sproxy.dataplane.routes import Permit, Route, Routes
from k8sproxy.dataplane.shared import Shared
from k8sproxy.dataplane.upstream import Endpoint, Upstream
from k8sproxy.recording.recorders import Recorders
from k8sproxy.sessions.registry import Sessions
from k8sproxy.telemetry import RequestLog, Telemetry
from k8sproxy.tls.certificates import server_context
from standins.pki import Authority

KUBERNETES = "tailscale.com/cap/kubernetes"
UNKNOWN = Refusal(403, "peer_unknown", "tailscaled knows no such peer")
AWAY = Refusal(503, "whois_unavailable", "tailscaled is not there", retry_after=1)


def peer(*groups: str, login: str = "ana@example.com", node: str = "n-ana", **rule: object) -> Peer:
    """A user's node whose one rule has these groups."""
    rules = ({"impersonate": {"groups": list(groups)}, **rule},)
    return Peer("100.64.0.7", node, "laptop.tail.ts.net.", login_name=login, capabilities={KUBERNETES: rules})


ANA = peer("dev")


@cache
def pki() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's) context for 127.0.0.1."""
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    return giving_tickets(server_context(*authority.issue("127.0.0.1", "localhost"))), context


def giving_tickets(context: ssl.SSLContext) -> ssl.SSLContext:
    """As the API server gives them, and k8sproxy does not."""
    context.num_tickets = 2
    return context


class Truncated(Exception):
    """The stream ended where it should not have: within a message, or without close_notify."""


class Raw:
    """One end of a connection. received: bytes taken off the wire and not used yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        # What is sent is there at once, and not when the other side has acknowledged what came before.
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.received = b""
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    async def start_tls(self, context: ssl.SSLContext, *, server_side: bool) -> Raw:
        name = None if server_side else "127.0.0.1"
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            else:
                await self._flush()
                return self

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._loop.sock_sendall(self.sock, data)

    async def _feed(self) -> None:
        data = await self._loop.sock_recv(self.sock, 16384)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def send(self, data: bytes) -> None:
        """Send all of it; waits while the other side doesn't read."""
        if self._tls is None:
            await self._loop.sock_sendall(self.sock, data)
            return
        for start in range(0, len(data), 65536):
            self._tls.write(data[start : start + 65536])
            await self._flush()

    async def receive(self) -> bytes:
        """Some bytes, b"" at a clean end. Raises Truncated or ConnectionResetError."""
        if self._tls is None:
            return await self._loop.sock_recv(self.sock, 65536)
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                await self._feed()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise Truncated(str(error)) from None

    async def until(self, separator: bytes) -> bytes:
        """Everything up to `separator`, and it."""
        while (end := self.received.find(separator)) < 0:
            self.received += await self._more()
        end += len(separator)
        data, self.received = self.received[:end], self.received[end:]
        return data

    async def exactly(self, size: int) -> bytes:
        while len(self.received) < size:
            self.received += await self._more()
        data, self.received = self.received[:size], self.received[size:]
        return data

    async def _more(self) -> bytes:
        if data := await self.receive():
            return data
        raise Truncated(f"ended after {self.received!r}")

    async def head(self) -> bytes:
        return await self.until(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """All that still comes, up to a clean end."""
        data, self.received = self.received, b""
        while piece := await self.receive():
            data += piece
        return data

    async def gone(self) -> bool:
        """Whether the other side has ended, in whatever way, without another byte; waits for the end."""
        with contextlib.suppress(Truncated, OSError):
            return await self.rest() == b""
        return True

    async def skip(self, size: int) -> None:
        """Read `size` bytes and hold none of them."""
        size -= len(self.received)
        self.received = b""
        while size > 0:
            data = await self._more()
            size -= len(data)

    async def response(self, method: str = "GET") -> Response:
        """A whole response."""
        head = await self.head()
        lines = head.decode("latin-1").split("\r\n")
        fields = [tuple(line.split(": ", 1)) for line in lines[1:-2]]
        status = int(lines[0].split(" ")[1])
        response = Response(status, {name.lower(): value for name, value in fields}, b"")
        assert len(response.fields) == len(fields), f"a field twice: {head!r}"
        if method == "HEAD" or status in (204, 304) or status < 200:
            return response
        if "content-length" in response.fields:
            response.body = await self.exactly(int(response.fields["content-length"]))
        elif response.fields.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                response.body += (await self.exactly(size + 2))[:-2]
            while await self.until(b"\r\n") != b"\r\n":
                pass
        else:
            response.body = await self.rest()
        return response

    async def end(self) -> None:
        """Say that nothing more comes, and go on reading."""
        if self._tls is not None:
            # The BIO for what comes is empty but for what `receive` has not asked for: nothing is lost by this.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._flush()
        self.cut()

    def cut(self) -> None:
        """FIN, whatever was said before."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def leave(self) -> None:
        """Close, even where uvloop keeps the descriptor for a `send` that was given up."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@dataclass
class Response:
    status: int
    fields: dict[str, str]
    body: bytes

    def refusal(self) -> tuple[int, str]:
        """(code, message) of the Kubernetes Status that this is."""
        status: dict[str, Any] = json.loads(self.body)
        assert status["kind"] == "Status" and status["apiVersion"] == "v1" and status["status"] == "Failure"
        assert status["code"] == self.status and self.fields["content-type"] == "application/json"
        return self.status, status["message"]


class Api:
    """The API server: a listening socket. A connection exists for the test once it has been accepted."""

    def __init__(self, tls: bool) -> None:
        self._sock = listening()
        self._tls = tls
        self._all: list[Raw] = []
        self.port: int = self._sock.getsockname()[1]

    async def accept(self) -> Raw:
        sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
        raw = Raw(sock)
        self._all.append(raw)
        return await raw.start_tls(pki()[0], server_side=True) if self._tls else raw

    def untouched(self) -> bool:
        """Whether nobody has connected since the last accept."""
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def close(self) -> None:
        for raw in self._all:
            raw.close()
        self._sock.close()


def tcp_sockets() -> set[str]:
    """The inodes of this process's open TCP sockets, as /proc names them."""
    with open("/proc/self/net/tcp") as table:
        inodes = {f"socket:[{line.split()[9]}]" for line in table.readlines()[1:]}
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found & inodes


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


class Daemon(LocalAPI):
    """Answers WhoIs with what `answer` holds or does. asked: the addresses, in order; services: with which service."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")
        self.answer: Peer | Refusal | Callable[[str], Awaitable[Peer]] = ANA
        self.asked: list[str] = []
        self.services: list[str | None] = []

    async def whois(self, address: str, *, service: str | None = None, destination: str | None = None) -> Peer:
        self.asked.append(address)
        self.services.append(service)
        if isinstance(self.answer, Peer):
            return self.answer
        if isinstance(self.answer, Refusal):
            raise self.answer
        return await self.answer(address)


async def _dial(host: str, port: int) -> socket.socket:
    """A connection to a recorder."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


class Accounted(Account):
    """The proxy's account, whose state a test sets. doubted: how often it was asked because of a 401."""

    def __init__(self) -> None:
        self.state = AccountState.ACCEPTED
        self.untrusted = ""
        self.doubted = 0

    async def doubt(self) -> AccountState:
        self.doubted += 1
        await asyncio.sleep(0)
        return self.state


class Stage:
    """The proxy between `client()` and `api`. tls: on both legs. localapi: instead of the stub `daemon`.

    now: what WhoIs takes for the time, seconds.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        tls: bool = False,
        trust: Trust = Trust.DIRECT,
        impersonate: bool = True,
        localapi: LocalAPI | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.tls = tls
        self.now = 1000.0
        self.daemon = Daemon()
        self._sockets = tcp_sockets()
        self.api = Api(tls)
        self.whois = WhoIs(localapi or self.daemon, clock=lambda: self.now)
        self.recorders = Recorders(_dial)
        self.sessions = Sessions(self.recorders)
        queues = ApiEvents(self.recorders.post_events, self.recorders.probe_events)
        self.events = Events(queues, EventSettings())
        telemetry = Telemetry()
        trail = Trail(self.events, sinks_of(telemetry, RequestLog("json", enabled=False)))
        self.shared = Shared(self.whois, self.limits, telemetry, self.sessions, trail)
        self.server = Server(self.shared)
        self.account = Accounted()
        self.authorization = b"Bearer the-proxy"
        endpoint = Endpoint(
            host="127.0.0.1",
            port=self.api.port,
            server_name="127.0.0.1",
            authority=b"api.test",
            base_path="",
            tls=(lambda: pki()[1]) if tls else (lambda: None),
            authorization=lambda: self.authorization,
            suspect=lambda: None,
            account=self.account if impersonate else None,
        )
        self.upstream = Upstream("prod", endpoint, self.limits, self.server.buffer)
        self.route = Route(self.upstream, Snapshot(impersonate=impersonate))
        self.terms = Terms(trust, (lambda: pki()[0]) if tls else None, Permit(Routes(self.route)))
        self.listener = self.server.listen("127.0.0.1", 0, self.terms)
        self._clients: list[Raw] = []

    async def connect(self, address: tuple[str, int], *, receive_buffer: int = 0) -> Raw:
        """A TCP connection to the proxy at an address of its own. receive_buffer: bytes, of the kernel."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client = Raw(sock)
        self._clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return client

    def replace(self, terms: Terms) -> None:
        """A reload: connections from now on get these terms, and those that are open too."""
        self.server.succeed(self.listener.terms, terms)
        self.listener.terms = terms

    async def raw(self, *, receive_buffer: int = 0) -> Raw:
        """A TCP connection to the proxy, and no more."""
        return await self.connect(self.listener.address, receive_buffer=receive_buffer)

    async def client(self, *, receive_buffer: int = 0) -> Raw:
        """A connection to the proxy, TLS included."""
        raw = await self.raw(receive_buffer=receive_buffer)
        return await raw.start_tls(pki()[1], server_side=False) if self.tls else raw

    async def exchange(self, request: bytes, client: Raw | None = None) -> tuple[Raw, Raw, bytes]:
        """(client, upstream, the head that came upstream) of a request sent on a new upstream connection."""
        client = client or await self.client()
        await client.send(request)
        upstream = await self.api.accept()
        return client, upstream, await upstream.head()

    @property
    def connections(self) -> list[Connection]:
        return list(self.server._connections)

    async def tick(self, seconds: float = 0.0) -> None:
        """The clock strikes, `seconds` later than it is; what it starts is waited for."""
        self.now += seconds
        self.server.tick(asyncio.get_running_loop().time() + seconds)
        await self.until(lambda: not self.server._rechecking)

    async def _run_clock(self) -> None:
        while True:
            self.server.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that nobody can be told of; a scene that waits for ever is ended by the runner."""
        while not condition():  # noqa: ASYNC110  # the kernel's buffers and the proxy's insides tell nobody
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.close()
        for client in self._clients:
            client.leave()
        self.api.close()
        clock = asyncio.ensure_future(self._run_clock())
        await self.server.drain(0.0 if error else 5.0)
        clock.cancel()
        await self.events.queues.aclose(1.0)
        await self.sessions.aclose()
        await self.shared.longwork.aclose()
        self.upstream.close()
        await self.whois.aclose()
        if error is None:
            self.assert_clean()

    def assert_clean(self) -> None:
        assert not self.server._connections and not self.server._tasks
        assert self.shared.per_peer == {}
        assert self.upstream.active == 0 and self.upstream.idle == 0
        assert self.shared.telemetry.connections == 0
        assert set(self.server.running().values()) == {0}
        assert tcp_sockets() <= self._sockets


def get(path: str = "/api/v1/pods", *lines: str) -> bytes:
    return request("GET", path, *lines)


def post(body: bytes, path: str = "/api/v1/namespaces/a/pods", *lines: str) -> bytes:
    return request("POST", path, f"Content-Length: {len(body)}", *lines) + body


def request(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: k8s", *lines, "", ""]).encode("latin-1")


def reply(body: bytes = b"ok", status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]).encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"

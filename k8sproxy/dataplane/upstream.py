"""Connections to one cluster's API server: dialled, handed out, taken back.

Idle connections are kept last in, first out. An idle one is still read: its end, or bytes that nobody asked for (the
sign that both sides disagree about where a response ended), take it out of the pool at once, so a connection that
died idle costs no request; one system call more looks at it again when it is handed out. What remains is the race of
a request that crosses the server's close: the relay tells that by StaleConnection, and the spine may try again.

`send` takes an UpstreamHead and nothing else: what has not been through decide() and rewrite() cannot go upstream.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from k8sproxy.access.rewrite import UpstreamHead
from k8sproxy.clusters.account import Account
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.handshake import Address, ConnectError, connect, handshake, join, resolve
from k8sproxy.dataplane.limits import Limits
from k8sproxy.dataplane.resumption import Resumption
from k8sproxy.dataplane.wire import ReadBuffer, Wire


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a cluster's API server is, and how the proxy itself signs in there.

    host: a name or IP address. server_name: what its certificate is checked against. authority: the Host field sent.
    base_path: what stands before every target, "" or "/x".
    tls: the context for a new connection, None for plain HTTP. authorization: the Authorization value of this moment,
    None where a client certificate (or nothing) does. suspect: told where the server's certificate is not trusted, so
    that the CA is read again. account: the proxy's own, to be asked about a 401; None where clients bring their own.
    """

    host: str
    port: int
    server_name: str
    authority: bytes
    base_path: str
    tls: Callable[[], ssl.SSLContext | None]
    authorization: Callable[[], bytes | None]
    suspect: Callable[[], None]
    account: Account | None = None


# TLS handshakes in progress at once. Each is a millisecond of CPU on either side; a thousand at once take so long all
# together that the first of them times out.
MAX_HANDSHAKES = 32


class UpstreamConnection:
    """One connection to the API server. reused: it has carried a request before this one. context: what it was made
    with: the client certificate is in it, so a connection is as good as its context. checked: when the certificate of
    its server was checked (Resumption)."""

    __slots__ = ("checked", "context", "idle_since", "reused", "wire")

    def __init__(self, wire: Wire, context: ssl.SSLContext | None, checked: float = 0.0) -> None:
        self.wire = wire
        self.context = context
        self.checked = checked
        self.reused = False
        self.idle_since = 0.0

    def discard(self, _: object) -> None:
        """What an idle connection does about an end, or about bytes that nobody asked for: it goes."""
        self.wire.close()

    def send(self, head: UpstreamHead, body: bytes | memoryview = b"") -> None:
        """Send a request's head, with what is there of its body."""
        self.wire.write(head.data + body if body else head.data)


class Upstream:
    """One cluster: its endpoint and its idle connections."""

    def __init__(self, name: str, endpoint: Endpoint, limits: Limits, buffer: ReadBuffer) -> None:
        self.name = name
        self.endpoint = endpoint
        self.opened = 0  # connections dialled, for the metrics
        self.active = 0  # connections handed out just now
        self._limits = limits
        self._buffer = buffer
        self._idle: deque[UpstreamConnection] = deque()
        self._closed = False
        self._turns = asyncio.Semaphore(MAX_HANDSHAKES)
        self._resumption = Resumption()

    def take_idle(self, *, repeatable: bool) -> UpstreamConnection | None:
        """The connection that was idle for the shortest time, None without one.

        One system call makes sure that no byte waits there: it would be taken for the answer of a request that is yet
        to be sent, whoever it was meant for. repeatable: whether the request could be sent again; if not, the call is
        one that tells an end as well, at some microseconds more.
        """
        context = self.endpoint.tls()
        while self._idle:
            connection = self._idle.pop()
            wire = connection.wire
            # Both calls say no where the wire has ended.
            if connection.context is context and (wire.quiet() if repeatable else wire.idle_alive()):
                connection.reused = True
                self.active += 1
                return connection
            wire.close()
        return None

    async def connect(self, *, repeatable: bool) -> UpstreamConnection:
        """A connection where none was idle: a new one, or one that has become idle before it was this caller's turn to
        dial. Raises Refusal as `dial` does, and 504 where the turn does not come within the connect timeout."""
        try:
            if self._turns.locked():
                async with asyncio.timeout(self._limits.connect_timeout):
                    await self._turns.acquire()
            else:
                await self._turns.acquire()  # at once
        except TimeoutError:
            raise Refusal(
                504, "upstream_timeout", f"cluster {self.name}: too many connections wait for the API server"
            ) from None
        try:
            return self.take_idle(repeatable=repeatable) or await self.dial()
        finally:
            self._turns.release()

    async def dial(self) -> UpstreamConnection:
        """A new connection. Raises Refusal 502 or 504 where the API server cannot be reached."""
        connection = await self._dial()
        self.active += 1
        return connection

    async def _dial(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        endpoint = self.endpoint
        addresses: list[Address] = []
        context = endpoint.tls()
        checked = 0.0
        try:
            async with asyncio.timeout(self._limits.connect_timeout):
                addresses = await resolve(loop, endpoint.host, endpoint.port)
                sock = await connect(loop, addresses)
                if context is not None:
                    ticket, since = self._resumption.ticket(context), self._resumption.since
                    sock = tls = await handshake(loop, sock, context, server_name=endpoint.server_name, ticket=ticket)
                    checked = self._resumption.checked(tls, since)
        except TimeoutError:
            where = ", ".join(map(join, addresses)) or f"the name server, asked for {endpoint.host},"
            raise Refusal(
                504,
                "upstream_timeout",
                f"cluster {self.name}: {where} did not answer within {self._limits.connect_timeout:g} s",
            ) from None
        except ssl.SSLError as error:
            endpoint.suspect()
            self._resumption.forget()
            reason = getattr(error, "verify_message", "") or error.reason or "handshake failed"
            raise Refusal(502, "upstream_tls", f"cluster {self.name}: TLS with the API server: {reason}") from error
        except OSError as error:
            reason = str(error) if isinstance(error, ConnectError) else error.strerror or type(error).__name__
            if isinstance(error, socket.gaierror):
                reason = f"{endpoint.host}: {reason}"
            raise Refusal(
                502, "upstream_unreachable", f"cluster {self.name}: the API server can't be reached: {reason}"
            ) from error
        self.opened += 1
        return UpstreamConnection(Wire(loop, sock, self._buffer), context, checked)

    def release(self, connection: UpstreamConnection, *, reusable: bool) -> None:
        """Take a connection back; it is closed unless the exchange left it at a message's end."""
        self.active -= 1
        wire, context = connection.wire, connection.context
        if context is not None and self._resumption.needs(context, connection.checked):
            self._resumption.keep(context, wire.ticket, connection.checked)
        if not reusable or self._closed or wire.ended or wire.blocked or len(self._idle) >= self._limits.pool_size:
            wire.close()
            return
        connection.idle_since = monotonic()

        wire.receiver = wire.end = connection.discard
        if wire.paused:
            wire.resume()
        self._idle.append(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long, oldest first. now: seconds of time.monotonic()."""
        while self._idle and (
            self._idle[0].wire.closed or now - self._idle[0].idle_since > self._limits.pool_idle_timeout
        ):
            self._idle.popleft().wire.close()

    def close(self) -> None:
        """Close the idle connections, and from now on each that is given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().wire.close()

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

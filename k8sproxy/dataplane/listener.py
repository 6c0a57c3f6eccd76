"""Taking connections: accept, find out whose they are, TLS, and on to the spine (connection).

How the address that WhoIs is asked about is found (Trust):

    DIRECT   the socket's own peer: a tailnet address (kernel TUN), or the loopback port from which a userspace daemon
             forwards, which it knows.
    PROXY    a PROXY v2 header names the client, as a Tailscale Service sends it. In userspace mode any peer of the
             tailnet can dial this port itself and forge a header. A dial from the tailnet is known to WhoIs, a
             connection from the daemon's serve path is not; so the direct peer must be on loopback and unknown.
             That question is a dear one (docs/security.md), and is spared where a userspace daemon can't lead a peer
             to: it forwards to 127.0.0.1 and ::1 alone (netstack.acceptTCP), not to the other loopback addresses.

A Server is one per process. It owns the connections and the clock that looks at their limits once a second; listeners
come and go under it, and what a listener leads to (certificate, route) is looked up for each connection anew. Where a
reload changes what a listener's clients are identified by, their connections are ended: a route of today is never used
with an identity of yesterday.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.common.errors import ProtocolError, Refusal
from k8sproxy.common.sockets import bind, join_address
from k8sproxy.common.tailnet.whois import ClientKey
from k8sproxy.common.tasks import Tasks
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.connection import Connection
from k8sproxy.dataplane.handshake import handshake, prepare, wait_ready
from k8sproxy.dataplane.places import Place, Places
from k8sproxy.dataplane.routes import OPEN, RETIRED, REVOKED, Permit
from k8sproxy.dataplane.shared import Shared
from k8sproxy.dataplane.turns import HANDSHAKE, Turns
from k8sproxy.dataplane.wire import ReadBuffer, Wire
from k8sproxy.protocol.proxyprotocol import HEAD_SIZE, ProxyHeaderParser
from k8sproxy.tls.certificates import CertificateError

_log = structlog.get_logger("k8sproxy")

# Accepted in one turn of the loop, so that a burst of connections does not starve those that are open.
_ACCEPTS = 64
# Seconds without accepting when the process is out of descriptors; accepting on would spin.
_OUT_OF_FILES = 0.5
_CLOCK_SECONDS = 1.0
# Seconds in which the users of sessions that a drain ends are told, and their recordings brought to an end.
_FAREWELLS = 2.0
# Ticks of the clock between looks for sides that are gone without a word (Wire.unheard): one system call a wire.
_UNHEARD_TICKS = 8


def _is_forwarded_to(ip: str) -> bool:
    """Whether a userspace daemon may forward to this address of ours what a peer dials."""
    address = ipaddress.ip_address(ip)
    return not (address.version == 4 and address.is_loopback and str(address) != "127.0.0.1")


class _PlainHTTP(Exception):
    """The client's first byte is that of an HTTP method, and not of a TLS record."""


async def _speaks_http(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bool:
    """Whether a client begins with an upper-case letter; a TLS record begins with its type, 22 (RFC 8446, 5.1)."""
    try:
        first = sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        await wait_ready(loop, sock, write=False)
        first = sock.recv(1, socket.MSG_PEEK)
    return first.isalpha()


class Trust(enum.Enum):
    """Who says which client a connection is from."""

    DIRECT = "direct"
    PROXY = "proxy"


@dataclass(slots=True)
class Terms:
    """What connections of one listener get. tls: gives the context of this moment, or raises CertificateError while
    there is none; None for plain HTTP. service: the Tailscale Service whose grants count, None for the node's own."""

    trust: Trust
    tls: Callable[[], ssl.SSLContext] | None
    permit: Permit
    service: str | None = None

    @property
    def identified_by(self) -> tuple[Trust, str | None, bool]:
        """What a client's identity rests on, once its connection is open. Who was let in by something else than what
        the listener has now was identified by what is not valid any more."""
        return self.trust, self.service, self.tls is None


class Listener:
    """One listening socket. terms: what its connections get from now on; those that are open, see Server.succeed."""

    def __init__(self, server: Server, sock: socket.socket, terms: Terms) -> None:
        self.terms = terms
        self.address: tuple[str, int] = sock.getsockname()[:2]
        self._server = server
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        prepare(sock)
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.error("accept_failed", error=error.strerror)
                    self._loop.remove_reader(self._sock.fileno())
                    self._retry = self._loop.call_later(_OUT_OF_FILES, self._resume)
                return
            self._server.take(sock, address, self.terms)

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting. Connections that are open go on."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()


class Server:
    """All client connections of the process, each one task, and the clock."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.buffer = ReadBuffer()
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop)
        self._places = Places(lambda: shared.limits.connections, lambda: shared.telemetry.refusal("silent_connection"))
        self._tasks = Tasks()
        self._connections: set[Connection] = set()
        self._rechecking: set[Connection] = set()
        self._ticks = 0
        self._held: Counter[str] = Counter()  # connections by tailnet address

    def listen(self, host: str, port: int, terms: Terms) -> Listener:
        """Open a listener. Raises OSError."""
        return Listener(self, bind(host, port), terms)

    # -- one connection

    def take(self, sock: socket.socket, address: tuple[str, int], terms: Terms) -> None:
        """Start a connection's task, or close it where there are too many."""
        telemetry = self.shared.telemetry
        telemetry.accepted += 1
        place = None if self.shared.draining else self._places.take()
        if place is None:
            telemetry.refusal("too_many_connections")
            sock.close()
            return
        telemetry.connections += 1

        def ended(_: object) -> None:
            # Here and not in the task, which runs none of its code if it is cancelled before its first step.
            telemetry.connections -= 1
            self._places.give_back(place)
            place.task = None
            sock.close()

        name = f"connection {join_address(*address[:2])}"
        place.task = self._tasks.start(self._serve(sock, address[0], address[1], terms, place), name, ended=ended)

    async def _serve(self, sock: socket.socket, ip: str, port: int, terms: Terms, place: Place) -> None:
        key = None
        held = ""
        try:
            try:
                sock.setblocking(False)
                async with asyncio.timeout(self.shared.limits.handshake_timeout):
                    if terms.trust is Trust.PROXY:
                        ip, port = await self._proxied(sock, ip, port)
                    key = self.shared.whois.open(ip, port, service=terms.service)
                    held = self._hold(key)
                    if terms.tls is not None:
                        if await _speaks_http(self._loop, sock):
                            raise _PlainHTTP
                        await self._turns.turn(held, HANDSHAKE)
                        sock = await handshake(self._loop, sock, terms.tls(), server_name=None)
            except _PlainHTTP:
                await self._refuse_plain(sock, ip, port)
                return
            except (OSError, TimeoutError, ProtocolError, Refusal, CertificateError) as error:
                self._failed(ip, port, error)
                return
            if terms.permit.state is REVOKED:
                return  # within its handshake: a client that dials anew meets what is so now
            wire = Wire(self._loop, sock, self.buffer)
            client = Client(wire, self.shared.limits, asyncio.current_task(), self._turns, held)
            connection = Connection(self.shared, client, Evidence(key), terms.permit, place)
            self._connections.add(connection)
            try:
                await connection.serve()
            finally:
                self._connections.discard(connection)
        finally:
            if held:
                self._held[held] -= 1
                if not self._held[held]:
                    del self._held[held]
            if key is not None:
                self.shared.whois.close(key)
            sock.close()

    def _hold(self, key: ClientKey) -> str:
        """Count a connection to its tailnet address, before anything is asked or answered; what it was counted under.

        A peer's connections are counted, and refused in words, at their first request (standing). Whoever never makes
        one must not take the places of all others: twice the limit is the end. Connections that a userspace daemon
        forwards all come from loopback, where only their requests tell them apart.
        """
        if not key.shared:
            return ""
        if self._held[key.address] >= 2 * self.shared.limits.connections_per_peer:
            raise Refusal(429, "too_many_connections", "this address has too many connections", close=True)
        self._held[key.address] += 1
        return key.address

    async def _refuse_plain(self, sock: socket.socket, ip: str, port: int) -> None:
        """Answer a client that speaks HTTP where TLS is spoken, in its own language, and end its connection."""
        message = "this listener speaks TLS: the server's URL begins with https://"
        refusal = Refusal(400, "plain_http", message, close=True)
        self._failed(ip, port, refusal)
        wire = Wire(self._loop, sock, self.buffer)
        try:
            client = Client(wire, self.shared.limits, asyncio.current_task(), self._turns)
            client.refuse(refusal, close=True, warn=True)  # kubectl prints a warning, and not what discovery answers
            await client.finish()
        finally:
            wire.close()

    def _failed(self, ip: str, port: int, error: Exception) -> None:
        """Say why a connection came to nothing. There is no HTTP yet, so there is nobody to tell but the log."""
        telemetry = self.shared.telemetry
        telemetry.handshake_failures += 1
        if isinstance(error, Refusal):
            telemetry.refusal(error.cause)
            _log.warning("connection_refused", address=ip, port=port, cause=error.cause, message=error.message)
            return
        if isinstance(error, TimeoutError):
            reason = "timed out"
        elif isinstance(error, ssl.SSLError):
            reason = error.reason or "TLS failed"
        else:
            reason = str(error)
        _log.info("handshake_failed", address=ip, port=port, reason=reason)

    async def _proxied(self, sock: socket.socket, ip: str, port: int) -> tuple[str, int]:
        """The client that a PROXY header names; nothing behind the header is read.

        Raises Refusal unless the header can only come from this machine's own daemon (or a process beside it).
        """
        if not ipaddress.ip_address(ip).is_loopback:
            raise Refusal(403, "proxy_not_loopback", "a PROXY header is accepted only from loopback")
        parser = ProxyHeaderParser()
        header = None
        got, want = b"", HEAD_SIZE
        while header is None:
            await wait_ready(self._loop, sock, write=False)
            # Not a byte more than the header: what follows may be TLS, which reads the socket itself.
            data = sock.recv(want - len(got))
            if not data:
                raise ProtocolError("the connection ended within its PROXY header")
            got += data
            header = parser.receive_data(data)
            if len(got) >= HEAD_SIZE:
                want = HEAD_SIZE + int.from_bytes(got[HEAD_SIZE - 2 : HEAD_SIZE])
        # Asked once bytes are here: only then has the daemon registered what it forwards (WhoIs.resolves).
        if _is_forwarded_to(sock.getsockname()[0]) and await self.shared.whois.resolves(ip, port):
            raise Refusal(403, "proxy_forged", "a peer of the tailnet sent a PROXY header of its own")
        if header.source is None:
            raise Refusal(403, "proxy_without_client", "the PROXY header names no client")
        return header.source

    # -- what a reload says of connections that are open

    def succeed(self, old: Terms, new: Terms | None) -> None:
        """Give the connections of `old` what a reload says of them. Again does no harm.

        They get the routes of `new` for their next request, unless they were let in by what is not so any more
        (Terms.identified_by): those are ended, with whatever runs. None: the listener is gone, and they end with their
        next response; what runs comes to its own end.
        """
        permit = old.permit
        if new is None:
            if permit.state is OPEN:
                permit.move(RETIRED)
        elif new.permit is permit:
            pass
        elif new.identified_by == old.identified_by:
            permit.routes = new.permit.routes
            new.permit = permit
        elif permit.state is not REVOKED:
            permit.move(REVOKED)
            for connection in tuple(self._connections):
                if connection.standing.permit is permit:
                    connection.leave()

    def running(self) -> dict[str, int]:
        """How many exchanges run now, by kind: request, watch, upgrade."""
        counts = {"request": 0, "watch": 0, "upgrade": 0}
        for connection in self._connections:
            if kind := connection.running.kind:
                counts[kind] += 1
        return counts

    # -- the clock, the drain

    async def run_clock(self) -> None:
        """Look at every connection once a second, until cancelled."""
        while True:
            await asyncio.sleep(_CLOCK_SECONDS)
            self.tick(self._loop.time())

    def tick(self, now: float) -> None:
        """Look at every connection. now: of the loop's clock, seconds."""
        self._ticks += 1
        look = self._ticks % _UNHEARD_TICKS == 0
        for connection in tuple(self._connections):
            if look:
                connection.break_unheard()
            if connection.tick(now) and connection not in self._rechecking:
                self._rechecking.add(connection)
                self._tasks.start(self._recheck(connection), f"recheck {connection.id}")

    async def _recheck(self, connection: Connection) -> None:
        try:
            await connection.recheck()
        finally:
            self._rechecking.discard(connection)

    async def drain(self, grace: float) -> int:
        """Let what runs end within `grace` seconds, then close it, sessions with a word; how many were closed so."""
        self.shared.draining = True
        for connection in tuple(self._connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._tasks.finished()
        count = len(self._tasks)
        if self.shared.sessions.end_all("stopping", "the proxy is being stopped"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELLS):
                    await self._tasks.finished()
        await self._tasks.aclose()
        return count

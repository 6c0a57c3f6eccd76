"""The port: takes connections, looks at their first bytes, and hands each to the protocol that it speaks.

A connection whose first bytes are the preface of HTTP/2 (RFC 9113, 3.4) is h2c, any other is HTTP/1.1. One that says
nothing within HEAD_TIMEOUT, or sends no whole head in that time, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

import structlog

from recorder.ingest.admission import Door
from recorder.ingest.h2c import H2Protocol
from recorder.ingest.http1 import Http1
from recorder.ingest.site import HEAD_TIMEOUT, IngestSite

_log = structlog.get_logger(__name__)

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Connections at once: a proxy keeps one for all of its sessions, other senders one a session.
MAX_CONNECTIONS = 4096
# Seconds: a peer that is gone without a word is noticed after KEEPALIVE + 4 * KEEPALIVE_INTERVAL.
KEEPALIVE = 60
KEEPALIVE_INTERVAL = 15


class IngestServer:
    """Made inside the loop. site: may be changed while it runs."""

    def __init__(self, site: IngestSite) -> None:
        self.site = site
        self._servers: list[asyncio.Server] = []
        self._doors: dict[asyncio.Transport, Door] = {}
        self._pending: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._h2: set[H2Protocol] = set()
        self._http1 = Http1(site, door=self._doors.get, begun=self._begun)
        self._none = asyncio.Event()
        self._none.set()

    async def listen(self, sock: socket.socket) -> None:
        """Take connections from a listening socket; it belongs to the server now."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: _Sniffer(self), sock=sock))

    # -- connections

    def opened(self, transport: asyncio.Transport) -> Door | None:
        """A new connection's door; None where there are too many."""
        if len(self._doors) >= MAX_CONNECTIONS or self.site.draining:
            return None
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _keep_alive(sock)
        self._none.clear()
        door = self._doors[transport] = self.site.admission.door(transport.get_extra_info("peername"))
        self.site.counts.connections = len(self._doors)
        loop = asyncio.get_running_loop()
        self._pending[transport] = loop.call_later(HEAD_TIMEOUT, transport.abort)
        return door

    def _begun(self, transport: asyncio.Transport) -> None:
        timer = self._pending.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def gone(self, transport: asyncio.Transport) -> None:
        """A connection has ended."""
        self._begun(transport)
        door = self._doors.pop(transport, None)
        if door is not None:
            door.close()
        self.site.counts.connections = len(self._doors)
        if not self._doors:
            self._none.set()

    def hand_over(self, transport: asyncio.Transport, door: Door, first: bytes) -> None:
        """Its first bytes have said what it speaks."""
        protocol: asyncio.Protocol
        if first.startswith(_PREFACE):
            self._begun(transport)
            h2 = H2Protocol(self.site, door, self._h2_closed(transport))
            self._h2.add(h2)
            protocol = h2
        else:
            protocol = _Watched(self._http1.protocol(), lambda: self.gone(transport))
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(first)

    def _h2_closed(self, transport: asyncio.Transport) -> Callable[[H2Protocol], None]:
        def closed(protocol: H2Protocol) -> None:
            self._h2.discard(protocol)
            self.gone(transport)

        return closed

    # -- the end

    async def drain(self, grace: float) -> int:
        """Take nothing more, let sessions go on for `grace` seconds, then cut them. How many were cut."""
        self.site.draining = True
        await self.stop_listening()
        for protocol in tuple(self._h2):
            protocol.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.site.counts.none_open()
        cut = self.site.counts.open
        for protocol in tuple(self._h2):
            protocol.cut("the recorder is stopping")
        self._http1.cut("the recorder is stopping")
        return cut

    async def stop_listening(self) -> None:
        """Take no more connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def aclose(self) -> None:
        """Close everything."""
        await self.stop_listening()
        for _ in range(10):  # what was just written may still go out
            if not self._h2:
                break
            await asyncio.sleep(0.01)
        for protocol in tuple(self._h2):
            protocol.abort()
        await self._http1.aclose()
        for transport in tuple(self._doors):
            transport.abort()
        await self._none.wait()


class _Sniffer(asyncio.Protocol):
    """A connection that has not said yet what it speaks."""

    def __init__(self, server: IngestServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._door: Door | None = None
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._door = self._server.opened(self._transport)
        if self._door is None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._first += data
        if self._transport is None or self._door is None:
            return
        if self._first.startswith(_PREFACE) or not _PREFACE.startswith(self._first[: len(_PREFACE)]):
            self._server.hand_over(self._transport, self._door, self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._server.gone(self._transport)


class _Watched(asyncio.Protocol):
    """Another protocol, with a word when its connection ends."""

    def __init__(self, inner: asyncio.Protocol, gone: Callable[[], None]) -> None:
        self._inner = inner
        self._gone = gone
        self.connection_made = inner.connection_made  # type: ignore[method-assign]  # straight through
        self.data_received = inner.data_received  # type: ignore[method-assign]  # straight through
        self.eof_received = inner.eof_received  # type: ignore[method-assign]  # straight through
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]  # straight through
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]  # straight through

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._gone()


def _keep_alive(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    except OSError as error:
        _log.debug("no_keepalive", why=str(error))

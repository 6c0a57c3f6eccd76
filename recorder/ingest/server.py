"""The port: whoever may come in (see `gate`) says by the first bytes which protocol it speaks, and gets that.

A connection whose first bytes are the preface of HTTP/2 (RFC 9113, 3.4) is h2c, any other is HTTP/1.1. One that sends
no whole head in time (see `heads`) is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

from k8sproxy.common.errors import Refusal
from k8sproxy.common.heads import Heads, Watched
from recorder.ingest.admission import Door
from recorder.ingest.gate import Gate, Inside, connections
from recorder.ingest.h2c import H2Protocol
from recorder.ingest.http1 import Http1
from recorder.ingest.shares import Limit
from recorder.ingest.site import IngestSite
from recorder.ingest.turnaway import PREFACE, TurnAway


class IngestServer:
    """Made inside the loop. site: may be changed while it runs. places: for connections, by default as many as fit."""

    def __init__(self, site: IngestSite, places: Limit | None = None) -> None:
        self.site = site
        self.inside = Inside(places or connections())
        self._doors: dict[asyncio.Transport, Door] = {}
        self._heads = Heads(self.inside.shares.limit.most)
        self._h2: set[H2Protocol] = set()
        self._http1 = Http1(site, door=self._doors.get, begun=self._heads.end)
        self._none = asyncio.Event()
        self._none.set()
        self.gate = Gate(
            inside=self.inside,
            door=site.admission.door,
            admit=Door.admit,
            enter=lambda door: _Sniffer(self, door),
            turn_away=self._turn_away,
        )

    async def listen(self, sock: socket.socket) -> None:
        """Take connections from a listening socket; it belongs to the server now."""
        self.gate.listen(sock)

    # -- connections

    def _turn_away(self, door: Door, refusal: Refusal) -> TurnAway:
        self.site.refused(refusal, door)
        return TurnAway(refusal)

    def opened(self, transport: asyncio.Transport, door: Door) -> None:
        """A connection that was let in."""
        self._none.clear()
        self._doors[transport] = door
        self.inside.seat(door, transport)
        self.site.counts.connections = len(self._doors)
        self._heads.came(transport)

    def gone(self, transport: asyncio.Transport) -> None:
        """A connection has ended."""
        self._heads.end(transport)
        door = self._doors.pop(transport, None)
        if door is not None:
            self.inside.leave(door)
            door.close()
        self.site.counts.connections = len(self._doors)
        if not self._doors:
            self._none.set()

    def hand_over(self, transport: asyncio.Transport, door: Door, first: bytes) -> None:
        """Its first bytes have said what it speaks."""
        protocol: asyncio.Protocol
        if first.startswith(PREFACE):
            self._heads.end(transport)
            h2 = H2Protocol(self.site, door, self._h2_closed(transport))
            self._h2.add(h2)
            protocol = h2
        else:
            protocol = Watched(self._http1.protocol(), lambda: self.gone(transport))
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
        self.gate.stop()

    async def aclose(self) -> None:
        """Close everything."""
        await self.gate.aclose()
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

    def __init__(self, server: IngestServer, door: Door) -> None:
        self._server = server
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._server.opened(self._transport, self._door)

    def data_received(self, data: bytes) -> None:
        self._first += data
        if self._transport is None:
            return
        if self._first.startswith(PREFACE) or not PREFACE.startswith(self._first[: len(PREFACE)]):
            self._server.hand_over(self._transport, self._door, self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._server.gone(self._transport)

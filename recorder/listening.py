"""The web site behind the same gate as the port of senders: shares of the places, and a time for the first head.

Nobody is turned away at this gate: whoever may see nothing is told so by a page (recorder/web/guard.py), as is one that
the tailnet does not know. But a connection counts against the share of the peer that it belongs to, one that says
nothing goes first where places are scarce, and a first head has to come within for which aiohttp waits
for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from k8sproxy.common.errors import Refusal
from k8sproxy.common.heads import Headed, Heads
from recorder.ingest.admission import Admission, Door
from recorder.ingest.gate import Gate, Inside
from recorder.ingest.shares import Limit
from recorder.ingest.turnaway import TurnAway

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SiteListener:
    """One aiohttp application on listening sockets. admission: finds out who it is; places: for connections."""

    def __init__(self, app: web.Application, admission: Admission, places: Limit) -> None:
        app.middlewares.insert(0, self._count)
        self.inside = Inside(places)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._admission = admission
        self._doors: dict[asyncio.Transport, Door] = {}
        self._heads = Heads(places.most)
        self._gate: Gate | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on listening sockets, which belong to it now."""
        await self._runner.setup()
        self._gate = Gate(
            inside=self.inside,
            door=self._admission.door,
            admit=_know,
            enter=self._enter,
            turn_away=lambda door, refusal: TurnAway(refusal),
        )
        for sock in sockets:
            self._gate.listen(sock)

    async def close(self) -> None:
        """Stop serving."""
        if self._gate is not None:
            await self._gate.aclose()
        await self._runner.cleanup()

    def _enter(self, door: Door) -> asyncio.Protocol:
        server = self._runner.server
        if server is None:
            raise ConnectionAbortedError("the site is not served")
        return _Seated(server(), self._heads, self, door)

    def came(self, transport: asyncio.Transport, door: Door) -> None:
        """A connection that was let in."""
        self._doors[transport] = door
        self.inside.seat(door, transport)

    def gone(self, transport: asyncio.Transport | None, door: Door) -> None:
        """It has ended."""
        if transport is not None:
            self._doors.pop(transport, None)
        self.inside.leave(door)
        door.close()

    @web.middleware
    async def _count(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        transport = request.transport
        door = self._doors.get(transport) if transport is not None else None
        if transport is None or door is None:
            raise ConnectionResetError("the connection has ended")
        self._heads.end(transport)
        door.begin()
        try:
            return await handler(request)
        finally:
            door.end()


class _Seated(Headed):
    """A connection of the site."""

    def __init__(self, inner: asyncio.Protocol, heads: Heads, listener: SiteListener, door: Door) -> None:
        super().__init__(inner, heads)
        self._listener = listener
        self._door = door

    def _made(self, transport: asyncio.BaseTransport) -> None:
        self._listener.came(cast(asyncio.Transport, transport), self._door)
        super()._made(transport)

    def _ended(self) -> None:
        super()._ended()
        self._listener.gone(self._transport, self._door)


async def _know(door: Door) -> None:
    """Whose share it takes. Nobody is refused here: the site does that, by a page."""
    with contextlib.suppress(Refusal):
        await door.ask()
    door.holder = door.holder or door.ip

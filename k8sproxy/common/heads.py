"""Connections of HTTP servers: a word when one ends, and a limit to the time that its first head may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

# Seconds for a connection's first bytes, and for its first whole head.
HEAD_TIMEOUT = 10.0


class Watched(asyncio.Protocol):
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
        """See asyncio.Protocol."""
        self._inner.connection_lost(exc)
        self._gone()


class Heads:
    """Connections whose first head has not come. Each has HEAD_TIMEOUT seconds for it; the oldest of more than `most`
    of them is ended for each new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._late: dict[asyncio.Transport, asyncio.TimerHandle] = {}  # oldest first

    def came(self, transport: asyncio.Transport) -> None:
        """A new connection."""
        if len(self._late) >= self._most:
            oldest = next(iter(self._late))
            self.end(oldest)
            oldest.abort()
        self._late[transport] = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, transport.abort)

    def end(self, transport: asyncio.Transport) -> None:
        """Its head has come, or it has gone. Once is enough, twice no harm."""
        timer = self._late.pop(transport, None)
        if timer is not None:
            timer.cancel()


class Headed(Watched):
    """A connection of an HTTP/1.1 server, counted in `heads` until its first head has come."""

    def __init__(self, inner: asyncio.Protocol, heads: Heads) -> None:
        super().__init__(inner, self._ended)
        self._heads = heads
        self._transport: asyncio.Transport | None = None
        self.connection_made = self._made  # type: ignore[method-assign]  # not straight through

    def _made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class
        self._heads.came(self._transport)
        self._inner.connection_made(transport)

    def _ended(self) -> None:
        if self._transport is not None:
            self._heads.end(self._transport)

"""What is known of one recorder, and what is open to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from k8sproxy.common.formats.recorderapi import split_address
from k8sproxy.recording.carriers.http1 import EventConnection
from k8sproxy.recording.carriers.http2 import Connection
from k8sproxy.recording.health import Health


class Known:
    """One address. event_batch: how many events it takes at once, None while it was not asked."""

    __slots__ = (
        *("address", "connecting", "connections", "event_batch", "events", "health", "host", "port", "retry", "used"),
    )

    def __init__(self, address: str, clock: Callable[[], float], on_bad: Callable[[Known], None]) -> None:
        self.address = address
        self.host, self.port = split_address(address)
        self.health = Health(clock, lambda: on_bad(self))
        self.used = clock()
        self.connections: list[Connection] = []
        self.connecting: asyncio.Task[Connection | Exception] | None = None
        self.retry: asyncio.TimerHandle | None = None
        self.events: list[EventConnection] = []
        self.event_batch: int | None = None

    def usable(self) -> Connection | None:
        """A connection with room for a session: the fullest, so that the others can become idle."""
        return max(
            (connection for connection in self.connections if connection.usable),
            key=lambda connection: connection.open_streams,
            default=None,
        )

    @property
    def is_bad(self) -> bool:
        """Whether it has failed, and not answered since."""
        return self.health.state == "bad"

    @property
    def unused(self) -> bool:
        """Whether nothing is open to it or on its way."""
        return not (self.health.uploads or self.connections or self.connecting or self.retry)

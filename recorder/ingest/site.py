"""What all of ingest shares: the store, the rule of admission, limits, and counts for the metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from recorder.ingest.admission import Admission
from recorder.store import Store

# Codes of asciicast events that are kept: output, stderr kept apart, resizes, markers.
EVENT_CODES = "o, e, r, m"
# Bytes of a head, of either version.
MAX_HEAD = 64 << 10
# Seconds for a connection's first bytes, and for its first whole head.
HEAD_TIMEOUT = 10.0
# Seconds that a connection may do nothing between requests. A session may be silent for as long as it likes.
IDLE_TIMEOUT = 120.0


@dataclass(slots=True)
class Counts:
    """What has happened, for the metrics. refused: by cause. bytes: of cast text. ack_seconds: told the time from a
    byte's arrival to where it can be acked, of some bytes of each session."""

    bytes: int = 0
    sessions: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    events: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    open: int = 0
    connections: int = 0
    ack_seconds: Callable[[float], None] = lambda _: None
    _none_open: asyncio.Event = field(default_factory=asyncio.Event)

    def opened(self) -> None:
        """A session has come."""
        self.open += 1

    def closed(self) -> None:
        """A session has gone."""
        self.open -= 1
        if not self.open:
            self._none_open.set()

    async def none_open(self) -> None:
        """Wait until there is no session."""
        while self.open:
            self._none_open.clear()
            await self._none_open.wait()


@dataclass(slots=True)
class IngestSite:
    """max_sessions: sessions at once; more are refused with 503, so that a sender tries another recorder."""

    store: Store
    admission: Admission
    max_sessions: int
    counts: Counts = field(default_factory=Counts)
    draining: bool = False

    @property
    def unwilling(self) -> str | None:
        """Why no new session is taken now."""
        if self.draining:
            return "the recorder is stopping"
        if self.counts.open > self.max_sessions:  # the one that asks is counted
            return "the recorder has as many sessions as it takes"
        return self.store.healthy

"""What all of ingest shares: the store, the rule of admission, limits, and counts for the metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from k8sproxy.common.errors import Refusal
from recorder.ingest.admission import Admission, Door
from recorder.ingest.budgets import Budgets
from recorder.ingest.shares import Limit, Shares, part_of
from recorder.store import Store

_log = structlog.get_logger(__name__)

# Codes of asciicast events that are kept: output, stderr kept apart, resizes, markers.
EVENT_CODES = "o, e, r, m"
# Bytes of a request's head, of either version: a sender's has 200. Of HTTP/2 this bounds the header block, and the list
# of fields that it unpacks to.
MAX_HEAD = 16 << 10
# Seconds for the whole body of a request with events: 16 MiB over a slow line take half of it.
EVENTS_TIMEOUT = 30.0
# Sessions at once, of all senders.
MAX_SESSIONS = 5000
# Bytes of requests with events that are being read, of all senders: four of the largest.
MAX_BODIES = 64 << 20
# Bytes of header lines that are not whole, of all sessions and of one sender's: a header has a KiB or two, and comes in
# one piece.
MAX_EARLY = 16 << 20
# Seconds in which the same refusal of the same peer is a warning once; peers and causes that are remembered for that.
REPEATED = 60.0
_MAX_TOLD = 1024
# The causes of refusals for a user's share of the sessions, and for a sender's.
_USER_SESSIONS = "user_sessions"
_SENDER_SESSIONS = "sender_sessions"
# What such a refusal says that it declines (recorderapi).
_DECLINES = {_USER_SESSIONS: "user", _SENDER_SESSIONS: "sender"}
# Seconds that a connection may do nothing between requests. A session may be silent for as long as it likes.
IDLE_TIMEOUT = 120.0


def session_limit(most: int = MAX_SESSIONS, each: int | None = None) -> Limit:
    """Sessions, of all senders and of one."""
    each = part_of(most) if each is None else each
    return Limit(most, each, "ingest.sessions", "ingest.sessionsPerSender", "sessions", "sender", _SENDER_SESSIONS)


def user_limit(most: int = MAX_SESSIONS, each: int | None = None) -> Limit:
    """Sessions of one user, as their headers name them: a tenth of all by default, which no person has open."""
    each = max(1, most // 10) if each is None else each
    return Limit(most, each, "ingest.sessions", "ingest.sessionsPerUser", "sessions", "user", _USER_SESSIONS)


def declines(refusal: Refusal) -> str:
    """What a sender is told that a refusal is about, where this recorder is well: see recorderapi."""
    return _DECLINES.get(refusal.cause, "")


def body_limit(most: int = MAX_BODIES, each: int | None = None) -> Limit:
    """Bytes of events that are being read."""
    each = most // 2 if each is None else each
    return Limit(
        most, each, "ingest.eventBytes", "ingest.eventBytesPerSender", "bytes of events", "sender", "sender_events"
    )


_EARLY = Limit(
    MAX_EARLY, part_of(MAX_EARLY), "a fixed limit", "a fixed limit", "bytes of unfinished header lines", "sender",
    "sender_headers",
)  # fmt: skip


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
    """sessions: places for sessions, with the share of a sender; those over it are refused, so that a sender tries
    another recorder. users: the share of a user. bodies: bytes of events that are being read; early: bytes of header
    lines that are not whole. budgets: what senders may still spend on frames of HTTP/2 that are dear."""

    store: Store
    admission: Admission
    sessions: Shares
    users: Shares
    bodies: Shares
    early: Shares = field(default_factory=lambda: Shares(_EARLY))
    budgets: Budgets = field(default_factory=Budgets)
    counts: Counts = field(default_factory=Counts)
    draining: bool = False
    _told: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def unwilling(self) -> str | None:
        """Why nothing new is taken now."""
        return "the recorder is stopping" if self.draining else self.store.healthy

    def check_willing(self) -> None:
        """Raises Refusal where nothing new is taken now."""
        if (why := self.unwilling) is not None:
            raise Refusal(503, "unwilling", why)

    def refused(self, refusal: Refusal, door: Door, **more: object) -> None:
        """Count a refusal, and say it in the log with all that is known of who it was: a warning, then for REPEATED
        seconds debug messages for the same peer and cause, since whoever is refused may try as often as they like."""
        self.counts.refused[refusal.cause] += 1
        source, now = door.source, time.monotonic()
        key = (door.holder or door.ip, refusal.cause)
        again = key in self._told and now - self._told[key] < REPEATED
        if not again:
            self._told.pop(key, None)
            self._told[key] = now
            if len(self._told) > _MAX_TOLD:
                del self._told[next(iter(self._told))]
        say = _log.debug if again else _log.warning
        say(
            "refused",
            cause=refusal.cause,
            why=refusal.message,
            peer=source.address,
            node=source.node,
            user=source.user,
            tags=list(source.tags),
            **more,
        )

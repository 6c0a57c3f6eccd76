"""The account of one request: begun by the spine when its head has come, and ended once, however the request ends.

    begin(head)               the next request; from here on every line and event names its number
    asked(info)               what it asks
    tell(..)                  its API event, where grants ask for one: before upstream is contacted
    end(outcome, cut=)        it was answered by upstream, or by the proxy itself
    refuse(refusal)           the proxy turned it down
    lose(..)                  neither: its client has gone, or the proxy stops
    over(..)                  its API event is complete

At the end every sink is called once, with the entry and how it ended, and takes what it is for (sinks). A connection
answers one request after the other, so it has one Entry for all of them.

The API event is the one account that may stand in the way of a request: where grants enforce it, the request must not
go on unless a recorder can be told. So it is begun before upstream is contacted. A request without a body is told then,
so that a watch is told when it begins; one with a body once that has been seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Protocol

from k8sproxy.access.caller import Caller
from k8sproxy.access.decision import Decision
from k8sproxy.audit.events import Events, untold
from k8sproxy.audit.requestevent import RequestEvent
from k8sproxy.audit.shares import Weight
from k8sproxy.common.errors import Refusal
from k8sproxy.protocol.http1 import Fields, RequestHead
from k8sproxy.request.requestinfo import RequestInfo


class Outcome(Protocol):
    """What a request came to. status: of the answer, 0 where there was none. proxy_seconds: the latency that was added.
    received, sent: bytes of body from and to the client."""

    status: int
    proxy_seconds: float
    received: int
    sent: int


class Served:
    """The outcome of a request that the proxy itself has answered, with a body of `sent` bytes."""

    __slots__ = ("proxy_seconds", "received", "sent", "status")

    def __init__(self, sent: int) -> None:
        self.status = 200
        self.proxy_seconds = 0.0
        self.received = 0
        self.sent = sent


# The fields of the log for a caller that is not known.
_NOBODY = '"peer":null'


class Sink(Protocol):
    """Somebody who wants to know of requests. Must not wait, and keeps nothing of the entry, which is used again."""

    def answered(self, entry: Entry, info: RequestInfo, outcome: Outcome, seconds: float, cut: str) -> None:
        """A request was answered, `seconds` after its head had come. info: what it asked. cut: why an answer that had
        begun was cut short, "" where it was not."""

    def refused(self, entry: Entry, refusal: Refusal) -> None:
        """The proxy has turned a request down."""

    def lost(self, entry: Entry) -> None:
        """A request has ended without an answer, and upstream has heard nothing of it."""


class Trail:
    """What the entries of a process share: where they go. A reload may replace the sinks."""

    def __init__(self, events: Events, sinks: tuple[Sink, ...]) -> None:
        self.events = events
        self.sinks = sinks


class Entry:
    """One request of a connection.

    connection: its id in the log. address: of its client, as it is known without being asked for. number: of the
    request on its connection, 0 before the first one. caller: None where it is not known. who: the fields of the log
    that say so, as JSON. origin: what API events of this caller have in common, "" while there is none. head, info:
    None where they could not be read.
    """

    __slots__ = (
        "_event",
        "_outcome",
        "_started",
        "_trail",
        "address",
        "caller",
        "connection",
        "head",
        "info",
        "number",
        "origin",
        "who",
    )

    def __init__(self, trail: Trail, connection: str, address: str) -> None:
        self.connection = connection
        self.address = address
        self.number = 0
        self.caller: Caller | None = None
        self.who = _NOBODY
        self.origin = ""
        self.head: RequestHead | None = None
        self.info: RequestInfo | None = None
        self._trail = trail
        self._event: RequestEvent | None = None
        self._outcome: Outcome | None = None  # what it comes to, once it is on its way to upstream,
        self._started = 0.0  # and since when, perf_counter()

    def identify(self, caller: Caller, who: str) -> None:
        """The caller is known, or another one than before."""
        self.caller = caller
        self.who = who
        self.origin = ""

    def forget(self) -> None:
        """Nobody knows the caller any more."""
        self.caller = None
        self.who = _NOBODY

    def begin(self, head: RequestHead) -> None:
        """The next request."""
        self.number += 1
        self.head = head
        self.info = None

    def run(self, outcome: Outcome, started: float) -> None:
        """It goes to upstream as soon as that can be reached, and comes to this outcome. started: perf_counter()."""
        self._outcome = outcome
        self._started = started

    # -- its end

    def end(self, outcome: Outcome, seconds: float, cut: str = "") -> None:
        """The request was answered. What was only begun and then cut short has a cause."""
        info = self.info
        assert info is not None  # noqa: S101  # what could not be read is refused
        try:
            for sink in self._trail.sinks:
                sink.answered(self, info, outcome, seconds, cut)
        finally:
            self.head = self._outcome = None  # a fault of a sink ends the request as well: it is not told of twice

    def refuse(self, refusal: Refusal) -> None:
        """The proxy has turned it down. Without a head there is no request of its own: the line names the last one."""
        if self.head is None:
            self.info = None
        try:
            for sink in self._trail.sinks:
                sink.refused(self, refusal)
        finally:
            self.head = self._outcome = None

    def lose(self, cut: str = "") -> None:
        """The connection ends, and a request that has neither been answered nor refused ends with it. cut: see `end`;
        for an answer that had begun."""
        outcome = self._outcome
        if self.head is None:
            return
        if outcome is not None:
            self.end(outcome, perf_counter() - self._started, cut if outcome.status else "")
            return
        for sink in self._trail.sinks:
            sink.lost(self)
        self.head = None

    # -- its API event

    def tell(
        self, decision: Decision, fields: Fields, *, cluster: str, session: str
    ) -> Callable[[], Awaitable[None]] | None:
        """Tell recorders of it; gives what has to be called and waited for before it may go on. One with a body is to
        be told once that has been seen (`over`). session: its id, "" where it is no session.

        Raises Refusal, at once or then, where it must be told and can't be.
        """
        assert self.info is not None  # noqa: S101  # it was decided by it
        events = self._trail.events
        caller = decision.caller
        weight = events.weigh(caller.peer, self.info, content_length=fields.content_length, chunked=fields.chunked)
        if not events.admit(decision.grants, weight):
            return partial(self._tell_later, decision, fields, weight, cluster, session)
        self._tell(decision, fields, weight, cluster, session)
        return None

    async def _tell_later(self, decision: Decision, fields: Fields, weight: Weight, cluster: str, session: str) -> None:
        await self._trail.events.wait(decision.grants, weight)
        self._tell(decision, fields, weight, cluster, session)

    def _tell(self, decision: Decision, fields: Fields, weight: Weight, cluster: str, session: str) -> None:
        assert self.info is not None  # noqa: S101  # it was decided by it
        events = self._trail.events
        if not self.origin:
            self.origin = events.origin(decision.caller.peer, decision.impersonation, cluster)
        body = fields.chunked or bool(fields.content_length)
        event = self._event = events.begin(
            decision.grants,
            weight,
            self.info,
            self.origin,
            user_agent=fields.get(b"user-agent"),
            body=body,
            chunked=fields.chunked,
            session_id=session,
        )
        if not body:
            events.tell(decision.grants, event)

    def watch(self, decision: Decision, end: Callable[[str], None]) -> Callable[[memoryview], None] | None:
        """What the request's body has to be shown to, where it is told of. Without a body the event is on its way, and
        `end` is called with a message where it turns out that no recorder takes it, for as long as the request runs."""
        event = self._event
        if event is None:
            return None
        if event.body is not None:
            return event.body.feed
        event.refused = lambda why: end(untold(decision.grants, why))
        return None

    def over(self, decision: Decision, *, whole: bool) -> None:
        """The request that is told of runs no more. whole: all of its body has come."""
        event, self._event = self._event, None
        if event is None:
            return
        if event.body is None:
            event.refused = None
            return
        if not whole:
            event.body.truncated = True
        self._trail.events.tell(decision.grants, event)

    def tell_ports(self, decision: Decision, session: str, ports: Mapping[str, Mapping[str, int]]) -> None:
        """Tell what a port-forward came to."""
        assert self.info is not None  # noqa: S101  # it was decided by it
        owner = decision.caller.owner
        self._trail.events.tell_ports(decision.grants, self.info, self.origin, session, ports, owner)

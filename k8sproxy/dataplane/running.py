"""What runs on one connection, as others than the spine see it: the clock, a recheck, a reload, a drain, a recorder.

Whoever wants it to end calls `end`, with a Refusal that says why. The user of a session reads the reason in the
protocol that is spoken there; another client gets it as an answer, or sees its answer cut short where that had begun.
"""

from __future__ import annotations

from k8sproxy.access.decision import Decision
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.relay import Exchange
from k8sproxy.request.requestinfo import RequestInfo
from k8sproxy.sessions.session import Session


def end(exchange: Exchange, session: Session | None, refusal: Refusal) -> None:
    """End an exchange from outside, with a word to its user. session: where it is one."""
    if session is not None and exchange.upgraded:
        session.end(refusal.cause, refusal.message)
    else:
        exchange.cut(refusal.cause, refusal.message)


class Running:
    """One for a connection, used for one request after the other.

    asked, decision, session: of the request, from `begin` to `over`. exchange: from its first connection to upstream
    on; None where nothing runs. prepared: the exchange from `begin` on, while it waits for gates and a connection.
    """

    __slots__ = ("_moved", "_received", "asked", "decision", "exchange", "prepared", "session")

    def __init__(self) -> None:
        self.asked: RequestInfo | None = None
        self.decision: Decision | None = None
        self.exchange: Exchange | None = None
        self.prepared: Exchange | None = None
        self.session: Session | None = None
        # Of an upload: bytes that had come when it was last seen to move, and when that was, by the loop's clock.
        self._received = 0
        self._moved = 0.0

    def begin(
        self, asked: RequestInfo, decision: Decision, session: Session | None, prepared: Exchange | None = None
    ) -> None:
        """A request may run."""
        self.prepared = prepared
        self.asked = asked
        self.decision = decision
        self.session = session
        self._received, self._moved = 0, 0.0

    def over(self) -> None:
        """It runs no more; nothing of it is kept."""
        self.asked = self.decision = self.exchange = self.prepared = self.session = None

    @property
    def kind(self) -> str:
        """What runs, for the metrics: nothing, "request", "watch" or "upgrade"."""
        if self.exchange is None or self.asked is None:
            return ""
        return "upgrade" if self.exchange.upgraded else "watch" if self.asked.verb == "watch" else "request"

    def tick(self, now: float, patience: float) -> None:
        """Find an end that nobody told of, and end an upload of which nothing has come for `patience` seconds."""
        exchange = self.exchange
        if exchange is None:
            return
        exchange.look()
        if exchange.uploading and exchange.received == self._received and self._moved:
            if now - self._moved > patience:
                exchange.cut("upload_stalled")
        else:
            self._received, self._moved = exchange.received, now

    def end(self, refusal: Refusal) -> None:
        """End it, with a word to its user. One that still waits ends when it would be sent."""
        exchange = self.exchange or self.prepared
        if exchange is not None:
            end(exchange, self.session, refusal)

    def drain(self) -> None:
        """Have it be the connection's last; a watch ends at its next boundary."""
        if self.exchange is None:
            return
        self.exchange.closing = True  # said in the response's head, if that is still to come
        if self.asked is not None and self.asked.verb == "watch":
            self.exchange.end_at_boundary()

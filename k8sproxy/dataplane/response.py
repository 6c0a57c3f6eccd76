"""The rest of a response's body, on its way to the client: what did not come in one piece with its head.

Most answers are over with their head (relay). For the others there is a Download from the head to the last byte. It
counts where the body ends, writes what came to the client in the same call, and reads no more of upstream while the
client does not take it. Small chunks are expensive to read, so of a body in chunks no more is read than a turn of the
loop allows (turns).

A watch can be ended between two of its events (`end_at_boundary`): its client has been sent whole ones and begins anew
from there. Whatever else ended so would be taken for whole.
"""

from __future__ import annotations

from collections.abc import Callable

from k8sproxy.common.errors import ProtocolError
from k8sproxy.dataplane.client import Client
from k8sproxy.dataplane.ends import Cut
from k8sproxy.dataplane.turns import STEP, Pace
from k8sproxy.dataplane.wire import Wire
from k8sproxy.protocol.body import Body, ChunkedBody, UntilClose
from k8sproxy.protocol.watchevents import Events, watch_events


class Download:
    """One response's body. sent: bytes of it that the client was sent. complete: is called at its end, with whether
    bytes of upstream came behind it. failed: is called with why it can't go on."""

    __slots__ = ("_complete", "_events", "_failed", "_pace", "_upstream", "body", "client", "sent")

    def __init__(
        self,
        body: Body,
        client: Client,
        upstream: Wire,
        *,
        complete: Callable[[bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.body = body
        self.client = client
        self.sent = 0
        self._upstream = upstream
        self._complete = complete
        self._failed = failed
        self._events: Events | None = None  # where a watch's events end
        self._pace: Pace | None = None  # of a body in chunks

    @property
    def ends_by_close(self) -> bool:
        """Whether the body ends with its connection: nothing but a reset tells the client that it was cut short."""
        return isinstance(self.body, UntilClose)

    @property
    def is_cut(self) -> bool:
        """Whether the body has been ended between two events, and its last chunk is still to be written."""
        return isinstance(self.body, ChunkedBody) and self.body.cut

    def watch(self, fields: bytes) -> None:
        """The body is that of a watch. fields: of its head."""
        if isinstance(self.body, ChunkedBody):
            self._events = watch_events(fields)
            self.body.seen, self.body.dear = self._events.take, self._events.dear

    def take_first(self, rest: memoryview) -> int:
        """How much of what came with the head belongs to the body, as far as it may be read at once. Raises
        ProtocolError."""
        self.sent = size = granted(self.client, self.body, rest)
        return size

    def begin(self, rest: memoryview) -> None:
        """Read on. rest: of what came with the head, what was not taken."""
        upstream, client = self._upstream, self.client
        upstream.payer = client
        if isinstance(self.body, ChunkedBody):
            self._pace = pace = Pace(
                client.turns, client.owner, upstream, self._read, may=self._has_room, failed=self._failed
            )
            upstream.receiver, client.wire.drained = pace.receive, pace.resume
            if rest:
                pace.receive(rest)
        else:
            upstream.receiver = self._receive
        if client.wire.blocked:
            upstream.pause()

    def resume(self) -> None:
        """Read on, where there is a place for what comes."""
        if self._pace is not None:
            self._pace.resume()
        else:
            self._upstream.resume()

    def behind(self, then: Callable[[], None]) -> bool:
        """Whether bytes of it wait to be read; if so, `then` is called once they have been."""
        return self._pace is not None and self._pace.behind(then)

    def let_end(self) -> None:
        """Let the body end between two events from now on."""
        events = self._events
        if events is not None and isinstance(self.body, ChunkedBody):
            self.body.may_end = lambda: events.at_boundary

    def end_at_boundary(self) -> None:
        """End it between two events: here, if this is such a place."""
        if isinstance(self.body, ChunkedBody):
            self.let_end()
            self.body.try_end()
            if self.body.cut:
                self._complete(False)

    def drop(self) -> None:
        """It is over: what waits to be read is nobody's any more."""
        if self._pace is not None:
            self._pace.drop()
            self._pace = None

    def _has_room(self) -> bool:
        return not self.client.wire.blocked

    def _receive(self, view: memoryview) -> None:
        self._read(view, 0)

    def _read(self, view: memoryview, units: int) -> tuple[int, int]:
        """As much of the body as the units allow: Pace.read."""
        body, client = self.body, self.client.wire
        begun = body.work
        try:
            size = take(body, view, units)
        except ProtocolError:
            self._failed(Cut("upstream_malformed"))
            return len(view), body.work - begun
        self.sent += size
        client.write(view[:size])
        if client.blocked:
            self._upstream.pause()
        if body.done:
            self._complete(size < len(view))
        return size, body.work - begun


def take(body: Body, view: memoryview, units: int) -> int:
    """How many bytes at the front of `view` belong to the body, as far as the units go. Raises ProtocolError."""
    taken, size, begun = 0, len(view), body.work
    while taken < size and not body.done and (body.run >= size or body.work - begun < units):
        taken += body.take(view[taken : taken + body.run + STEP])
    return taken


def granted(client: Client, body: Body, view: memoryview) -> int:
    """The same of what came ahead of its turn, as far as this turn of the loop goes. Raises ProtocolError."""
    turns, begun = client.turns, body.work
    try:
        return take(body, view, turns.grant())
    finally:
        turns.spend(body.work - begun)

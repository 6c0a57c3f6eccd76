"""A connection whose two sides have switched protocols: bytes go both ways until both ends have ended.

The tap sees the bytes before they go on. What it leaves of upstream's waits here (a turn's bytes at the most, since
upstream is not read meanwhile) and is shown to it again. Backpressure is the relay's: a wire that does not take all of
what it is given pauses the other one; a blocked tap pauses upstream.

An end is passed on (half-close), behind everything that was sent before it, and the other direction runs on until it
ends too. A side that breaks ends both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from k8sproxy.dataplane.ends import ClientGone, Cut
from k8sproxy.dataplane.wire import Wire
from k8sproxy.recording.tap import Tap

# Seconds a client has to end its side after upstream has ended: enough for its last frames.
_LAST_WORDS = 10.0


class Switched:
    """Both directions, from `start` until it has called `finish` or `fail`, once.

    received, sent: bytes from and to the client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Wire,
        upstream: Wire,
        tap: Tap,
        *,
        finish: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.received = 0
        self.sent = 0
        self._loop = loop
        self._client = client
        self._upstream = upstream
        self._tap = tap
        self._finish = finish
        self._fail = fail
        self._held = b""  # upstream's, which the tap has not let go yet
        self._over = False
        self._end_waits = False  # upstream has ended, and the client is not to know yet
        self._client_ended = False
        self._upstream_ended = False
        self._last: asyncio.TimerHandle | None = None  # until when the client may still say something

    def start(self, *, from_client: bytes, from_upstream: memoryview) -> None:
        """Take over both wires. from_client, from_upstream: what each has sent already, behind its head."""
        client, upstream, tap = self._client, self._upstream, self._tap
        tap.drained = self._tap_drained
        tap.ended = self.cut
        upstream.receiver, upstream.end = self._from_upstream, self._upstream_end
        client.receiver, client.end = self._from_client, self._client_end
        client.drained, upstream.drained = self._resume_upstream, client.resume
        if from_upstream:
            self._from_upstream(from_upstream)
        if from_client:
            self._from_client(memoryview(from_client))
        if self._over:
            return
        if client.blocked:
            upstream.pause()
        if not upstream.blocked:
            client.resume()

    def cut(self, cause: str, message: str) -> None:
        """End it from outside, or for the tap. message: what the client's user is told."""
        if self._over:
            return
        words = self._tap.farewell(message)
        if words is not None:
            self._client.write(words)
            self.sent += len(words)
        self._end(Cut(cause, reset=words is None, said=words is not None))

    # -- up: from the client

    def _from_client(self, view: memoryview) -> None:
        self.received += len(view)
        reply = self._tap.from_client(view)
        if self._over:
            return  # The tap has ended it, and these bytes were not to be sent.
        self._upstream.write(view)
        if reply and not self._client.blocked:
            # A client that does not read needs no answers, which would pile up here.
            self.sent += len(reply)
            self._client.write(reply)
        if self._upstream.blocked:
            self._client.pause()

    def _client_end(self, error: Exception | None) -> None:
        if error is not None:
            self._end(ClientGone())
            return
        self._client_ended = True
        self._pass_end(self._upstream, resume=self._client.resume)

    # -- down: from upstream

    def _from_upstream(self, view: memoryview) -> None:
        tap = self._tap
        if self._held:
            view = memoryview(self._held + view)
            self._held = b""
        size = tap.from_upstream(view)
        if self._over:
            return
        if size < len(view):
            self._held = bytes(view[size:])
            view = view[:size]
        self.sent += size
        self._client.write(view)
        if tap.blocked or self._client.blocked:
            self._upstream.pause()

    def _resume_upstream(self) -> None:
        if not self._tap.blocked:
            self._upstream.resume()

    def _tap_drained(self) -> None:
        """The tap takes bytes again: first those that had to wait."""
        if self._over:
            return
        if self._held:
            self._from_upstream(memoryview(b""))
        if self._over or self._tap.blocked:
            return
        if self._end_waits:
            self._pass_upstream_end()
        elif not self._client.blocked:
            self._upstream.resume()

    def _upstream_end(self, error: Exception | None) -> None:
        if self._upstream_ended or self._end_waits:
            return  # It ended cleanly, and now takes no more either: only the client's end is left to wait for.
        if error is not None:
            self._end(Cut("upstream_broke", reset=True))
            return
        self._pass_upstream_end()

    def _pass_upstream_end(self) -> None:
        # Held while the tap is blocked: to be shown again first. Otherwise it is a frame that will never be whole.
        self._end_waits = (bool(self._held) and self._tap.blocked) or not self._tap.upstream_ended()
        if self._end_waits:
            return
        self._upstream_ended = True
        self._last = self._loop.call_later(_LAST_WORDS, self._last_words)
        self._pass_end(self._client, resume=self._resume_upstream)

    def _last_words(self) -> None:
        if not self._over:
            self._end(None)

    # -- the end

    def _pass_end(self, wire: Wire, *, resume: Callable[[], None]) -> None:
        """Pass a clean end on to `wire`, behind what is still to be written there; after both ends, all is done."""
        if self._client_ended and self._upstream_ended:
            self._end(None)
            return

        def end() -> None:
            wire.drained = resume
            wire.write_end()

        if wire.blocked:
            wire.drained = end
        else:
            end()

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self.let_go()
        if error is None:
            self._finish()
        else:
            self._fail(error)

    def let_go(self) -> None:
        """It is over; nobody is told. What is held, and the timer that holds all of this, go at once."""
        self._over = True
        self._held = b""
        if self._last is not None:
            self._last.cancel()
            self._last = None

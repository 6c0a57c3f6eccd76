"""A connection whose two sides have switched protocols: bytes go both ways until both ends have ended.

The tap sees the bytes before they go on, each once. What it does not let go of upstream's waits here until it does; a
tap that lets too much wait is blocked, and upstream is not read meanwhile. Backpressure is the relay's: a wire that
does not take all of what it is given pauses the other one; a blocked tap pauses upstream.

Both sides' bytes are shown to the tap in steps, as many of them in a turn of the loop as turns allows by what the tap
says that they cost; the rest waits, and so does the wire that it came from.

An end is passed on (half-close), behind everything that was sent before it, and the other direction runs on until it
ends too. A side that breaks ends both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from k8sproxy.dataplane.ends import ClientGone, Cut
from k8sproxy.dataplane.turns import STEP, Pace, Turns
from k8sproxy.dataplane.wire import Wire
from k8sproxy.sessions.tap import Tap

# Seconds a client has to end its side after upstream has ended: enough for its last frames.
_LAST_WORDS = 10.0


class Switched:
    """Both directions, from `start` until it has called `finish` or `fail`, once.

    turns: what it may spend on reading; owner: in whose row it waits. received, sent: bytes from and to the client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: Wire,
        upstream: Wire,
        tap: Tap,
        *,
        turns: Turns,
        owner: str,
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
        self._held: deque[memoryview] = deque()  # upstream's bytes that the tap has seen and not let go yet
        self._fresh = memoryview(b"")  # behind them, those that it has seen in this call; good during the call alone
        self._going = 0  # bytes of both that it has let go, and the client has not been sent
        self._over = False
        self._end_waits = False  # upstream has ended, and the client is not to know yet
        self._client_ended = False
        self._upstream_ended = False
        self._last: asyncio.TimerHandle | None = None  # until when the client may still say something
        self._up = Pace(turns, owner, client, self._read_client, may=self._upstream_has_room, failed=self._faulty)
        self._down = Pace(turns, owner, upstream, self._read_upstream, may=self._client_has_room, failed=self._faulty)

    def start(self, *, from_client: bytes, from_upstream: memoryview) -> None:
        """Take over both wires. from_client, from_upstream: what each has sent already, behind its head."""
        client, upstream, tap = self._client, self._upstream, self._tap
        tap.drained = self._tap_drained
        tap.ended = self.cut
        upstream.receiver, upstream.end = self._down.receive, self._upstream_end
        client.receiver, client.end = self._up.receive, self._client_end
        client.drained, upstream.drained = self._down.resume, self._up.resume
        if from_upstream:
            self._down.receive(from_upstream)
        if from_client and not self._over:
            self._up.receive(memoryview(from_client))
        if self._over:
            return
        if client.blocked:
            upstream.pause()
        self._up.resume()

    def cut(self, cause: str, message: str) -> None:
        """End it from outside, or for the tap. message: what the client's user is told."""
        if self._over:
            return
        self._send()  # what is said stands behind all that the tap has let go
        words = self._tap.farewell(message)
        if words is not None:
            self._client.write(words)
            self.sent += len(words)
        self._end(Cut(cause, reset=words is None, said=words is not None))

    def _faulty(self, error: Exception) -> None:
        """A fault of ours, in a turn of the loop that is no wire's: it ends both, as a wire's receiver would."""
        self._end(Cut("internal", reset=True))

    # -- up: from the client

    def _upstream_has_room(self) -> bool:
        return not self._upstream.blocked

    def _read_client(self, view: memoryview, units: int) -> tuple[int, int]:
        """Show it to the tap, as far as the units go, and send it on: Pace.read."""
        tap = self._tap
        begun, used, size = tap.work, 0, len(view)
        while used < size and (tap.work - begun < units or tap.client_run >= size):
            end = min(size, used + tap.client_run + STEP)
            reply = tap.from_client(view[used:end])
            if self._over:
                return end, tap.work - begun  # The tap has ended it, and these bytes were not to be sent.
            used = end
            if reply and not self._client.blocked:
                # A client that does not read needs no answers, which would pile up here.
                self.sent += len(reply)
                self._client.write(reply)
        self.received += used
        self._upstream.write(view[:used])
        if self._upstream.blocked:
            self._client.pause()
        return used, tap.work - begun

    def _client_end(self, error: Exception | None) -> None:
        if self._over:
            return
        if error is not None:
            self._end(ClientGone())
        elif not self._up.behind(self._pass_client_end):
            self._pass_client_end()

    def _pass_client_end(self) -> None:
        self._client_ended = True
        self._pass_end(self._upstream, resume=self._up.resume)

    # -- down: from upstream

    def _client_has_room(self) -> bool:
        return not (self._tap.blocked or self._client.blocked)

    def _read_upstream(self, view: memoryview, units: int) -> tuple[int, int]:
        """Show it to the tap, as far as the units go, and send on what that lets go: Pace.read."""
        tap = self._tap
        begun, shown, size = tap.work, 0, len(view)
        while shown < size and (tap.work - begun < units or tap.upstream_run >= size - shown):
            end = min(size, shown + tap.upstream_run + STEP)
            going = tap.from_upstream(view[shown:end])
            if self._over:
                return end, tap.work - begun
            self._fresh = view[:end]  # nothing of it is sent before the end of this call, or of the session
            self._going += going
            shown = end
            if tap.blocked:
                break
        self._send()
        if self._fresh:
            self._held.append(memoryview(bytes(self._fresh)))
            self._fresh = memoryview(b"")
        if not self._client_has_room():
            self._upstream.pause()
        return shown, tap.work - begun

    def _send(self) -> None:
        """Send the client what the tap has let go: first of what was held, in one piece."""
        size, self._going = self._going, 0
        if not size:
            return
        self.sent += size
        held = self._held
        pieces: list[memoryview] = []
        while size and held:
            piece = held.popleft()
            if len(piece) > size:
                held.appendleft(piece[size:])
                piece = piece[:size]
            pieces.append(piece)
            size -= len(piece)
        if size:
            pieces.append(self._fresh[:size])
            self._fresh = self._fresh[size:]
        self._client.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _tap_drained(self) -> None:
        """The tap takes bytes again, and lets go of some that had to wait."""
        if self._over:
            return
        going = self._tap.from_upstream(memoryview(b""))
        if self._over:
            return
        self._going += going
        self._send()
        if self._tap.blocked:
            return
        if self._end_waits:
            self._pass_upstream_end()
        else:
            self._down.resume()

    def _upstream_end(self, error: Exception | None) -> None:
        if self._over:
            return  # and passed on, this end would make a cut look clean
        if self._upstream_ended or self._end_waits:
            return  # It ended cleanly, and now takes no more either: only the client's end is left to wait for.
        if self._down.behind(lambda: self._upstream_end(error)):
            return
        if error is not None:
            self._end(Cut("upstream_broke", reset=True))
            return
        self._pass_upstream_end()

    def _pass_upstream_end(self) -> None:
        self._end_waits = not self._tap.upstream_ended()
        if self._end_waits:
            return
        self._upstream_ended = True
        self._last = self._loop.call_later(_LAST_WORDS, self._last_words)
        self._pass_end(self._client, resume=self._down.resume)

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
            if not self._over:
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
        self._held.clear()
        self._fresh = memoryview(b"")
        self._going = 0
        self._up.drop()
        self._down.drop()
        if self._last is not None:
            self._last.cancel()
            self._last = None

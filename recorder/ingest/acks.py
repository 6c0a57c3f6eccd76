"""When the acks of a connection of HTTP/2 go out: together, all that a commit has made safe.

A few go at once: at an acknowledged session somebody waits for each, to see what a key has done. Where those are many,
they go out ACK_SECONDS after the last ones, less often with many streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from k8sproxy.common.states import State, table

# Seconds between acks of one connection, where there are more than FEW at a time.
ACK_SECONDS = 0.02
FEW = 8
# Streams for which that holds; with n times as many it is n times as long, up to
ACK_STREAMS = 100
MAX_ACK_SECONDS = 0.1


class Telling(State):
    """Whether acks are about to go out.

    QUIET   nothing is to be told, or nothing that the sender's windows have room for   -> DUE, HELD, OVER
    DUE     the timer runs                                                              -> QUIET, HELD, OVER
    HELD    the sender does not read what it was told                                   -> QUIET, OVER
    OVER    the connection is gone                                                      -> (final)
    """

    QUIET = "quiet"
    DUE = "due"
    HELD = "held"
    OVER = "over"


table(
    {
        Telling.QUIET: (Telling.DUE, Telling.HELD, Telling.OVER),
        Telling.DUE: (Telling.QUIET, Telling.HELD, Telling.OVER),
        Telling.HELD: (Telling.QUIET, Telling.OVER),
        Telling.OVER: (),
    }
)

# Looking up a member of an Enum is slow in Python 3.11.
_QUIET, _DUE, _HELD, _OVER = Telling.QUIET, Telling.DUE, Telling.HELD, Telling.OVER


class Acks:
    """One connection's. tell: is given the streams that have something to say. streams: how many there are."""

    __slots__ = ("_last", "_loop", "_state", "_streams", "_tell", "_timer", "_waiting")

    def __init__(self, tell: Callable[[dict[int, None]], None], streams: Callable[[], int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._tell = tell
        self._streams = streams
        self._state = _QUIET
        self._waiting: dict[int, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._last = float("-inf")  # when some were told

    def _move(self, state: Telling) -> None:
        self._state = self._state.to(state)
        if state is not _DUE and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def held(self) -> bool:
        """Whether the sender does not read."""
        return self._state is _HELD

    def add(self, number: int) -> None:
        """A stream has something to say."""
        self._waiting[number] = None
        self.look()

    def put_off(self, number: int) -> None:
        """It has, and the sender's window has no room for it; `look` when that has changed."""
        self._waiting[number] = None

    def forget(self, number: int) -> None:
        """A stream has ended."""
        self._waiting.pop(number, None)

    def look(self) -> None:
        """What waits may go out."""
        if self._state is _QUIET and self._waiting:
            self._move(_DUE)
            self._timer = self._loop.call_at(self._loop.time(), self._due)

    def _due(self) -> None:
        now = self._loop.time()
        if len(self._waiting) > FEW:
            seconds = min(max(1.0, self._streams() / ACK_STREAMS) * ACK_SECONDS, MAX_ACK_SECONDS)
            if now < self._last + seconds:
                self._timer = self._loop.call_at(self._last + seconds, self._due)
                return
        self.now()

    def now(self) -> None:
        """Tell all that waits, but for a sender that does not read."""
        if self._state is _HELD or self._state is _OVER:
            return
        if self._state is _DUE:
            self._move(_QUIET)
        self._last = self._loop.time()
        waiting, self._waiting = self._waiting, {}
        self._tell(waiting)

    def hold(self) -> None:
        """The sender does not read."""
        if self._state is _QUIET or self._state is _DUE:
            self._move(_HELD)

    def go_on(self) -> None:
        """It has read."""
        if self._state is _HELD:
            self._move(_QUIET)
            self.look()

    def close(self) -> None:
        """The connection is gone."""
        self._move(_OVER)
        self._waiting.clear()

"""What the relay shows of an upgraded connection: a tap beside the bytes, never a stage they pass through.

The bytes that go on are the bytes that came. A tap can do three things about them, all of which it asks of the relay:
have some of upstream's bytes wait (it lets fewer go than it was shown; the relay keeps the others), have no more read
from upstream (`blocked`, until it calls `drained`), and end the session (`ended`), for which it has the bytes that tell
the client why (`farewell`). The relay sets the two callbacks, as it does on a Wire.

Some bytes are a thousand times as dear to read as others, so a tap tells what its reading costs: the relay shows it a
piece, looks at `work`, and goes on in a later turn of the loop where a turn's budget is used up (dataplane.turns).

`Tap` itself is the tap of a connection that is no session: it takes everything and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable

# Bytes, more than there ever are: nothing that comes costs anything.
ALL = 1 << 62


def _nothing() -> None:
    return None


def _unheard(cause: str, message: str) -> None:
    return None


class Tap:
    """The tap where nothing is kept, and what the relay may ask of any.

    blocked: no more of upstream's output may be read just now. drained: called when that is over, or when bytes that
    had to wait may go (`from_upstream` with no more bytes says how many). ended: called with a cause (a short
    snake_case word) and a message for the client when the session has to end.
    """

    blocked = False
    drained: Callable[[], None] = staticmethod(_nothing)
    ended: Callable[[str, str], None] = staticmethod(_unheard)

    @property
    def work(self) -> int:
        """What reading has cost so far, in microseconds or thereabouts; it only grows."""
        return 0

    @property
    def client_run(self) -> int:
        """How many of the client's next bytes cost next to nothing to read: the rest of a payload, or all."""
        return ALL

    @property
    def upstream_run(self) -> int:
        """The same of upstream's next bytes."""
        return ALL

    def switched(self, upgrade: str, fields: bytes) -> None:
        """Upstream has switched protocols; nothing of it has been passed on. upgrade: in lower case. fields: the
        response's field lines. Raises Refusal where the session can't go on."""

    def unswitched(self, status: int) -> int | None:
        """Upstream has answered without a switch; nothing of it has been passed on. Gives how many bytes that answer
        may have at most, head and body together as they are sent, None where that does not matter; the same for all of
        its interim answers (1xx) together. Raises Refusal where it must not be passed on at all."""
        return None

    def from_client(self, view: memoryview) -> bytes:
        """Bytes that the client sent, before they go upstream. Gives what the client is to be sent in reply, mostly
        nothing. The view is good during the call alone."""
        return b""

    def from_upstream(self, view: memoryview) -> int:
        """Bytes that upstream sent, each shown once. Gives how many go to the client now, of those that waited and of
        these together, in their order. The view is good during the call alone."""
        return len(view)

    def upstream_ended(self) -> bool:
        """Upstream has ended its side; whether the client may be told now. If not, `drained` is called when it may be,
        and this is asked again."""
        return True

    def farewell(self, message: str) -> bytes | None:
        """What the client is to be sent, behind what it has been sent, so that its user reads the message and the
        session ends as failed. None where nothing can be said."""
        return None

    async def close(self) -> None:
        """The session is over; what is kept is brought to its end."""


NO_TAP = Tap()

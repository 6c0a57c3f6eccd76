"""How much of what upstream has sent may go to the client. Pure: places in upstream's bytes, counted from the switch.

    show(size, unfinished, left)    upstream has sent so much more; it ends so far within a message, or a payload
    go(limit)                       how many bytes may go now, and they do

Everything is read at once and may wait; what waits is the relay's to keep. It waits from a border between two messages
on wherever there is one, so that the client can be sent a pong or a farewell there: `stands` says whether it can. Where
it can't, `rest` says how many bytes would bring the payload to its end.
"""

from __future__ import annotations

from collections import deque


class Passage:
    """One session's. read, passed: upstream's bytes that were read, and that went to the client. border: where the
    message begins that is not whole yet; `read` where none is. stands: whether what went ends between two messages.
    rest: bytes that are missing behind what went of the frame's payload that it ends in; 0 where it ends in none.

    end: where the message begins that ends the session. first: where output waits for the recording's header.
    """

    __slots__ = (
        *(
            "_frame_end",
            "_promises",
            "_confirmed_end",
            "border",
            "confirmed",
            "end",
            "first",
            "passed",
            "promised",
            "read",
        ),
        *("rest", "stands"),
    )

    def __init__(self) -> None:
        self.read = 0
        self.passed = 0
        self.border = 0
        self.stands = True
        self.rest = 0
        self.end: int | None = None
        self.first: int | None = None
        self.promised = 0  # up to here it is known which byte of the recording has to be confirmed
        self.confirmed = 0  # up to here it is
        self._confirmed_end = 0  # where the payload ends that this is in; the same place where that is a border
        self._frame_end = 0  # of `read`, the same
        # (place, the recording's bytes up to it, the same of this place)
        self._promises: deque[tuple[int, int, int]] = deque()

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return self.read - self.passed

    def show(self, size: int, unfinished: int, left: int) -> None:
        """Upstream has sent `size` bytes more. unfinished: at their end, of a message that is not whole. left: bytes
        still to come of the payload that they end in."""
        self.read += size
        self.border = self.read - unfinished
        self._frame_end = self.read + left

    def promise(self, place: int, needed: int) -> None:
        """What upstream sent up to `place` is in the first `needed` bytes of the recording."""
        if place > self.promised:
            self.promised = place
            self._promises.append((place, needed, place if place <= self.border else self._frame_end))

    def confirm(self, stored: int) -> None:
        """The recorder has so many bytes of the recording."""
        promises = self._promises
        while promises and promises[0][1] <= stored:
            self.confirmed, _, self._confirmed_end = promises.popleft()

    def go(self, limit: int) -> int:
        """Let bytes go, up to the place `limit`; how many."""
        size = limit - self.passed
        if size <= 0:
            return 0
        self.passed = limit
        ends = limit
        if limit not in (self.border, self.end, self.first):
            ends = self._frame_end if limit > self.border else self._confirmed_end
        self.rest = ends - limit
        self.stands = limit <= self.border and not self.rest
        return size

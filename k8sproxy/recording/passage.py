"""How much of what upstream has sent may go to the client. Pure: places in upstream's bytes, counted from the switch.

    show(size, unfinished)      upstream has sent so much more; it ends so far within a message
    go(limit)                   how many bytes may go now, and they do

Everything is read at once and may wait; what waits is the relay's to keep. It waits from a border between two messages
on wherever there is one, so that the client can be sent a pong or a farewell there: `stands` says whether it can.
"""

from __future__ import annotations

from collections import deque


class Passage:
    """One session's. read, passed: upstream's bytes that were read, and that went to the client. border: where the
    message begins that is not whole yet; `read` where none is. stands: whether what went ends between two messages.

    end: where the message begins that ends the session. first: where output waits for the recording's header.
    """

    __slots__ = ("_promises", "_whole", "border", "confirmed", "end", "first", "passed", "promised", "read", "stands")

    def __init__(self) -> None:
        self.read = 0
        self.passed = 0
        self.border = 0
        self.stands = True
        self.end: int | None = None
        self.first: int | None = None
        self.promised = 0  # up to here it is known which byte of the recording has to be confirmed
        self.confirmed = 0  # up to here it is
        self._whole = True  # whether that is a border
        self._promises: deque[tuple[int, int, bool]] = deque()  # (place, the recording's bytes up to it, a border)

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return self.read - self.passed

    def show(self, size: int, unfinished: int) -> None:
        """Upstream has sent `size` bytes more. unfinished: at their end, of a message that is not whole."""
        self.read += size
        self.border = self.read - unfinished

    def promise(self, place: int, needed: int) -> None:
        """What upstream sent up to `place` is in the first `needed` bytes of the recording."""
        if place > self.promised:
            self.promised = place
            self._promises.append((place, needed, place <= self.border))

    def confirm(self, stored: int) -> None:
        """The recorder has so many bytes of the recording."""
        promises = self._promises
        while promises and promises[0][1] <= stored:
            self.confirmed, _, self._whole = promises.popleft()

    def go(self, limit: int) -> int:
        """Let bytes go, up to the place `limit`; how many."""
        size = limit - self.passed
        if size <= 0:
            return 0
        self.passed = limit
        self.stands = limit in (self.border, self.end, self.first) or (limit == self.confirmed and self._whole)
        return size

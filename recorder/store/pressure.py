"""How much all recordings together hold in memory, and who waits: for less of it, or for something to change."""

from __future__ import annotations

import asyncio
from collections import Counter


class Bell:
    """Whoever waits goes on at the next `ring`, and looks again."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Something has changed."""
        if not self._waiters:
            return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        """Wait for the next `ring`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


class Pressure(Bell):
    """Rings when it becomes less.

    queued: bytes on their way into the journal. packed: of frames that are in no chunk yet. held: both, plus tails.
    """

    __slots__ = ("_held_by", "_queued_by", "held", "packed", "queued")

    # Bytes. Twice a commit's.
    MAX_QUEUED = 8 << 20
    # Bytes. Queue, tails (20 MiB, see the ledger) and frames (24 MiB, see the builder), and some.
    MAX_HELD = 64 << 20

    # Of both, what one user's recordings may hold (by the name in their headers, else their node's): the last quarter
    # is for others. Half would be too little for a busy recorder with a single user.
    SHARE = 0.75

    def __init__(self) -> None:
        super().__init__()
        self.queued = 0
        self.held = 0
        self.packed = 0
        self._queued_by: Counter[str] = Counter()
        self._held_by: Counter[str] = Counter()

    @property
    def high(self) -> bool:
        """Whether nothing more should come."""
        return self.queued > self.MAX_QUEUED or self.held > self.MAX_HELD

    @property
    def crowded(self) -> bool:
        """Whether so much is held that one user might have to wait for ever, if nothing was put into chunks."""
        return self.held > self.MAX_HELD * self.SHARE

    def over(self, user: str) -> bool:
        """Whether nothing more should come of this user's recordings."""
        queued, held = self._queued_by.get(user, 0), self._held_by.get(user, 0)
        return queued > self.MAX_QUEUED * self.SHARE or held > self.MAX_HELD * self.SHARE

    def queue(self, user: str, size: int) -> None:
        """So many bytes of a user's more (or less) are on their way into the journal."""
        self.queued += size
        _add(self._queued_by, user, size)

    def hold(self, user: str, size: int) -> None:
        """So many bytes of a user's more (or less) are in memory."""
        self.held += size
        _add(self._held_by, user, size)


def _add(counts: Counter[str], name: str, size: int) -> None:
    counts[name] += size
    if counts[name] <= 0:
        del counts[name]

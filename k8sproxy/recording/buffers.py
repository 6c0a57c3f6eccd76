"""How much of recordings may wait for slow recorders, of all sessions and of one owner's together.

Every session may hold `recording.buffer` bytes that the wire has not taken, and of one that is acknowledged the output
that is not confirmed yet. That is nothing for one and a lot for a hundred whose recorder has stalled. So what all of
them hold is counted, and what each owner's hold (peer.owner):

    total, share    bytes. Once they are used up, a session is blocked as if its own buffer were full: in CLOSED mode
                    its output waits, in OPEN mode it is left out and the recording says so.
    FLOOR           bytes that every session may hold all the same. So a person's terminal goes on being recorded while
                    others have used everything up; and a blocked session is never one that has nothing to send.

Where a recorder confirms nothing for `ackTimeout` its sessions fail, and what they held is free.
"""

from __future__ import annotations

from collections import Counter

# Bytes: some seconds of a busy terminal, and 16 MiB for 256 sessions.
FLOOR = 64 * 1024


class Buffers:
    """One for the process. total, share: limits, which may be changed at any time. used: bytes held now. limited: how
    often a session was blocked by one of them, by its name."""

    __slots__ = ("_owners", "limited", "share", "total", "used")

    def __init__(self, total: int = 256 << 20, share: int = 32 << 20) -> None:
        self.total = total
        self.share = share
        self.used = 0
        self.limited = {"total": 0, "peer": 0}
        self._owners: Counter[str] = Counter()

    def of(self, owner: str) -> int:
        """Bytes that an owner's sessions hold."""
        return self._owners.get(owner, 0)

    def add(self, owner: str, size: int) -> None:
        """Count bytes that are held from now on; where size is negative, they are not any more."""
        if not size:
            return
        self.used += size
        owners = self._owners
        owners[owner] += size
        if not owners[owner]:
            del owners[owner]

    def room(self, owner: str, held: int) -> int:
        """How many more bytes a session may hold that holds so many; 0 where it is blocked."""
        room = min(self.total - self.used, self.share - self.of(owner))
        return max(room, FLOOR - held, 0)

    def count(self, owner: str) -> None:
        """A session is blocked by one of the limits."""
        self.limited["peer" if self.of(owner) >= self.share else "total"] += 1

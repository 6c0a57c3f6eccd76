"""The bytes of one session that wait for the wire, in a row, and what they take of all that may wait (buffers).

A carrier takes them off the front. What waits elsewhere for the recorder's confirmation (`hold`) counts as the row's
bytes do.
"""

from __future__ import annotations

from collections import deque

from k8sproxy.recording.buffers import FLOOR, Buffers


class Row:
    """One session's. limit: bytes from which on it is blocked. owner: whose share of the buffers it takes; set before
    anything is put in. size: bytes in the row; held: bytes that wait elsewhere; written: all that was ever put in."""

    __slots__ = ("_blocks", "_pieces", "buffers", "held", "limit", "owner", "size", "written")

    def __init__(self, limit: int, buffers: Buffers) -> None:
        self.owner = ""
        self.limit = limit
        self.buffers = buffers
        self.size = 0
        self.held = 0
        self.written = 0
        self._pieces: deque[bytes | memoryview] = deque()
        self._blocks = False  # it was blocked, and has not drained since

    @property
    def blocked(self) -> bool:
        """Whether it is full: `limit` bytes or more that the wire has not taken, or no room in the buffers."""
        return self.size >= self.limit or not self.buffers.room(self.owner, self.size)

    @property
    def room(self) -> int:
        """Bytes that may be put in before it is blocked."""
        return max(0, min(self.limit - self.size, self.buffers.room(self.owner, self.size)))

    @property
    def overfull(self) -> bool:
        """Whether nothing more should be put in whatever is in its middle: twice what blocks it is in the row."""
        size = self.size
        return size >= 2 * self.limit or (size >= 4 * FLOOR and not self.buffers.room(self.owner, size))

    @property
    def crowded(self) -> bool:
        """Whether no more should wait elsewhere, since the buffers are used up."""
        return self.held >= FLOOR and not self.buffers.room(self.owner, self.held)

    def put(self, data: bytes) -> None:
        """Put bytes in at the end, whatever there is in it."""
        size = len(data)
        self._pieces.append(data)
        self.written += size
        self.size += size
        self.buffers.add(self.owner, size)
        if not self._blocks and self.blocked:
            self._blocks = True
            if self.size < self.limit:
                self.buffers.count(self.owner)

    def take(self, most: int, into: list[bytes | memoryview]) -> int:
        """Move up to `most` bytes from the front; how many."""
        pieces = self._pieces
        left = most
        while pieces and left:
            piece = pieces[0]
            size = len(piece)
            if size <= left:
                into.append(pieces.popleft())
                left -= size
            else:
                view = memoryview(piece)
                into.append(view[:left])
                pieces[0] = view[left:]
                left = 0
        taken = most - left
        self.size -= taken
        self.buffers.add(self.owner, -taken)
        return taken

    def has_drained(self) -> bool:
        """Whether half of what blocked it has gone; says so once."""
        if self._blocks and self.size <= self.limit // 2 and (self.size <= FLOOR // 2 or not self.blocked):
            self._blocks = False
            return True
        return False

    def hold(self, size: int) -> None:
        """So many bytes of the session wait elsewhere until the recorder has more."""
        self.buffers.add(self.owner, size - self.held)
        self.held = size

    def clear(self) -> None:
        """Forget what is in it, and what is held."""
        self._pieces.clear()
        self.buffers.add(self.owner, -self.size - self.held)
        self.size = self.held = 0

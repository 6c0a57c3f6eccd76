"""What one owner may take of what all have: a quarter.

An owner is who a connection belongs to: a user with all their nodes, or a tagged node (peer.Peer.owner). A quarter, so
that it takes four who want all of it, together, before anybody else finds nothing; and one who is alone with a large
upload still has most of what a single process could use.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

# Of each limit.
SHARE = 4


class Weight(NamedTuple):
    """What one event takes. owner: "" for nobody's, which has no share. body, line: bytes that are kept at the most.
    limit: bytes of the body that are told."""

    owner: str = ""
    body: int = 0
    line: int = 0
    limit: int = 0


NO_WEIGHT = Weight()


class Pot:
    """Something of which there is a limited amount. left: what is there still.

    limit: of all. share: of one owner; a quarter of the limit if it is not given.
    """

    __slots__ = ("_limit", "_share", "_taken", "used")

    def __init__(self, limit: int, share: int | None = None) -> None:
        self.used = 0
        self._limit = limit
        self._share = max(1, limit // SHARE) if share is None else share
        self._taken: dict[str, int] = {}

    @property
    def left(self) -> int:
        return self._limit - self.used

    def of(self, owner: str) -> int:
        """What an owner has."""
        return self._taken.get(owner, 0)

    def set_limit(self, limit: int) -> None:
        """Change the limit, and the share with it; what is taken stays."""
        if limit != self._limit:
            self._limit, self._share = limit, max(1, limit // SHARE)

    def fits(self, owner: str, size: int) -> bool:
        """Whether an owner may have so much more. One who has nothing may have what is larger than a share."""
        if self.used + size > self._limit:
            return False
        return not owner or not self.of(owner) or self.of(owner) + size <= self._share

    def take(self, owner: str, size: int) -> bool:
        """Take so much, if there is so much for that owner."""
        if not self.fits(owner, size):
            return False
        self.add(owner, size)
        return True

    def add(self, owner: str, size: int) -> None:
        """Take so much in any case."""
        self.used += size
        if owner and size:
            self._taken[owner] = self.of(owner) + size

    def give(self, owner: str, size: int) -> None:
        """Give so much back."""
        self.used -= size
        if owner and size:
            left = self.of(owner) - size
            if left:
                self._taken[owner] = left
            else:
                del self._taken[owner]


class Rows(Generic[T]):
    """A queue in which owners take turns: what one of them puts into it is in order, and waits behind nobody else's
    but for one item of each."""

    __slots__ = ("_length", "_rows")

    def __init__(self) -> None:
        self._rows: dict[str, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, owner: str, item: T) -> None:
        """Put it at the end of its owner's row."""
        self._rows.setdefault(owner, deque()).append(item)
        self._length += 1

    def popleft(self) -> T:
        """Take the first of the row whose turn it is. There must be one."""
        owner = next(iter(self._rows))
        row = self._rows.pop(owner)
        item = row.popleft()
        if row:
            self._rows[owner] = row  # behind the others
        self._length -= 1
        return item

"""The places for connections: how many there are, and who gives one up when they are taken.

A connection's place is anonymous until its first request, when it is known whose it is; from then on it counts to its
owner's share (standing). Whoever never makes a request has no share that could be looked at, least of all behind a
userspace daemon, where all connections come from loopback. So anonymous places are held only as long as nobody else
wants them: once all places are taken, or half of them by anonymous ones, the oldest anonymous connection makes way for
the new one. A client needs its anonymous place for a handshake and a head; one that is silent keeps it until there is
no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Of all places, how many may be anonymous.
_ANONYMOUS = 2


class Place:
    """One connection's. task: the connection's, cancelled where it has to make way."""

    __slots__ = ("_places", "task")

    def __init__(self, places: Places) -> None:
        self._places = places
        self.task: asyncio.Task[None] | None = None

    def known(self) -> None:
        """It is known whose it is: it is not anonymous any more."""
        self._places.anonymous.pop(self, None)


class Places:
    """All of them. limit: gives how many there are. evicted: is called for each that has to make way."""

    def __init__(self, limit: Callable[[], int], evicted: Callable[[], None]) -> None:
        self.anonymous: dict[Place, None] = {}  # oldest first
        self.taken = 0
        self._limit = limit
        self._evicted = evicted

    def take(self) -> Place | None:
        """A place, anonymous at first; None where there is none and nobody makes way."""
        limit = self._limit()
        if self.taken >= limit or len(self.anonymous) >= max(1, limit // _ANONYMOUS):
            if not self.anonymous:
                return None
            self._evict()
        place = Place(self)
        self.anonymous[place] = None
        self.taken += 1
        return place

    def give_back(self, place: Place) -> None:
        """The connection has ended; once."""
        place.known()
        self.taken -= 1

    def _evict(self) -> None:
        oldest = next(iter(self.anonymous))
        del self.anonymous[oldest]
        self._evicted()
        if oldest.task is not None:
            oldest.task.cancel()

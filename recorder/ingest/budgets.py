"""What a connection of HTTP/2, and a sender with all of its connections, may spend on frames that are dear here.

What a frame costs here and what it costs its sender are far apart for all kinds but DATA. So a frame that is not a
session's bytes costs 1, a request REQUEST more, and each KiB of sessions that comes in earns 1. There is a budget for
each connection and one for each sender. The sender's is larger, since one that opens a connection for each session
sends more such frames than one that has a single connection. It outlives its connections: whoever connects again finds
what is left of it.

A holder is a sender as in `shares`: a node's stable id, or an address that nobody is asked about.
"""

from __future__ import annotations

# What a connection may spend at once, and in a second. A frame costs 1 and a request REQUEST more, which is 1,000
# requests at once, as many as there may be streams. Honest senders send a window update for 16 KiB of acks, and a
# request comes with a KiB of header line at least. 666 requests that are reset at once (CVE-2023-44487) were measured
# to take 0.06 to 0.15 s of CPU (docs/benchmarks.md), so 66 a second are 1 % or so.
FRAMES = 2000.0
FRAMES_A_SECOND = 200.0
REQUEST = 1
# How many connections' budgets a sender's is: enough for all of the sessions that one sender may have by default, at
# once (4,000), and for 100 connections of a single session each in every second.
OF_A_SENDER = 4
# Bytes of sessions that earn one more.
EARN = 1024
# Senders that are remembered. Only one that has spent something lately has to be.
MAX_HOLDERS = 1024


class Budget:
    """most: what it may have. rate: what it gets in a second."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, most: float, rate: float, now: float) -> None:
        self._most = most
        self._rate = rate
        self._left = most
        self._at = now

    def spend(self, cost: float, now: float) -> bool:
        """Whether there was so much. now: seconds of the loop's clock."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate) - cost
        self._at = now
        return self._left >= 0

    def earn(self, amount: float) -> None:
        """It has so much more; what is more than it may have is lost when it is next spent from."""
        self._left += amount

    def is_whole(self, now: float) -> bool:
        """Whether it has all that it may have, as a new one has."""
        return self._left + (now - self._at) * self._rate >= self._most


def of_connection(now: float) -> Budget:
    """A new connection's."""
    return Budget(FRAMES, FRAMES_A_SECOND, now)


class Budgets:
    """The senders' budgets, by holder."""

    def __init__(self) -> None:
        self._by_holder: dict[str, Budget] = {}

    def of(self, holder: str, now: float) -> Budget:
        """A sender's, for all of its connections."""
        budget = self._by_holder.get(holder)
        if budget is None:
            if len(self._by_holder) >= MAX_HOLDERS:
                self._forget(now)
            budget = self._by_holder[holder] = Budget(OF_A_SENDER * FRAMES, OF_A_SENDER * FRAMES_A_SECOND, now)
        return budget

    def _forget(self, now: float) -> None:
        for holder in [holder for holder, budget in self._by_holder.items() if budget.is_whole(now)]:
            del self._by_holder[holder]

"""Shares: a limit on something for all together, and one for each holder, so that nobody can spend it for everybody.

A holder is whoever spends: a sender (its node's stable id), or the user that a session's header names. What is counted
has its unit in the name of its limits. Refusals name the limit as the configuration does, so that whoever reads one
knows what to change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from k8sproxy.common.errors import Refusal

# Of what all may have together, a sender has four fifths at most by default: one proxy may be all the senders that
# there are, and a fifth is still left for others.
_SENDERS_PART = (4, 5)


def part_of(most: int) -> int:
    """One sender's share by default, of a limit for all."""
    return max(1, most * _SENDERS_PART[0] // _SENDERS_PART[1])


@dataclass(frozen=True, slots=True)
class Limit:
    """most: for all together. each: for one holder. key, each_key: what the configuration calls them. what: the
    plural of what is counted, for messages. holder: what a holder is, for messages. cause: of refusals of one holder,
    for the metrics."""

    most: int
    each: int
    key: str
    each_key: str
    what: str
    holder: str
    cause: str


class Shares:
    """Counts one kind of thing. limit: may be replaced at any time; what is taken stays taken."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.taken = 0
        self.by_holder: Counter[str] = Counter()

    @property
    def largest(self) -> int:
        """What the holder with the most has."""
        return max(self.by_holder.values(), default=0)

    def refusal(self, holder: str, amount: int = 1) -> Refusal | None:
        """Why the holder can't have so much more now; None where it can."""
        limit = self.limit
        if self.by_holder.get(holder, 0) + amount > limit.each:
            why = f"{limit.each} {limit.what} of one {limit.holder} at once ({limit.each_key})"
            return Refusal(429, limit.cause, f"the recorder takes at most {why}")
        if self.taken + amount > limit.most:
            why = f"{limit.most} {limit.what} at once ({limit.key})"
            return Refusal(503, "unwilling", f"the recorder takes at most {why}")
        return None

    def take(self, holder: str, amount: int = 1) -> None:
        """Count it. Raises Refusal where there is no room for it; then nothing is counted."""
        if (refusal := self.refusal(holder, amount)) is not None:
            raise refusal
        self.by_holder[holder] += amount
        self.taken += amount

    def give_back(self, holder: str, amount: int = 1) -> None:
        """Count it no longer."""
        self.taken -= amount
        self.by_holder[holder] -= amount
        if self.by_holder[holder] <= 0:
            del self.by_holder[holder]

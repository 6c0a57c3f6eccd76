"""What is known of one recorder's address: whether it works, which version it speaks, what it has done so far.

An address is unknown at first, good once it has accepted a session or answered a probe, bad after any failure. A bad
one is tried after the others and only briefly, and is asked in the background, at intervals that double, until it
answers: so no session waits for a recorder that is known to be gone. The interval goes back to its least only when
a session is accepted: one that answers probes and refuses sessions is not good for long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["unknown", "good", "bad"]

# Seconds to the first probe of an address that has failed, and the most between two: a restart takes a second or two,
# and a probe of something that is gone for good is one connection attempt.
FIRST_RETRY = 1.0
LONGEST_RETRY = 30.0
# Seconds that the answer to "which version?" holds: a recorder that was v1 may have been replaced.
VERSION_LIFE = 600.0


@dataclass(frozen=True, slots=True)
class RecorderState:
    """One address, for metrics and the admin site.

    state: unknown, good or bad. failure: why it failed last, empty if it never did; failed_ago: seconds since then.
    version: 1 or 2, 0 while not known. uploads, connections: open now. accepted, failures, bytes_sent: so far.
    ack_seconds, acks: sum and count of what the acks took (seconds from a byte's writing; a sample, one at a time).
    """

    address: str
    state: State
    version: int
    failure: str
    failed_ago: float | None
    uploads: int
    connections: int
    accepted: int
    failures: int
    bytes_sent: int
    ack_seconds: float
    acks: int


class Health:
    """The books on one address. clock: seconds, monotonic. on_bad: called when it turns bad."""

    __slots__ = (
        "_clock",
        "_failed_at",
        "_on_bad",
        "_streak",
        "_version",
        "_version_until",
        "accepted_count",
        "ack_seconds",
        "acks",
        "bytes_sent",
        "failure",
        "failures",
        "state",
        "uploads",
    )

    def __init__(self, clock: Callable[[], float], on_bad: Callable[[], None]) -> None:
        self.state: State = "unknown"
        self.failure = ""
        self.failures = 0
        self.uploads = 0
        self.accepted_count = 0
        self.bytes_sent = 0
        self.ack_seconds = 0.0
        self.acks = 0
        self._clock = clock
        self._on_bad = on_bad
        self._failed_at: float | None = None
        self._streak = 0  # failures since the last accepted session
        self._version = 0
        self._version_until = 0.0

    @property
    def version(self) -> int:
        """1 or 2; 0 while it is not known, or no longer."""
        return self._version if self._clock() < self._version_until else 0

    @version.setter
    def version(self, version: int) -> None:
        self._version = version
        self._version_until = self._clock() + VERSION_LIFE

    @property
    def retry_delay(self) -> float:
        """Seconds until a bad address is asked again."""
        return float(min(LONGEST_RETRY, FIRST_RETRY * 2 ** min(max(self._streak - 1, 0), 10)))

    @property
    def failed_ago(self) -> float | None:
        return None if self._failed_at is None else max(0.0, self._clock() - self._failed_at)

    def accepted(self) -> None:
        """It has taken a session."""
        self.state = "good"
        self._streak = 0
        self.uploads += 1
        self.accepted_count += 1

    def answered(self) -> None:
        """It has answered a probe."""
        self.state = "good"

    def failed(self, why: str, *, probe: bool = False) -> None:
        """A session, or the attempt at one, or a probe has failed there. Many sessions at once are one failure."""
        self.failure = why
        self.failures += 1
        self._failed_at = self._clock()
        self._version = 0
        turned, self.state = self.state != "bad", "bad"
        if turned or probe:
            self._streak += 1
        if turned:
            self._on_bad()

    def acked(self, seconds: float) -> None:
        self.acks += 1
        self.ack_seconds += seconds

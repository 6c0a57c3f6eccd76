"""How much of an upload the recorder has stored, and how long it has said nothing of more.

silence     bytes are not stored, and for `ack_timeout` seconds no ack has told of more: that is a failure, be the
            recorder, the way there or its flow control the reason. Where there are no acks (v1), what the socket
            takes is the sign of life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from k8sproxy.common.formats.recorderapi import AckReader
from k8sproxy.recording.limits import Limits


class Stored:
    """One upload's. acked: bytes that are stored. progress: when there were more last, by the loop's clock. silent:
    called with a sentence once the recorder has been silent for too long, at most once until more is written."""

    __slots__ = ("_limits", "_loop", "_mark", "_silent", "_timer", "_written", "acked", "acks", "progress")

    def __init__(self, limits: Limits, silent: Callable[[str], None]) -> None:
        self.acked = 0
        self.acks = AckReader()
        self.progress = 0.0
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._silent = silent
        self._written = 0
        self._mark: tuple[int, float] | None = None  # (bytes, when written), until it is acked: the acks' latency
        self._timer: asyncio.TimerHandle | None = None

    @property
    def watching(self) -> bool:
        """Whether its silence is timed."""
        return self._timer is not None

    def wrote(self, written: int) -> None:
        """So many bytes were written in all."""
        self._written = written
        if self._timer is not None and self._mark is not None:
            return
        now = self._loop.time()
        if self._mark is None:
            self._mark = (written, now)
        if self._timer is None:
            self.progress = now
            self._timer = self._loop.call_at(now + self._limits.ack_timeout, self._on_timer)

    def moved(self, acked: int) -> float | None:
        """So many are stored. Gives how long that has taken, in seconds, of some bytes; None of others."""
        self.acked = acked
        now = self.progress = self._loop.time()
        if acked == self._written:
            self.stop()
        mark = self._mark
        if mark is None or acked < mark[0]:
            return None
        self._mark = None
        return now - mark[1]

    def stop(self) -> None:
        """Silence is no fault any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def release(self) -> None:
        """Nobody is called any more: what refers to each other in a circle would stay until a late collection."""
        self.stop()
        self._silent = _nobody

    def _on_timer(self) -> None:
        due = self.progress + self._limits.ack_timeout
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._on_timer)
            return
        self._timer = None
        self._silent(
            f"the recorder has confirmed nothing for {self._limits.ack_timeout:g} s, "
            f"and {self._written - self.acked} bytes wait for it"
        )


def _nobody(why: str) -> None:
    return None

"""What the store has told and the index has not written yet.

A newer state of a recording replaces the one that waits, so the queue is bounded by the recordings that changed
meanwhile, and by `most` besides: beyond it things are forgotten, and `missed` says so.
"""

from __future__ import annotations

import asyncio
from itertools import islice

import structlog

from recorder.model import ApiEvent, End, Recording

Rows = dict[str, Recording | None]  # None: it is removed

_log = structlog.get_logger("recorder.index")


class Queue:
    """most: recordings, and as many events, that wait. wake: something has come, or was missed."""

    def __init__(self, most: int) -> None:
        self.recordings: Rows = {}
        self.events: dict[str, ApiEvent] = {}
        self.missed = False
        self.wake = asyncio.Event()
        self._most = most
        self._written: Rows = {}  # what is on its way into the database

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self.recordings and not self.events

    @property
    def untold(self) -> set[str]:
        """Ids of sessions that have ended, of which the rows don't tell so yet: their texts are still to come."""
        waiting = (*self.recordings.items(), *self._written.items())
        return {name for name, one in waiting if one is not None and one.end is not End.RUNNING}

    def put(self, identifier: str, recording: Recording | None) -> bool:
        """A recording is like this now; whether there was room for it."""
        if not self._has_room(identifier, self.recordings):
            return False
        self.recordings[identifier] = recording
        self.wake.set()
        return True

    def put_event(self, event: ApiEvent) -> None:
        """An API event came."""
        if self._has_room(event.id, self.events):
            self.events[event.id] = event
            self.wake.set()

    def _has_room(self, identifier: str, queue: Rows | dict[str, ApiEvent]) -> bool:
        if identifier in queue or len(queue) < self._most:
            return True
        if not self.missed:
            _log.warning("index_queue_full", waiting=len(queue))
        self.missed = True
        self.wake.set()
        return False

    def take(self, count: int) -> tuple[Rows, dict[str, ApiEvent]]:
        """So many of each, the oldest first: they are to be written now."""
        recordings = dict(islice(self.recordings.items(), count))
        events = dict(islice(self.events.items(), count))
        for identifier in recordings:
            del self.recordings[identifier]
        for identifier in events:
            del self.events[identifier]
        self._written = recordings
        return recordings, events

    def put_back(self, recordings: Rows, events: dict[str, ApiEvent]) -> None:
        """They could not be written; what came meanwhile is newer."""
        self.recordings = {**recordings, **self.recordings}
        self.events = {**events, **self.events}

    def written(self) -> None:
        """What was taken is written, or put back."""
        self._written = {}

"""API events under a hold: whether a day of events has to stay, and by whose hold.

Events are removed by whole days, as they are sealed: in chunks that mix everybody's. So a day stays if one event in it
is held, and goes when the hold is released. What a hold of sessions holds of events:

    of one session      events with its session id, and those of the same node and user while it ran: as on its page
    of what matches     events of a user, cluster and namespace that match. An event has no type of session, so that
                        field narrows nothing here. One that does not say its cluster may be of any: it matches too

Where that can't be told, the day stays: a chunk that cannot be read, or a held session of which it is not known whose
it was, since its recording.json is gone, damaged or not what was sealed. That holds every day from its own on.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence

from recorder.model import ApiEvent, Recording, id_day
from recorder.proof.evidence import Evidence, MismatchError, NotSealedYetError
from recorder.retention.holds import Hold, fits
from recorder.store.errors import DamagedError, StoreError
from recorder.store.eventlog import read_events
from recorder.store.store import Store


class HeldEvents:
    """store: for sessions that still run. evidence: None where nothing is sealed."""

    def __init__(self, store: Store, holds: Sequence[Hold], evidence: Evidence | None) -> None:
        self._store = store
        self._holds = holds
        self._evidence = evidence
        self._sessions: dict[str, Recording | None] = {}  # by hold; None: it is not known whose it was

    async def holder(self, day: str) -> Hold | None:
        """Whose hold keeps this day, None for nobody's. Raises MismatchError, NotSealedYetError where the events are
        not what was sealed; StoreError."""
        for hold in self._holds:
            if hold.held and hold.id not in self._sessions:
                self._sessions[hold.id] = await self._session(hold.held)
            if hold.held and self._sessions[hold.id] is None and day >= id_day(hold.held):
                return hold
        async for name, data in self._chunks(day):
            if not self._holds:
                continue  # it is compared with what was sealed all the same
            try:
                events = await read_events(data, name)
            except DamagedError:
                return self._holds[0]
            for event in events:
                for hold in self._holds:
                    if self._is_held(hold, event):
                        return hold
        return None

    async def _chunks(self, day: str) -> AsyncGenerator[tuple[str, bytes], None]:
        if self._evidence is not None:
            async for item in self._evidence.event_chunks(day):
                yield item
            return
        async for name, _ in self._store.blobs.names(f"events/{day}"):
            yield name, await self._store.blobs.get(f"events/{day}/{name}")

    async def _session(self, identifier: str) -> Recording | None:
        live = self._store.lives.get(identifier)
        if live is not None:
            return live.recording
        try:
            if self._evidence is not None:
                return await self._evidence.recording(identifier)
            return await self._store.get(identifier)
        except (KeyError, StoreError, MismatchError, NotSealedYetError):
            return None

    def _is_held(self, hold: Hold, event: ApiEvent) -> bool:
        if hold.match is not None:
            return (
                fits(hold.match.users, event.user)
                and fits(hold.match.namespaces, event.namespace)
                and (not event.cluster or fits(hold.match.clusters, event.cluster))
            )
        session = self._sessions[hold.id]
        if session is None:
            return False  # of a later day
        if session.session_id and session.session_id == event.session_id:
            return True
        ended = session.ended if session.ended is not None else math.inf
        same = bool(session.node) and session.node == event.node
        return (
            same and (bool(session.tags) or session.user == event.user) and session.started <= event.received <= ended
        )


class EventHolders:
    """Who holds which day of events. All events of a day are read for that, so what was found free is remembered until
    the pass is over."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._free: dict[str, tuple[str, ...]] = {}  # days that these holds do not hold

    def forget(self) -> None:
        """A pass is over."""
        self._free.clear()

    async def holder(self, day: str, holds: Sequence[Hold], evidence: Evidence | None) -> Hold | None:
        """By whom a day of events is held. All of them are read for that, so that one which was found free is only read
        again where there is another hold. Raises MismatchError, NotSealedYetError, StoreError."""
        known = tuple(hold.id for hold in holds)
        if self._free.get(day) == known:
            return None
        hold = await HeldEvents(self._store, holds, evidence).holder(day)
        if hold is None:
            self._free[day] = known
        return hold


__all__ = ["EventHolders", "HeldEvents"]

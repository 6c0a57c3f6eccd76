"""API events: journaled like cast bytes, then kept in chunks of their own, events/DAY/FIRST-ID.chunk.

An event is a line of JSON {"id", "received", "source", "document"}. Ids rise within one recorder, and events are
journaled and put into chunks in their order. Which events of the journal are in chunks already a replay sees by looking
into them: the newest chunk does not tell, since it may be another recorder's that shares the store. Each chunk says
whose it is, and one recorder's chunks do not overlap, so no more is looked at than what was put since the oldest of
those events. The chunks of a day are chained like those of a recording, beginning with the day itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from recorder.model import ApiEvent, Source, id_day, is_id, new_id
from recorder.store.blobs import Blobs
from recorder.store.chunk import DamagedChunkError, read_trailer
from recorder.store.errors import DamagedError, StoreError
from recorder.store.journal import Journal
from recorder.store.ledger import Ledger
from recorder.store.linechunks import DAMAGES, beginning, read_lines, write_lines
from recorder.store.records import Item, Kind

_log = structlog.get_logger(__name__)

# Bytes of text after which events become a chunk: some thousand events.
CHUNK_TEXT = 4 << 20
# Bytes of events that wait for the journal: more are refused, so that a flood of them does not take all memory.
MAX_WAITING = 32 << 20
# Seconds between attempts to put a chunk after a failure.
RETRY = 1.0


@dataclass(slots=True)
class _Batch:
    """Events that came together, and their lines."""

    events: list[ApiEvent]
    lines: list[bytes]
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Journaled:
    """The line of an event that is safe in this segment of the journal."""

    id: str
    line: bytes
    segment: int


class EventLog:
    """A source of the journal, and a task (`run`) that makes chunks, which are signed where somebody signs. journal:
    None where the store is read only. instance: what tells this recorder's chunks from those of others that share the
    store. fault: None, or why chunks cannot be put. errors: puts that failed. whole: chunks of which the journal still
    speaks, after a crash. It has a few attributes more than others, since an event goes through three hands: of those
    who wait for it (`_queue`, `_taken`), of the journal (`_kept`) and of the task that makes chunks."""

    def __init__(self, blobs: Blobs, journal: Journal | None, ledger: Ledger[Any], *, instance: str = "main") -> None:
        self.fault: str | None = None
        self.errors = 0
        self.whole: list[str] = []
        self._blobs = blobs
        self._journal = journal
        self._ledger = ledger
        self._instance = instance
        self._last_id = ""
        self._queue: list[_Batch] = []
        self._taken: list[_Batch] = []
        self._waiting = 0
        self._kept: list[Journaled] = []  # those that are in no chunk
        self._kept_size = 0
        self._previous: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._flush = False
        self._looked: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Find the newest id, so that ids go on rising. Raises StoreError."""
        days = [name async for name, _ in self._blobs.names("events")]
        if days:
            day = days[-1].rstrip("/")
            names = [name async for name, _ in self._blobs.names(f"events/{day}")]
            if names:
                data = await self._read(f"events/{day}/{names[-1]}")
                self._previous = {day: hashlib.sha256(data).hexdigest()}
                try:
                    self._last_id = str(_trailer(data).get("last_id", ""))
                except DamagedError as error:
                    # One bad chunk must not keep the recorder from starting. Its last id was less than a day later.
                    _log.error("events_unreadable", chunk=f"{day}/{names[-1]}", why=str(error))
                    self._last_id = names[-1].removesuffix(".chunk")

    async def restore(self, events: Sequence[Journaled]) -> list[ApiEvent]:
        """Events of the journal, after a crash; those that no chunk has. Raises StoreError."""
        found = []
        known = await self._stored({one.id for one in events})
        for one in events:
            if one.id in known:
                continue
            known.add(one.id)
            self._last_id = max(self._last_id, one.id)
            self._keep(one)
            try:
                found.append(_event(one.line))
            except (ValueError, KeyError, TypeError, RecursionError):
                _log.warning("event_unreadable", event=one.id)
        self._flush = bool(self._kept)
        self._wake.set()
        return found

    async def _stored(self, wanted: set[str]) -> set[str]:
        """Those of them that are in chunks."""
        found: set[str] = set()
        for day in sorted({id_day(identifier) for identifier in wanted}):
            of_day = [identifier for identifier in wanted if id_day(identifier) == day]
            oldest, newest = min(of_day), max(of_day)
            names = [name async for name, _ in self._blobs.names(f"events/{day}")]
            for name in reversed([name for name in names if name.removesuffix(".chunk") <= newest]):
                data = await self._read(f"events/{day}/{name}")
                try:
                    here = wanted & {event.id for event in await read_events(data, name)}
                    found |= here
                    if here:
                        self.whole.append(f"events/{day}/{name}")
                    whose = _trailer(data).get("recorder", self._instance)
                except DamagedError as error:  # what the journal has of it is put once more
                    _log.error("events_unreadable", chunk=f"{day}/{name}", why=str(error))
                    continue
                if whose == self._instance and name.removesuffix(".chunk") <= oldest:
                    break
        return found

    def _keep(self, one: Journaled) -> None:
        self._kept.append(one)
        self._kept_size += len(one.line)
        self._pin()

    def _pin(self) -> None:
        """The journal must keep the oldest segment with an event that is in no chunk."""
        self._ledger.events = self._kept[0].segment if self._kept else None

    async def add(self, documents: Sequence[Mapping[str, Any]], source: Source) -> list[ApiEvent]:
        """Keep events; safe on return. Raises StoreError."""
        if self._journal is None:
            raise StoreError("the store is open for reading only")
        if self._waiting > MAX_WAITING:
            raise StoreError("too many events are waiting to be written")
        now = time.time()
        events = [ApiEvent(self._next_id(now), now, source, document) for document in documents]
        values = source.values()
        lines = [
            json.dumps(
                {"id": event.id, "received": now, "source": values, "document": event.document}, separators=(",", ":")
            ).encode()
            + b"\n"
            for event in events
        ]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch = _Batch(events, lines, done)
        self._queue.append(batch)
        self._waiting += sum(map(len, lines))
        self._journal.mark(self)
        await done
        return events

    def _next_id(self, now: float) -> str:
        identifier = new_id(now)
        if identifier <= self._last_id:
            # The clock stands still within a millisecond, or has been set back: the one after the last.
            identifier = _successor(self._last_id)
        self._last_id = identifier
        return identifier

    # -- the journal's side

    def take(self) -> list[Item]:
        """See journal.Source."""
        self._taken, self._queue = self._queue, []
        return [
            Item(Kind.EVENT, event.id, 0, [line], len(line))
            for batch in self._taken
            for event, line in zip(batch.events, batch.lines, strict=True)
        ]

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        """See journal.Source."""
        taken, self._taken = self._taken, []
        self._waiting -= sum(item.size for item in items)
        for batch in taken:
            if error is None:
                for event, line in zip(batch.events, batch.lines, strict=True):
                    self._keep(Journaled(event.id, line, segment))
                    self._ledger.event_added(event)
            if not batch.done.done():  # who asked may have gone
                if error is None:
                    batch.done.set_result(None)
                else:
                    batch.done.set_exception(StoreError(str(error)))
        if self._kept_size >= CHUNK_TEXT:
            self._wake.set()

    # -- chunks

    def poke(self, *, flush: bool = False) -> None:
        """Look whether there is something to put; flush: whatever it is."""
        self._flush = self._flush or flush
        self._wake.set()

    async def run(self) -> None:
        """Make chunks until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._kept and (self._flush or self._kept_size >= CHUNK_TEXT or self._is_old()):
                await self._put()
            self._flush = False
            self._look()

    def _is_old(self) -> bool:
        # Like the builder's LAG.
        return bool(self._kept) and self._journal is not None and self._kept[0].segment <= self._journal.segment - 4

    @property
    def drained(self) -> bool:
        """Whether every event is in a chunk."""
        return not self._kept

    async def drain(self, before: str = "~") -> None:
        """Put all there is, or what has ids before that; returns without it where a put fails."""
        while self._kept and self._kept[0].id < before and self.fault is None:
            self.poke(flush=True)
            self._looked = asyncio.get_running_loop().create_future()
            await self._looked

    def _look(self) -> None:
        if self._looked is not None and not self._looked.done():
            self._looked.set_result(None)

    async def _put(self) -> None:
        day = id_day(self._kept[0].id)
        count = size = 0
        for one in self._kept:
            if id_day(one.id) != day or size >= 2 * CHUNK_TEXT:
                break
            count += 1
            size += len(one.line)
        part = self._kept[:count]
        previous = self._previous.get(day) or beginning("events", day)
        first, last = part[0].id, part[-1].id
        meta = {"day": day, "first_id": first, "last_id": last, "recorder": self._instance}
        lines = [(one.id, one.line) for one in part]
        data, sha256 = await asyncio.to_thread(write_lines, lines, meta, previous)
        while True:
            try:
                kept = await self._blobs.keep(f"events/{day}/{first}.chunk", data, sha256)
            except StoreError as error:
                self.errors += 1
                if self.fault is None:
                    _log.error("events_fault", fault=str(error))
                self.fault = str(error)
                self._look()
                await asyncio.sleep(RETRY)
            else:
                break
        self.fault = None
        self._previous = {day: sha256}
        if (registrar := self._ledger.registrar) is not None:
            await registrar.stored(kept)
        del self._kept[:count]
        self._kept_size -= size
        self._pin()

    # -- reading

    async def events(self) -> AsyncGenerator[ApiEvent, None]:
        """All, oldest first; a chunk that cannot be read is logged and left out. Raises StoreError."""
        # Of those in memory some may get into chunks before the end is reached, and others' ids may be newer.
        waiting = {one.id: one.line for one in self._kept}
        for day in [name.rstrip("/") async for name, _ in self._blobs.names("events")]:
            for name in [name async for name, _ in self._blobs.names(f"events/{day}")]:
                try:
                    data = await self._read(f"events/{day}/{name}")
                    events = await read_events(data, name)
                except DamagedError as error:
                    _log.error("events_unreadable", chunk=f"{day}/{name}", why=str(error))
                    continue
                for event in events:
                    waiting.pop(event.id, None)
                    yield event
        for line in waiting.values():
            yield _event(line)

    async def days(self) -> set[str]:
        """The days ("yyyy-mm-dd") of which there are some. Raises StoreError."""
        days = {id_day(one.id) for one in self._kept}
        return days | {name.rstrip("/") async for name, _ in self._blobs.names("events")}

    async def _read(self, key: str) -> bytes:
        try:
            return await self._blobs.get(key)
        except KeyError:
            raise StoreError("a chunk of events disappeared while it was read") from None


def _trailer(data: bytes) -> dict[str, Any]:
    try:
        return read_trailer(data)
    except DamagedChunkError as error:
        raise DamagedError(f"a chunk of events is damaged: {error}") from None


async def read_events(data: bytes, name: str) -> list[ApiEvent]:
    """What is in a chunk, oldest first. name: for the message. Raises DamagedError."""
    return await asyncio.to_thread(_events, data, name)


def _events(data: bytes, name: str) -> list[ApiEvent]:
    try:
        return [_event(line) for line in read_lines(data)]
    except DAMAGES as error:
        raise DamagedError(f"the chunk of events {name} is damaged: {error}") from None


def _event(line: bytes) -> ApiEvent:
    value = json.loads(line)
    if not is_id(value["id"]):
        raise ValueError("not an id")
    return ApiEvent(value["id"], float(value["received"]), Source.of(value["source"]), value["document"])


def _successor(identifier: str) -> str:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    digits = list(identifier)
    for place in range(len(digits) - 1, -1, -1):
        value = alphabet.index(digits[place]) + 1
        if value < 32:
            digits[place] = alphabet[value]
            break
        digits[place] = "0"
    return "".join(digits)

"""The observer: what the store tells, into the index, without holding anybody up.

What is told is noted and that is all; a newer state of a recording replaces the one that waits, so the queue is bounded
by the recordings that changed meanwhile, and by `WAITING` besides: beyond it things are forgotten, `missed` says so,
and the store is gone through again (`catch_up`) once the queue is empty. Two tasks work it off. One writes rows, many
in a transaction. The other makes texts, one recording after the other: it reads the cast back from the store when the
recording is over, and while it runs whenever it has doubled (so that all rereading together costs twice the last one at
most), lets a thread extract, and rests as long as that took: half a core at most, whatever is being recorded. While
much comes in it rests longer: a thread that computes keeps the interpreter from those who acknowledge, and a text can
wait.

A third task sees to it that what was taken out stands nowhere in the files any more (`Database.wipe`). That costs as
much as the index is large, so it rests the longer the longer it took (`wipe_rest`).

A failure that may pass is waited out, with the queue kept. A row that can't be written is dropped and counted, and the
rest goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from itertools import islice
from typing import Protocol

import structlog

from k8sproxy.common.tasks import Tasks
from recorder.index.database import Change, Database, IndexFailure, Writing
from recorder.index.records import Extract, put_events, put_recordings, put_text, take_out
from recorder.model import ApiEvent, End, Recording, UnreadableError
from recorder.screen import CAST_LIMIT, TEXT_LIMIT, CastText

WAITING = 20_000  # recordings, and as many events, that wait for the database: some ten MB
_BATCH = 500  # rows in a transaction: a search of PostgreSQL or another write waits a few milliseconds at most
_SLICE = 64 * 1024  # bytes of cast a turn of the extracting thread: some milliseconds
_BUSY = 10e6  # bytes a second that come in: with n times as many it rests n times as long as it works, up to
_MOST_REST = 15.0
_REFRESH = 60.0  # seconds before a running recording's text is made, and at least between two makings
_LEAST_WAIT, _MOST_WAIT = 0.5, 30.0  # seconds to wait out a failure, doubled each time
_TRIES = 5  # for one recording's text, where what the store has of it can't be read: then it is named (`unread`)
_LAST_WAIT = 600.0  # seconds at most between two tries: somebody may put back what is damaged

_log = structlog.get_logger("recorder.index")


class Readable(Protocol):
    """What is needed of the store."""

    @property
    def arriving(self) -> float:
        """Bytes a second that come in now."""

    async def get(self, identifier: str) -> Recording:
        """One recording. Raises KeyError."""

    def recordings(self) -> AsyncGenerator[Recording, None]:
        """All that can be read."""

    def identifiers(self) -> AsyncGenerator[str, None]:
        """Of all, in no order."""

    def cast(self, identifier: str, *, start: float = 0.0, end: float | None = None) -> AsyncGenerator[bytes, None]:
        """A recording's cast. Raises KeyError."""

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """All."""

    async def event_days(self) -> set[str]:
        """The days ("yyyy-mm-dd") of which there are some."""


class Intake:
    """What the store tells, and the two tasks that work it off.

    dropped: rows that were given up, and texts of which there is little hope. lost: ids of the rows among them. unread:
    those of the sessions whose texts they are. errors: steps that failed and are tried again.
    missed: the queue was full. text_limit: characters, cast_limit: bytes of cast, a recording.
    """

    def __init__(
        self,
        database: Database,
        *,
        text_limit: int = TEXT_LIMIT,
        cast_limit: int = CAST_LIMIT,
        waiting: int = WAITING,
        refresh: float = _REFRESH,
    ) -> None:
        self._failures: dict[str, str] = {}  # task -> why its last step failed
        self.dropped = 0
        self.lost: set[str] = set()
        self.unread: set[str] = set()
        self.errors = 0
        self.missed = False
        # Held while something is read and then written on its grounds, and all the while that a rebuild goes on.
        self.writing = asyncio.Lock()
        self._database = database
        self._text_limit = text_limit
        self._cast_limit = cast_limit
        self._most = waiting
        self._refresh = refresh
        self._recordings: dict[str, Recording | None] = {}  # None: it is removed
        self._events: dict[str, ApiEvent] = {}
        self._written: dict[str, Recording | None] = {}  # what is on its way into the database
        self._texts: dict[str, float] = {}  # id -> when it is due, by the loop's clock
        self._made: dict[str, int] = {}  # running recordings: size at the last making
        self._tries: dict[str, int] = {}
        self._rows_wake = asyncio.Event()
        self._texts_wake = asyncio.Event()
        self._wipe_wake = asyncio.Event()
        self._wiping = True  # until it has been looked whether there is something to wipe
        self._step = asyncio.Condition()
        self._at_work = 0
        self._tasks = Tasks()
        self._store: Readable | None = None
        self._catch_up: Callable[[], AsyncIterator[None]] | None = None

    # --- the observer

    def began(self, recording: Recording) -> None:
        """See recorder.model.Observer; so the others."""
        self._note(recording)

    def progressed(self, recording: Recording) -> None:
        self._note(recording)

    def ended(self, recording: Recording) -> None:
        self._note(recording)

    def corrected(self, recording: Recording) -> None:
        if self._has_room(recording.id, self._recordings):
            self._recordings[recording.id] = recording
            self._rows_wake.set()

    def removed(self, identifier: str) -> None:
        self._texts.pop(identifier, None)
        self._made.pop(identifier, None)
        self._tries.pop(identifier, None)
        self.lost.discard(identifier)
        self.unread.discard(identifier)
        if self._has_room(identifier, self._recordings):
            self._recordings[identifier] = None
            self._rows_wake.set()

    def event_added(self, event: ApiEvent) -> None:
        if self._has_room(event.id, self._events):
            self._events[event.id] = event
            self._rows_wake.set()

    def _note(self, recording: Recording) -> None:
        if self._has_room(recording.id, self._recordings):
            self._recordings[recording.id] = recording
            self._rows_wake.set()
            self.text_wanted(recording)

    def _has_room(self, identifier: str, queue: dict[str, Recording | None] | dict[str, ApiEvent]) -> bool:
        if identifier in queue or len(queue) < self._most:
            return True
        if not self.missed:
            _log.warning("index_queue_full", waiting=len(queue))
        self.missed = True
        self._rows_wake.set()
        return False

    # --- for catch_up, and for who waits

    @property
    def failure(self) -> str | None:
        """Why nothing is written at present, None while all is well."""
        return next(iter(self._failures.values()), None)

    @property
    def untold(self) -> set[str]:
        """Ids of sessions that have ended, of which the rows don't tell so yet: their texts are still to come."""
        waiting = (*self._recordings.items(), *self._written.items())
        return {name for name, one in waiting if one is not None and one.end is not End.RUNNING}

    @property
    def behind(self) -> bool:
        """Whether something that was told may not get in: nothing can be written, or more was told than can wait."""
        return self.missed or any(name != "wiping" for name in self._failures)

    @property
    def waiting(self) -> int:
        """Rows and texts that are due and not written."""
        return len(self._recordings) + len(self._events) + self._at_work + len(self._due())

    def text_wanted(self, recording: Recording) -> None:
        """Its text is to be made: now if it is over, later if it runs and has grown enough."""
        now = asyncio.get_running_loop().time()
        if recording.end is not End.RUNNING:
            self._made.pop(recording.id, None)
            self._texts[recording.id] = now
        elif recording.id not in self._texts and recording.size >= 2 * self._made.get(recording.id, 0):
            self._texts[recording.id] = now + self._refresh
        self._texts_wake.set()

    async def settled(self) -> None:
        """Wait until nothing is left to write (but texts of running recordings that aren't due)."""
        async with self._step:
            await self._step.wait_for(lambda: not self.waiting and not (self.missed and self._catch_up))

    async def wiped(self) -> None:
        """Wait until what was taken out is wiped, too."""
        await self.settled()
        async with self._step:
            await self._step.wait_for(lambda: not self._wiping)

    # --- the tasks

    def start(self, store: Readable, catch_up: Callable[[], AsyncIterator[None]]) -> None:
        """Begin to work it off. catch_up: goes through the store again, a step at a time."""
        self._store = store
        self._catch_up = catch_up
        for name, work in (("rows", self._write_rows), ("texts", self._make_texts), ("wiping", self._wipe)):
            self._tasks.start(self._guarded(name, work), f"index-{name}")

    async def stop(self) -> None:
        """End the tasks; what waits is found again by catch_up."""
        await self._tasks.aclose()

    async def _guarded(self, name: str, work: Callable[[], AsyncGenerator[None, None]]) -> None:
        """Run steps for ever; a fault in one is waited out and told."""
        wait = _LEAST_WAIT
        while True:
            try:
                async with aclosing(work()) as steps:
                    async for _ in steps:
                        wait = _LEAST_WAIT
                        if self._failures.pop(name, None) is not None:
                            _log.info("index_recovered", task=name)
                        async with self._step:
                            self._step.notify_all()
            except Exception as error:
                self.errors += 1
                if not isinstance(error, IndexFailure):
                    # Without the values of variables: they are what people typed.
                    trace = "".join(traceback.format_tb(error.__traceback__))
                    _log.error("index_fault", error=type(error).__name__, trace=trace)
                elif name not in self._failures:
                    _log.error("index_failed", task=name, error=str(error))
                self._failures[name] = str(error) if isinstance(error, IndexFailure) else type(error).__name__
                await asyncio.sleep(wait)
                wait = min(wait * 2, _MOST_WAIT)

    async def _write_rows(self) -> AsyncGenerator[None, None]:
        while True:
            if not self._recordings and not self._events:
                if self.missed and self._catch_up is not None:
                    self.missed = False
                    _log.info("index_catches_up")
                    try:
                        async for _ in self._catch_up():
                            yield
                    except BaseException:
                        self.missed = True
                        raise
                    yield
                    continue
                self._rows_wake.clear()
                await self._rows_wake.wait()
            recordings = dict(islice(self._recordings.items(), _BATCH))
            events = dict(islice(self._events.items(), _BATCH))
            for identifier in recordings:
                del self._recordings[identifier]
            for identifier in events:
                del self._events[identifier]
            self._at_work += 1
            self._written = recordings
            try:
                async with self.writing:
                    await self._write(recordings, events)
                if None in recordings.values():
                    self.wipe_wanted()
            except BaseException:
                # What came meanwhile is newer.
                self._recordings = {**recordings, **self._recordings}
                self._events = {**events, **self._events}
                raise
            finally:
                self._written = {}
                self._at_work -= 1
            yield

    async def _write(self, recordings: dict[str, Recording | None], events: dict[str, ApiEvent]) -> None:
        try:
            await self._database.write(await _changes(self._database, recordings, events))
        except IndexFailure as error:
            if error.passing:
                raise
            # One of them is at fault, or another recorder took a number: each alone, and then without the ones at fault
            for identifier, recording in recordings.items():
                await self._write_one(identifier, {identifier: recording}, {})
            for identifier, event in events.items():
                await self._write_one(identifier, {}, {identifier: event})

    async def _write_one(
        self, identifier: str, recordings: dict[str, Recording | None], events: dict[str, ApiEvent]
    ) -> None:
        try:
            await self._database.write(await _changes(self._database, recordings, events))
        except IndexFailure as error:
            if error.passing:
                raise
            self.dropped += 1
            self.lost.add(identifier)
            _log.error("index_row_dropped", id=identifier, error=str(error))

    def wipe_wanted(self) -> None:
        """Something was taken out."""
        self._wiping = True
        self._wipe_wake.set()

    async def _wipe(self) -> AsyncGenerator[None, None]:
        async def rest(spent: float) -> None:
            arriving = self._store.arriving if self._store is not None else 0.0
            await asyncio.sleep(resting(spent, arriving))

        while True:
            self._wipe_wake.clear()
            spent = await self._database.wipe(rest)
            self._wiping = self._wipe_wake.is_set()
            yield
            await asyncio.sleep(wipe_rest(spent))
            await self._wipe_wake.wait()

    def _due(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        return [identifier for identifier, due in self._texts.items() if due <= now]

    async def _make_texts(self) -> AsyncGenerator[None, None]:
        loop = asyncio.get_running_loop()
        while True:
            due = self._due()
            if not due:
                self._texts_wake.clear()
                soonest = min(self._texts.values(), default=None)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._texts_wake.wait(), None if soonest is None else max(0.0, soonest - loop.time())
                    )
                continue
            for identifier in due:
                if identifier in self._recordings or self._texts.get(identifier, loop.time() + 1) > loop.time():
                    continue  # its row comes first; or it was removed, or put off
                del self._texts[identifier]
                self._at_work += 1
                try:
                    await self._make_text(identifier)
                except BaseException:
                    self._texts.setdefault(identifier, loop.time())
                    raise
                finally:
                    self._at_work -= 1
                yield
            async with self._step:  # those whose rows are still to come
                if any(identifier in self._recordings for identifier in due):
                    await self._step.wait()

    async def _make_text(self, identifier: str) -> None:
        assert self._store is not None  # noqa: S101  # start() sets it before there are tasks
        try:
            recording = await self._store.get(identifier)
            cast = await extract(
                self._store, identifier, text_limit=self._text_limit, cast_limit=self._cast_limit, rest=True
            )
        except KeyError:
            return  # removed meanwhile
        except Exception as error:  # whatever a store raises: this text can wait, the others can't
            tries = self._tries[identifier] = self._tries.get(identifier, 0) + 1
            if tries <= _TRIES:
                _log.warning("index_text_failed", id=identifier, error=type(error).__name__, tries=tries)
            wait = min(_LEAST_WAIT * 2.0 ** min(tries, 20), _LAST_WAIT)
            self._texts[identifier] = asyncio.get_running_loop().time() + wait
            if tries >= _TRIES and isinstance(error, UnreadableError) and identifier not in self.unread:
                self.unread.add(identifier)
                self.dropped += 1
            return
        self._tries.pop(identifier, None)
        self.unread.discard(identifier)
        async with self.writing:
            if identifier in self._recordings:  # its row is still to come, or failed just now
                self._texts.setdefault(identifier, asyncio.get_running_loop().time())
                return
            await self._database.write(await put_text(self._database, recording, cast))
        if recording.end is End.RUNNING:
            # One that is beyond the limits has all the text that it will ever have.
            self._made[identifier] = 1 << 62 if cast.truncated else max(1, recording.size)


def wipe_rest(spent: float) -> float:
    """Seconds from a wipe that took so many to the next one: seconds after one that nobody notices, an hour and a half
    after one of 10 s, a gigabyte's, in which looks wait to be written down."""
    return 1.0 + min(200.0 * spent * spent, 500.0 * spent)


def resting(spent: float, arriving: float) -> float:
    """Seconds to rest after so many seconds of work, while so many bytes a second come in."""
    return spent * min(max(1.0, arriving / _BUSY), _MOST_REST)


async def extract(store: Readable, identifier: str, *, text_limit: int, cast_limit: int, rest: bool) -> Extract:
    """A recording's text, made in a thread. rest: take breaks (`resting`)."""
    loop = asyncio.get_running_loop()
    cast = CastText(limit=text_limit, cast_limit=cast_limit)
    async with aclosing(store.cast(identifier)) as pieces:
        async for piece in pieces:
            for start in range(0, len(piece), _SLICE):
                began = loop.time()
                await asyncio.to_thread(cast.feed, piece[start : start + _SLICE])
                if rest:
                    await asyncio.sleep(resting(loop.time() - began, store.arriving))
            if cast.done:
                break
    segments = await asyncio.to_thread(cast.finish)
    return Extract(segments, cast.truncated, any(piece.marks for piece in cast.unseen))


async def _changes(
    database: Writing, recordings: dict[str, Recording | None], events: dict[str, ApiEvent]
) -> list[Change]:
    changes: list[Change] = []
    present = [recording for recording in recordings.values() if recording is not None]
    if present:
        changes += await put_recordings(database, present)
    for identifier, recording in recordings.items():
        if recording is None:
            changes += await take_out(database, identifier)
    if events:
        changes += await put_events(database, list(events.values()))
    return changes

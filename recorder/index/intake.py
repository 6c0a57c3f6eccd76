"""The observer: what the store tells, into the index, without holding anybody up.

What is told is noted (`queue.py`), and that is all. Two tasks work it off: one writes rows, many in a transaction; the
other makes texts (`texts.py`). Where something was missed, the store is gone through again (`catch_up`) once the queue
is empty.

A third task sees to it that what was taken out stands nowhere in the files any more (`Database.wipe`). That costs as
much as the index is large, so it rests the longer the longer it took (`wipe_rest`).

A failure that may pass is waited out, with the queue kept. A row that can't be written is dropped and counted, and the
rest goes on without it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog

from k8sproxy.common.tasks import Tasks
from recorder.index.database import Change, Database, IndexFailure, Writing
from recorder.index.queue import Queue, Rows
from recorder.index.readable import Readable
from recorder.index.records import put_events, put_recordings, take_out
from recorder.index.texts import Texts, resting
from recorder.model import ApiEvent, Recording
from recorder.screen import CAST_LIMIT, TEXT_LIMIT

WAITING = 20_000  # recordings, and as many events, that wait for the database: some ten MB
_BATCH = 500  # rows in a transaction: a search of PostgreSQL or another write waits a few milliseconds at most
_REFRESH = 60.0  # seconds before a running recording's text is made, and at least between two makings
_LEAST_WAIT, _MOST_WAIT = 0.5, 30.0  # seconds to wait out a failure, doubled each time

_log = structlog.get_logger("recorder.index")


class Intake:
    """What the store tells, and the tasks that work it off.

    texts: those that are to be made. lost: ids of rows that were given up. errors: steps that failed and are tried
    again. text_limit: characters, cast_limit: bytes of cast, a recording.
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
        # Held while something is read and then written on its grounds, and all the while that a rebuild goes on.
        self.writing = asyncio.Lock()
        self.lost: set[str] = set()
        self.errors = 0
        self._database = database
        self._queue = Queue(waiting)
        self.texts = Texts(database, self._queue, self.writing, limits=(text_limit, cast_limit), refresh=refresh)
        self._failures: dict[str, str] = {}  # task -> why its last step failed
        self._wipe_wake = asyncio.Event()
        self._wiping = True  # until it has been looked whether there is something to wipe
        self._step = asyncio.Condition()
        self._at_work = 0
        self._dropped = 0
        self._tasks = Tasks()
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
        self._queue.put(recording.id, recording)

    def removed(self, identifier: str) -> None:
        self.texts.forget(identifier)
        self.lost.discard(identifier)
        self._queue.put(identifier, None)

    def event_added(self, event: ApiEvent) -> None:
        self._queue.put_event(event)

    def _note(self, recording: Recording) -> None:
        if self._queue.put(recording.id, recording):
            self.texts.want(recording)

    # --- for catch_up, and for who waits

    @property
    def failure(self) -> str | None:
        """Why nothing is written at present, None while all is well."""
        return next(iter(self._failures.values()), None)

    @property
    def untold(self) -> set[str]:
        """Ids of sessions that have ended, of which the rows don't tell so yet: their texts are still to come."""
        return self._queue.untold

    @property
    def dropped(self) -> int:
        """Rows that were given up, and texts of which there is little hope."""
        return self._dropped + self.texts.dropped

    @property
    def behind(self) -> bool:
        """Whether something that was told may not get in: nothing can be written, or more was told than can wait."""
        return self._queue.missed or any(name != "wiping" for name in self._failures)

    @property
    def waiting(self) -> int:
        """Rows and texts that are due and not written."""
        queue, texts = self._queue, self.texts
        return len(queue.recordings) + len(queue.events) + self._at_work + texts.at_work + len(texts.due)

    async def settled(self) -> None:
        """Wait until nothing is left to write (but texts of running recordings that aren't due)."""
        async with self._step:
            await self._step.wait_for(lambda: not self.waiting and not (self._queue.missed and self._catch_up))

    async def wiped(self) -> None:
        """Wait until what was taken out is wiped, too."""
        await self.settled()
        async with self._step:
            await self._step.wait_for(lambda: not self._wiping)

    # --- the tasks

    def start(self, store: Readable, catch_up: Callable[[], AsyncIterator[None]]) -> None:
        """Begin to work it off. catch_up: goes through the store again, a step at a time."""
        self._catch_up = catch_up
        for name, work in (
            ("rows", self._write_rows),
            ("texts", lambda: self.texts.work(store, self._step)),
            ("wiping", lambda: self._wipe(store)),
        ):
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
        queue = self._queue
        while True:
            if queue.empty:
                if queue.missed and self._catch_up is not None:
                    queue.missed = False
                    _log.info("index_catches_up")
                    try:
                        async for _ in self._catch_up():
                            yield
                    except BaseException:
                        queue.missed = True
                        raise
                    yield
                    continue
                queue.wake.clear()
                await queue.wake.wait()
            recordings, events = queue.take(_BATCH)
            self._at_work += 1
            try:
                async with self.writing:
                    await self._write(recordings, events)
                if None in recordings.values():
                    self.wipe_wanted()
            except BaseException:
                queue.put_back(recordings, events)
                raise
            finally:
                queue.written()
                self._at_work -= 1
            yield

    async def _write(self, recordings: Rows, events: dict[str, ApiEvent]) -> None:
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

    async def _write_one(self, identifier: str, recordings: Rows, events: dict[str, ApiEvent]) -> None:
        try:
            await self._database.write(await _changes(self._database, recordings, events))
        except IndexFailure as error:
            if error.passing:
                raise
            self._dropped += 1
            self.lost.add(identifier)
            _log.error("index_row_dropped", id=identifier, error=str(error))

    def wipe_wanted(self) -> None:
        """Something was taken out."""
        self._wiping = True
        self._wipe_wake.set()

    async def _wipe(self, store: Readable) -> AsyncGenerator[None, None]:
        async def rest(spent: float) -> None:
            await asyncio.sleep(resting(spent, store.arriving))

        while True:
            self._wipe_wake.clear()
            spent = await self._database.wipe(rest)
            self._wiping = self._wipe_wake.is_set()
            yield
            await asyncio.sleep(wipe_rest(spent))
            await self._wipe_wake.wait()


def wipe_rest(spent: float) -> float:
    """Seconds from a wipe that took so many to the next one: seconds after one that nobody notices, an hour and a half
    after one of 10 s, a gigabyte's, in which looks wait to be written down."""
    return 1.0 + min(200.0 * spent * spent, 500.0 * spent)


async def _changes(database: Writing, recordings: Rows, events: dict[str, ApiEvent]) -> list[Change]:
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

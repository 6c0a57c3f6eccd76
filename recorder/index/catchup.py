"""The index compared with the store, and made from it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from recorder.index.coverage import Standing
from recorder.index.database import Change, Database, Writing
from recorder.index.intake import Intake
from recorder.index.readable import Readable
from recorder.index.records import put_events, put_recordings, put_text, take_out
from recorder.index.texts import extract
from recorder.model import ApiEvent, End, Recording, UnreadableError, day_after, first_id, id_day, new_id

_BATCH = 500  # rows in a transaction
_RECENT = 7 * 86400.0  # seconds; events are in a chunk after minutes, or when their recorder has started again
_TEXTS = 4 * 1024 * 1024  # characters of text in a transaction of a rebuild

_log = structlog.get_logger("recorder.index")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: recordings and events gone through."""

    recordings: int = 0
    events: int = 0


Report = Callable[[Progress], None]


async def catch_up(
    database: Database, store: Readable, intake: Intake, standing: Standing, report: Report | None = None
) -> AsyncIterator[None]:
    """Bring to the index what it missed, and take out what the store has no longer; texts are left to the intake. A
    step is some hundred rows; between two of them the intake writes what is new. standing: told how far it is."""
    standing.restart()
    stored = {identifier async for identifier in store.identifiers()}
    standing.stored = len(stored)
    rows = await database.known("SELECT id, size, state, damaged, indexed, text_truncated FROM recordings")
    present = {identifier: tuple(rest) for identifier, *rest in rows}
    gone = set(present)
    recordings: list[Recording] = []
    texts: list[Recording] = []  # asked for when their rows are there: without a row a text is nobody's
    done, seen = 0, 0
    async with aclosing(store.recordings()) as found:
        async for recording in found:
            seen += 1
            standing.seen = seen
            gone.discard(recording.id)
            stored.discard(recording.id)
            size, state, damaged, indexed, truncated = present.get(recording.id, (-1, "", 0, -1, 0))
            if (size, state, damaged) != (recording.size, recording.end.value, recording.damaged):
                recordings.append(recording)
            if recording.end is End.RUNNING or (indexed != recording.size and not truncated):
                texts.append(recording)
            if len(recordings) >= _BATCH or len(texts) >= _BATCH:
                await _put_recordings(database, intake, recordings, texts)
                recordings, texts = [], []
                yield
            if report is not None and seen % _BATCH == 0:
                report(Progress(seen))
    await _put_recordings(database, intake, recordings, texts)
    yield
    # A running one that this store does not know is in the journal of another recorder, which shares the index.
    for identifier in sorted(one for one in gone if present[one][1] != End.RUNNING.value):
        async with intake.writing:
            await database.write(await take_out(database, identifier))
        intake.wipe_wanted()
        yield
    events: list[ApiEvent] = []
    async with aclosing(store.events()) as told:
        async for event in told:
            events.append(event)
            done += 1
            if len(events) >= _BATCH:
                await _put_events(database, intake, events)
                events = []
                yield
                if report is not None:
                    report(Progress(seen, done))
    await _put_events(database, intake, events)
    for day in await _days_gone(database, await store.event_days()):
        async with intake.writing:
            await database.write(await take_out(database, f"events {day}"))
        intake.wipe_wanted()
        yield
    standing.finish({identifier for identifier in stored if not await _is_gone(store, identifier)})
    if report is not None:
        report(Progress(seen, done))


async def _days_gone(database: Writing, there: set[str]) -> list[str]:
    """Days with rows of API events that the store has none of. Not the last ones: another recorder that shares the
    index may have their events in its journal."""
    gone: list[str] = []
    recent = id_day(new_id(time.time() - _RECENT))
    day = "1970-01-01"
    while True:
        rows = await database.known("SELECT MIN(id) FROM events WHERE id >= $1", (first_id(day),))
        lowest = rows[0][0] if rows else None
        if lowest is None or id_day(lowest) >= recent:
            return gone
        if id_day(lowest) not in there:
            gone.append(id_day(lowest))
        day = day_after(id_day(lowest))


async def _is_gone(store: Readable, identifier: str) -> bool:
    """Of one that was not listed: whether it has been removed meanwhile. Else it can't be read, or began meanwhile."""
    try:
        await store.get(identifier)
    except KeyError:
        return True
    except UnreadableError:
        return False
    return True


async def _put_recordings(
    database: Database, intake: Intake, recordings: list[Recording], texts: list[Recording]
) -> None:
    if recordings:
        async with intake.writing:
            await database.write(await put_recordings(database, recordings))
    for recording in texts:
        intake.texts.want(recording)


async def _put_events(database: Database, intake: Intake, events: list[ApiEvent]) -> None:
    if events:
        async with intake.writing:
            await database.write(await put_events(database, events))


async def rebuild(
    database: Database,
    store: Readable,
    intake: Intake,
    report: Report | None,
    *,
    text_limit: int,
    cast_limit: int,
) -> Progress:
    """Make it from nothing. Until it is done the old one answers; the intake waits, and what it was told is written
    after, into the new one."""
    recordings, events = 0, 0
    async with intake.writing, database.replacement() as fresh:
        batch: list[Recording] = []
        async with aclosing(store.recordings()) as found:
            async for recording in found:
                batch.append(recording)
                recordings += 1
                if len(batch) >= _BATCH:
                    await _rebuild_some(fresh, store, batch, text_limit, cast_limit)
                    batch = []
                if report is not None:
                    report(Progress(recordings, events))
        await _rebuild_some(fresh, store, batch, text_limit, cast_limit)
        told: list[ApiEvent] = []
        async with aclosing(store.events()) as every:
            async for event in every:
                told.append(event)
                events += 1
                if len(told) >= _BATCH:
                    await fresh.write(await put_events(fresh, told))
                    told = []
                    if report is not None:
                        report(Progress(recordings, events))
        if told:
            await fresh.write(await put_events(fresh, told))
    progress = Progress(recordings, events)
    if report is not None:
        report(progress)
    return progress


async def _rebuild_some(
    fresh: Writing, store: Readable, recordings: list[Recording], text_limit: int, cast_limit: int
) -> None:
    if not recordings:
        return
    await fresh.write(await put_recordings(fresh, recordings))
    changes: list[Change] = []
    gathered = 0
    for recording in recordings:
        try:
            text = await extract(store, recording.id, text_limit=text_limit, cast_limit=cast_limit, rest=False)
        except KeyError:  # removed meanwhile; the intake was told so
            continue
        except UnreadableError as error:  # it is found by who and where, and by nothing on its screen
            _log.error("index_text_failed", id=recording.id, error=str(error))
            continue
        changes += await put_text(fresh, recording, text)
        gathered += sum(len(line) for segment in text.segments for _, line in segment.lines)
        if gathered > _TEXTS:
            await fresh.write(changes)
            changes, gathered = [], 0
    await fresh.write(changes)

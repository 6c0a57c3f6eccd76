"""The observer: what it is told gets written, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from recorder.index import Coverage, EventFilter, Filter, Index, IndexFailure
from recorder.index.database import Change, Statement
from recorder.index.intake import Intake
from recorder.index.texts import resting
from recorder.model import End, UnreadableError, id_day, new_id
from tests.recorder.index.library import ALL, START, Library, api_event, opened, recording


def run(url: str, test: Callable[[Index, Library], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        async with opened(url, **options) as (index, library):
            await test(index, library)

    asyncio.run(main())


async def found(index: Index, text: str = "") -> list[str]:
    return [row.recording.pod for row in (await index.recordings(Filter(text=text), ALL)).items]


def test_a_session_from_its_beginning_to_its_removal(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        running = recording(pod="p", command="psql -c secret", end=End.RUNNING, ended=None, duration=0.0)
        library.put(running, (1.0, "first"))
        await index.settled()
        assert await found(index, "psql") == ["p"]  # its command at once
        assert await found(index, "first") == []  # its screen when it is due
        row = await index.get(running.id, ALL)
        assert (row.recording.end, row.indexed) == (End.RUNNING, -1)
        library.put(library.kept[running.id], (1.0, "first"), (2.0, "second"))
        await index.settled()
        assert (await index.get(running.id, ALL)).recording == library.kept[running.id]
        library.put(recording(pod="p", started=running.started), (1.0, "other"))
        over = recording(pod="p", command="psql -c secret", started=running.started, duration=3.0)
        over = library.put(type(over)(**{**_fields(over), "id": running.id}), (1.0, "first"), (2.0, "third"))
        await index.settled()
        assert await found(index, "first third psql") == ["p"]
        assert await found(index, "second") == []
        row = await index.get(running.id, ALL)
        assert (row.recording, row.indexed, row.text_truncated) == (over, over.size, False)
        library.remove(running.id)
        await index.settled()
        assert await found(index, "third") == []
        assert await found(index, "psql") == []
        assert await found(index) == ["p"]
        for table in ("recordings", "recording_documents", "segments"):
            ((count,),) = await index.database.fetch(f"SELECT count(DISTINCT number) FROM {table}")
            assert (table, count) == (table, 1)

    run(url, test)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_a_running_session_is_read_again_when_it_has_doubled(tmp_path: Any) -> None:
    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/i.db") as (index, library):
            library.observers.remove(index)
            intake = Intake(index.database, refresh=0.0)
            intake.start(library, _nothing)
            running = recording(pod="p", end=End.RUNNING, ended=None)
            running = library.put(running, (1.0, "one"))
            intake.began(running)
            await intake.settled()
            assert await found(index, "one") == ["p"]
            grown = library.put(library.kept[running.id], (1.0, "one"), (2.0, "two"))
            assert grown.size < 2 * running.size
            intake.progressed(grown)
            await intake.settled()
            assert library.reads == [running.id]
            doubled = library.put(grown, (1.0, "one"), (2.0, "two " * 200))
            intake.progressed(doubled)
            await intake.settled()
            assert library.reads == [running.id] * 2
            assert await found(index, "two") == ["p"]
            await intake.stop()
            library.observers.append(index)

    asyncio.run(main())


async def _nothing() -> AsyncIterator[None]:
    return
    yield


def test_text_is_bounded_and_says_so(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        long = library.put(recording(pod="long"), *((float(n), f"line {n}") for n in range(500)))
        short = library.put(recording(pod="short"), (1.0, "line"))
        await index.settled()
        assert (await index.get(long.id, ALL)).text_truncated
        assert not (await index.get(short.id, ALL)).text_truncated
        assert await found(index, '"line 50"') == ["long"]
        assert await found(index, '"line 400"') == []
        reads = len(library.reads)
        await index.catch_up(library)
        await index.settled()
        assert len(library.reads) == reads  # what is cut short is as good as it gets

    run(url, test, text_limit=1000)


def test_catch_up_finds_what_was_missed(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        stays = library.put(recording(pod="stays"), (1.0, "alpha"))
        goes = library.put(recording(pod="goes"), (1.0, "beta"))
        unfinished = library.put(recording(pod="cut", end=End.RUNNING, ended=None, size=0), (1.0, "gamma"))
        library.tell(api_event(name="told"))
        await index.settled()
        library.observers.remove(index)
        library.remove(goes.id)
        library.put(recording(pod="new", command="delta"), (1.0, "epsilon"))
        library.put(type(unfinished)(**{**_fields(unfinished), "end": End.CUT, "ended": START}), (1.0, "zeta"))
        library.tell(api_event(name="untold"))
        library.observers.append(index)
        for _ in range(2):
            await index.catch_up(library)
            await index.settled()
            assert [await found(index, word) for word in ("alpha", "beta", "epsilon", "zeta")] == [
                ["stays"],
                [],
                ["new"],
                ["cut"],
            ]
            assert [event.name for event in (await index.events(EventFilter(), ALL)).items] == ["untold", "told"]
        assert library.reads.count(stays.id) == 1  # what is there isn't read again
        assert (await index.get(unfinished.id, ALL)).recording.end is End.CUT

    run(url, test)


def test_damage_that_is_found_after_the_end_is_known(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        told = library.put(recording(pod="told"), (1.0, "alpha"))
        missed = library.put(recording(pod="missed"), (1.0, "beta"))
        await index.settled()
        index.corrected(replace(told, damaged=True))
        await index.settled()
        assert (await index.get(told.id, ALL)).recording == replace(told, damaged=True)
        assert await found(index, "alpha") == ["told"]
        library.kept = {kept.id: replace(kept, damaged=True) for kept in library.kept.values()}
        await index.catch_up(library)
        await index.settled()
        assert (await index.get(missed.id, ALL)).recording.damaged
        assert sorted(library.reads) == sorted([told.id, missed.id])  # the texts are what they were

    run(url, test)


def test_catch_up_leaves_what_runs_elsewhere(url: str) -> None:
    """Recorders that share an index share the store; what has just begun is in the journal of one alone."""

    async def test(index: Index, library: Library) -> None:
        for pod, end in (("elsewhere", End.RUNNING), ("gone", End.CUT)):
            index.began(recording(pod=pod, end=end))
        await index.settled()
        await index.catch_up(library)
        assert [row.recording.pod for row in (await index.recordings(Filter(), ALL)).items] == ["elsewhere"]

    run(url, test)


def test_what_is_older_does_not_replace_what_is_newer(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        over = library.put(recording(pod="p"))
        await index.settled()
        for older in ({"end": End.RUNNING, "ended": None}, {"end": End.RUNNING, "ended": None, "size": 1 << 40}):
            index.progressed(type(over)(**{**_fields(over), **older}))
            await index.settled()
            assert (await index.get(over.id, ALL)).recording == over

    run(url, test)


def test_a_full_queue_is_made_good(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        for number in range(12):
            library.put(recording(pod=f"p{number}"), (1.0, f"word{number}"))
            library.tell(api_event(name=f"e{number}"))
        assert index.waiting <= 16  # 5 recordings, their texts, and 5 events
        await index.settled()
        assert len(await found(index)) == 12
        assert await found(index, "word11") == ["p11"]
        assert len((await index.events(EventFilter(), ALL)).items) == 12

    run(url, test, waiting=5)


def test_a_row_that_cannot_be_written_is_dropped_alone(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        library.put(recording(pod="a"), (1.0, "word"))
        library.put(recording(pod="b", size=1, events=1 << 70), (1.0, "word"))  # more than 64 bits
        library.put(recording(pod="c"), (1.0, "word"))
        await index.settled()
        assert await found(index, "word") == ["c", "a"]
        assert index.dropped == 1
        assert index.healthy is None

    run(url, test)


class Failing:
    """A database that fails a number of times before it writes."""

    def __init__(self, index: Index, times: int, error: Exception) -> None:
        self._index = index
        self._real = index.database
        self.seen: list[str | None] = []
        self.times = times
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def write(self, changes: Sequence[Change]) -> None:
        if self.times:
            self.times -= 1
            self.seen.append(self._index.healthy)
            raise self._error
        await self._real.write(changes)


@pytest.mark.parametrize("error", [IndexFailure("the disk is full"), RuntimeError("what nobody thought of")])
def test_a_failure_is_waited_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("recorder.index.intake._LEAST_WAIT", 0.001)

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/i.db") as (index, library):
            failing = Failing(index, 3, error)
            index._intake._database = failing
            library.put(recording(pod="a"), (1.0, "word"))
            library.tell(api_event(name="e"))
            await index.settled()
            assert failing.seen == [None, *[str(error) if isinstance(error, IndexFailure) else "RuntimeError"] * 2]
            assert index.healthy is None
            assert await found(index, "word") == ["a"]
            assert len((await index.events(EventFilter(), ALL)).items) == 1
            assert index.dropped == 0 and index.errors == 3

    asyncio.run(main())


@pytest.mark.parametrize("error", [UnreadableError("damaged"), OSError("away")])
def test_a_text_that_the_store_cannot_give_waits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is asked for again for as long as it takes; what is damaged is named meanwhile."""
    monkeypatch.setattr("recorder.index.texts._LEAST_WAIT", 0.0001)
    damaged = isinstance(error, UnreadableError)

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/i.db") as (index, library):
            await index.catch_up(library)
            bad, gone = library.put(recording(pod="bad"), (1.0, "word")), library.put(recording(), (1.0, "word"))
            get, tries, tried = library.get, 0, asyncio.Event()

            async def away(identifier: str) -> Any:
                nonlocal tries
                if identifier in (bad.id, gone.id):
                    tries += identifier == bad.id
                    if tries > 6:
                        tried.set()
                    raise error
                return await get(identifier)

            library.get = away  # type: ignore[method-assign]  # the store goes away
            library.put(recording(pod="good"), (1.0, "word"))
            await tried.wait()
            await index.settled()
            assert await found(index, "word") == ["good"]
            unreadable = tuple(sorted((bad.id, gone.id))) if damaged else ()
            assert await index.coverage(ALL) == Coverage(False, sessions=3, indexed=1, unreadable=unreadable)
            assert index.dropped == 2 * damaged
            library.remove(gone.id)
            await index.settled()
            assert (await index.coverage(ALL)).unreadable == ((bad.id,) if damaged else ())
            library.get = get  # type: ignore[method-assign]  # it comes back, or somebody puts back what was there
            async with index._intake._step:
                await index._intake._step.wait_for(lambda: not index._intake.texts.tries)
            await index.settled()
            assert (await index.coverage(ALL)).complete
            assert sorted(await found(index, "word")) == ["bad", "good"]

    asyncio.run(main())


def test_removal_while_its_text_is_made(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        kept = library.put(recording(pod="p"), (1.0, "word"))
        cast = library.cast

        def removing(identifier: str, **more: Any) -> Any:
            pieces = cast(identifier, **more)

            async def read() -> Any:
                async for piece in pieces:
                    if identifier in library.kept:
                        library.remove(identifier)
                    yield piece

            return read()

        library.cast = removing  # type: ignore[method-assign]  # as a user may remove it at that moment
        await index.settled()
        assert kept.id not in library.kept
        assert await found(index, "word") == []
        assert await index.database.fetch("SELECT number FROM segments") == []

    run(url, test)


def test_closing_at_any_moment_loses_nothing(url: str) -> None:
    """A recorder that is stopped in between finds the rest at its next start."""

    async def main() -> None:
        library = Library()
        for turns in (0, 1, 2, 3, 5, 8, 13, 40):
            async with opened(url, library) as (_, _):
                library.put(recording(pod=f"p{turns}"), (1.0, f"word{turns}"))
                library.tell(api_event(name=f"e{turns}"))
                for _ in range(turns):
                    await asyncio.sleep(0)
        async with opened(url, library) as (index, _):
            await index.catch_up(library)
            await index.settled()
            assert len(await found(index, "word*")) == 8
            assert len((await index.events(EventFilter(), ALL)).items) == 8

    asyncio.run(main())


def test_a_cancelled_write_is_whole(tmp_path: Any) -> None:
    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/i.db") as (index, _):
            statement = Statement(
                "INSERT INTO event_documents (number, document) VALUES ($1, $2)", [(1, "a"), (2, "b")]
            )
            task = asyncio.ensure_future(index.database.write([statement]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await index.database.known("SELECT * FROM event_documents")) in (0, 2)
            bad = Statement(
                "INSERT INTO event_documents (number, document) VALUES ($1, $2)", [(3, "c"), (1, "a"), (1, "")]
            )
            with pytest.raises(IndexFailure):
                await index.database.write([bad])
            assert await index.database.known("SELECT * FROM event_documents WHERE number = 3") == []

    asyncio.run(main())


def test_texts_give_way_to_what_comes_in() -> None:
    assert resting(0.002, 0.0) == resting(0.002, 9e6) == 0.002
    assert resting(0.002, 50e6) == pytest.approx(0.010)
    assert resting(0.002, 1e12) == pytest.approx(0.030)


def test_a_day_of_events_that_is_removed_leaves_no_rows(url: str) -> None:
    """Also where the index was not there to be told of it."""

    async def test(index: Index, library: Library) -> None:
        day = 86400.0
        now = time.time()
        dates = [now // day * day - (30 - number) * day for number in range(3)]
        for date in dates:
            for moment in (date, date + day / 2, date + day - 0.001):
                library.tell(api_event(received=moment))
        await index.settled()

        async def rows() -> list[str]:
            events = (await index.events(EventFilter(), ALL)).items
            ((documents,),) = await index.database.fetch("SELECT count(*) FROM event_documents")
            assert documents == len(events)
            return sorted({id_day(event.id) for event in events}) if events else []

        first, second, third = await rows()
        library.remove_events(second)
        await index.settled()
        assert await rows() == [first, third]
        library.told = [told for told in library.told if id_day(told.id) == first]
        await index.catch_up(library)
        assert await rows() == [first]
        # Of the last days another recorder may have some in its journal, which this store does not know.
        library.tell(api_event(received=now))
        await index.settled()
        library.told.clear()
        await index.catch_up(library)
        assert await rows() == [id_day(new_id(now))]

    run(url, test)

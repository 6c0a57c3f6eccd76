"""recorder/index/coverage.py: an answer that may be short says so, with how much it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from recorder.index import Coverage, Filter, Index, catchup
from recorder.index.coverage import Comparison
from recorder.index.database import IndexFailure
from recorder.model import End
from tests.lives import assert_documented
from tests.recorder.index.library import ALL, Library, Place, api_event, opened, recording


async def short(index: Index) -> Coverage:
    """What it is when it is not complete any more."""
    for _ in range(100_000):
        if not (cover := await index.coverage(ALL)).complete:
            return cover
    raise AssertionError("it stays complete")


def test_the_docstring_has_the_table_of_a_comparison() -> None:
    assert_documented(Comparison)


def test_while_it_is_compared_with_the_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore, a move, a lost disk: the store has 34 sessions and the index has none of them yet."""
    monkeypatch.setattr(catchup, "_BATCH", 5)

    async def main() -> None:
        library = Library()
        for number in range(34):
            library.put(recording(pod=f"p{number}"), (1.0, "needle"))
        library.tell(api_event())
        async with opened(url, library) as (index, _):
            assert await index.coverage(ALL) == Coverage(complete=False, sessions=0, indexed=0)
            seen: list[tuple[int, float]] = []
            recordings, events = library.recordings, library.events

            async def watched() -> AsyncGenerator[object, None]:
                async for one in recordings():
                    found = len((await index.recordings(Filter(text="needle"), ALL, limit=100)).items)
                    cover = await index.coverage(ALL)
                    assert not cover.complete and cover.sessions == 34 and cover.indexed <= 34 and cover.share < 1
                    # Whatever is found is among what is said to be indexed.
                    assert found <= (await index.coverage(ALL)).indexed
                    seen.append((found, cover.share))
                    yield one

            async def late() -> AsyncGenerator[object, None]:
                await index._intake.settled()
                assert not (await index.coverage(ALL)).complete  # the API events are still to come
                async for one in events():
                    yield one

            monkeypatch.setattr(library, "recordings", watched)
            monkeypatch.setattr(library, "events", late)
            await index.catch_up(library)
            await index.settled()
            assert seen[0] == (0, 0.0) and len(seen) == 34
            assert await index.coverage(ALL) == Coverage(complete=True, sessions=0, indexed=0)
            assert (await index.coverage(ALL)).share == 1.0

    asyncio.run(main())


def test_a_text_that_is_not_made_yet_or_never(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            await index.catch_up(library)
            for number in range(3):
                library.put(recording(pod=f"p{number}"), (1.0, "needle"))
            await index.settled()
            assert (await index.coverage(ALL)).complete
            hold = asyncio.Event()
            cast = library.cast

            async def held(identifier: str, **more: float) -> AsyncGenerator[bytes, None]:
                await hold.wait()
                async for piece in cast(identifier):
                    yield piece

            monkeypatch.setattr(library, "cast", held)
            late = library.put(recording(pod="late"), (1.0, "needle"))
            cover = await short(index)
            assert cover == Coverage(complete=False, sessions=4, indexed=3) and cover.share == 0.75
            assert "late" not in [
                row.recording.pod for row in (await index.recordings(Filter(text="needle"), ALL)).items
            ]
            hold.set()
            await index.settled()
            assert (await index.coverage(ALL)).complete and (await index.get(late.id, ALL)).searchable

            # Beyond the limits all is done that will ever be; the row says that its text is cut.
            monkeypatch.setattr(index._intake.texts, "limits", (5, 1 << 20))
            long = library.put(recording(pod="long"), (1.0, "a line that is longer than that"))
            await index.settled()
            assert (await index.coverage(ALL)).complete and not (await index.get(long.id, ALL)).searchable

    asyncio.run(main())


def test_what_the_store_cannot_give(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            library.put(recording(), (1.0, "needle"))
            lost = recording()
            library.unreadable.add(lost.id)
            await index.catch_up(library)
            await index.settled()
            assert await index.coverage(ALL) == Coverage(complete=False, sessions=2, indexed=1, unreadable=(lost.id,))
            index.removed(lost.id)
            assert (await index.coverage(ALL)).complete

    asyncio.run(main())


def test_what_runs_is_counted_by_itself_and_in_scope(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            await index.catch_up(library)
            kept = library.put(recording(namespace="bank", end=End.RUNNING, ended=None), (1.0, "needle"))
            library.put(recording(namespace="shop"), (1.0, "needle"))
            await index.settled()
            shop, bank = (Place(namespaces=("shop",)),), (Place(namespaces=("bank",)),)
            assert [(await index.coverage(scope)).running for scope in (ALL, bank, shop, ())] == [1, 1, 0, 0]
            assert (await index.coverage(ALL)).complete and not (await index.get(kept.id, ALL)).searchable
            library.put(replace(library.kept[kept.id], end=End.CLEAN, ended=kept.started + 9))
            await index.settled()
            assert await index.coverage(ALL) == Coverage(complete=True, sessions=0, indexed=0)

    asyncio.run(main())


def test_what_it_cannot_write(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            await index.catch_up(library)
            library.put(recording(), (1.0, "needle"))
            await index.settled()
            write = index.database.write
            failed = asyncio.Semaphore(0)

            async def fails(changes: object) -> None:
                failed.release()
                raise IndexFailure("the disk is full", passing=passing)

            for passing in (True, False):
                monkeypatch.setattr(index.database, "write", fails)
                gone = library.put(recording(), (1.0, "needle"))
                for _ in range(1 if passing else 2):  # what is at fault is tried once more alone
                    await failed.acquire()
                assert not (await index.coverage(ALL)).complete
                monkeypatch.setattr(index.database, "write", write)
                await index.settled()
                assert (await index.coverage(ALL)).complete is passing
            library.remove(gone.id)
            await index.settled()
            assert (await index.coverage(ALL)).complete

    asyncio.run(main())


def test_more_than_can_wait(url: str) -> None:
    async def main() -> None:
        async with opened(url, waiting=2) as (index, library):
            await index.catch_up(library)
            for _ in range(5):
                library.put(recording(), (1.0, "needle"))
            assert not (await index.coverage(ALL)).complete
            await index.settled()
            assert (await index.coverage(ALL)).complete

    asyncio.run(main())

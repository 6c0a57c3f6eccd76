"""What is removed for good stands nowhere in the files."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import string
import threading
from pathlib import Path

import pytest

from recorder.index import EventFilter, IndexFailure, intake, sqlite
from recorder.index.words import pack
from recorder.model import id_day
from recorder.screen import Segment
from tests.recorder.index.library import ALL, Library, api_event, opened, recording
from tests.recorder.index.test_intake import found


def traces(folder: Path, numbers: set[int], library_text: dict[int, bytes]) -> list[tuple[int, str]]:
    """Which of them have left something, and where."""
    seen = []
    for path in folder.iterdir():
        data = path.read_bytes()
        for number in numbers:
            needles = (f"{number}word", f"{number}Command", f"{number}user", f"{number}event")
            if any(needle.encode() in data for needle in needles) or library_text[number][10:60] in data:
                seen.append((number, path.name))
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_left_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(intake, "wipe_rest", lambda spent: 0.0)
    dice = random.Random(seed)

    def prose(count: int) -> str:
        return " ".join("".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(count))

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/index.db") as (index, library):
            kept, text = {}, {}
            for number in range(1000, 1200):
                line = f"{number}word {prose(dice.choice([3, 100, 300]))}"
                one = recording(f"{number}user", pod=str(number), command=f"{number}Command {prose(20)}")
                kept[number] = library.put(one, (1.0, line))
                text[number] = pack(Segment(((1.0, line),)))
            await index.settled()
            gone: set[int] = set()
            for _ in range(3):
                now = set(dice.sample(sorted(kept), 40))
                gone |= now
                assert traces(tmp_path, now, text)
                for number in now:
                    library.remove(kept.pop(number).id)
                await index.wiped()
                assert traces(tmp_path, gone, text) == []
            assert len(traces(tmp_path, set(kept), text)) >= len(kept)  # the others are where they were
            assert await found(index, f"{min(kept)}word") == [str(min(kept))]
        connection = sqlite3.connect(tmp_path / "index.db")
        connection.execute("INSERT INTO found (found) VALUES ('integrity-check')")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()

    asyncio.run(main())


def test_what_was_removed_while_the_recorder_was_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a command, or just before a crash: the next start wipes it."""
    library = Library()

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/index.db", library) as (index, _):
            one = library.put(recording(command="5000Command"), (1.0, "5000word"))
            two = library.put(recording(command="5001Command"), (1.0, "5001word"))
            await index.settled()
            monkeypatch.setattr(index.database, "wipe", lambda rest: asyncio.sleep(3600))
            library.remove(one.id)
            await index.settled()
        del library.kept[two.id]
        async with opened(f"sqlite:{tmp_path}/index.db", library) as (index, _):
            await index.catch_up(library)
            await index.wiped()
            assert traces(tmp_path, {5000, 5001}, {5000: b"x" * 99, 5001: b"x" * 99}) == []

    monkeypatch.setattr(intake, "wipe_rest", lambda spent: 0.0)
    asyncio.run(main())


def test_events_that_are_removed_are_found_no_more(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            old = library.tell(api_event(name="7000event", received=1_700_000_000.0))
            older = library.tell(api_event(name="7001event", received=1_600_000_000.0))
            new = library.tell(api_event(name="7002event"))
            await index.settled()
            library.told = [new]
            index.removed(f"events {id_day(old.id)}")
            await index.settled()
            names = [event.name for event in (await index.events(EventFilter(), ALL)).items]
            assert names == ["7002event", "7001event"]
            await index.catch_up(library)  # nobody was told of that one
            await index.wiped()
            assert [event.name for event in (await index.events(EventFilter(), ALL)).items] == ["7002event"]
            assert await index.database.fetch("SELECT count(*) FROM event_documents") == [(1,)]
            assert older.id < old.id
            if url.startswith("sqlite"):
                assert traces(tmp_path, {7000, 7001}, {7000: b"x" * 99, 7001: b"x" * 99}) == []

    asyncio.run(main())


def test_a_wipe_that_fails_is_tried_again_and_keeps_nothing_from_being_written(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "wipe_rest", lambda spent: 0.0)
    monkeypatch.setattr(intake, "_LEAST_WAIT", 0.001)

    async def main() -> None:
        async with opened(url) as (index, library):
            await index.catch_up(library)
            await index.wiped()
            wipe, failed = index.database.wipe, asyncio.Event()

            async def fails(rest: object) -> float:
                failed.set()
                raise IndexFailure("another process reads it")

            monkeypatch.setattr(index.database, "wipe", fails)
            library.remove(library.put(recording(), (1.0, "word")).id)
            await failed.wait()
            library.put(recording(pod="new"), (1.0, "other"))
            await index.settled()
            assert await found(index, "other") == ["new"]
            assert "another process" in str(index.healthy) and (await index.coverage(ALL)).complete
            monkeypatch.setattr(index.database, "wipe", wipe)
            await index.wiped()
            assert await index.database.fetch("SELECT * FROM leftovers") == [] and index.healthy is None

    asyncio.run(main())


@pytest.mark.parametrize("late", [False, True])
def test_a_recorder_that_stops_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    begun, stopping = threading.Event(), threading.Event()

    def endless(connection: sqlite3.Connection) -> None:
        begun.set()
        if late:  # it is stopped between the thread's beginning and the statement's
            stopping.wait()
        connection.execute("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c")

    async def main() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite, "_vacuum", endless)
            async with opened(f"sqlite:{tmp_path}/index.db"):
                await asyncio.to_thread(begun.wait)
                if late:
                    asyncio.get_running_loop().call_later(0.05, stopping.set)
        async with opened(f"sqlite:{tmp_path}/index.db") as (index, _):
            await index.wiped()  # it was not forgotten
            assert await index.database.fetch("SELECT * FROM leftovers") == []

    asyncio.run(main())


def test_how_long_it_rests() -> None:
    assert intake.wipe_rest(0.0) == 1.0
    assert intake.wipe_rest(0.05) < 2.0
    assert 3600 < intake.wipe_rest(10.0) < 7200

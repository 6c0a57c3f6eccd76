"""Opening, migrating, rebuilding; the same on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k8sproxy.common.tailnet.peer import Peer
from recorder.index import EventFilter, Filter, Index, IndexFailure, LookFilter, schema
from recorder.index.database import Statement, Text
from recorder.screen import Segment
from tests.recorder.index import postgres
from tests.recorder.index.library import ALL, START, Library, api_event, opened, recording

ANN = Peer("100.64.0.1", "n1", "laptop.", login_name="ann@example.com")


async def found(index: Index, text: str = "") -> list[str]:
    return [row.recording.pod for row in (await index.recordings(Filter(text=text), ALL)).items]


def test_it_is_there_again(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            library.put(recording(pod="p"), (1.0, "word"))
            await index.settled()
        async with opened(url, library) as (index, _):
            assert await found(index, "word") == ["p"]

    asyncio.run(main())


def test_rebuild(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            for number in range(3):
                library.put(recording(pod=f"p{number}"), (1.0, f"word{number}"), (2.0, "same"))
                library.tell(api_event(name=f"e{number}"))
            await index.settled()
            look = await index.add_look(ANN, "view", "", START)
            await index.database.write([_statement("DELETE FROM recordings WHERE pod = 'p1'")])
            await index.database.write([_statement("UPDATE recordings SET pod = 'lie'")])
            reports: list[Any] = []
            done = await index.rebuild(library, reports.append)
            assert (done.recordings, done.events) == (3, 3)
            assert reports[-1] == done
            for _ in range(2):
                assert await found(index, "same") == ["p2", "p1", "p0"]
                assert await found(index, "word1") == ["p1"]
                assert [event.name for event in (await index.events(EventFilter(), ALL)).items] == ["e2", "e1", "e0"]
                assert (await index.looks(LookFilter(), ALL)).items == (look,)
                await index.rebuild(library)
            library.put(recording(pod="after"), (1.0, "same"))
            await index.settled()
            assert (await found(index, "same"))[0] == "after"
            library.remove(min(library.kept))
            await index.settled()
            assert await found(index, "same") == ["after", "p2", "p1"]
            reads = len(library.reads)
            await index.catch_up(library)
            await index.settled()
            assert len(library.reads) == reads  # it was whole

    asyncio.run(main())


def _statement(sql: str) -> Any:
    from recorder.index.database import Statement

    return Statement(sql)


def test_what_happens_during_a_rebuild(url: str) -> None:
    """Old answers until it is done; looks, and what is told meanwhile, are kept."""

    async def main() -> None:
        async with opened(url) as (index, library):
            library.put(recording(pod="old"), (1.0, "same"))
            gone = library.put(recording(pod="gone"), (1.0, "same"))
            await index.settled()
            answers: list[Any] = []
            events = library.events

            async def meanwhile() -> Any:
                async for told in events():
                    yield told
                library.put(recording(pod="meanwhile"), (1.0, "same"))
                library.remove(gone.id)
                answers.append(await found(index, "same"))
                answers.append(await index.add_look(ANN, "view", "", START))

            library.events = meanwhile  # type: ignore[method-assign]  # the moment before it is done
            await index.rebuild(library)
            await index.settled()
            assert answers[0] == ["gone", "old"]
            assert await found(index, "same") == ["meanwhile", "old"]
            assert (await index.looks(LookFilter(), ALL)).items == (answers[1],)

    asyncio.run(main())


class Broken(Library):
    async def events(self) -> Any:
        raise OSError("the store went away")
        yield


def test_a_rebuild_that_fails_or_is_cancelled_changes_nothing(url: str) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            library.put(recording(pod="p"), (1.0, "word"))
            await index.settled()
            with pytest.raises(OSError, match="went away"):
                await index.rebuild(Broken())
            assert await found(index, "word") == ["p"]
            for turns in (*range(0, 30, 3), 60):
                task = asyncio.ensure_future(index.rebuild(library))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert await found(index, "word") == ["p"]
            library.put(recording(pod="q"), (1.0, "word"))
            await index.settled()
            assert await found(index, "word") == ["q", "p"]

    asyncio.run(main())


def test_two_that_start_at_once(url: str) -> None:
    async def main() -> None:
        indexes = [Index(url) for _ in range(4)]
        try:
            await asyncio.gather(*(index.open() for index in indexes))
            for index in indexes:
                assert await found(index) == []
        finally:
            for index in indexes:
                await index.aclose()

    asyncio.run(main())


def test_opening_may_be_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        index = Index(url)
        with pytest.raises(IndexFailure, match="not open"):
            await found(index)
        with monkeypatch.context() as broken:
            broken.setattr(schema, "MIGRATIONS", (("NONSENSE",) * 2,))
            for _ in range(2):
                with pytest.raises(IndexFailure):
                    await index.open()
        await index.open()
        assert await found(index) == []
        await index.aclose()
        with pytest.raises(IndexFailure, match="not open"):
            await index.add_look(ANN, "view", "", START)
        await index.aclose()

    asyncio.run(main())


def test_an_index_from_the_future_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def opening() -> None:
        index = Index(url)
        try:
            await index.open()
        finally:
            await index.aclose()

    with monkeypatch.context() as newer:
        newer.setattr(schema, "VERSION", schema.VERSION + 1)
        newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE later (a {key})",) * 2))
        asyncio.run(opening())
    with pytest.raises(IndexFailure, match="newer recorder"):
        asyncio.run(opening())


def test_migrations_go_on_from_where_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def opening(table: str) -> int:
        index = Index(url)
        try:
            await index.open()
            return len(await index.database.fetch(f"SELECT * FROM {table}"))
        finally:
            await index.aclose()

    assert asyncio.run(opening("recordings")) == 0
    with pytest.raises(IndexFailure):
        asyncio.run(opening("later"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE later (a {key})",) * 2))
    assert asyncio.run(opening("later")) == 0
    assert asyncio.run(opening("later")) == 0


def test_the_second_schema_has_texts_made_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of before are words with accents; an index that kept them would find some of a word's sessions."""
    library = Library()

    async def make(version: int) -> None:
        monkeypatch.setattr(schema, "VERSION", version)
        monkeypatch.setattr(schema, "MIGRATIONS", migrations[:version])
        index = Index(url)
        await index.open()
        await index.aclose()

    async def main() -> None:
        await make(1)
        index = Index(url)
        await index.open()
        old = recording(pod="old", command="psql")
        await index.database.write(
            [
                Statement(
                    "INSERT INTO recordings (number, id, user_name, node, tags, cluster, namespace, pod, container,"
                    " command, session_type, session_id, started, duration, size, events, state, damaged, indexed,"
                    " text_truncated) VALUES (1, $1, '', '', '', '', '', 'old', '', 'psql', '', '', $2, 1.0, $3, 1,"
                    " 'clean', 0, $3, 0)",
                    ((old.id, old.started, library.put(old, (1.0, "Zürich")).size),),
                ),
                Statement("INSERT INTO recording_documents (number, header, source) VALUES (1, '{}', '{}')"),
                Text(1, (Segment(((1.0, "Zürich"),)),)),
            ]
        )
        await index.aclose()
        await make(2)
        async with opened(url, library) as (index, _):
            assert not (await index.get(old.id, ALL)).searchable
            await index.catch_up(library)
            await index.settled()
            assert len(await found(index, "zurich")) == 1 and (await index.get(old.id, ALL)).searchable

    migrations = schema.MIGRATIONS
    asyncio.run(main())


def test_a_migration_that_fails_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def opening() -> None:
        index = Index(url)
        try:
            await index.open()
        finally:
            await index.aclose()

    with monkeypatch.context() as broken:
        broken.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("CREATE TABLE later (a TEXT); NONSENSE",) * 2))
        with pytest.raises(IndexFailure):
            asyncio.run(opening())
    asyncio.run(opening())  # version 1, from the start


@pytest.mark.parametrize("wrong", ["", "sqlite:", "mysql://x", "/var/lib/index.db"])
def test_an_index_is_one_of_two_kinds(wrong: str) -> None:
    with pytest.raises(ValueError, match="sqlite:PATH or postgresql"):
        Index(wrong)


# --- SQLite alone


def test_a_file_that_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"not a database at all, but long enough to be looked at" * 100)

    async def main() -> None:
        index = Index(f"sqlite:{tmp_path}/index.db")
        with pytest.raises(IndexFailure, match="not a database"):
            await index.open()
        with pytest.raises(IndexFailure, match="can't be opened"):
            await Index(f"sqlite:{tmp_path}/index.db/below").open()

    asyncio.run(main())


def test_a_file_that_is_damaged_while_it_is_open_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as a fault for as long as it lasts; no row is taken to be at fault for it."""
    monkeypatch.setattr("recorder.index.intake._LEAST_WAIT", 0.001)

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/index.db") as (index, library):
            real, times = index.database.write, 3

            async def damaged(changes: Any) -> Any:
                nonlocal times
                times -= 1
                if times < 0:
                    return await real(changes)
                writer = index.database._writer  # type: ignore[attr-defined]
                return await writer.run(lambda _: _raise(sqlite3.DatabaseError("database disk image is malformed")))

            monkeypatch.setattr(index.database, "write", damaged)
            library.put(recording(pod="p"), (1.0, "word"))
            await index.settled()
            assert index.dropped == 0 and await found(index, "word") == ["p"]

    asyncio.run(main())


def _raise(error: Exception) -> None:
    raise error


def test_a_rebuild_under_another_recorder_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/index.db"

    async def main() -> None:
        async with opened(url) as (index, library):
            other = Index(url)
            await other.open()
            try:
                with pytest.raises(IndexFailure, match="another recorder"):
                    await index.rebuild(library)
            finally:
                await other.aclose()
            events = library.events

            async def meanwhile() -> Any:
                with pytest.raises(IndexFailure, match="being rebuilt"):
                    await Index(url).open()
                async for told in events():
                    yield told

            library.events = meanwhile  # type: ignore[method-assign]  # while it goes on
            await index.rebuild(library)
            late = Index(url)
            await late.open()
            await late.aclose()

    asyncio.run(main())


def test_two_processes_write_and_read(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/index.db"
    other = (
        "import asyncio, sys\n"
        "from recorder.index import Filter, Index\n"
        "from tests.recorder.index.library import ALL, Library, opened, recording\n"
        "async def main():\n"
        "    async with opened(sys.argv[1]) as (index, library):\n"
        "        for number in range(20):\n"
        "            library.put(recording(pod='theirs'), (1.0, 'word'))\n"
        "            await index.settled()\n"
        "asyncio.run(main())\n"
    )

    async def main() -> None:
        async with opened(url) as (index, library):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", other, url)
            while process.returncode is None:
                library.put(recording(pod="ours"), (1.0, "word"))
                await index.settled()
                await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.01)
            assert process.returncode == 0
            rows = await index.recordings(Filter(text="word", pod="theirs"), ALL)
            assert len(rows.items) == 20
            assert index.dropped == 0

    asyncio.run(main())


def test_a_search_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recorder.index.sqlite._PATIENCE", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

    async def main() -> None:
        async with opened(f"sqlite:{tmp_path}/index.db") as (index, _):
            with pytest.raises(IndexFailure, match="took longer"):
                await index.database.fetch(endless)
            assert await found(index) == []

    asyncio.run(main())


def test_full_text_agrees_with_itself_after_all_changes(tmp_path: Path) -> None:
    """FTS5 takes words out by being told them again: a wrong word there would stay found for ever."""
    url = f"sqlite:{tmp_path}/index.db"

    async def main() -> None:
        async with opened(url) as (index, library):
            for number in range(30):
                library.put(recording(pod=f"p{number}"), (1.0, f"Äpfel ẞ İstanbul {number} \ud800 語\u200b語"))
            await index.settled()
            for identifier in list(library.kept):
                library.put(library.kept[identifier], (1.0, "something else"))
            await index.settled()
            for identifier in list(library.kept)[5:]:
                library.remove(identifier)
            await index.settled()
            assert await found(index, "something") == [f"p{number}" for number in range(4, -1, -1)]
            for word in ("äpfel", "語", "istanbul", "ẞ", "7"):
                assert await found(index, word) == []

    asyncio.run(main())
    with sqlite3.connect(tmp_path / "index.db") as connection:
        connection.execute("INSERT INTO found (found) VALUES ('integrity-check')")
        connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, found, row)")
        terms = {term for (term,) in connection.execute("SELECT term FROM vocabulary")}
    connection.close()
    assert terms == {"bash", "something", "else", "\ue000"}


# --- PostgreSQL alone


def test_a_database_in_another_encoding_is_refused(server: postgres.Server) -> None:
    with pytest.raises(IndexFailure, match="UTF8"):
        asyncio.run(Index(server.database("SQL_ASCII")).open())


def test_a_server_that_is_away(server: postgres.Server, tmp_path: Path) -> None:
    with pytest.raises(IndexFailure, match="can't be reached") as failure:
        asyncio.run(Index(f"postgresql://me:hidden@/db?host={tmp_path}").open())
    assert "hidden" not in str(failure.value)
    with pytest.raises(IndexFailure, match="refused"):
        asyncio.run(Index(server.url("nothere")).open())


def test_connections_that_are_cut_come_back(server: postgres.Server) -> None:
    url = server.database()

    async def main() -> None:
        async with opened(url) as (index, library):
            library.put(recording(pod="a"), (1.0, "word"))
            await index.settled()
            await asyncio.to_thread(
                server.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'recorder'"
            )
            library.put(recording(pod="b"), (1.0, "word"))
            await index.settled()
            assert await found(index, "word") == ["b", "a"]
            assert index.dropped == 0

    asyncio.run(main())


def test_two_recorders_take_the_same_moment(server: postgres.Server) -> None:
    url = server.database()

    async def main() -> None:
        async with opened(url) as (one, first), opened(url) as (two, second):
            for number in range(20):
                for library in (first, second):
                    library.put(recording(pod=f"p{number}", started=START), (1.0, "word"))
                await asyncio.gather(one.settled(), two.settled())
            page = await one.recordings(Filter(text="word"), ALL, limit=100)
            assert len(page.items) == 40
            assert one.dropped + two.dropped == 0

    asyncio.run(main())


def test_the_server_is_found_or_the_reason_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "binaries", lambda: None)
    monkeypatch.delenv("K8SPROXY_REQUIRE_BED", raising=False)
    with pytest.raises(pytest.skip.Exception), postgres.running():
        pass
    monkeypatch.setenv("K8SPROXY_REQUIRE_BED", "1")
    with pytest.raises(pytest.fail.Exception, match="postgresql"), postgres.running():
        pass


def test_nothing_of_the_index_imports_what_is_above() -> None:
    code = (
        "import sys, recorder.index\n"
        "above = ('recorder.store', 'recorder.web', 'recorder.access')\n"
        "print([name for name in sys.modules if name.startswith(above)])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

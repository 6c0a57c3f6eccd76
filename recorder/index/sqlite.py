"""The index in a SQLite file: the default, which needs nothing beside it.

One thread writes and one reads, each with a connection of its own, so that in WAL mode a search doesn't wait for the
text of a long session. A query that takes longer than `_PATIENCE` is given up: whoever asked has gone by then.

What is taken out has to be gone from the file. SQLite leaves it where it was: FTS5 marks words as deleted and drops
them when it merges what it has, freed pages keep their contents, the WAL keeps the pages of before, and a row that
moved to another page leaves a copy in the gap of the old one, even with `secure_delete` on. So `wipe` merges the whole
full text, step by step, has the file written anew (VACUUM), and truncates the WAL.

A lock file beside it is held shared by all who have the index open, and alone by whoever replaces it: a process that
went on with a file that was renamed away would write into the void.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import structlog

from recorder.index import schema
from recorder.index.database import SQLITE, Change, Dialect, Having, IndexFailure, Rest, Rows, Statement, Writing
from recorder.index.rows import Hit
from recorder.index.words import Term, hits, lines_of_words, pack

_log = structlog.get_logger("recorder.index")

T = TypeVar("T")

_PATIENCE = 10.0  # seconds
_STEPS = 20_000  # of SQLite's virtual machine between two looks at the clock: about a millisecond
_LOOKING = 0.15  # seconds for the snippets of one page; those of a recording alone take as long as they take
_BUSY = 10.0  # seconds to wait for another process's write
_MERGED = 256  # pages of the full text that are merged in a step of `wipe`: some 10 ms
_CACHE = 32 * 1024  # KiB of pages a connection
_BORDER = " \ue000 "  # a word that is none, between two lines: a phrase ends at the line's end


@lru_cache(maxsize=512)
def _placeholders(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"?\1", sql)


def _set(connection: sqlite3.Connection, pragma: str) -> None:
    """Set a pragma. The change to WAL, of several that start at once, fails at once where another holds the file:
    SQLite's own waiting (busy_timeout) does not apply to it."""
    end = time.monotonic() + _BUSY
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.005)


class _Connection:
    """A connection that lives in a thread of its own."""

    def __init__(self, name: str, path: Path, *, patient: bool, pragmas: Sequence[str]) -> None:
        self._path = path
        self._patient = patient
        self._pragmas = pragmas
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do it in the thread. Once begun it is done whole, also where nobody waits for it any longer."""
        if self._thread is None:
            raise IndexFailure("the index is not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)

    def open(self) -> None:
        """Start the thread; the connection is made when it is needed."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"index-{self._name}")

    async def close(self) -> None:
        """Close the connection and end the thread."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self.disconnect)
            finally:
                thread.shutdown(wait=False)

    def submit(self, work: Callable[[], T]) -> T:
        """Do something else in the thread, waited for by another thread."""
        if self._thread is None:
            raise IndexFailure("the index is not open")
        return self._thread.submit(work).result()

    def connect(self) -> sqlite3.Connection:
        """In the thread only."""
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            try:
                for pragma in self._pragmas:
                    _set(connection, pragma)
            except BaseException:
                connection.close()
                raise
            if not self._patient:
                connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS)
            self._connection = connection
        return self._connection

    def disconnect(self) -> None:
        """In the thread only."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._deadline = time.monotonic() + _PATIENCE
        try:
            return work(self.connect())
        except (OverflowError, UnicodeError) as error:  # a number or a text that SQLite can't hold
            raise IndexFailure(f"the index cannot store it: {error}", passing=False) from error
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise IndexFailure(f"the search took longer than {_PATIENCE:g} s and was stopped") from error
            # Locked, full, unreadable: these pass, or somebody has to see to them. The rest is about what was asked.
            # A damaged file says DatabaseError itself, and no row is at fault for it.
            passing = isinstance(error, sqlite3.OperationalError) or _is_damage(error)
            raise IndexFailure(f"the index failed: {error}", passing=passing) from error


class Sqlite:
    """A Database in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        shared = (f"cache_size = -{_CACHE}", "temp_store = MEMORY", "mmap_size = 268435456")
        # FULL: what was told to be safe (a look) survives a power cut too.
        self._writer = _Connection(
            "writer",
            path,
            patient=True,
            pragmas=("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", *shared),
        )
        self._reader = _Connection("reader", path, patient=False, pragmas=("query_only = ON", *shared))
        self._lock = -1

    @property
    def dialect(self) -> Dialect:
        return SQLITE

    async def open(self, *, anew: bool = False) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._writer.open()
            self._reader.open()
            try:
                await self._writer.run(_migrate)
            except IndexFailure as error:
                if not anew or not _is_damage(error.__cause__):
                    raise
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                await asyncio.to_thread(self._writer.submit, self._lay_aside)
                fcntl.flock(self._lock, fcntl.LOCK_SH)
                await self._writer.run(_migrate)
        except BlockingIOError:
            await self.aclose()
            raise IndexFailure(
                "another recorder has this index open: stop it first"
                if anew
                else "the index is being rebuilt by another process: wait until it is done"
            ) from None
        except OSError as error:
            await self.aclose()
            raise IndexFailure(f"the index can't be opened: {error.strerror}") from error
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._reader.close()
        await self._writer.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return await self._reader.run(lambda connection: _fetch(connection, sql, parameters))

    async def known(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return await self._writer.run(lambda connection: _fetch(connection, sql, parameters))

    async def write(self, changes: Sequence[Change]) -> None:
        await self._writer.run(lambda connection: _write(connection, changes))

    def having(self, asked: tuple[Term, ...], parameters: list[Any]) -> Having:
        # The rows come from the full text, newest first, as it keeps them: a common word is not collected, and a rare
        # one leads straight to its few.
        parameters.append(" AND ".join(f'"{" ".join(term.words)}"{"*" * term.prefix}' for term in asked))
        return Having(
            "found CROSS JOIN recordings r ON r.number = found.rowid", f"found MATCH ${len(parameters)}", "found.rowid"
        )

    async def hits(self, numbers: Sequence[int], asked: tuple[Term, ...], most: int) -> dict[int, tuple[Hit, ...]]:
        def look(connection: sqlite3.Connection) -> dict[int, tuple[Hit, ...]]:
            answer: dict[int, tuple[Hit, ...]] = {}
            end = time.monotonic() + _LOOKING
            for number in numbers:
                if time.monotonic() < end:
                    answer[number] = hits(_bodies(connection, number), asked, most)
            return answer

        return await self._reader.run(look)

    async def wipe(self, rest: Rest) -> float:
        numbers = await self.known("SELECT number FROM leftovers")
        if not numbers:
            return 0.0
        loop = asyncio.get_running_loop()
        pages = -_MERGED  # a negative number begins to merge all that there is
        while True:
            began = loop.time()
            if not await self._writer.run(lambda connection, pages=pages: _merge(connection, pages)):  # type: ignore[misc]  # a default binds
                break
            pages = _MERGED
            await rest(loop.time() - began)
        began = loop.time()
        # Looked at by the statement itself: sqlite3_interrupt() is lost where the thread has not begun it yet.
        stopped = threading.Event()
        try:
            await self._writer.run(lambda connection: _vacuum_unless(stopped, connection))
        except asyncio.CancelledError:  # the recorder stops, and the next start begins anew
            stopped.set()
            raise
        spent = loop.time() - began
        await self.write([Statement("DELETE FROM leftovers WHERE number = $1", numbers)])
        return spent

    @asynccontextmanager
    async def replacement(self) -> AsyncIterator[Writing]:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IndexFailure("another recorder has this index open: stop it first") from None
        path = self._path.with_name(self._path.name + ".new")
        try:
            _remove(path)
            # Nobody reads it before it is whole, and until then a crash leaves the old one as it was.
            fresh = _Connection(
                "rebuild",
                path,
                patient=True,
                pragmas=("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"),
            )
            fresh.open()
            try:
                await fresh.run(_migrate)
                yield _Fresh(fresh)
                await fresh.run(lambda connection: connection.executescript("ANALYZE").close())
            finally:
                await fresh.close()
            # Shielded: half a swap would leave this index closed.
            await asyncio.shield(self._writer.run(lambda _: self._swap(path)))
        finally:
            _remove(path)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def _lay_aside(self) -> None:
        """In the writer's thread: a file that is damaged, for whoever wants to get the looks out of it."""
        aside = self._path.with_name(self._path.name + ".damaged")
        _log.error("index_damaged", laid_aside=str(aside), lost="who looked at what")
        self._writer.disconnect()
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        os.replace(self._path, aside)

    def _swap(self, fresh: Path) -> None:
        """In the writer's thread, with the reader stopped: nothing is lost in between, looks least of all."""
        old = self._writer.connect()
        damaged = False
        old.execute("ATTACH ? AS fresh", (str(fresh),))
        try:
            old.execute("INSERT INTO fresh.looks SELECT * FROM main.looks")
        except sqlite3.DatabaseError as error:
            damaged = _is_damage(error)
            if not damaged:
                raise
        finally:
            old.execute("DETACH fresh")
        self._reader.submit(self._reader.disconnect)
        self._writer.disconnect()  # the last one to leave writes the WAL back and removes it
        if damaged:
            self._lay_aside()
        with open(fresh, "rb+") as file:
            os.fsync(file.fileno())
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        os.replace(fresh, self._path)
        self._writer.connect()


class _Fresh:
    """Where a replacement is written to."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def write(self, changes: Sequence[Change]) -> None:
        await self._connection.run(lambda connection: _write(connection, changes))

    async def known(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return await self._connection.run(lambda connection: _fetch(connection, sql, parameters))


def _migrate(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for statement in schema.steps(SQLITE, version):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")


def _merge(connection: sqlite3.Connection, pages: int) -> bool:
    """Merge about so many pages of the full text; whether there was something to merge."""
    before = connection.total_changes
    connection.execute("INSERT INTO found (found, rank) VALUES ('merge', ?)", (pages,))
    return connection.total_changes - before > 1  # the statement itself is one


def _vacuum_unless(stopped: threading.Event, connection: sqlite3.Connection) -> None:
    """`_vacuum`, given up as soon as `stopped` is set."""
    connection.set_progress_handler(stopped.is_set, _STEPS)
    try:
        _vacuum(connection)
    finally:
        connection.set_progress_handler(None, _STEPS)


def _vacuum(connection: sqlite3.Connection) -> None:
    """Write the file anew, without gaps and freed pages, and empty the WAL."""
    # What it writes meanwhile may be as large as the index: not into memory.
    connection.execute("PRAGMA temp_store = FILE")
    try:
        connection.execute("VACUUM")
    finally:
        connection.execute("PRAGMA temp_store = MEMORY")
    (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise IndexFailure("the index's log cannot be emptied, because another process reads it")


def _fetch(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> Rows:
    return connection.execute(_placeholders(sql), parameters).fetchall()


def _write(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    with _transaction(connection):
        for change in changes:
            if isinstance(change, Statement):
                connection.executemany(_placeholders(change.sql), change.rows)
                continue
            old = list(_bodies(connection, change.number))
            new = [pack(segment) for segment in change.segments]
            if old:
                connection.execute("DELETE FROM segments WHERE number = ?", (change.number,))
                connection.execute(
                    "INSERT INTO found (found, rowid, words) VALUES ('delete', ?, ?)", (change.number, _document(old))
                )
            if new:
                connection.executemany(
                    "INSERT INTO segments (number, place, body) VALUES (?, ?, ?)",
                    [(change.number, place, body) for place, body in enumerate(new)],
                )
                connection.execute("INSERT INTO found (rowid, words) VALUES (?, ?)", (change.number, _document(new)))


def _bodies(connection: sqlite3.Connection, number: int) -> Iterator[bytes]:
    for (body,) in connection.execute("SELECT body FROM segments WHERE number = ? ORDER BY place", (number,)):
        yield body


def _document(bodies: Iterable[bytes]) -> str:
    return _BORDER.join(" ".join(line) for body in bodies for line in lines_of_words(body))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some errors have rolled it back already
            connection.execute("ROLLBACK")
        raise


def _is_damage(error: BaseException | None) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB, of which the module makes its DatabaseError itself."""
    return type(error) is sqlite3.DatabaseError


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)

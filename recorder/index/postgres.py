"""The index in PostgreSQL: for several recorders with one index, or one that is backed up with everything else.

Each segment has its tsvector, written out here from the words that `recorder.index.words` made: PostgreSQL's own parser
would cut host names and paths its own way, and both databases are to find the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import asyncpg

from recorder.index import schema
from recorder.index.database import POSTGRES, Change, Dialect, Having, IndexFailure, Rest, Rows, Statement, Writing
from recorder.index.rows import Hit
from recorder.index.words import Term, hits, lines_of_words, pack

T = TypeVar("T")

_CONNECTIONS = 4  # searches and one that writes; more would only wait for the same disk
_PATIENCE = 10.0  # seconds that a query may take
_WRITING = 120.0  # seconds that a write may take
_CONNECTING = 10.0  # seconds
_LOCK = 0x7265636F72646572  # "recorder": whoever migrates or rebuilds holds this advisory lock
_LONGEST = 32  # segments that are looked through for a recording's first hits; each has at least one
# textsearch/tsvector: positions end at 16383, and a word has at most 255 in one vector. A segment has about half as
# many; words beyond are found as words, just not in phrases.
_POSITIONS = 255


class Postgres:
    """A Database on a server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None

    @property
    def dialect(self) -> Dialect:
        return POSTGRES

    @property
    def _connections(self) -> Any:
        if self._pool is None:
            raise IndexFailure("the index is not open")
        return self._pool

    async def open(self, *, anew: bool = False) -> None:
        async def work() -> None:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_CONNECTING,
                command_timeout=_WRITING,
                server_settings={"application_name": "recorder"},
            )
            async with self._connections.acquire() as connection, connection.transaction():
                if await connection.fetchval("SHOW server_encoding") != "UTF8":
                    raise IndexFailure(
                        "the index's database does not use UTF8: create one with ENCODING 'UTF8'", passing=False
                    )
                await _migrate(connection)

        try:
            await _mapped(work)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), _CONNECTING)
            except TimeoutError:
                pool.terminate()
            except BaseException:
                pool.terminate()
                raise

    async def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return [
            tuple(row) for row in await _mapped(lambda: self._connections.fetch(sql, *parameters, timeout=_PATIENCE))
        ]

    async def known(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return await self.fetch(sql, parameters)

    async def write(self, changes: Sequence[Change]) -> None:
        texts = await asyncio.to_thread(_prepare, changes)

        async def work() -> None:
            async with self._connections.acquire() as connection, connection.transaction():
                await _write(connection, changes, texts)

        await _mapped(work)

    def having(self, asked: tuple[Term, ...], parameters: list[Any]) -> Having:
        conditions = []
        for term in asked:
            parameters.append(_query((term,)))
            conditions.append(
                f"r.number IN (SELECT s.number FROM segments s WHERE s.words @@ ${len(parameters)}::text::tsquery)"
            )
        return Having(condition=" AND ".join(conditions))

    async def hits(self, numbers: Sequence[int], asked: tuple[Term, ...], most: int) -> dict[int, tuple[Hit, ...]]:
        rows = await self.fetch(
            "SELECT n.number, s.body FROM unnest($1::bigint[]) AS n(number) CROSS JOIN LATERAL (SELECT body, place FROM"
            " segments s WHERE s.number = n.number AND s.words @@ $2::text::tsquery ORDER BY place LIMIT $3) s"
            " ORDER BY n.number, s.place",
            (list(numbers), _query(asked), min(most, _LONGEST)),
        )
        bodies: dict[int, list[bytes]] = {number: [] for number in numbers}
        for number, body in rows:
            bodies[number].append(body)

        def look() -> dict[int, tuple[Hit, ...]]:
            return {number: hits(each, asked, most) for number, each in bodies.items()}

        return await asyncio.to_thread(look)

    async def wipe(self, rest: Rest) -> float:
        # What PostgreSQL lets one do at any time: the rows' space is given back to be written over. Only VACUUM FULL
        # writes the files anew, and nobody can read meanwhile; it is for whoever runs the server.
        numbers = await self.known("SELECT number FROM leftovers")
        if not numbers:
            return 0.0
        for table in (*schema.DERIVED, "leftovers"):
            await _mapped(partial(self._connections.execute, f"VACUUM {table}", timeout=_WRITING))
        await self.write([Statement("DELETE FROM leftovers WHERE number = $1", numbers)])
        return 0.0

    @asynccontextmanager
    async def replacement(self) -> AsyncIterator[Writing]:
        # One transaction: until it is over everybody else reads what was there, and a crash leaves that.
        connection = await _mapped(lambda: self._connections.acquire())
        try:
            transaction = connection.transaction()
            await _mapped(transaction.start)
            try:
                await _mapped(lambda: connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                for table in schema.DERIVED:
                    await _mapped(partial(connection.execute, f"DELETE FROM {table}"))
                yield _Inside(connection)
                for table in schema.DERIVED:  # or the next searches are planned for empty tables
                    await _mapped(partial(connection.execute, f"ANALYZE {table}"))
            except BaseException:
                await transaction.rollback()
                raise
            await _mapped(transaction.commit)
        finally:
            await self._connections.release(connection)


class _Inside:
    """Where a replacement is written to: the transaction that makes it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def write(self, changes: Sequence[Change]) -> None:
        texts = await asyncio.to_thread(_prepare, changes)

        async def work() -> None:
            async with self._connection.transaction():
                await _write(self._connection, changes, texts)

        await _mapped(work)

    async def known(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return [tuple(row) for row in await _mapped(lambda: self._connection.fetch(sql, *parameters))]


async def _migrate(connection: Any) -> None:
    await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
    await connection.execute("CREATE TABLE IF NOT EXISTS index_schema (version INTEGER NOT NULL)")
    version = await connection.fetchval("SELECT max(version) FROM index_schema") or 0
    for statement in schema.steps(POSTGRES, version):
        await connection.execute(statement)
    if version < schema.VERSION:
        await connection.execute("DELETE FROM index_schema")
        await connection.execute("INSERT INTO index_schema (version) VALUES ($1)", schema.VERSION)


Segments = list[tuple[int, int, bytes, str]]


def _prepare(changes: Sequence[Change]) -> dict[int, Segments]:
    """The rows of `segments` for each change that has some, by the change's place."""
    texts: dict[int, Segments] = {}
    for place, change in enumerate(changes):
        if not isinstance(change, Statement):
            bodies = [pack(segment) for segment in change.segments]
            texts[place] = [(change.number, number, body, _vector(body)) for number, body in enumerate(bodies)]
    return texts


async def _write(connection: Any, changes: Sequence[Change], texts: dict[int, Segments]) -> None:
    for place, change in enumerate(changes):
        if isinstance(change, Statement):
            if change.rows:
                await connection.executemany(change.sql, change.rows)
            continue
        await connection.execute("DELETE FROM segments WHERE number = $1", change.number)
        if texts[place]:
            await connection.executemany(
                "INSERT INTO segments (number, place, body, words) VALUES ($1, $2, $3, $4::text::tsvector)",
                texts[place],
            )


def _vector(body: bytes) -> str:
    """A tsvector in its text form; words have no quotes in them, nor backslashes."""
    positions: dict[str, list[int]] = {}
    at = 1
    for line in lines_of_words(body):
        for word in line:
            places = positions.setdefault(word, [])
            if len(places) < _POSITIONS:
                places.append(min(at, 16383))
            at += 1
        at += 1  # a phrase ends at the line's end
    return " ".join(f"'{word}':{','.join(map(str, places))}" for word, places in positions.items())


def _query(asked: tuple[Term, ...]) -> str:
    """Any of the terms, as a tsquery's text."""
    return " | ".join(
        f"({' <-> '.join(chr(39) + word + chr(39) for word in term.words)}{':*' * term.prefix})" for term in asked
    )


async def _mapped(work: Callable[[], Awaitable[T]]) -> T:
    """Do it; what the library raises is an IndexFailure. A message of the server's names no password."""
    try:
        return await work()
    except TimeoutError as error:
        raise IndexFailure("the index's database did not answer in time") from error
    except asyncpg.PostgresError as error:
        # Classes 22 and 23 of SQLSTATE: the data, and constraints.
        at_fault = str(error.sqlstate or "").startswith(("22", "23"))
        raise IndexFailure(f"the index's database refused: {error}", passing=not at_fault) from error
    except asyncpg.DataError as error:  # found out on this side, before anything is sent
        raise IndexFailure(f"the index cannot store it: {error}", passing=False) from error
    except ValueError as error:  # of a URL that is none; its message may repeat a part of the password
        raise IndexFailure("the index's URL is not valid", passing=False) from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise IndexFailure(f"the index's database can't be reached: {type(error).__name__}") from error

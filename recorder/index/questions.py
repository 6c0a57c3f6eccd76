"""The queries. Each is answered from inside a scope, by one statement where a page is concerned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from recorder.index import where as conditions
from recorder.index.database import Database, Having
from recorder.index.filters import EventFilter, Filter, LookFilter, Scope, is_unrestricted
from recorder.index.records import (
    EVENT_COLUMNS,
    LOOK_COLUMNS,
    RECORDING_COLUMNS,
    event_row,
    look_row,
    recording_row,
)
from recorder.index.rows import Bucket, EventRow, Hit, Look, Page, RecordingRow
from recorder.index.where import Where, moment
from recorder.index.words import Term, terms, unseen
from recorder.model import End
from recorder.screen import Unseen

MOST_ROWS = 1000  # in one page
MOST_BUCKETS = 2000  # more than a plot has pixels
_HITS = 3  # of a row in a page: enough to see which one is meant
_ALL_HITS = 500  # of one recording: more than anybody steps through
_VALUES = 200  # of a facet: what a list to choose from can hold
_RELATED = 1000  # events beside a recording

_NO_TEXT = Having()


class Questions:
    """What can be asked. All of it raises IndexFailure, and ValueError for a question that can't be one."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def recordings(
        self,
        asked: Filter,
        scope: Scope,
        *,
        limit: int = 50,
        cursor: str | None = None,
        hits: int = _HITS,
        watched: Scope | None = None,
    ) -> Page[RecordingRow]:
        """Those that fit, newest first. hits: at most so many a row, where text is asked for; a row whose hits would
        take too long to find comes without (`hits` gives them). watched: running ones are searched for text in there
        alone, for that they are found tells what is on their screens; None: in all of the scope."""
        searched = terms(asked.text)
        if asked.text.strip() and not searched:
            return Page()  # of signs alone, which are not kept
        where = Where(self.database.dialect)
        having = self.database.having(searched, where.parameters) if searched else _NO_TEXT
        where.add(having.condition)
        conditions.recordings(where, asked, having.number)
        where.scope(scope, "r")
        if searched and watched is not None:
            where.over_or_in(watched)
        self._after(where, having.number, cursor)
        sql = (
            f"SELECT {RECORDING_COLUMNS} FROM {having.source} JOIN recording_documents d ON d.number = r.number"
            f" WHERE {where} ORDER BY {having.number} DESC LIMIT {_limit(limit) + 1}"
        )
        found = await self.database.fetch(sql, where.parameters) if scope else []
        numbers = [row[0] for row in found[:limit]]
        rows = [recording_row(row) for row in found[:limit]]
        if searched and hits and numbers:
            places = await self.database.hits(numbers, searched, hits)
            rows = [replace(row, hits=places.get(number, ())) for number, row in zip(numbers, rows, strict=True)]
        return Page(tuple(rows), _cursor(numbers, len(found) > limit))

    async def get(self, identifier: str, scope: Scope) -> RecordingRow:
        """One. Raises KeyError, also where it is out of scope."""
        return recording_row(await self._one(identifier, scope))

    async def hits(self, identifier: str, text: str, scope: Scope, *, most: int = _ALL_HITS) -> tuple[Hit, ...]:
        """Where one of the terms was on a recording's screen, in order of time. Raises KeyError."""
        row = await self._one(identifier, scope)
        searched: tuple[Term, ...] = terms(text)
        if not searched:
            return ()
        number: int = row[0]
        found = (await self.database.hits([number], searched, most)).get(number, ())
        return tuple(sorted(found, key=lambda hit: hit.time))

    async def unseen(self, identifier: str, scope: Scope, *, most: int = _ALL_HITS) -> tuple[Unseen, ...]:
        """What a recording holds that a terminal does not show, in order of time. Raises KeyError."""
        row = await self._one(identifier, scope)
        bodies = await self.database.fetch("SELECT body FROM segments WHERE number = $1 ORDER BY place", (row[0],))
        return tuple(unseen((body for (body,) in bodies), most))

    async def rows_of(self, identifiers: Collection[str]) -> int:
        """How many of these recordings have a row that says that they run."""
        if not identifiers:
            return 0
        where = Where(self.database.dialect)
        where.text("r.state", End.RUNNING.value)
        where.add(f"r.id IN ({', '.join(map(where.value, sorted(identifiers)[:MOST_ROWS]))})")
        ((count,),) = await self.database.fetch(f"SELECT count(*) FROM recordings r WHERE {where}", where.parameters)
        return int(count)

    async def unread_running(self, scope: Scope) -> int:
        """How many running ones have something that is not searched yet."""
        if not scope:
            return 0
        where = Where(self.database.dialect)
        where.add("r.indexed <> r.size AND r.text_truncated = 0")
        where.text("r.state", End.RUNNING.value)
        where.scope(scope, "r")
        ((count,),) = await self.database.fetch(f"SELECT count(*) FROM recordings r WHERE {where}", where.parameters)
        return int(count)

    async def events(
        self, asked: EventFilter, scope: Scope, *, limit: int = 50, cursor: str | None = None
    ) -> Page[EventRow]:
        """Those that fit, newest first."""
        where = Where(self.database.dialect)
        conditions.events(where, asked)
        where.scope(scope, "e")
        self._after(where, "e.number", cursor)
        sql = (
            f"SELECT {EVENT_COLUMNS} FROM events e JOIN event_documents d ON d.number = e.number"
            f" WHERE {where} ORDER BY e.number DESC LIMIT {_limit(limit) + 1}"
        )
        found = await self.database.fetch(sql, where.parameters) if scope else []
        numbers = [row[0] for row in found[:limit]]
        return Page(tuple(map(event_row, found[:limit])), _cursor(numbers, len(found) > limit))

    async def event(self, identifier: str, scope: Scope) -> EventRow:
        """One. Raises KeyError, also where it is out of scope."""
        where = Where(self.database.dialect)
        where.add(f"e.id = {where.value(identifier)}")
        where.scope(scope, "e")
        sql = f"SELECT {EVENT_COLUMNS} FROM events e JOIN event_documents d ON d.number = e.number WHERE {where}"
        found = await self.database.fetch(sql, where.parameters)
        if not found:
            raise KeyError(identifier)
        return event_row(found[0])

    async def related(self, identifier: str, scope: Scope, *, limit: int = _RELATED) -> tuple[EventRow, ...]:
        """The events beside a recording, oldest first: those with its session's id, and those of the same node and user
        while it ran. Those too are only told inside the scope. Raises KeyError."""
        row = await self.get(identifier, scope)
        recording = row.recording
        where = Where(self.database.dialect)
        where.scope(scope, "e")
        ended = recording.ended if recording.ended is not None else recording.started + recording.duration
        ways = []
        if recording.session_id:
            ways.append(f"e.session_id = {where.value(recording.session_id)}")
        if recording.node:
            way = f"e.node = {where.value(recording.node)}"
            if not recording.tags:
                way += f" AND e.user_name = {where.value(recording.user)}"
            span = f"{where.value(moment(recording.started))} AND {where.value(moment(ended))}"
            ways.append(f"({way} AND e.number BETWEEN {span})")
        if not ways:
            return ()
        where.add(f"({' OR '.join(ways)})")
        sql = (
            f"SELECT {EVENT_COLUMNS} FROM events e JOIN event_documents d ON d.number = e.number"
            f" WHERE {where} ORDER BY e.number LIMIT {_limit(limit)}"
        )
        return tuple(map(event_row, await self.database.fetch(sql, where.parameters)))

    async def activity(
        self, scope: Scope, start: float, end: float, buckets: int, *, asked: Filter | None = None
    ) -> tuple[Bucket, ...]:
        """What began from start to before end (unix seconds), in equal stretches. asked: narrows the recordings."""
        if not 1 <= buckets <= MOST_BUCKETS or not start < end:
            raise ValueError(f"activity needs a start before its end, and 1 to {MOST_BUCKETS} intervals")
        first, last = moment(start), moment(end)
        width = max(1, -(-(last - first) // buckets))  # rounded up: the last one may be shorter
        counts: list[dict[int, int]] = []
        for table, alias in (("recordings", "r"), ("events", "e")):
            where = Where(self.database.dialect)
            having = _NO_TEXT
            if alias == "r" and asked is not None:
                if searched := terms(asked.text):
                    having = self.database.having(searched, where.parameters)
                    where.add(having.condition)
                conditions.recordings(where, asked, having.number)
            number = having.number if alias == "r" else "e.number"
            source = having.source if alias == "r" else f"{table} {alias}"
            where.scope(scope, alias)
            place = f"({number} - {where.value(first)}) / {where.value(width)}"
            where.add(f"{number} >= {where.value(first)} AND {number} < {where.value(last)}")
            sql = f"SELECT {place} AS place, count(*) FROM {source} WHERE {where} GROUP BY 1"
            counts.append(dict(await self.database.fetch(sql, where.parameters)) if scope else {})
        edges = [min(start + width * place / 1e6, end) for place in range(buckets + 1)]
        return tuple(
            Bucket(edges[place], edges[place + 1], counts[0].get(place, 0), counts[1].get(place, 0))
            for place in range(buckets)
        )

    async def facets(self, scope: Scope) -> Mapping[str, Sequence[tuple[str, int]]]:
        """The commonest values of recordings with their counts, to filter by: user, cluster, namespace, node, type."""
        answer: dict[str, Sequence[tuple[str, int]]] = {}
        for name, column in (
            ("user", "user_name"),
            ("cluster", "cluster"),
            ("namespace", "namespace"),
            ("node", "node"),
            ("session_type", "session_type"),
        ):
            where = Where(self.database.dialect)
            where.add(f"r.{column} <> ''")
            where.scope(scope, "r")
            sql = (
                f"SELECT r.{column}, count(*) FROM recordings r WHERE {where}"
                f" GROUP BY r.{column} ORDER BY count(*) DESC, r.{column} LIMIT {_VALUES}"
            )
            found = await self.database.fetch(sql, where.parameters) if scope else []
            answer[name] = [(value, count) for value, count in found]
        return answer

    async def looks(self, asked: LookFilter, scope: Scope, *, limit: int = 50, cursor: str | None = None) -> Page[Look]:
        """Who looked, newest first: at recordings and API events in scope. What is about neither, or about one that is
        gone, is told where the scope is everything."""
        where = Where(self.database.dialect)
        conditions.looks(where, asked)
        if not is_unrestricted(scope):
            ways = []
            for table, alias, named in (
                ("recordings", "r", "r.id = l.recording"),
                ("events", "e", "l.kind = 'event' AND e.id = l.detail"),
            ):
                inner = Where(self.database.dialect, where.parameters)
                inner.add(named)
                inner.scope(scope, alias)
                ways.append(f"EXISTS (SELECT 1 FROM {table} {alias} WHERE {inner})")
            where.add(f"({' OR '.join(ways)})")
        self._after(where, "l.number", cursor)
        sql = f"SELECT {LOOK_COLUMNS} FROM looks l WHERE {where} ORDER BY l.number DESC LIMIT {_limit(limit) + 1}"
        found = await self.database.fetch(sql, where.parameters) if scope else []
        numbers = [row[0] for row in found[:limit]]
        return Page(tuple(map(look_row, found[:limit])), _cursor(numbers, len(found) > limit))

    async def _one(self, identifier: str, scope: Scope) -> tuple[Any, ...]:
        where = Where(self.database.dialect)
        where.add(f"r.id = {where.value(identifier)}")
        where.scope(scope, "r")
        found = await self.database.fetch(
            f"SELECT {RECORDING_COLUMNS} FROM recordings r JOIN recording_documents d ON d.number = r.number"
            f" WHERE {where}",
            where.parameters,
        )
        if not found:
            raise KeyError(identifier)
        return found[0]

    def _after(self, where: Where, number: str, cursor: str | None) -> None:
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
                raise ValueError("not a cursor of this index")
            where.add(f"{number} < {where.value(int(cursor))}")


def _limit(limit: int) -> int:
    if not 1 <= limit <= MOST_ROWS:
        raise ValueError(f"a page has 1 to {MOST_ROWS} rows")
    return limit


def _cursor(numbers: Sequence[int], more: bool) -> str | None:
    return str(numbers[-1]) if more and numbers else None

"""The index as the rest of the recorder sees it: an observer of the store, and the answers.

index = Index("sqlite:index.db")      # or postgresql://user@host/database
await index.open()                    # migrates; raises IndexFailure
store.observers.append(index)
await store.open()
index.watch(store)                    # from now on what was told gets written
await index.catch_up(store)           # what was missed while the recorder was down
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from k8sproxy.common.tailnet.peer import Peer
from recorder.index.catchup import Progress, Report, catch_up, rebuild
from recorder.index.coverage import Coverage, Standing
from recorder.index.database import Database, IndexFailure
from recorder.index.filters import Scope
from recorder.index.intake import WAITING, Intake
from recorder.index.postgres import Postgres
from recorder.index.questions import Questions
from recorder.index.readable import Readable
from recorder.index.records import put_look
from recorder.index.rows import Look
from recorder.index.sqlite import Sqlite
from recorder.model import ApiEvent, End, Recording, new_id
from recorder.screen import CAST_LIMIT, TEXT_LIMIT

_TRIES = 5  # for a look, where another process took its place in the order


class Index(Questions):
    """Observer of the store and answers. text_limit: characters of screen text a recording; cast_limit: bytes of its
    cast that are read for it; what goes beyond is marked `text_truncated`. waiting: rows that wait at most."""

    def __init__(
        self, url: str, *, text_limit: int = TEXT_LIMIT, cast_limit: int = CAST_LIMIT, waiting: int = WAITING
    ) -> None:
        super().__init__(_database(url))
        self.standing = Standing()
        self._limits = (text_limit, cast_limit)
        self.book: Callable[[Look], Awaitable[None]] | None = None  # keeps looks in the store, too
        self._intake = Intake(self.database, text_limit=text_limit, cast_limit=cast_limit, waiting=waiting)

    async def open(self, *, anew: bool = False) -> None:
        """Connect, and bring the schema up to date. anew: it is going to be rebuilt, so a file that is damaged is laid
        aside. Raises IndexFailure, also for an index from the future."""
        await self.database.open(anew=anew)

    def watch(self, store: Readable) -> None:
        """Begin to write what this observer is told; the store is where texts are read from."""
        self._intake.start(store, lambda: catch_up(self.database, store, self._intake, self.standing))

    async def aclose(self) -> None:
        """Stop writing and let go. What was told and isn't written is found by the next catch_up."""
        try:
            await self._intake.stop()
        finally:
            await self.database.aclose()

    # --- how it is

    @property
    def healthy(self) -> str | None:
        """None while what is told gets written, else why not."""
        return self._intake.failure

    @property
    def waiting(self) -> int:
        """Rows and texts that are to be written."""
        return self._intake.waiting

    @property
    def dropped(self) -> int:
        """Rows and texts that could not be written, ever since."""
        return self._intake.dropped

    @property
    def errors(self) -> int:
        """How often writing failed and was to be tried again, ever since."""
        return self._intake.errors

    async def coverage(self, scope: Scope = ()) -> Coverage:
        """How much of the store it has; see Coverage. Raises IndexFailure."""
        # Asked first: what is written meanwhile is counted below.
        untold = self._intake.untold
        unread: dict[str, int] = dict(
            await self.database.fetch(
                "SELECT state, count(*) FROM recordings WHERE indexed <> size AND text_truncated = 0 GROUP BY state"
            )
        )
        running = await self.unread_running(scope) if End.RUNNING.value in unread else 0
        missing = sum(count for state, count in unread.items() if state != End.RUNNING.value)
        unreadable = tuple(sorted(self.standing.unreadable | self._intake.texts.unread))
        absent = len(self.standing.unreadable | self._intake.lost)
        if not (missing or absent or untold or self._intake.behind) and self.standing.compared:
            return Coverage(complete=True, sessions=0, indexed=0, running=running)
        ((rows,),) = await self.database.fetch("SELECT count(*) FROM recordings")
        sessions = max(rows + absent, 0 if self.standing.compared else self.standing.stored)
        # Of those that have ended meanwhile some have a row, which says that they run.
        late = await self.rows_of(untold)
        indexed = max(0, rows - missing - late)
        sessions += len(untold) - late
        return Coverage(complete=False, sessions=sessions, indexed=indexed, running=running, unreadable=unreadable)

    async def settled(self) -> None:
        """Wait until all that was told is findable (texts of running recordings excepted)."""
        await self._intake.settled()

    async def wiped(self) -> None:
        """Wait until nothing of what was taken out stands in the files any more, as far as that is in our hands."""
        await self._intake.wiped()

    # --- the observer

    def began(self, recording: Recording) -> None:
        """See recorder.model.Observer; so the next five."""
        self._intake.began(recording)

    def progressed(self, recording: Recording) -> None:
        """It has grown."""
        self._intake.progressed(recording)

    def ended(self, recording: Recording) -> None:
        """It is over."""
        self._intake.ended(recording)

    def corrected(self, recording: Recording) -> None:
        """It is damaged."""
        self._intake.corrected(recording)

    def event_added(self, event: ApiEvent) -> None:
        """An API event came."""
        self._intake.event_added(event)

    def removed(self, identifier: str) -> None:
        """It is gone."""
        self.standing.unreadable.discard(identifier)
        self._intake.removed(identifier)

    # --- as a whole

    async def catch_up(self, store: Readable, report: Report | None = None) -> None:
        """Compare with the store and write what is missing; texts follow (see `settled`). Raises IndexFailure."""
        async for _ in catch_up(self.database, store, self._intake, self.standing, report):
            await asyncio.sleep(0)

    async def rebuild(self, store: Readable, report: Report | None = None) -> Progress:
        """Make it anew from the store; who looked at what stays. All or nothing. Raises IndexFailure."""
        text_limit, cast_limit = self._limits
        return await rebuild(self.database, store, self._intake, report, text_limit=text_limit, cast_limit=cast_limit)

    async def restore_looks(self, looks: AsyncIterator[Look]) -> int:
        """Write those that are not here; how many. Raises IndexFailure, and what `looks` raises."""
        known = {identifier for (identifier,) in await self.database.known("SELECT id FROM looks")}
        count = 0
        async for look in looks:
            if look.id not in known:
                known.add(look.id)
                await self.database.write(await put_look(self.database, look))
                count += 1
        return count

    async def has_looks(self) -> bool:
        """Whether there is one."""
        return bool(await self.database.known("SELECT 1 FROM looks LIMIT 1"))

    async def add_look(
        self,
        peer: Peer,
        kind: str,
        recording: str,
        at: float,
        *,
        detail: str = "",
        identifier: Callable[[float], str] = new_id,
    ) -> Look:
        """Keep that this peer looked: kind is a word for how, recording an id or "", at unix seconds. Safe on return.
        Raises IndexFailure, StoreError: then it must not be shown."""
        look = Look(
            id=identifier(at),
            at=at,
            kind=kind,
            recording=recording,
            user="" if peer.is_tagged else peer.login_name,
            node=peer.node_name.removesuffix("."),
            tags=peer.tags,
            address=peer.address,
            detail=detail,
        )
        if self.book is not None:
            await self.book(look)
        for attempt in range(1, _TRIES + 1):
            try:
                await self.database.write(await put_look(self.database, look))
                break
            except IndexFailure as error:
                if error.passing or attempt == _TRIES:
                    raise
        return look


def _database(url: str) -> Database:
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        return Sqlite(Path(rest))
    if scheme in ("postgresql", "postgres"):
        return Postgres(url)
    raise ValueError("an index is sqlite:PATH or postgresql://..")

"""The recordings of a store. An index is used where there is one; without it a search reads every recording."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress

from recorder.access import matches
from recorder.cli.library import Progress, Unseens, Values, missing, shortness
from recorder.cli.opening import open_index
from recorder.config import Config
from recorder.crypt import stored
from recorder.index import Index
from recorder.index.coverage import Standing
from recorder.index.filters import EVERYTHING, Filter
from recorder.index.records import command_segments
from recorder.index.rows import RecordingRow
from recorder.index.words import hits as find_hits
from recorder.index.words import pack, terms
from recorder.model import Recording, UnreadableError
from recorder.proof.actlog import ActLog
from recorder.proof.chain import stored_keys
from recorder.proof.keys import KeyFault
from recorder.proof.report import Finding
from recorder.proof.standing import Standings
from recorder.retention.holds import Hold, Holds
from recorder.screen import CastText, Segment
from recorder.store.errors import StoreError
from recorder.store.store import Store
from recorder.web import values, windows

# Rows that the index is asked for at once.
_PAGE = 500
# Hits shown of one recording.
_HITS = 3
_LOOKED_AT = 100  # sessions that an index does not have: more of them are still to come into it


class LazyIndex:
    """The index, opened by whoever is the first to need it. stack: closes it."""

    def __init__(self, config: Config, stack: AsyncExitStack) -> None:
        self._config = config
        self._stack = stack
        self._index: Index | None = None

    async def get(self) -> Index | None:
        """It, None where there is none."""
        if self._index is None:
            self._index = await open_index(self._config)
            if self._index is not None:
                self._stack.push_async_callback(self._index.aclose)
        return self._index


class StoreLibrary:
    """See Library. Where there is no index a search reads every recording."""

    def __init__(self, store: Store, index: LazyIndex) -> None:
        self.short = ""
        self._store = store
        self._index = index

    async def sessions(self, wanted: Filter, limit: int, progress: Progress) -> list[Values]:
        """See Library."""
        if wanted.text and (index := await self._index.get()) is not None:
            return [values.row(row) for row in await self._indexed(index, wanted, limit)]
        asked, found, seen = terms(wanted.text), [], 0
        if wanted.text and not asked:
            return []
        async with aclosing(self._store.recordings()) as recordings:
            async for recording in recordings:
                seen += 1
                progress(seen, 0)
                if not fits(recording, wanted):
                    continue
                row = RecordingRow(recording)
                if wanted.text:
                    searched = await self._search(recording, wanted.text)
                    if searched is None:
                        continue
                    row = searched
                found.append(values.row(row))
                if len(found) >= limit:
                    break
        return found

    async def _indexed(self, index: Index, wanted: Filter, limit: int) -> list[RecordingRow]:
        await self._compare(index)
        rows: list[RecordingRow] = []
        cursor: str | None = None
        while len(rows) < limit:
            page = await index.recordings(
                wanted, EVERYTHING, limit=min(_PAGE, limit - len(rows)), cursor=cursor, hits=_HITS
            )
            rows += page.items
            cursor = page.cursor
            if cursor is None:
                break
        return rows

    async def _compare(self, index: Index) -> None:
        """See what of the store the index has: a recorder may still be at it, or be stopped."""
        known = {identifier for (identifier,) in await index.database.fetch("SELECT id FROM recordings")}
        stored = {identifier async for identifier in self._store.identifiers()}
        absent = stored - known
        unreadable = {one for one in sorted(absent)[:_LOOKED_AT] if await self._is_damaged(one)}
        index.standing = standing = Standing(len(stored), unreadable=unreadable)
        standing.restart()
        if absent == unreadable:
            standing.finish(unreadable)
        self.short = shortness(values.coverage(await index.coverage(EVERYTHING), counts=True))

    async def _is_damaged(self, identifier: str) -> bool:
        try:
            await self._store.get(identifier)
        except (KeyError, UnreadableError) as error:
            return isinstance(error, UnreadableError)
        return False

    async def _search(self, recording: Recording, text: str) -> RecordingRow | None:
        cast, segments = await self._text(recording)
        bodies = [pack(segment) for segment in (*command_segments(recording), *segments)]
        asked = terms(text)
        if not all(find_hits(bodies, (term,), 1) for term in asked):
            return None
        hidden = any(piece.marks for piece in cast.unseen)
        return RecordingRow(recording, recording.size, cast.truncated, hidden, find_hits(bodies, asked, _HITS))

    async def _text(self, recording: Recording) -> tuple[CastText, list[Segment]]:
        cast = CastText()
        async with aclosing(self._store.cast(recording.id)) as pieces:
            async for piece in pieces:
                cast.feed(piece)
                if cast.done:
                    break
        return cast, cast.finish()

    async def unseen(self, identifier: str) -> Unseens:
        """See Library."""
        cast, _ = await self._text(await self._get(identifier))
        return Unseens(tuple(sorted(cast.unseen, key=lambda piece: piece.time)), complete=not cast.truncated)

    async def session(self, identifier: str) -> Values:
        """See Library."""
        recording = await self._get(identifier)
        held = await self._holds(recording)
        return values.session(recording) | {
            "header": values.header(recording.header),
            "holds": None if held is None else [values.hold(hold) for hold in held],
            "proof": values.proof(await self._standing(recording)),
        }

    async def known(self, identifier: str) -> Values:
        """See Library."""
        if (index := await self._index.get()) is not None:
            with suppress(KeyError):
                return values.text(await index.get(identifier, EVERYTHING))
        return values.text(None)

    async def _holds(self, recording: Recording) -> list[Hold] | None:
        """By whom it is held; None where that can't be told. Whoever reads the files may know."""
        raw = stored(self._store.blobs)
        holds = Holds(self._store.blobs, ActLog(self._store.blobs, await stored_keys(raw)))
        try:
            return [hold for hold in await holds.all() if hold.holds(recording)]
        except (StoreError, KeyFault):
            return None

    async def _standing(self, recording: Recording) -> Finding | None:
        """Whether it is signed, by the store's own keys: `verify` takes others. None where that can't be told."""
        raw = stored(self._store.blobs)
        keys = await stored_keys(raw)
        try:
            return await Standings(raw, keys).of(recording) if len(keys) else None
        except StoreError:
            return None

    async def events(self, identifier: str) -> list[Values] | None:
        """See Library."""
        index = await self._index.get()
        if index is None:
            return None
        await self._compare(index)
        try:
            return [values.event(event) for event in await index.related(identifier, EVERYTHING)]
        except KeyError:
            return None

    async def _get(self, identifier: str) -> Recording:
        try:
            return await self._store.get(identifier)
        except KeyError:
            raise missing(identifier) from None

    async def cast(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """See Library."""
        await self._get(identifier)
        async with aclosing(self._store.cast(identifier)) as pieces:
            async for piece in pieces:
                yield piece

    async def window(self, identifier: str, *, at: float = 0.0, position: str = "") -> AsyncGenerator[bytes, None]:
        """See Library."""
        recording = await self._get(identifier)
        lines = (
            windows.onward(self._store, recording, windows.Position.of(position))
            if position
            else windows.around(self._store, recording, at)
        )
        async with aclosing(lines):
            async for line in lines:
                yield line


def fits(recording: Recording, wanted: Filter) -> bool:
    """Whether it is asked for, by all but the text; as the index would answer (recorder/index/where.py)."""
    if wanted.state is not None and recording.end is not wanted.state:
        return False
    if wanted.since is not None and recording.started < wanted.since:
        return False
    if wanted.until is not None and recording.started >= wanted.until:
        return False
    if wanted.min_duration is not None and recording.duration < wanted.min_duration:
        return False
    if wanted.tag and not any(_like(tag, wanted.tag) for tag in recording.tags):
        return False
    if wanted.command and not _like(recording.command, f"*{wanted.command}*"):
        return False
    names = ("user", "node", "cluster", "namespace", "pod", "container", "session_type")
    return all(_like(getattr(recording, name), getattr(wanted, name)) for name in names)


def _like(text: str, glob: str) -> bool:
    return not glob or matches(glob, text)

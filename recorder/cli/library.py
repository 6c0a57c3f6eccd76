"""The recordings that a command asks for, wherever they are: in a store, or behind a running recorder's JSON API.

Both answer with the API's own values (recorder/web/values.py), so that a command need not know which it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from k8sproxy.common.cli import Failed
from recorder.access import matches
from recorder.cli.common import Where, printable
from recorder.config import Config
from recorder.crypt import EncryptedBlobs, is_encrypted, stored
from recorder.index import Index, IndexFailure
from recorder.index.coverage import Standing
from recorder.index.filters import EVERYTHING, Filter
from recorder.index.records import command_segments
from recorder.index.rows import RecordingRow
from recorder.index.words import hits as find_hits
from recorder.index.words import pack, terms
from recorder.model import Recording, Source, UnreadableError, is_id
from recorder.proof.actlog import ActLog
from recorder.proof.chain import stored_keys
from recorder.proof.days import is_day
from recorder.proof.keys import KeyFault
from recorder.proof.report import Finding
from recorder.proof.standing import Standings
from recorder.retention.holds import Hold, Holds
from recorder.screen import CastText, Segment, Unseen
from recorder.store.errors import StoreError
from recorder.store.manifest import chunk_key
from recorder.store.store import Store
from recorder.web import values, windows
from recorder.web.words import rfc3339

Values = dict[str, Any]
# Told how many were looked at; of how many is not known.
Progress = Callable[[int, int], None]

# Rows of one answer of the API, its most.
_PAGE = 500
# Seconds for an answer to begin; a search may take some.
_TIMEOUT = 60.0
# What an answer about a session must have.
_NEEDED = tuple(values.session(Recording("", {}, Source("", ""), 0.0)))
# Hits shown of one recording.
_HITS = 3
_LOOKED_AT = 100  # sessions that an index does not have: more of them are still to come into it


@dataclass(frozen=True, slots=True)
class Unseens:
    """Output that a terminal does not show. complete: all of it."""

    items: tuple[Unseen, ...]
    complete: bool


class Library(Protocol):
    """All of it raises Failed where it can't, with what is to be said. short: why the answers so far may lack
    something, "" where they are whole."""

    short: str

    async def sessions(self, wanted: Filter, limit: int, progress: Progress) -> list[Values]:
        """Newest first. With a text, each has `hits`."""

    async def session(self, identifier: str) -> Values:
        """One, with its header."""

    async def known(self, identifier: str) -> Values:
        """What an index knows of its text, as far as `session` has not told it."""

    async def events(self, identifier: str) -> list[Values] | None:
        """The API events beside it, oldest first; None where that can't be told."""

    async def unseen(self, identifier: str) -> Unseens:
        """What it holds that a terminal does not show."""

    def cast(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """All of it, in pieces."""

    def window(self, identifier: str, *, at: float = 0.0, position: str = "") -> AsyncGenerator[bytes, None]:
        """See recorder/web/windows.py: lines, the last of them tells where the next window is."""


@asynccontextmanager
async def open_library(where: Where) -> AsyncIterator[Library]:
    """What `where` names. Raises Failed."""
    if where.config is None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 18) as client:
            yield ApiLibrary(client, where.url)
        return
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_read_only(where.config))
        await _need_key(store)
        yield StoreLibrary(store, _Lazy(where.config, stack))


@asynccontextmanager
async def open_read_only(config: Config) -> AsyncIterator[Store]:
    """The store, to be read; a recorder may be running on it. Raises Failed, StoreError."""
    from k8sproxy.common.errors import StartError
    from recorder.opening import open_store

    try:
        store = open_store(config, read_only=True)
    except StartError as error:
        raise Failed(printable(str(error))) from None
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def _need_key(store: Store) -> None:
    """See that the newest recording can be read, so that a missing key does not look like an empty store. Raises
    Failed."""
    if isinstance(store.blobs, EncryptedBlobs):
        return
    days = [name.rstrip("/") async for name, _ in store.blobs.names("recordings")]
    for day in sorted(filter(is_day, days), reverse=True):
        for name in [name async for name, _ in store.blobs.names(f"recordings/{day}")]:
            if is_id(name.rstrip("/")):
                with suppress(KeyError):
                    if is_encrypted(await store.blobs.get_range(chunk_key(name.rstrip("/"), 0), 0, 16)):
                        raise Failed("the recordings are encrypted: give --encryption-key FILE, or --config FILE")
                    return


async def open_index(config: Config) -> Index | None:
    """The index, where there is one already: a command that looks makes none."""
    from recorder.assembly import index_url

    url = index_url(config)
    if url is None or (url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:")).is_file()):
        return None
    index = Index(url)
    try:
        await index.open()
    except IndexFailure:
        await index.aclose()
        return None
    return index


class _Lazy:
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

    def __init__(self, store: Store, index: _Lazy) -> None:
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
            raise _missing(identifier) from None

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


def shortness(index: object, *, searched: bool = True) -> str:
    """Why an answer may lack something, of what the API says of its index; "" where it is whole."""
    if not isinstance(index, dict):
        return ""
    parts: list[str] = []
    if index.get("complete") is False:
        count, sessions, share = index.get("indexed"), index.get("sessions"), index.get("share")
        of = f"{share:.1%} of all" if isinstance(share, int | float) else "not all"
        if isinstance(count, int) and isinstance(sessions, int):
            of = f"{count} of {sessions}"
        unreadable = index.get("unreadable")
        lost = [str(one) for one in unreadable] if isinstance(unreadable, list) else []
        parts.append(f"the index has {of} sessions{'' if lost else ' so far'}, so the answer may be incomplete")
        if lost:
            parts.append(f"sessions that cannot be read: {', '.join(lost)} (recorder verify ID gives the reason)")
    if searched and isinstance(index.get("running"), int) and index["running"] > 0:
        parts.append(f"the last minutes of {index['running']} running sessions are not searched yet")
    return "; ".join(parts)


class ApiLibrary:
    """See Library. client: an aiohttp.ClientSession; url: of the site."""

    def __init__(self, client: Any, url: str) -> None:
        self.short = ""
        self._client = client
        self._base = f"{url}/api/v1"

    async def sessions(self, wanted: Filter, limit: int, progress: Progress) -> list[Values]:
        """See Library."""
        query = _query(wanted)
        found: list[Values] = []
        while len(found) < limit:
            answer = await self._json("/sessions", query | {"limit": str(min(_PAGE, limit - len(found)))}, "cursor")
            found += self._items(answer, (*_NEEDED, "hits"))
            self.short = shortness(answer.get("index"), searched=bool(wanted.text))
            progress(len(found), 0)
            if not answer["cursor"]:
                break
            query["cursor"] = str(answer["cursor"])
        return found

    async def session(self, identifier: str) -> Values:
        """See Library."""
        return await self._json(_path(identifier), None, *_NEEDED)

    async def known(self, identifier: str) -> Values:
        """See Library."""
        return {}

    async def events(self, identifier: str) -> list[Values] | None:
        """See Library."""
        answer = await self._json(f"{_path(identifier)}/events")
        self.short = shortness(answer.get("index"))
        return self._items(answer)

    async def unseen(self, identifier: str) -> Unseens:
        """See Library."""
        answer = await self._json(f"{_path(identifier)}/unseen", None, "complete")
        items = self._items(answer, ("time", "kind", "text"))
        try:
            found = tuple(Unseen(float(item["time"]), str(item["kind"]), str(item["text"])) for item in items)
        except (TypeError, ValueError):
            raise self._stranger() from None
        return Unseens(found, complete=bool(answer["complete"]))

    async def cast(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """See Library."""
        async with aclosing(self._stream(f"{_path(identifier)}/cast", {})) as pieces:
            async for piece in pieces:
                yield piece

    async def window(self, identifier: str, *, at: float = 0.0, position: str = "") -> AsyncGenerator[bytes, None]:
        """See Library."""
        query = {"from": position} if position else {"at": f"{at:.6f}"}
        pieces = self._stream(f"{_path(identifier)}/window", query)
        async with aclosing(pieces):
            async for line in windows.lines(pieces):
                yield line

    def _items(self, answer: Values, needed: Sequence[str] = ()) -> list[Values]:
        items = answer.get("items")
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and item.keys() >= set(needed) for item in items
        ):
            raise self._stranger()
        return items

    async def _json(self, path: str, query: Mapping[str, str] | None = None, *needed: str) -> Values:
        body = b"".join([piece async for piece in self._stream(path, query or {})])
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise self._stranger() from None
        if not isinstance(answer, dict) or not answer.keys() >= set(needed):
            raise self._stranger()
        return answer

    def _stranger(self) -> Failed:
        return Failed(f"the server at {printable(self._base)} is not a recorder, or is one of another version")

    async def _stream(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        import aiohttp

        try:
            async with self._client.get(self._base + path, params=query, allow_redirects=False) as response:
                if response.status != 200:
                    raise Failed(_refusal(response.status, await response.content.read(1 << 16)))
                async for piece in response.content.iter_any():
                    yield piece
        except TimeoutError:
            raise Failed(f"the recorder at {self._base} does not answer") from None
        except aiohttp.ClientPayloadError:
            raise Failed("the recorder closed the connection before the end of its answer") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise Failed(f"there is no recorder at {printable(self._base)}") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return f"the recorder answers with status {status}"
    return printable(str(detail), 500)


def _path(identifier: str) -> str:
    if not is_id(identifier):
        raise _missing(identifier)
    return f"/sessions/{quote(identifier, safe='')}"


def _missing(identifier: str) -> Failed:
    return Failed(f"there is no session {printable(identifier, 60)}")


def _query(wanted: Filter) -> dict[str, str]:
    query = {
        "q": wanted.text,
        "type": wanted.session_type,
        "state": wanted.state.value if wanted.state is not None else "",
        "since": rfc3339(wanted.since) if wanted.since is not None else "",
        "until": rfc3339(wanted.until) if wanted.until is not None else "",
        "min_duration": repr(wanted.min_duration) if wanted.min_duration is not None else "",
    }
    for name in ("user", "node", "tag", "cluster", "namespace", "pod", "container", "command"):
        query[name] = getattr(wanted, name)
    return {name: value for name, value in query.items() if value}


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


__all__ = ["ApiLibrary", "Library", "StoreLibrary", "Values", "fits", "open_library", "open_read_only"]

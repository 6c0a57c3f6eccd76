"""The recordings of a running recorder, by its JSON API (docs/recorder-api.md)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from k8sproxy.common.cli import Failed
from recorder.cli.common import printable
from recorder.cli.library import Progress, Unseens, Values, missing, shortness
from recorder.index.filters import Filter
from recorder.model import Recording, Source, is_id
from recorder.screen import Unseen
from recorder.web import values, windows
from recorder.web.words import rfc3339

# Rows of one answer of the API, its most.
_PAGE = 500
# Seconds for an answer to begin; a search may take some.
TIMEOUT = 60.0
# What an answer about a session must have.
_NEEDED = tuple(values.session(Recording("", {}, Source("", ""), 0.0)))


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
        raise missing(identifier)
    return f"/sessions/{quote(identifier, safe='')}"


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

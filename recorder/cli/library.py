"""The recordings that a command asks for, wherever they are: in a store, or behind a running recorder's JSON API.

Both answer with the API's own values (recorder/web/values.py), so that a command need not know which it is:
`storelibrary.py` and `apilibrary.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from k8sproxy.common.cli import Failed
from recorder.cli.common import Where, printable
from recorder.index.filters import Filter
from recorder.screen import Unseen

Values = dict[str, Any]
# Told how many were looked at; of how many is not known.
Progress = Callable[[int, int], None]


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

        from recorder.cli.apilibrary import TIMEOUT, ApiLibrary

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 18) as client:
            yield ApiLibrary(client, where.url)
        return
    from recorder.cli.opening import need_key, open_read_only
    from recorder.cli.storelibrary import LazyIndex, StoreLibrary

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_read_only(where.config))
        await need_key(store)
        yield StoreLibrary(store, LazyIndex(where.config, stack))


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


def missing(identifier: str) -> Failed:
    """The failure of a command that was given this id."""
    return Failed(f"there is no session {printable(identifier, 60)}")

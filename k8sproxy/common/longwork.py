"""Work that takes longer than a turn of the loop may: one thread for it, and each owner in turn.

The thread shares Python's lock with the loop, which asks for it back after SWITCH seconds; that is what the loop waits
wherever it lets go of the lock (a read, a write, a poll). One thread, because with several the loop would wait for each
of them. Work that holds the lock in one piece (json.loads, a regular expression) is not to be longer than a few
milliseconds.

There is one row for each owner (a peer), and the rows take turns: who has a thousand things to be done waits for them
in its own row.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

# Characters of a request's target (its path and query), or bytes of a body, from which on it is long work to make
# something of it: at the dearest, queries of escapes and bodies of short values, one takes half a microsecond of each.
LONG = 2 * 1024

# Seconds. Python's own 5 ms would be waited for at each of the ten or so system calls of a request.
SWITCH = 0.0002

_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class LongWork:
    """One for the process. waiting: jobs in the rows."""

    def __init__(self) -> None:
        self._rows: dict[str, deque[_Job]] = {}  # by owner; the next one is in front
        self._thread: ThreadPoolExecutor | None = None
        self._busy = False

    @property
    def waiting(self) -> int:
        return sum(map(len, self._rows.values()))

    async def run(self, owner: str, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives, or raises, in the owner's turn. A caller that is cancelled in its row leaves it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._rows.setdefault(owner, deque()).append((future, function, arguments))
        if not self._busy:
            self._next()
        return await future

    def _next(self) -> None:
        """Begin the next job, if there is one."""
        rows = self._rows
        while rows:
            owner = next(iter(rows))
            row = rows.pop(owner)
            future, function, arguments = row.popleft()
            if row:
                rows[owner] = row  # behind the others
            if future.done():
                continue  # cancelled
            self._busy = True
            if self._thread is None:
                sys.setswitchinterval(SWITCH)
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="long work")
            job = asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
            job.add_done_callback(partial(self._done, future))
            return

    def _done(self, future: asyncio.Future[Any], job: asyncio.Future[Any]) -> None:
        self._busy = False
        error = None if job.cancelled() else job.exception()
        if not future.done():
            if job.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(job.result())
        self._next()

    async def aclose(self) -> None:
        """Cancel what waits, and let the thread end what it has begun."""
        rows, self._rows = self._rows, {}
        for row in rows.values():
            for future, _, _ in row:
                future.cancel()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)

"""That something on the tailnet has changed: the daemon's bus, boiled down to a number that goes up.

Nothing is read out of what the daemon says. Which of its messages go with which change differs between its versions,
and the only thing to do about any of them is to ask again; so each one makes a new generation, and whatever was learnt
in an older one is stale. That is a short cut only: some changes of the grants show nothing on the bus, so whoever keeps
an answer keeps it for a limited time as well.

A busy tailnet says something all the time. A message counts at once if the one before is INTERVAL ago, and otherwise
when it is: at most two generations a second, and the last message is never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.changes import Changes
from k8sproxy.common.tailnet.localapi import LocalAPI

# Seconds between generations. Each makes every client's next request ask the daemon anew (about a millisecond), and a
# changed grant counts as soon as it is here.
INTERVAL = 0.5

# Seconds before the first and at most between later attempts to follow the bus again. Meanwhile answers are kept for
# their time only, so that nothing is gained by hurrying; a restart of the daemon takes a second or two.
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0

_log = structlog.get_logger(__name__)


class Bus(Changes):
    """Counts the changes. `follow` has to run in the background for the daemon's own to be among them.

    generation: goes up with every change. connected: whether the daemon is being followed at this moment. sleep, clock:
    seconds, monotonic; for tests.
    """

    def __init__(
        self,
        localapi: LocalAPI,
        *,
        interval: float = INTERVAL,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.connected = False
        self._localapi = localapi
        self._interval = interval
        self._sleep = sleep
        self._clock = clock
        self._noticed = asyncio.Event()

    async def follow(self) -> NoReturn:
        """Follows the daemon for ever, through its absences; ends only by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._coalesce(), name="tailnet bus: coalesce")
            await self._listen()

    async def _coalesce(self) -> NoReturn:
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            self.bump()
            await self._sleep(self._interval)

    async def _listen(self) -> NoReturn:
        """Notices every message, and every new connection: what was said in between is not known."""
        delay, told = BACKOFF_FIRST, False
        while True:
            began, error = self._clock(), "it ended the stream"
            try:
                async with contextlib.aclosing(self._localapi.watch()) as notices:
                    async for _ in notices:
                        self.connected = True
                        self._noticed.set()
            except Refusal as refusal:
                error = refusal.message
            finally:
                self.connected = False
            if self._clock() - began > BACKOFF_MOST:
                # It was there. A daemon that takes the subscription and drops it at once is waited for like none.
                delay, told = BACKOFF_FIRST, False
            if not told:
                _log.warning("tailnet_bus_lost", error=error)
                told = True
            await self._sleep(delay)
            delay = min(delay * 2, BACKOFF_MOST)

"""The life of a program that serves: both programs start, load their file again, drain and end in this one way.

    SIGTERM, SIGINT   drain: take nothing new, let what runs end within the grace time, then close; a second one cuts
                      what runs at once. A start that is not done yet is given up.
    SIGHUP            load the configuration file again. A file with a fault, or one that cannot be used, changes
                      nothing: the log has every fault. During the start it waits until the start is done.

Exit codes: 0 after a drain, 1 where the start failed, 130 after an interrupt that came before the program was there.

A program says what its parts are (`start`, `replace`, `drain`, `close`); this module decides when each is called.
"""

from __future__ import annotations

import abc
import asyncio
import gc
import hashlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
import uvloop

from k8sproxy.common.config.faults import ConfigError
from k8sproxy.common.errors import StartError
from k8sproxy.common.logs import LOG, configure_logging
from k8sproxy.common.states import State, table
from k8sproxy.common.tasks import Tasks, beside

C = TypeVar("C")

# Seconds between looks at the configuration file. Kubelet itself takes up to a minute to bring a changed ConfigMap.
LOOK_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class Life(State):
    """Where a program is.

    STARTING   its parts are being made                                          -> RUNNING, CUTTING, ENDED
    RUNNING    it serves                                                         -> DRAINING, ENDED
    DRAINING   it takes nothing new, and what runs may end by itself             -> CUTTING, ENDED
    CUTTING    what still runs is cut; or the start was given up                 -> ENDED
    ENDED      everything is closed                                              -> (final)

    Only a fault of ours ends RUNNING without a drain.
    """

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    CUTTING = "cutting"
    ENDED = "ended"


table(
    {
        Life.STARTING: (Life.RUNNING, Life.CUTTING, Life.ENDED),
        Life.RUNNING: (Life.DRAINING, Life.ENDED),
        Life.DRAINING: (Life.CUTTING, Life.ENDED),
        Life.CUTTING: (Life.ENDED,),
        Life.ENDED: (),
    }
)

# What a signal to stop makes of each state in which it is heard.
_TERMINATED = {Life.STARTING: Life.CUTTING, Life.RUNNING: Life.DRAINING, Life.DRAINING: Life.CUTTING}


class Program(abc.ABC, Generic[C]):
    """One running program. Made inside the loop.

    path, load: the configuration file, and how it is read. config: what is used now. tasks: what runs in the background
    for as long as the program does. reloads: counted by their result, "ok" and "refused".
    """

    def __init__(self, path: Path, config: C, load: Callable[[Path], C]) -> None:
        self.path = path
        self.config = config
        self.life = Life.STARTING
        self.tasks = Tasks()
        self.reloads = {"ok": 0, "refused": 0}
        self._load = load
        self._loading = asyncio.Lock()
        self._moved = asyncio.Event()
        self._seen = b""

    # -- what a program is made of

    @abc.abstractmethod
    async def start(self) -> Mapping[str, object]:
        """Make the parts; fields for the log's line. May be cancelled. Raises StartError. `close` is called in any
        case, and undoes what was made."""

    @abc.abstractmethod
    async def replace(self, config: C) -> Mapping[str, object]:
        """Use another configuration; fields for the log's line. Raises StartError, and then nothing has changed."""

    @property
    @abc.abstractmethod
    def grace(self) -> float:
        """Seconds that what runs may take to end."""

    @abc.abstractmethod
    async def drain(self, grace: float) -> int:
        """Take nothing new, and let what runs end within `grace` seconds; how many had to be cut. May be cancelled, and
        is then called again with 0."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Close whatever there is, and end `tasks`."""

    # -- its life

    async def run(self) -> int:
        """Start, serve until told to stop, drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        # Already now: a start may wait for something, and the first process of a container gets no signal that it does
        # not handle.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.terminate)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.tasks.start(self.reload("SIGHUP"), "reload"))
        cut = 0
        try:
            async with self._loading:
                await self._start_unless_stopped()
            if self.life is not Life.CUTTING:
                await self.until(Life.DRAINING)
                cut = await self._drained()
        except StartError as error:
            _log.error("start_failed", error=str(error))
            return 1
        finally:
            await self.close()
            await self.tasks.aclose()
            self._move(Life.ENDED)
        _log.info("stopped", cut=cut)
        return 0

    def terminate(self) -> None:
        """As SIGTERM does."""
        if (following := _TERMINATED.get(self.life)) is not None:
            self._move(following)

    async def until(self, life: Life) -> None:
        """Wait for a state."""
        while self.life is not life:
            await self._moved.wait()

    def _move(self, following: Life) -> None:
        self.life = self.life.to(following)
        self._moved.set()
        self._moved = asyncio.Event()

    async def _start_unless_stopped(self) -> None:
        self._seen = _digest(self.path)
        async with beside(self.start(), "start") as start, beside(self.until(Life.CUTTING), "stop") as stop:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                return
            fields = start.result()
        if self.life is Life.STARTING:
            self._move(Life.RUNNING)
            _log.info("started", **fields)

    async def _drained(self) -> int:
        _log.info("draining", grace=self.grace)
        async with beside(self.drain(self.grace), "drain") as drain, beside(self.until(Life.CUTTING), "cut") as cut:
            await asyncio.wait((drain, cut), return_when=asyncio.FIRST_COMPLETED)
        return await self.drain(0.0) if drain.cancelled() else drain.result()

    # -- its configuration

    async def reload(self, why: str) -> bool:
        """Load the file again and use it; whether that was done."""
        async with self._loading:
            if self.life is not Life.RUNNING:
                return False
            self._seen = _digest(self.path)
            try:
                config = await asyncio.to_thread(self._load, self.path)
                fields = await self.replace(config)
            except (ConfigError, StartError) as error:
                faults = list(map(str, error.faults)) if isinstance(error, ConfigError) else [str(error)]
                self.reloads["refused"] += 1
                _log.error("reload_refused", why=why, faults=faults)
                return False
            self.config = config
            self.reloads["ok"] += 1
            _log.info("reloaded", why=why, **fields)
            return True

    async def follow_file(self, other: Callable[[], str | None] = lambda: None) -> None:
        """Reload whenever the contents of the file have changed: a ConfigMap is swapped as a symbolic link. other:
        why else there should be a reload, asked as often."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = await asyncio.to_thread(_digest, self.path)
            if seen and seen != self._seen:
                await self.reload("the file has changed")
            elif (why := other()) is not None:
                await self.reload(why)


def _digest(path: Path) -> bytes:
    """What the file is now; empty where it can't be read (as in the middle of a replacement)."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def run(make: Callable[[], Program[Any]], *, level: str, style: str) -> int:
    """Run a program in an event loop of its own. make: called inside the loop. level, style: of the log. Returns the
    exit code."""
    configure_logging(level, style)
    LOG.start()
    # What is allocated until here stays for good; a full collection among thousands of connections is a long pause.
    gc.collect()
    gc.freeze()
    try:
        return uvloop.run(_run(make))
    except KeyboardInterrupt:
        return 130
    finally:
        LOG.stop()


async def _run(make: Callable[[], Program[Any]]) -> int:
    return await make().run()

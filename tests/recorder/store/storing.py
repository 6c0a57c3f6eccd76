"""Stores to test with: in a folder, in memory, with faults on request, and killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from recorder.model import ApiEvent, Recording, Source
from recorder.store import Store, StoreError
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog, Log

HEADER = b'{"version": 2, "width": 80, "height": 24, "kubernetes": {"PodName": "web-0", "Namespace": "shop"}}\n'
SOURCE = Source("proxy.tail1234.ts.net", "100.64.0.5", tags=("tag:proxy",))


def lines(count: int, *, start: int = 0, width: int = 40, step: float = 0.5) -> bytes:
    """Events, `step` seconds apart."""
    return b"".join(
        json.dumps([number * step, "o", f"{number:08d} " + "x" * width]).encode() + b"\n"
        for number in range(start, start + count)
    )


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it; nothing may be left behind."""

    async def checked() -> None:
        await main
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if rest:  # what was cancelled at the very end gets its turns
            _, pending = await asyncio.wait(rest, timeout=5)
            assert not pending, pending

    asyncio.run(checked())


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []
        self.last: dict[str, Recording] = {}
        self.events: list[ApiEvent] = []

    def began(self, recording: Recording) -> None:
        self._tell("began", recording)

    def progressed(self, recording: Recording) -> None:
        self._tell("progressed", recording)

    def ended(self, recording: Recording) -> None:
        self._tell("ended", recording)

    def _tell(self, what: str, recording: Recording) -> None:
        self.all.append((what, recording.id))
        self.last[recording.id] = recording

    def corrected(self, recording: Recording) -> None:
        self._tell("corrected", recording)

    def event_added(self, event: ApiEvent) -> None:
        self.events.append(event)

    def removed(self, identifier: str) -> None:
        self.all.append(("removed", identifier))


class FaultyBlobs(FolderBlobs):
    """puts fail while `fault` is set; `hold` stops them until it is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fault: str | None = None
        self.hold: asyncio.Event | None = None
        self.puts: list[str] = []

    async def put(self, key: str, data: bytes) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.fault is not None:
            raise StoreError(self.fault)
        self.puts.append(key)
        await super().put(key, data)


class FaultyLog(FolderLog):
    """Appends fail while `fault` is set, after half of the bytes if `half`; wait while `hold` is not set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fault: OSError | None = None
        self.half = False
        self.hold: asyncio.Event | None = None
        self.appends = 0

    async def append(self, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.appends += 1
        await super().append(make)

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        if self.fault is None:
            super()._append(data)
            return
        fault, self.broken = self.fault, True
        if self.half:
            os.write(self._descriptor, data[: len(data) // 2])
        raise fault


@asynccontextmanager
async def store_in(folder: Path, log: Log | None = None, blobs: FolderBlobs | None = None) -> AsyncIterator[Store]:
    """An open store in a folder."""
    store = Store(blobs or FolderBlobs(folder), log or FolderLog(folder), min_free=0)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def kill(store: Store) -> None:
    """End it like a process that is killed: nothing is written any more, files and locks are let go."""
    await store._tasks.aclose()
    if store._log is not None:
        await store._log.aclose()
    await store.blobs.aclose()


async def text_of(store: Store, identifier: str) -> bytes:
    """Every byte."""
    return b"".join([piece async for piece in store.text(identifier)])


async def cast_of(store: Store, identifier: str, **window: float) -> bytes:
    """Whole lines."""
    return b"".join([piece async for piece in store.cast(identifier, **window)])


async def settled(store: Store) -> None:
    """Wait until everything that is over is in chunks."""
    await store.builder.drained()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - whatever is waited for has no event of its own
            await asyncio.sleep(0.002)


def ids(recordings: Iterable[Recording]) -> list[str]:
    return [recording.id for recording in recordings]

"""Group commit: what all recordings and events have brought since the last commit becomes safe in one go.

Whoever has something to keep is a `Source` and says so (`mark`). One task takes what the marked sources have, writes it
as one batch, waits until that is safe and tells each source (`settled`): one sync for however many sessions. Meanwhile
the next batch collects by itself, so a slow disk makes larger batches and not longer queues of syncs.

The journal is only ever read after a crash. A segment is deleted once nothing in it is needed: the ledger says which
segments are (`Ledger.pins`), and what a segment begins with: a RUNNING record for each recording that is not over, so
that a replay which begins there knows of recordings whose own beginning is gone.

When a write fails, everything that was in it is told so, `fault` says what is wrong, and the task tries with an empty
batch every RETRY seconds until one is safe; whatever comes meanwhile is told the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from recorder.store.errors import StoreError
from recorder.store.ledger import Ledger
from recorder.store.logs import Log
from recorder.store.records import Item, head, seal

_log = structlog.get_logger(__name__)

# Bytes after which a segment is followed by another one: what has to be read after a crash is a few of these.
SEGMENT = 64 << 20
# Seconds after which it is, too, so that a quiet recorder's last words become chunks within the hour.
SEGMENT_AGE = 600.0
# Bytes taken for one commit: 0.05 s of a slow disk. More waits for the next.
BATCH = 4 << 20
# Bytes of memory in which commits are made: one of BATCH, and what its last source brought. New memory for each of them
# costs as much again as all that is done with a batch in it, but for the disk's part.
ROOM = 8 << 20
# Seconds from the beginning of one commit to that of the next: fifty a second cost little, and an ack may wait 200 ms.
PACE = 0.02
# Sources, and bytes, of a commit that the next one may follow at once: people at their keyboards, who may have to wait
# for the ack to see what a key has done. Output comes in more bytes, and many sessions are more sources.
FEW = 8
LITTLE = 16 << 10
# Seconds between attempts to write after a failure.
RETRY = 1.0
# Seconds without a commit after which an empty one is tried: a disk that turned read-only, or a store that is away, is
# known before a session comes, and a quiet recorder's segments get old.
QUIET = 10.0
# Seconds over which `rate` is an average.
RATE_SECONDS = 2.0


class Source(Protocol):
    """Who brings items. All of it is called on the loop."""

    def take(self) -> list[Item]:
        """What is to be kept; it is in this commit's hands from now on."""

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        """They are safe in this segment, or (error) none of them is."""


@dataclass(slots=True)
class Segment:
    """The one that is written to. batches, size: what it has; born: when it was begun, by the monotonic clock. follow:
    the next commit is to begin another one."""

    number: int = 0
    batches: int = 0
    size: int = 0
    born: float = 0.0
    follow: bool = False

    @property
    def full(self) -> bool:
        """Whether another one is to be begun."""
        return self.size >= SEGMENT or self.follow or time.monotonic() - self.born > SEGMENT_AGE


class Rate:
    """Bytes a second, each byte counting for less the longer ago it was."""

    __slots__ = ("_at", "_bytes")

    def __init__(self) -> None:
        self._bytes = 0.0
        self._at = 0.0

    def _faded(self, now: float) -> float:
        return self._bytes * math.exp((self._at - now) / RATE_SECONDS)

    def add(self, size: int, now: float) -> None:
        """So many were written now (by the monotonic clock)."""
        self._bytes, self._at = self._faded(now) + size, now

    def at(self, now: float) -> float:
        """The rate now."""
        return self._faded(now) / RATE_SECONDS


class Journal:
    """One journal.

    fault: None, or why nothing can be written. errors: attempts that failed. commits, synced: batches and bytes that
    were written. segments: the numbers of those that are there. seconds: told the time of each commit.
    """

    def __init__(
        self,
        log: Log,
        ledger: Ledger[Any],
        *,
        seconds: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.fault: str | None = None
        self.errors = 0
        self.commits = 0
        self.synced = 0
        self.segments: list[int] = []
        self._log = log
        self._ledger = ledger
        self._seconds = seconds
        self._room = bytearray(ROOM)  # the kernel gives the memory for as much of it as is used
        self._dirty: dict[Source, None] = {}
        self._wake = asyncio.Event()
        self._current = Segment()
        self._tried = 0.0
        self._sizes: dict[int, int] = {}
        self._rate = Rate()
        self._closing = False
        self._trimming = asyncio.Lock()

    @property
    def segment(self) -> int:
        """The number of the segment that is written to, 0 before the first."""
        return self._current.number

    def mark(self, source: Source) -> None:
        """It has something to keep."""
        self._dirty[source] = None
        self._wake.set()

    async def start(self, segments: list[int]) -> None:
        """Begin a segment behind those that are there. Raises StoreError."""
        self.segments = list(segments)
        await self._begin()

    async def _begin(self) -> None:
        segment = max([self.segment, *self.segments, 0]) + 1
        await self._log.begin(segment)
        self.segments.append(segment)
        self._current = Segment(segment, born=time.monotonic())
        try:
            await self._write(self._ledger.running())
        except BaseException:
            # A replay that begins with this segment would not know what runs: it needs yet another one.
            self._log.broken = True
            raise

    async def _write(self, items: list[Item]) -> None:
        pieces: list[bytes] = []
        for item in items:
            pieces.append(head(item.kind, item.id, item.offset, item.size))
            pieces.extend(item.pieces)
        current = self._current
        current.batches += 1
        number, size = current.batches, sum(map(len, pieces))
        self._tried = started = time.monotonic()
        try:
            await self._log.append(lambda: seal(number, pieces, self._room))
        except BaseException:
            current.batches -= 1
            raise
        current.size += size
        self._sizes[current.number] = current.size
        self.commits += 1
        self.synced += size
        now = time.monotonic()
        self._rate.add(size, now)
        self._seconds(now - started)

    @property
    def rate(self) -> float:
        """Bytes a second that are written now."""
        return self._rate.at(time.monotonic())

    async def run(self) -> None:
        """Commit until closed; then, once more, what is left."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._dirty:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            begun = loop.time()
            if self.fault is not None and not await self._recovered():
                batch, _ = self._gather()
                self._settle(batch, StoreError(self.fault))
                if self._closing:
                    return
                await self._pause(RETRY)
                continue
            batch, items = self._gather()
            try:
                if self._log.broken or self._current.full:
                    await self._begin()
                await self._write(items)
            except StoreError as error:
                self._failed(error)
                self._settle(batch, error)
            except asyncio.CancelledError:
                self._settle(batch, StoreError("the recorder is stopping"))
                raise
            except Exception:
                _log.exception("journal_failed")
                fault = StoreError("the recorder's journal failed")
                self._failed(fault)
                self._settle(batch, fault)
            else:
                self._settle(batch, None)
            little = len(batch) <= FEW and sum(item.size for item in items) <= LITTLE
            if not self._closing and not little:
                await asyncio.sleep(max(0.0, begun + PACE - loop.time()))

    async def probe(self) -> None:
        """When nobody has had anything to write for a while: see whether it could be, or can be again."""
        if not self._dirty and (self.fault is not None or time.monotonic() - self._tried > QUIET):
            self.mark(_Nothing())

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                while not self._closing:
                    await self._wake.wait()
                    self._wake.clear()
        except TimeoutError:
            pass

    def _gather(self) -> tuple[list[tuple[Source, list[Item]]], list[Item]]:
        batch: list[tuple[Source, list[Item]]] = []
        all_items: list[Item] = []
        size = 0
        while self._dirty and size < BATCH:
            source = next(iter(self._dirty))
            del self._dirty[source]
            items = source.take()
            batch.append((source, items))
            all_items += items
            size += sum(item.size for item in items)
        return batch, all_items

    def _settle(self, batch: list[tuple[Source, list[Item]]], error: StoreError | None) -> None:
        for source, items in batch:
            try:
                source.settled(items, self.segment, error)
            except Exception:
                _log.exception("journal_source_failed")

    def _failed(self, error: StoreError) -> None:
        self.errors += 1
        if self.fault is None:
            _log.error("journal_fault", fault=str(error))
        self.fault = str(error)

    async def _recovered(self) -> bool:
        try:
            if self._log.broken:
                await self._begin()
            else:
                await self._write([])
        except StoreError as error:
            self._failed(error)
            return False
        except Exception:
            _log.exception("journal_failed")
            return False
        _log.info("journal_recovered")
        self.fault = None
        return True

    async def trim(self) -> None:
        """Delete the segments that nothing needs; none before the store is open. Raises StoreError."""
        if not self._ledger.opened:
            return
        async with self._trimming:
            needed = min([self.segment, *self._ledger.pins()])
            for segment in [number for number in self.segments if number < needed]:
                await self._log.delete(segment)
                self.segments.remove(segment)
                self._sizes.pop(segment, None)

    @property
    def size(self) -> int:
        """Bytes in the segments written by this process that are still there."""
        return sum(self._sizes.values())

    def follow(self) -> None:
        """Let the next commit begin a segment, so that the present one can be let go of."""
        self._current.follow = True
        self.mark(_Nothing())

    def close(self) -> None:
        """Let `run` end once nothing is left."""
        self._closing = True
        self._wake.set()


class _Nothing:
    """A source without anything."""

    def take(self) -> list[Item]:
        return []

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        pass

"""A recording that is not yet whole in the store: where each of its bytes is, and the `Writer` that senders hold.

    write() -> queue -> (journal: safe, acked) -> tail -> (builder: cut, packed) -> frames -> (put) -> durable

    0 ........ durable ........ framed ........ acked ........ given
      chunks            frames     building, tail      queue, in the journal's hands

Only what is acked can be read. The journal holds everything from `durable` on; `marks` remember in which segments.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from k8sproxy.common.formats.asciicast import MAX_LINE
from recorder.model import End, Recording, Source, spender
from recorder.store.api import Kept
from recorder.store.chunk import ChunkRow, Frame, line_time, origin
from recorder.store.errors import StoreError
from recorder.store.journal import Item
from recorder.store.records import Kind
from recorder.store.soundness import Soundness

# Bytes given and not yet safe, of one recording: two commits of a fast sender on a slow disk.
MAX_QUEUED = 4 << 20
# Bytes of a piece: where they are smaller on average, those of a commit are made one. Each costs some 50 bytes and a
# microsecond in everything that follows.
SMALL = 4 << 10


class Pressure:
    """How much all recordings together hold in memory, and who waits for it to become less.

    queued: bytes on their way into the journal. packed: of frames that are in no chunk yet. held: both, plus tails.
    """

    # Bytes. Twice a commit's.
    MAX_QUEUED = 8 << 20
    # Bytes. Queue, tails (20 MiB, see the builder) and frames (24 MiB), and some.
    MAX_HELD = 64 << 20

    # Of both, what one user's recordings may hold (by the name in their headers, else their node's): the last quarter
    # is for others. Half would be too little for a busy recorder with a single user.
    SHARE = 0.75

    def __init__(self) -> None:
        self.queued = 0
        self.held = 0
        self.packed = 0
        self._queued_by: Counter[str] = Counter()
        self._held_by: Counter[str] = Counter()
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def high(self) -> bool:
        """Whether nothing more should come."""
        return self.queued > self.MAX_QUEUED or self.held > self.MAX_HELD

    def over(self, user: str) -> bool:
        """Whether nothing more should come of this user's recordings."""
        queued, held = self._queued_by.get(user, 0), self._held_by.get(user, 0)
        return queued > self.MAX_QUEUED * self.SHARE or held > self.MAX_HELD * self.SHARE

    def queue(self, user: str, size: int) -> None:
        """So many bytes of a user's more (or less) are on their way into the journal."""
        self.queued += size
        _add(self._queued_by, user, size)

    def hold(self, user: str, size: int) -> None:
        """So many bytes of a user's more (or less) are in memory."""
        self.held += size
        _add(self._held_by, user, size)

    def wake(self) -> None:
        """Something has changed: let those who wait look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


def _add(counts: Counter[str], name: str, size: int) -> None:
    counts[name] += size
    if counts[name] <= 0:
        del counts[name]


class Room:
    """What a live recording needs of the store around it."""

    def __init__(self) -> None:
        self.pressure = Pressure()
        self.fault: Callable[[], str | None] = lambda: None
        self.mark: Callable[[Live], None] = lambda live: None
        self.grown: Callable[[Live], None] = lambda live: None
        self.began: Callable[[Live], None] = lambda live: None
        self.ended: Callable[[Live], None] = lambda live: None
        self.dropped: Callable[[Live], None] = lambda live: None
        # Told when it is found to be damaged, which may be after its end.
        self.damaged: Callable[[Live], None] = lambda live: None


class Live:
    """See the top of this file; as `recorder.store.api.Writer` it is what `Store.begin` gives."""

    __slots__ = (
        "_asked", "_changed", "_ended_safe", "_line", "_queue", "_said", "acked", "building", "chunks", "damaged",
        "durable", "end", "ended", "error", "events", "framed", "frames", "given", "head", "header", "header_line",
        "id", "inside", "last", "listener", "marks", "packed", "parts", "progress_at", "room", "soundness", "source",
        "started", "tail", "tail_size", "user", "whole",
    )  # fmt: skip

    def __init__(
        self, identifier: str, header_line: bytes, header: dict[str, Any], source: Source, started: float, room: Room
    ) -> None:
        self.id = identifier
        self.header_line = header_line
        self.header = header
        self.source = source
        self.user = spender(header, source)
        self.started = started
        self.room = room
        self.end = End.RUNNING
        self.ended: float | None = None
        self.error: StoreError | None = None
        self.given = 0
        self.acked = 0
        self.framed = 0
        self.durable = 0
        self.tail: list[bytes] = []
        self.tail_size = 0
        self.building = b""
        self.frames: list[Frame] = []
        self.packed = 0
        self.chunks: list[ChunkRow] = []
        self.head = origin(identifier, header_line)
        # What is stored of it; None where some of it was there before this process.
        self.parts: list[Kept] | None = []
        self.whole = False  # all of it is in the store, and its signature may be awaited
        self.last = 0.0
        self.events = 0
        self.damaged = False
        self.inside = False
        self.soundness = Soundness()  # of what is in frames
        self.marks: list[tuple[int, int]] = []
        self.progress_at = 0.0
        # Called at every change, which is cheaper than a task that waits for it.
        self.listener: Callable[[], None] | None = None
        self._queue: list[bytes] = []
        self._line = 0
        self._said = False  # BEGIN has been given to the journal
        self._asked: End | None = None
        self._ended_safe = False
        self._changed: set[asyncio.Future[None]] = set()

    # -- the sender's side (Writer)

    @property
    def recording(self) -> Recording:
        """Its state now; what is not safe yet does not count."""
        events, last = self.events, self.last
        if self.building or self.tail:
            for piece in (self.building, *self.tail):
                events += piece.count(b"\n")
            events -= self.framed == 0  # the header line
            last = max(last, self._tail_time())
        return Recording(
            id=self.id,
            header=self.header,
            source=self.source,
            started=self.started,
            ended=self.ended if self._ended_safe else None,
            end=self.end if self._ended_safe else End.RUNNING,
            size=self.acked,
            duration=last,
            events=max(events, 0),
            damaged=self.damaged,
        )

    def _tail_time(self) -> float:
        """The time of the last whole line that is not in a frame yet, 0 where none is found close to the end."""
        text = b"".join((self.building[-8192:], *self.tail[-8:]))
        end = text.rfind(b"\n")
        while end > 0:
            start = text.rfind(b"\n", 0, end) + 1
            seconds = line_time(text[start : min(end, start + 64)])
            if seconds is not None or start == 0:
                return seconds or 0.0
            end = start - 1
        return 0.0

    @property
    def blocked(self) -> bool:
        """See Writer."""
        pressure = self.room.pressure
        return self.given - self.acked > MAX_QUEUED or pressure.high or pressure.over(self.user)

    @property
    def crowded(self) -> bool:
        """Whether its user's recordings hold more than their share."""
        return self.room.pressure.over(self.user)

    def write(self, data: bytes) -> None:
        """See Writer. A line of more than MAX_LINE bytes ends the recording."""
        if self.error is not None:
            raise StoreError(str(self.error))
        if self._asked is not None:
            raise StoreError("the recording has ended")
        if (fault := self.room.fault()) is not None:
            # Nothing of it is in the journal's hands while the journal has a fault.
            self._fail([], StoreError(fault))
            raise StoreError(fault)
        feed = data.rfind(b"\n")
        self._line = self._line + len(data) if feed < 0 else len(data) - feed - 1
        if self._line > MAX_LINE:
            raise StoreError(f"a line of more than {MAX_LINE} bytes")
        self._queue.append(data)
        self.given += len(data)
        self.room.pressure.queue(self.user, len(data))
        self.room.pressure.hold(self.user, len(data))
        self.room.mark(self)

    async def ready(self) -> None:
        """See Writer."""
        while self.blocked:
            if self.error is not None:
                raise StoreError(str(self.error))
            await self.room.pressure.wait()

    async def wait_acked(self, beyond: int) -> int:
        """See Writer. Returns what is safe, too, once it is over (then it may be no more than `beyond`)."""
        while self.acked <= beyond:
            if self.error is not None:
                raise StoreError(str(self.error))
            if self._ended_safe:
                break
            await self.changed()
        return self.acked

    @property
    def asked(self) -> End:
        """How it is to end, RUNNING while nobody has said."""
        return self._asked or End.RUNNING

    def end_as(self, end: End) -> None:
        """End it, without waiting until that is safe. Only the first end counts."""
        # What could not begin has no end either: the journal, once it is well again, would keep that alone.
        if self._asked is None and self.error is None:
            self._asked = end
            self.room.mark(self)

    async def finish(self, end: End) -> Recording:
        """See Writer."""
        self.end_as(end)
        while not self._ended_safe:
            if self.error is not None:
                raise StoreError(str(self.error))
            await self.changed()
        return self.recording

    async def changed(self) -> None:
        """Wait until anything of it changes: bytes become safe, an end, an error."""
        waiter = asyncio.get_running_loop().create_future()
        self._changed.add(waiter)
        try:
            await waiter
        finally:
            self._changed.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._changed:
            if not waiter.done():
                waiter.set_result(None)
        self._changed.clear()
        if self.listener is not None:
            self.listener()

    # -- the journal's side (journal.Source)

    @property
    def over(self) -> bool:
        """Whether its end is safe: nothing more will come."""
        return self._ended_safe

    @property
    def pin(self) -> int | None:
        """The oldest segment of the journal that holds something of it which is nowhere else."""
        return self.marks[0][1] if self.marks else None

    def meta(self) -> dict[str, Any]:
        """What BEGIN and RUNNING say."""
        return {"source": self.source.values(), "started": self.started}

    def begin_item(self, kind: Kind = Kind.BEGIN) -> Item:
        """A BEGIN or RUNNING record."""
        data = json.dumps(self.meta()).encode()
        return Item(kind, self.id, 0, [data], len(data))

    def take(self) -> list[Item]:
        """See journal.Source."""
        items: list[Item] = []
        if not self._said:
            self._said = True
            items.append(self.begin_item())
        if self._queue:
            pieces, self._queue = self._queue, []
            size = sum(map(len, pieces))
            if len(pieces) * SMALL > size:
                pieces = [b"".join(pieces)]
            items.append(Item(Kind.DATA, self.id, self.given - size, pieces, size))
        if self._asked is not None and not self._ended_safe:
            self.end, self.ended = self._asked, time.time()
            size = self.acked if self.error is not None else self.given
            data = json.dumps({"end": self.end.value, "ended": self.ended, "size": size}).encode()
            items.append(Item(Kind.END, self.id, size, [data], len(data)))
        return items

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        """See journal.Source."""
        pressure = self.room.pressure
        for item in items:
            if item.kind is Kind.DATA:
                pressure.queue(self.user, -item.size)
        if error is not None:
            self._fail(items, error)
            return
        began = over = False
        for item in items:
            if item.kind is Kind.BEGIN:
                began = True
            elif item.kind is Kind.DATA:
                self._keep(item, segment)
            elif item.kind is Kind.END:
                over = True
                self._mark(segment, self.acked + 1)
        if over:
            self._ended_safe = True
        self._wake()
        pressure.wake()
        if began:
            self.room.began(self)
        self.room.grown(self)
        if over:
            self.room.ended(self)

    def _keep(self, item: Item, segment: int) -> None:
        if item.offset != self.acked:
            # Cannot be: one batch is settled after the other, and a failure ends the recording.
            raise StoreError("the journal lost its place")
        self.acked += item.size
        self.tail += item.pieces
        self.tail_size += item.size
        self._mark(segment, self.acked)

    def _mark(self, segment: int, end: int) -> None:
        if self.marks and self.marks[-1][1] == segment:
            self.marks[-1] = (end, segment)
        else:
            self.marks.append((end, segment))

    def _fail(self, items: list[Item], error: StoreError) -> None:
        lost = sum(item.size for item in items if item.kind is Kind.DATA)
        waiting = sum(map(len, self._queue))
        self._queue.clear()
        self.given = self.acked
        self.room.pressure.queue(self.user, -waiting)
        self.room.pressure.hold(self.user, -lost - waiting)
        first = self.error is None
        if first:
            self.error = error
        began = self.acked > 0
        if began:
            # Its end is still to be written down, once that is possible: as CUT, after what was acked.
            self._asked = End.CUT
            self.room.mark(self)
        self._wake()
        self.room.pressure.wake()
        if not began:
            self.room.dropped(self)

    # -- the builder's side

    def framed_up(self, frames: list[Frame], rest: bytes) -> None:
        """What was in `building` is in frames now, but for its rest."""
        size = sum(frame.size for frame in frames)
        packed = sum(len(frame.packed) for frame in frames)
        self.framed += size
        self.frames += frames
        self.packed += packed
        self.building = b""
        if rest:
            self.tail.insert(0, rest)
            self.tail_size += len(rest)
        if frames:
            self.last = frames[-1].last
            self.events += sum(frame.events for frame in frames)
        self.room.pressure.hold(self.user, packed - size)
        self.room.pressure.packed += packed
        if any(frame.damaged for frame in frames):
            self._damage()

    def close_text(self) -> None:
        """All of its text is in frames and nothing will follow: a recording that ended well ends with a whole line."""
        if self.end is End.CLEAN and self.soundness.torn:
            self._damage()

    def _damage(self) -> None:
        if not self.damaged:
            self.damaged = True
            self.room.damaged(self)

    def chunked(self, row: ChunkRow, count: int) -> None:
        """The first `count` frames are in a chunk, safe."""
        packed = sum(len(frame.packed) for frame in self.frames[:count])
        del self.frames[:count]
        self.packed -= packed
        self.room.pressure.hold(self.user, -packed)
        self.room.pressure.packed -= packed
        self.chunks.append(row)
        self.head = row.sha256
        self.durable = row.offset + row.size
        while self.marks and self.marks[0][0] <= self.durable:
            del self.marks[0]

    def release(self) -> None:
        """All of it is in the store, the end too."""
        self.marks.clear()
        self._wake()

    # -- the replay's side

    def restore(self, data: bytes, segment: int) -> None:
        """Bytes that follow, out of the journal."""
        self.tail.append(data)
        self.tail_size += len(data)
        self.acked += len(data)
        self.given = self.acked
        self.room.pressure.hold(self.user, len(data))
        self._said = True
        self._mark(segment, self.acked)
        self.room.grown(self)

    def restore_end(self, end: End, ended: float) -> None:
        """It is over."""
        self._said = self._ended_safe = True
        self._asked = self.end = end
        self.ended = ended

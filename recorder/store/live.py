"""A recording that is not yet whole in the store: where each of its bytes is, and the `Writer` that senders hold.

    write() -> queue -> (journal: safe, acked) -> tail -> (builder: cut, packed) -> frames -> (put) -> durable

    0 ........ durable ........ framed ........ acked ........ given
      chunks            frames     building, tail      queue, in the journal's hands

Only what is acked can be read. The journal holds everything from `durable` on; `text.marks` remember in which segments.
How far it is says `life`, which `_move` alone changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from k8sproxy.common.formats.asciicast import MAX_LINE
from k8sproxy.common.states import State, table
from recorder.model import End, Recording, Source, spender
from recorder.store.api import Kept
from recorder.store.chunk import ChunkRow, Frame, origin
from recorder.store.errors import StoreError
from recorder.store.journal import Journal
from recorder.store.ledger import Ledger
from recorder.store.pressure import Bell
from recorder.store.records import Item, Kind
from recorder.store.text import Chunks, Text

# Bytes given and not yet safe, of one recording: two commits of a fast sender on a slow disk.
MAX_QUEUED = 4 << 20
# Bytes of a piece: where they are smaller on average, those of a commit are made one. Each costs some 50 bytes and a
# microsecond in everything that follows.
SMALL = 4 << 10


class Life(State):
    """How far a live recording is.

    RUNNING     its sender may write                                             -> ENDING, FAILED, DROPPED
    ENDING      its end was asked for, and is not safe yet                       -> OVER, FAILED, DROPPED
    FAILED      a write failed; what was safe by then stays, and its end as CUT
                is written as soon as the journal can                            -> OVER
    DROPPED     a write failed before anything was safe: nothing of it stays     -> (final)
    OVER        its end is safe, and its text is on its way into chunks          -> STORED
    STORED      all of it is in the store, and its signature may be waited for   -> RELEASED
    RELEASED    nothing of it is needed here any more                            -> (final)
    """

    RUNNING = "running"
    ENDING = "ending"
    FAILED = "failed"
    DROPPED = "dropped"
    OVER = "over"
    STORED = "stored"
    RELEASED = "released"


table(
    {
        Life.RUNNING: (Life.ENDING, Life.FAILED, Life.DROPPED),
        Life.ENDING: (Life.OVER, Life.FAILED, Life.DROPPED),
        Life.FAILED: (Life.OVER,),
        Life.DROPPED: (),
        Life.OVER: (Life.STORED,),
        Life.STORED: (Life.RELEASED,),
        Life.RELEASED: (),
    }
)

# Looking up a member of an Enum is slow in Python 3.11, and these are asked for with every write and every commit.
_RUNNING, _ENDING, _FAILED, _DROPPED = Life.RUNNING, Life.ENDING, Life.FAILED, Life.DROPPED
_STORED = (Life.STORED, Life.RELEASED)
_OVER = (Life.OVER, *_STORED)


class Live:
    """See the top of this file; as `recorder.store.api.Writer` it is what `Store.begin` gives.

    end: how it is to end, RUNNING as long as nobody has asked for its end. ended: unix seconds, None before its end is
    given to the journal. error: why a write failed. given, acked: bytes that were written, and that are safe. listener:
    called at every change, which is cheaper than a task that waits for it. It has more than 15 attributes because the
    sender, the journal and the builder each have their own part of it; text and chunks are classes of their own.
    """

    __slots__ = (
        "_begun", "_changed", "_journal", "_ledger", "_line", "_origin", "_queue", "acked", "chunks", "end", "ended",
        "error", "given", "header", "header_line", "id", "life", "listener", "progress_at", "source", "started", "text",
        "user",
    )  # fmt: skip

    def __init__(
        self,
        identifier: str,
        header_line: bytes,
        header: dict[str, Any],
        source: Source,
        started: float,
        journal: Journal,
        ledger: Ledger[Live],
    ) -> None:
        self.id = identifier
        self.header_line = header_line
        self.header = header
        self.source = source
        self.user = spender(header, source)
        self.started = started
        self.life = _RUNNING
        self.end = End.RUNNING
        self.ended: float | None = None
        self.error: StoreError | None = None
        self.given = 0
        self.acked = 0
        self.text = Text()
        self.chunks = Chunks(origin(identifier, header_line))
        self.progress_at = 0.0
        self.listener: Callable[[], None] | None = None
        self._journal = journal
        self._ledger = ledger
        self._queue: list[bytes] = []
        self._line = 0
        self._origin = b""  # what BEGIN and RUNNING say, once they were asked for it
        self._begun = False  # BEGIN has been given to the journal
        self._changed = Bell()

    def _move(self, life: Life) -> None:
        self.life = self.life.to(life)

    @property
    def recording(self) -> Recording:
        """Its state now; what is not safe yet does not count."""
        events, last = self.text.counted()
        over = self.over
        return Recording(
            id=self.id,
            header=self.header,
            source=self.source,
            started=self.started,
            ended=self.ended if over else None,
            end=self.end if over else End.RUNNING,
            size=self.acked,
            duration=last,
            events=events,
            damaged=self.text.damaged,
        )

    @property
    def over(self) -> bool:
        """Whether its end is safe: nothing more will come."""
        return self.life in _OVER

    @property
    def whole(self) -> bool:
        """Whether all of it is in the store."""
        return self.life in _STORED

    async def changed(self) -> None:
        """Wait until anything of it changes: bytes become safe, an end, an error."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.ring()
        if self.listener is not None:
            self.listener()

    # -- the sender's side (Writer)

    @property
    def blocked(self) -> bool:
        """See Writer."""
        pressure = self._ledger.pressure
        return self.given - self.acked > MAX_QUEUED or pressure.high or pressure.over(self.user)

    @property
    def crowded(self) -> bool:
        """Whether its user's recordings hold more than their share."""
        return self._ledger.pressure.over(self.user)

    def write(self, data: bytes) -> None:
        """See Writer. A line of more than MAX_LINE bytes ends the recording."""
        if self.life is not _RUNNING:
            raise StoreError("the recording has ended" if self.error is None else str(self.error))
        if (fault := self._journal.fault) is not None:
            # Nothing of it is in the journal's hands while the journal has a fault.
            self._fail([], StoreError(fault))
            raise StoreError(fault)
        feed = data.rfind(b"\n")
        self._line = self._line + len(data) if feed < 0 else len(data) - feed - 1
        if self._line > MAX_LINE:
            raise StoreError(f"a line of more than {MAX_LINE} bytes")
        self._queue.append(data)
        self.given += len(data)
        pressure = self._ledger.pressure
        pressure.queue(self.user, len(data))
        pressure.hold(self.user, len(data))
        self._journal.mark(self)

    async def ready(self) -> None:
        """See Writer."""
        while self.blocked:
            if self.error is not None:
                raise StoreError(str(self.error))
            await self._ledger.pressure.wait()

    async def wait_acked(self, beyond: int) -> int:
        """See Writer. Returns what is safe, too, once it is over (then it may be no more than `beyond`)."""
        while self.acked <= beyond:
            if self.error is not None:
                raise StoreError(str(self.error))
            if self.over:
                break
            await self.changed()
        return self.acked

    def end_as(self, end: End) -> None:
        """End it, without waiting until that is safe. Only the first end counts."""
        # What could not begin has no end either: the journal, once it is well again, would keep that alone.
        if self.life is _RUNNING:
            self._move(_ENDING)
            self.end = end
            self._journal.mark(self)

    async def finish(self, end: End) -> Recording:
        """See Writer."""
        self.end_as(end)
        while not self.over:
            if self.error is not None:
                raise StoreError(str(self.error))
            await self.changed()
        return self.recording

    # -- the journal's side (journal.Source)

    def begin_item(self, kind: Kind) -> Item:
        """A BEGIN or RUNNING record. Each segment of the journal begins with one of every recording that runs."""
        if not self._origin:
            self._origin = json.dumps({"source": self.source.values(), "started": self.started}).encode()
        return Item(kind, self.id, 0, [self._origin], len(self._origin))

    def take(self) -> list[Item]:
        """See journal.Source."""
        items: list[Item] = []
        if self.life is _DROPPED:
            return items
        if not self._begun:
            self._begun = True
            items.append(self.begin_item(Kind.BEGIN))
        if self._queue:
            pieces, self._queue = self._queue, []
            size = sum(map(len, pieces))
            if len(pieces) * SMALL > size:
                pieces = [b"".join(pieces)]
            items.append(Item(Kind.DATA, self.id, self.given - size, pieces, size))
        if self.life is _ENDING or self.life is _FAILED:
            self.ended = time.time()
            data = json.dumps({"end": self.end.value, "ended": self.ended, "size": self.given}).encode()
            items.append(Item(Kind.END, self.id, self.given, [data], len(data)))
        return items

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        """See journal.Source."""
        pressure = self._ledger.pressure
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
                self.text.mark(segment, self.acked + 1)
        if over:
            self._move(Life.OVER)
        self._wake()
        pressure.ring()
        if began:
            self._ledger.began(self)
        if over:
            self._ledger.ended(self)
        elif items:
            self._ledger.grown(self)

    def _keep(self, item: Item, segment: int) -> None:
        if item.offset != self.acked:
            # Cannot be: one batch is settled after the other, and a failure ends the recording.
            raise StoreError("the journal lost the place of these bytes")
        self.acked += item.size
        text = self.text
        text.tail += item.pieces
        text.tail_size += item.size
        text.mark(segment, self.acked)

    def _fail(self, items: list[Item], error: StoreError) -> None:
        lost = sum(item.size for item in items if item.kind is Kind.DATA)
        waiting = sum(map(len, self._queue))
        self._queue.clear()
        self.given = self.acked
        pressure = self._ledger.pressure
        pressure.queue(self.user, -waiting)
        pressure.hold(self.user, -lost - waiting)
        if self.life is _RUNNING or self.life is _ENDING:
            self.error = error
            self._move(_FAILED if self.acked else _DROPPED)
        if self.life is _FAILED:
            self.end = End.CUT
            self._journal.mark(self)
        self._wake()
        pressure.ring()
        if self.life is _DROPPED:
            self._ledger.left(self)

    # -- the builder's side

    def framed_up(self, frames: list[Frame], rest: bytes) -> None:
        """What was being built is in frames now, but for its rest."""
        pressure = self._ledger.pressure
        pressure.hold(self.user, self.text.cut(frames, rest))
        pressure.packed += sum(len(frame.packed) for frame in frames)
        pressure.ring()
        if any(frame.damaged for frame in frames):
            self._damage()

    def close_text(self) -> None:
        """All of its text is in frames and nothing will follow: a recording that ended well ends with a whole line."""
        if self.end is End.CLEAN and self.text.soundness.torn:
            self._damage()

    def _damage(self) -> None:
        if not self.text.damaged:
            self.text.damaged = True
            self._ledger.corrected(self)

    def chunked(self, row: ChunkRow, kept: Kept, count: int) -> None:
        """The first `count` frames are in a chunk, safe."""
        pressure = self._ledger.pressure
        packed = self.text.chunked(row, count)
        pressure.hold(self.user, -packed)
        pressure.packed -= packed
        self.chunks.add(row, kept)
        pressure.ring()

    def stored(self) -> None:
        """All of it is in the store, recording.json too."""
        self._move(Life.STORED)

    def release(self) -> None:
        """It is signed, or nobody signs."""
        self._move(Life.RELEASED)
        self.text.marks.clear()
        self._wake()
        self._ledger.left(self)

    # -- the replay's side

    def restore_chunks(self, rows: list[ChunkRow], head: str, unfinished: bytes) -> None:
        """It has these chunks. head: the SHA-256 of the last one; unfinished: what is behind their last line feed."""
        self.chunks.rows, self.chunks.head = rows, head
        self.text.begin_after(rows, unfinished)
        self.acked = self.given = self.text.durable

    def restore(self, data: bytes, segment: int) -> None:
        """Bytes that follow, out of the journal."""
        self.text.tail.append(data)
        self.text.tail_size += len(data)
        self.acked += len(data)
        self.given = self.acked
        self._ledger.pressure.hold(self.user, len(data))
        self.text.mark(segment, self.acked)
        self._ledger.grown(self)

    def restore_end(self, end: End, ended: float) -> None:
        """It is over."""
        self._begun = True
        self._move(_ENDING)
        self._move(Life.OVER)
        self.end = end
        self.ended = ended

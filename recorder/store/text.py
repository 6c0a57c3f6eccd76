"""Where the text of one live recording is, once the journal has it: in memory, then in chunks. Pure.

0 ........ durable ........ framed ............ acked
  chunks            frames    building, tail
"""

from __future__ import annotations

from recorder.store.api import Kept
from recorder.store.chunk import ChunkRow, Frame, line_time
from recorder.store.soundness import Soundness


class Text:
    """What is in no chunk yet. building: what the builder is cutting now. last, events: of what is in frames or before;
    so are `damaged`, `inside` (whether it ends inside of a line) and `soundness`. marks: up to which position which
    segment of the journal has it, the oldest first."""

    __slots__ = (
        "building", "damaged", "durable", "events", "framed", "frames", "inside", "last", "marks", "packed",
        "soundness", "tail", "tail_size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tail: list[bytes] = []
        self.tail_size = 0
        self.building = b""
        self.frames: list[Frame] = []
        self.packed = 0
        self.framed = 0
        self.durable = 0
        self.last = 0.0
        self.events = 0
        self.damaged = False
        self.inside = False
        self.soundness = Soundness()
        self.marks: list[tuple[int, int]] = []

    def counted(self) -> tuple[int, float]:
        """Lines behind the header line, and the time of the last event, of all that is here."""
        events, last = self.events, self.last
        if self.building or self.tail:
            for piece in (self.building, *self.tail):
                events += piece.count(b"\n")
            events -= self.framed == 0  # the header line
            last = max(last, self._tail_time())
        return max(events, 0), last

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
    def empty(self) -> bool:
        """Whether all of it is in chunks."""
        return not self.frames and not self.tail and not self.building

    @property
    def pin(self) -> int | None:
        """The oldest segment of the journal that holds something of it which is nowhere else."""
        return self.marks[0][1] if self.marks else None

    def mark(self, segment: int, end: int) -> None:
        """What is before `end` is in this segment, or in one before it."""
        if self.marks and self.marks[-1][1] == segment:
            self.marks[-1] = (end, segment)
        else:
            self.marks.append((end, segment))

    def start_building(self) -> None:
        """Take the tail to be cut."""
        pieces, self.tail, self.tail_size = self.tail, [], 0
        self.building = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, frames: list[Frame], rest: bytes) -> int:
        """What was in `building` is in frames now, but for its rest. How many bytes more (or less) are held."""
        size = sum(frame.size for frame in frames)
        packed = sum(len(frame.packed) for frame in frames)
        if frames:
            self.inside = self.building[len(self.building) - len(rest) - 1] != 0x0A
            self.last = frames[-1].last
            self.events += sum(frame.events for frame in frames)
        self.framed += size
        self.frames += frames
        self.packed += packed
        self.building = b""
        if rest:
            self.tail.insert(0, rest)
            self.tail_size += len(rest)
        return packed - size

    def chunked(self, row: ChunkRow, count: int) -> int:
        """The first `count` frames are in a chunk, safe. How many bytes they had, packed."""
        packed = sum(len(frame.packed) for frame in self.frames[:count])
        del self.frames[:count]
        self.packed -= packed
        self.durable = row.offset + row.size
        while self.marks and self.marks[0][0] <= self.durable:
            del self.marks[0]
        return packed

    def begin_after(self, rows: list[ChunkRow], unfinished: bytes) -> None:
        """A crash came when it had these chunks. unfinished: what stands behind their last line feed."""
        self.last = max(row.last for row in rows)
        self.events = sum(row.events for row in rows)
        self.damaged = any(row.damaged for row in rows)
        self.inside = bool(unfinished)
        self.soundness = Soundness(unfinished)
        self.durable = self.framed = rows[-1].offset + rows[-1].size


class Chunks:
    """Its chunks. head: the SHA-256 of the last one. parts: what is stored of it, by what this process has put; None
    where some of it was there before."""

    __slots__ = ("head", "parts", "rows")

    def __init__(self, head: str) -> None:
        self.rows: list[ChunkRow] = []
        self.head = head
        self.parts: list[Kept] | None = []

    def add(self, row: ChunkRow, kept: Kept) -> None:
        """One is put."""
        self.rows.append(row)
        self.head = row.sha256
        if self.parts is not None:
            self.parts.append(kept)

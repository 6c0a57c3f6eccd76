"""From the tails of live recordings to frames, to chunks, to recording.json; in the background, in threads.

What it works on is safe in the journal already, so it may be late and it may try again for as long as a store is away.
It decides by four rules:

    a tail of FRAME bytes is cut and packed; with many recordings at once less is enough, so that all tails
        together stay under TAILS
    the frames of a recording become a chunk at CHUNK bytes, at CHUNK_TEXT bytes of text, at its end,
    when all frames together exceed PACKED (the largest first),
    and when its oldest bytes hold back the journal by more than LAG segments, or one that has words of what is removed.

If all that is not enough, because thousands of tails are too short or have no end of a line, nothing more is taken in
and so nothing would ever become ripe: then every tail is cut where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from itertools import islice
from typing import Any

import structlog

from k8sproxy.common.tasks import Tasks
from recorder.store.api import Ended, Kept
from recorder.store.blobs import Blobs
from recorder.store.chunk import FRAME, ChunkRow, Frame, assemble, cut_frames, pack_frames
from recorder.store.errors import StoreError
from recorder.store.live import Live, Pressure
from recorder.store.manifest import chunk_key, manifest_key, write_manifest

_log = structlog.get_logger(__name__)

# Bytes of all tails. With 500 recordings each may have 40 KiB: text is better held packed, where it takes a fourth or
# less, though frames of that size compress some per cent worse than whole ones.
TAILS = 20 << 20
# Less is not worth a frame. 5,000 recordings have that much.
MIN_FRAME = 4 << 10
# Bytes of a chunk, compressed. One of this size is some minutes of a busy terminal; an object store takes about as long
# to put a small one.
CHUNK = 4 << 20
# Bytes of a chunk's text: bounds what its trailer and its reading cost where the text compresses a thousandfold.
CHUNK_TEXT = 64 << 20
# Bytes of all frames that are in no chunk yet. With 500 busy recordings it is this that makes their chunks, of some
# 48 KiB: each costs two syncs, so less would cost the disk more than memory.
PACKED = 24 << 20
# Segments of the journal.
LAG = 4
# Chunks put at once: they wait for the disk, and those that wait together share its commits; of 170 sessions a second
# that end each wants five.
PUTS = 16
# Bytes of frames in chunks put at once, beyond the first.
PUTTING = 16 << 20
# Seconds between looks for segments that nothing needs: each asks every recording. The store's poke is the last one.
TRIM = 0.2
# Seconds between attempts to put something after a failure.
RETRY = 1.0
# Recordings cut in one call of the thread.
_TOGETHER = 16


class Builder:
    """One task (`run`), and one for each put. lives: all that are not over yet. ended: what waits until one that is
    wholly in the store is signed, as the journal has it until then; None where nobody signs. released: told of it after
    that. fault: None, or why chunks cannot be put. errors: puts that failed."""

    def __init__(
        self,
        blobs: Blobs,
        *,
        lives: Callable[[], Collection[Live]],
        pressure: Pressure,
        segment: Callable[[], int],
        released: Callable[[Live], None],
        trim: Callable[[], Awaitable[None]],
        ended: Callable[[Ended], Coroutine[Any, Any, None] | None],
    ) -> None:
        self.fault: str | None = None
        self.errors = 0
        self._blobs = blobs
        self._lives = lives
        self._pressure = pressure
        self._segment = segment
        self._released = released
        self._trim = trim
        self._ended = ended
        self._ripe: dict[Live, None] = {}
        self._puts: dict[Live, asyncio.Task[None]] = {}
        self._wanting: dict[Live, None] = {}
        self._tasks = Tasks()  # the puts, and signatures that are awaited
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._aged = 0
        self._unwanted = 0  # the last segment of the journal that is to go as soon as may be
        self._trimmed = 0.0
        self.trim_fault: str | None = None  # why segments of the journal that nothing needs are still there
        self.trim_errors = 0
        self._active = False

    def look(self, live: Live, count: int) -> None:
        """It has grown; `count` recordings are live."""
        if live.over or live.tail_size >= self.ripe_size(count):
            self._ripe[live] = None
            self._wake.set()
        elif self._crowded:
            self._wake.set()

    @staticmethod
    def ripe_size(count: int) -> int:
        """Bytes of a tail that are worth a frame."""
        return min(FRAME, max(MIN_FRAME, TAILS // max(count, 1)))

    def poke(self) -> None:
        """Look at everything: a segment has begun, or something is over."""
        self._wake.set()

    def let_go(self, segment: int) -> None:
        """Put what holds back this segment of the journal and those before it, however little it is."""
        self._unwanted = max(self._unwanted, segment)

    def relieve(self) -> None:
        """Put whatever can be put, however little it is; `busy` while that goes on."""
        for live in self._lives():
            if live.tail:
                self._ripe[live] = None
            if live.frames:
                self._wanting[live] = None
        self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether it has work that it knows of."""
        return self._active or self._wake.is_set() or bool(self._puts)

    async def run(self) -> None:
        """Build until cancelled; puts under way are cancelled with it, the journal has what they had."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._active = True
                while self._ripe:
                    await self._build()
                    self._choose()
                self._force_old()
                while self._ripe:
                    await self._build()
                self._choose()
                if self._crowded and not self._wanting and not self._puts:
                    await self._squeeze()
                await self._trim_journal()
                self._active = False
        finally:
            await self._tasks.aclose()

    async def drained(self) -> None:
        """Wait until everything that is over is in the store, or a put has failed."""
        while self.fault is None and any(live.over and not live.whole for live in self._lives()):
            self._moved.clear()
            self._wake.set()
            await self._moved.wait()

    # -- frames

    @property
    def _crowded(self) -> bool:
        # At less than one user may hold, who would wait for ever otherwise.
        return self._pressure.held > self._pressure.MAX_HELD * self._pressure.SHARE

    async def _squeeze(self) -> None:
        """Make frames of all that there is."""
        self._ripe.update((live, None) for live in self._lives() if live.tail)
        while self._ripe:
            await self._build(whole=True)
        self._choose()

    async def _build(self, *, whole: bool = False) -> None:
        size = self.ripe_size(len(self._lives()))
        batch: list[Live] = []
        while self._ripe and len(batch) < _TOGETHER:
            live = next(iter(self._ripe))
            del self._ripe[live]
            batch.append(live)
        work = []
        for live in batch:
            pieces, live.tail, live.tail_size = live.tail, [], 0
            live.building = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            final = whole or live.over or self._is_old(live)
            work.append((live.building, live.soundness, live.framed, live.last, live.inside, final))

        def cut() -> list[tuple[list[Frame], bytes]]:
            parts = [
                cut_frames(text, soundness, offset=offset, before=before, inside=inside, final=final, size=size)
                for text, soundness, offset, before, inside, final in work
            ]
            frames = iter(pack_frames([cut for cuts, _ in parts for cut in cuts]))
            return [(list(islice(frames, len(cuts))), rest) for cuts, rest in parts]

        for live, (frames, rest) in zip(batch, await asyncio.to_thread(cut), strict=True):
            if frames:
                text = live.building
                end = len(text) - len(rest)
                live.inside = text[end - 1] != 0x0A
            live.framed_up(frames, rest)
            live.room.pressure.wake()
            if live.over or self._is_old(live) or live.packed >= CHUNK or live.framed - live.durable >= CHUNK_TEXT:
                self._wanting[live] = None

    def _is_old(self, live: Live) -> bool:
        pin = live.pin
        return pin is not None and pin <= max(self._segment() - LAG, self._unwanted)

    def _force_old(self) -> None:
        if self._aged == self._segment():
            return
        self._aged = self._segment()
        for live in self._lives():
            if self._is_old(live) and not live.over:
                if live.tail:
                    self._ripe[live] = None
                elif live.frames:
                    self._wanting[live] = None

    # -- chunks

    def _choose(self) -> None:
        going = {*self._wanting, *self._puts}
        packed = self._pressure.packed - sum(live.packed for live in going)
        if packed > PACKED:
            staying = [live for live in self._lives() if live not in going]
            for live in sorted(staying, key=lambda live: live.packed, reverse=True):
                if packed <= PACKED // 2:
                    break
                packed -= live.packed
                self._wanting[live] = None
        for live in [live for live in self._wanting if live not in self._puts]:
            if len(self._puts) >= PUTS or (self._puts and self._putting() + live.packed > PUTTING):
                break
            del self._wanting[live]
            self._puts[live] = self._tasks.start(
                self._put(live),
                f"put {live.id}",
                ended=partial(self._put_done, live),
                failed=partial(self._put_failed, live),
            )

    def _putting(self) -> int:
        return sum(live.packed for live in self._puts)

    def _put_failed(self, live: Live, _: object, error: BaseException) -> None:
        # Not a StoreError: memory or threads were short, say. The recording must not wait for the next start.
        self.errors += 1
        _log.error("put_failed", exc_info=error)
        asyncio.get_running_loop().call_later(RETRY, self._want, live)

    def _put_done(self, live: Live, _: object) -> None:
        del self._puts[live]
        self._wake.set()

    def _want(self, live: Live) -> None:
        self._wanting[live] = None
        self._wake.set()

    async def _put(self, live: Live) -> None:
        """One chunk of it, and its manifest where that was the last."""
        if live.frames:
            await self._put_chunk(live)
            live.room.pressure.wake()
        if live.over and not live.whole and not live.frames and not live.tail and not live.building:
            live.close_text()
            recording = live.recording
            data = write_manifest(recording, live.header_line, live.chunks, live.head)
            kept = await self._until_put(manifest_key(live.id), data)
            live.whole = True
            self._moved.set()
            parts = None if live.parts is None else (*live.parts, kept)
            signed = self._ended(Ended(recording, live.header_line, live.head, parts))
            if signed is None:
                self._let_go(live)
            else:
                # Beside the puts, of which there are few: signatures wait for each other.
                self._tasks.start(self._sign(live, signed), f"sign {live.id}")

    async def _sign(self, live: Live, signed: Coroutine[Any, Any, None]) -> None:
        await signed
        self._let_go(live)
        self._wake.set()

    def _let_go(self, live: Live) -> None:
        live.release()
        self._released(live)
        self._moved.set()

    async def _put_chunk(self, live: Live) -> None:
        frames = list(live.frames)
        meta = {"id": live.id, "source": live.source.values(), "started": live.started}
        seq, offset, previous = len(live.chunks), live.durable, live.head

        def make() -> tuple[bytes, ChunkRow]:
            return assemble(frames, meta, seq=seq, offset=offset, previous=previous)

        data, row = await asyncio.to_thread(make)
        kept = await self._until_put(chunk_key(live.id, seq), data, row.sha256)
        if live.parts is not None:
            live.parts.append(kept)
        live.chunked(row, len(frames))

    async def _until_put(self, key: str, data: bytes, sha256: str = "") -> Kept:
        while True:
            try:
                kept = await self._blobs.keep(key, data, sha256)
            except StoreError as error:
                self.errors += 1
                if self.fault is None:
                    _log.error("chunks_fault", fault=str(error))
                self.fault = str(error)
                self._moved.set()
                await asyncio.sleep(RETRY)
            else:
                if self.fault is not None:
                    _log.info("chunks_recovered")
                self.fault = None
                return kept

    async def _trim_journal(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._trimmed < TRIM:
            return
        self._trimmed = now
        try:
            await self._trim()
        except StoreError as error:
            self.trim_errors += 1
            if self.trim_fault is None:
                _log.error("journal_not_trimmed", fault=str(error))
            self.trim_fault = str(error)
        else:
            if self.trim_fault is not None:
                _log.info("journal_trimmed")
            self.trim_fault = None

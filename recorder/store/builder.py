"""From the tails of live recordings to frames, to chunks, to recording.json; in the background, in threads.

What it works on is safe in the journal already, so it may be late and it may try again for as long as a store is away.
It decides by four rules:

    a tail that is ripe (Ledger.ripe_size) is cut and packed: FRAME bytes; with many recordings at once less is enough,
        so that all tails together stay under TAILS
    the frames of a recording become a chunk at CHUNK bytes, at CHUNK_TEXT bytes of text, at its end,
    when all frames together exceed PACKED (the largest first),
    and when its oldest bytes hold back the journal by more than LAG segments, or one that has words of what is removed.

If all that is not enough, because thousands of tails are too short or have no end of a line, nothing more is taken in
and so nothing would ever become ripe: then every tail is cut where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from itertools import islice
from typing import Any

import structlog

from k8sproxy.common.tasks import Tasks
from recorder.store.api import Ended, Kept
from recorder.store.blobs import Blobs
from recorder.store.chunk import ChunkRow, Frame, assemble, cut_frames, pack_frames
from recorder.store.errors import StoreError
from recorder.store.journal import Journal
from recorder.store.ledger import Ledger
from recorder.store.live import Life, Live
from recorder.store.manifest import chunk_key, manifest_key, write_manifest

_log = structlog.get_logger(__name__)

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
# Bytes of frames up to which a chunk is put together on the loop: 50 us for what a busy recorder's chunks are. To give
# that to a thread and hear of it takes longer.
_AT_ONCE = 64 << 10
# Recordings cut in one call of the thread.
_TOGETHER = 16


class Builder:
    """One task (`run`), and one for each put. A recording that is wholly in the store is signed before the journal may
    forget it, where somebody signs. fault: None, or why chunks cannot be put. errors: puts that failed. trim_fault:
    None, or why segments of the journal that nothing needs are still there; trim_errors: how often that failed."""

    def __init__(self, blobs: Blobs, journal: Journal, ledger: Ledger[Live]) -> None:
        self.fault: str | None = None
        self.errors = 0
        self.trim_fault: str | None = None
        self.trim_errors = 0
        self._blobs = blobs
        self._journal = journal
        self._ledger = ledger
        self._puts: dict[Live, asyncio.Task[None]] = {}
        self._wanting: dict[Live, None] = {}
        self._tasks = Tasks()  # the puts, and signatures that are awaited
        self._moved = asyncio.Event()
        self._aged = 0
        self._unwanted = 0  # the last segment of the journal that is to go as soon as may be
        self._trimmed = 0.0
        self._active = False

    def poke(self) -> None:
        """Look at everything: a segment has begun, or something is over."""
        self._ledger.work.set()

    def let_go(self, segment: int) -> None:
        """Put what holds back this segment of the journal and those before it, however little it is."""
        self._unwanted = max(self._unwanted, segment)

    def relieve(self) -> None:
        """Put whatever can be put, however little it is; `busy` while that goes on."""
        for live in self._ledger.lives.values():
            if live.text.tail:
                self._ledger.ripe[live] = None
            if live.text.frames:
                self._wanting[live] = None
        self._ledger.work.set()

    async def relieved(self, held: int) -> None:
        """Put what there is, until no more than so many bytes are held, or no more can be put. Raises StoreError."""
        pressure = self._ledger.pressure
        if pressure.held <= held:
            return
        self.relieve()
        # Tails too short for a frame stay, and many of them may be more than that: then there is no use in waiting.
        while pressure.held > held and self.busy:
            if self.fault is not None:
                raise StoreError(self.fault)
            await asyncio.sleep(0.005)

    @property
    def busy(self) -> bool:
        """Whether it has work that it knows of."""
        return self._active or self._ledger.work.is_set() or bool(self._puts)

    async def run(self) -> None:
        """Build until cancelled; puts under way are cancelled with it, the journal has what they had."""
        try:
            while True:
                await self._ledger.work.wait()
                self._ledger.work.clear()
                self._active = True
                while self._ledger.ripe:
                    await self._build()
                    self._choose()
                self._force_old()
                while self._ledger.ripe:
                    await self._build()
                self._choose()
                if self._ledger.pressure.crowded and not self._wanting and not self._puts:
                    await self._squeeze()
                await self._trim_journal()
                self._active = False
        finally:
            await self._tasks.aclose()

    async def drained(self) -> None:
        """Wait until everything that is over is in the store, or a put has failed."""
        while self.fault is None and any(live.life is Life.OVER for live in self._ledger.lives.values()):
            self._moved.clear()
            self._ledger.work.set()
            await self._moved.wait()

    # -- frames

    async def _squeeze(self) -> None:
        """Make frames of all that there is."""
        self._ledger.ripe.update((live, None) for live in self._ledger.lives.values() if live.text.tail)
        while self._ledger.ripe:
            await self._build(whole=True)
        self._choose()

    async def _build(self, *, whole: bool = False) -> None:
        size = self._ledger.ripe_size
        batch: list[Live] = []
        while self._ledger.ripe and len(batch) < _TOGETHER:
            live = next(iter(self._ledger.ripe))
            del self._ledger.ripe[live]
            batch.append(live)
        work = []
        for live in batch:
            text = live.text
            text.start_building()
            final = whole or live.over or self._is_old(live)
            work.append((text.building, text.soundness, text.framed, text.last, text.inside, final))

        def cut() -> list[tuple[list[Frame], bytes]]:
            parts = [
                cut_frames(text, soundness, offset=offset, before=before, inside=inside, final=final, size=size)
                for text, soundness, offset, before, inside, final in work
            ]
            frames = iter(pack_frames([cut for cuts, _ in parts for cut in cuts]))
            return [(list(islice(frames, len(cuts))), rest) for cuts, rest in parts]

        for live, (frames, rest) in zip(batch, await asyncio.to_thread(cut), strict=True):
            live.framed_up(frames, rest)
            text = live.text
            if live.over or self._is_old(live) or text.packed >= CHUNK or text.framed - text.durable >= CHUNK_TEXT:
                self._wanting[live] = None

    def _is_old(self, live: Live) -> bool:
        pin = live.text.pin
        return pin is not None and pin <= max(self._journal.segment - LAG, self._unwanted)

    def _force_old(self) -> None:
        if self._aged == self._journal.segment:
            return
        self._aged = self._journal.segment
        for live in self._ledger.lives.values():
            if self._is_old(live) and not live.over:
                if live.text.tail:
                    self._ledger.ripe[live] = None
                elif live.text.frames:
                    self._wanting[live] = None

    # -- chunks

    def _choose(self) -> None:
        going = {*self._wanting, *self._puts}
        packed = self._ledger.pressure.packed - sum(live.text.packed for live in going)
        if packed > PACKED:
            staying = [live for live in self._ledger.lives.values() if live not in going]
            for live in sorted(staying, key=lambda live: live.text.packed, reverse=True):
                if packed <= PACKED // 2:
                    break
                packed -= live.text.packed
                self._wanting[live] = None
        for live in [live for live in self._wanting if live not in self._puts]:
            if len(self._puts) >= PUTS or (self._puts and self._putting() + live.text.packed > PUTTING):
                break
            del self._wanting[live]
            self._puts[live] = self._tasks.start(
                self._put(live),
                f"put {live.id}",
                ended=partial(self._put_done, live),
                failed=partial(self._put_failed, live),
            )

    def _putting(self) -> int:
        return sum(live.text.packed for live in self._puts)

    def _put_failed(self, live: Live, _: object, error: BaseException) -> None:
        # Not a StoreError: memory or threads were short, say. The recording must not wait for the next start.
        self.errors += 1
        _log.error("put_failed", exc_info=error)
        asyncio.get_running_loop().call_later(RETRY, self._want, live)

    def _put_done(self, live: Live, _: object) -> None:
        del self._puts[live]
        self._ledger.work.set()

    def _want(self, live: Live) -> None:
        self._wanting[live] = None
        self._ledger.work.set()

    async def _put(self, live: Live) -> None:
        """One chunk of it, and its manifest where that was the last."""
        if live.text.frames:
            await self._put_chunk(live)
        if live.life is Life.OVER and live.text.empty:
            live.close_text()
            recording = live.recording
            chunks = live.chunks
            data = write_manifest(recording, live.header_line, chunks.rows, chunks.head)
            kept = await self._until_put(manifest_key(live.id), data)
            live.stored()
            self._moved.set()
            if (registrar := self._ledger.registrar) is None:
                self._let_go(live)
            else:
                parts = None if chunks.parts is None else (*chunks.parts, kept)
                signed = registrar.ended(Ended(recording, live.header_line, chunks.head, parts))
                # Beside the puts, of which there are few: signatures wait for each other.
                self._tasks.start(self._sign(live, signed), f"sign {live.id}")

    async def _sign(self, live: Live, signed: Coroutine[Any, Any, None]) -> None:
        await signed
        self._let_go(live)
        self._ledger.work.set()

    def _let_go(self, live: Live) -> None:
        live.release()
        self._moved.set()

    async def _put_chunk(self, live: Live) -> None:
        frames = list(live.text.frames)
        meta = {"id": live.id, "source": live.source.values(), "started": live.started}
        seq, offset, previous = len(live.chunks.rows), live.text.durable, live.chunks.head

        def make() -> tuple[bytes, ChunkRow]:
            return assemble(frames, meta, seq=seq, offset=offset, previous=previous)

        data, row = make() if live.text.packed <= _AT_ONCE else await asyncio.to_thread(make)
        kept = await self._until_put(chunk_key(live.id, seq), data, row.sha256)
        live.chunked(row, kept, len(frames))

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
            await self._journal.trim()
        except StoreError as error:
            self.trim_errors += 1
            if self.trim_fault is None:
                _log.error("journal_not_trimmed", fault=str(error))
            self.trim_fault = str(error)
        else:
            if self.trim_fault is not None:
                _log.info("journal_trimmed")
            self.trim_fault = None

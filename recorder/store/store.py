"""The store: the journal, the builder, the log of events, and what is over, as one thing.

    begin -> Live (the Writer) -> journal -> acked -> builder -> chunks, recording.json
    add_events -> EventLog -> journal -> safe -> chunks of events

`lives` are the recordings whose recording.json is not there yet: running, or over and on their way. Everything else is
read from the blobs. A store that is opened to be read only touches nothing; what a running recorder beside it has not
put yet is not seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from k8sproxy.common.formats.asciicast import MAX_HEADER_LINE
from k8sproxy.common.tasks import Tasks
from recorder.model import ApiEvent, End, Observer, Recording, Source, is_id, new_id, parse_json
from recorder.store.api import Ended, Kept, Registrar
from recorder.store.blobs import Blobs
from recorder.store.builder import Builder
from recorder.store.errors import DamagedError, StoreError
from recorder.store.eventlog import EventLog
from recorder.store.journal import Item, Journal
from recorder.store.live import Live, Room
from recorder.store.logs import Log
from recorder.store.manifest import MANIFEST, Manifest, folder, manifest_key, parse_header, read_manifest
from recorder.store.reading import TextReader, read_lines
from recorder.store.records import Kind
from recorder.store.recovery import Recovery, read_chunks

_log = structlog.get_logger(__name__)

# Seconds between two `progressed` of one recording, as long as no more than
PROGRESS = 1.0
# recordings run; with n times as many it is n times as long. Each is a row to be written, and a look at a tail.
PROGRESSING = 50
# Seconds between looks at the space that is left, and at a fault that nobody else looks at.
LOOK = 2.0
# Bytes that must be free for new recordings to be taken: what runs needs them to end well.
MIN_FREE = 256 << 20
# Manifests read at once in a listing.
_AHEAD = 16
# Segments of the journal that may be kept for what waits for its signature: a gigabyte.
HELD_BACK = 16
# Seconds that the end waits for chunks. What is not there then comes out of the journal at the next start.
CLOSE_TIMEOUT = 30.0
# Seconds after the end of a recording in which the journal may have something of it: segments last ten minutes, and
# no more than a few are held back.
JOURNALED = 2 * 3600.0


class Store:
    """blobs: where chunks go; log: where the journal goes (None: to be read only). min_free: bytes. instance: tells
    this recorder from others that share the blobs.

    observers: see model.Observer. registrar: who signs what has come in, None where nothing is signed.
    commit_seconds: told the time of each commit. `free`: bytes left when last looked at.
    """

    def __init__(
        self,
        blobs: Blobs,
        log: Log | None,
        *,
        min_free: int = MIN_FREE,
        commit_seconds: Callable[[float], None] = lambda _: None,
        instance: str = "main",
    ) -> None:
        self.observers: list[Observer] = []
        self.registrar: Registrar | None = None
        self.free: int | None = None
        self.lives: dict[str, Live] = {}
        self._removing: dict[str, int] = {}  # with the segment of the REMOVE record
        self.blobs = blobs
        self._log = log
        self._min_free = min_free
        self._commit_seconds = commit_seconds
        self._opened = False
        self._closing = False
        self._space: str | None = None
        self._failed: str | None = None  # for good: a task of it has ended
        self._room = Room()
        self._oldest = 0  # segment of the journal, when this process began
        self._tasks = Tasks()
        self._trim_wanted = asyncio.Event()
        self.journal: Journal | None = None
        self._journal_task: asyncio.Task[None] | None = None
        self.builder = Builder(
            blobs,
            lives=self.lives.values,
            pressure=self._room.pressure,
            segment=self._segment,
            released=self._released,
            trim=self._trim,
            ended=self._sign_ended,
        )
        self.eventlog = EventLog(
            blobs,
            mark=self._mark,
            added=self._event_added,
            segment=self._segment,
            stored=self._sign_events,
            instance=instance,
        )

    # -- open and close

    async def open(self) -> None:
        """Take what is there, and close what a crash has left open (as CUT). Raises StoreError."""
        if self._log is None:
            self._opened = True
            return
        await self._log.open()
        try:
            await self._open(self._log)
        except BaseException:
            await self._tasks.aclose()
            await self._log.aclose()
            raise

    async def _open(self, log: Log) -> None:
        if self.registrar is not None:
            await self.registrar.look_before()
        self.journal = Journal(log, running=self._running, pins=self._pins, seconds=self._commit_seconds)
        journal, room = self.journal, self._room
        room.fault = lambda: journal.fault
        room.mark = journal.mark
        room.grown = lambda live: self.builder.look(live, len(self.lives))
        self._start("builder", self.builder.run())
        await self.eventlog.open()
        segments = await log.segments()
        recovery = Recovery(self.blobs, room, register=self._register, forget=self._released, relief=self._relief)
        for segment in segments:
            await recovery.read(log, segment, segment == segments[-1])
        recovery.close(time.time())
        if self.registrar is not None:
            self.registrar.found([one for one in recovery.whole if one not in recovery.removals])
        events = await self.eventlog.restore(recovery.events)
        if self.registrar is not None:
            self.registrar.found(self.eventlog.whole)
        self._oldest = segments[0] if segments else 0
        room.grown = self._grown
        room.began = lambda live: self._tell("began", live.recording)
        room.ended = self._ended
        room.dropped = self._dropped
        room.damaged = lambda live: self._tell("corrected", live.recording)
        await self.journal.start(segments)
        self._start("events", self.eventlog.run(self._trim_wanted.set))
        self._start("space", self._watch())
        self._journal_task = self._start("journal", self.journal.run())
        for identifier in recovery.removals:
            await self._delete(identifier)
        for live in recovery.lives:
            self.builder.look(live, len(self.lives))
            self._tell("ended", live.recording)
        for event in events:
            self._event_added(event)
        self._opened = True
        if segments:
            _log.info("journal_replayed", segments=len(segments), recordings=len(recovery.lives), events=len(events))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.start(work, f"store {name}", failed=self._task_failed)

    def _task_failed(self, task: asyncio.Task[None], error: BaseException) -> None:
        _log.critical("store_failed", task=task.get_name(), exc_info=error)
        self._failed = "the store has failed; the log says why"

    async def aclose(self) -> None:
        """End what runs (as CUT), put what is held into chunks, and stop. What cannot be put is in the journal."""
        self._closing = True
        if self._opened and self.journal is not None:
            for live in list(self.lives.values()):
                if not live.over and live.error is None:
                    live.end_as(End.CUT)
            self.journal.close()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    if self._journal_task is not None:
                        await asyncio.wait((self._journal_task,))
                    await self.builder.drained()
                    await self.eventlog.drain()
                    if self.registrar is not None:
                        await self.registrar.aclose()
                    if not self.lives and self.eventlog.drained:
                        await self._trim()
            except (TimeoutError, StoreError) as error:
                _log.warning("store_closed_early", why=str(error), recordings=len(self.lives))
        if self.registrar is not None:
            await self.registrar.aclose()
        await self._tasks.aclose()
        if self._log is not None:
            await self._log.aclose()
        await self.blobs.aclose()

    # -- health

    @property
    def healthy(self) -> str | None:
        """None while it can keep things, else what is wrong, in a sentence without paths or secrets."""
        if not self._opened:
            return "the store is not open"
        if self._closing:
            return "the recorder is stopping"
        if self._log is None:
            return None
        journal = self.journal.fault if self.journal is not None else "the store is not open"
        return self._failed or journal or self.builder.fault or self.eventlog.fault or self._space

    @property
    def removal_fault(self) -> str | None:
        """None while what is not needed any more can be removed. Sessions are taken all the same, while there is room:
        what is not removed grows."""
        fault = self.builder.trim_fault
        return f"segments of the journal cannot be removed: {fault}" if fault is not None else None

    @property
    def errors(self) -> dict[str, int]:
        """How often writing has failed, by part."""
        journal = self.journal.errors if self.journal is not None else 0
        return {
            "journal": journal,
            "chunks": self.builder.errors,
            "events": self.eventlog.errors,
            "removal": self.builder.trim_errors,
        }

    async def _watch(self) -> None:
        while True:
            try:
                self.free = await self.blobs.free()
            except StoreError as error:
                self._space = str(error)
            else:
                short = self.free is not None and self.free < self._min_free
                if short and self._space is None:
                    _log.error("store_nearly_full", free=self.free, needed=self._min_free)
                self._space = _nearly_full(self.free or 0, self._min_free) if short else None
            if self.journal is not None:
                await self.journal.probe()
            if self.registrar is not None and self.registrar.behind and len(self.journal_segments) > HELD_BACK:
                self.registrar.let_go()
                self._oldest = 0
            self.builder.poke()
            self.eventlog.poke()
            await asyncio.sleep(LOOK)

    @property
    def journal_segments(self) -> Sequence[int]:
        """Those that are still needed."""
        return self.journal.segments if self.journal is not None else ()

    # -- writing

    async def begin(self, header_line: bytes, source: Source) -> Live:
        """Start a recording. Raises StoreError where it can't be kept now, ValueError for no cast header."""
        return self.start(header_line, source)

    def start(self, header_line: bytes, source: Source) -> Live:
        """`begin`, for those who cannot wait; neither waits for anything."""
        if (fault := self.healthy) is not None:
            raise StoreError(fault)
        if self._log is None:
            raise StoreError("the store is open to be read only")
        if len(header_line) > MAX_HEADER_LINE:
            raise ValueError(f"the first line has more than {MAX_HEADER_LINE} bytes")
        if not header_line.endswith(b"\n"):
            raise ValueError("the first line has no end")
        header = parse_header(header_line, sent=True)
        now = time.time()
        live = Live(new_id(now), header_line, header, source, now, self._room)
        self.lives[live.id] = live
        live.write(header_line)
        return live

    @property
    def held(self) -> int:
        """Bytes of recordings that are in memory, because no chunk has them yet."""
        return self._room.pressure.held

    @property
    def arriving(self) -> float:
        """Bytes a second that come in now: work that can wait does."""
        return self.journal.rate if self.journal is not None else 0.0

    @property
    def crowded(self) -> bool:
        """Whether all recordings together wait for more than should be in memory."""
        return self._room.pressure.high

    async def relieved(self) -> None:
        """Wait until less is waiting to be written; for those whose Writer is blocked. Look again after it."""
        await self._room.pressure.wait()

    async def add_event(self, document: bytes, source: Source) -> ApiEvent:
        """Keep an event; safe on return. Raises StoreError, ValueError for what is no JSON object."""
        value = parse_json(document)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return (await self.add_events([value], source))[0]

    async def add_events(self, documents: Sequence[Mapping[str, Any]], source: Source) -> list[ApiEvent]:
        """Keep several events at once; safe on return. Raises StoreError."""
        if (fault := self.healthy) is not None:
            raise StoreError(fault)
        if self._log is None:
            raise StoreError("the store is open to be read only")
        return await self.eventlog.add(documents, source)

    async def remove(self, identifier: str) -> None:
        """Remove a recording that is over. Raises KeyError, StoreError."""
        if identifier in self.lives:
            raise StoreError("the recording is not over yet")
        try:
            ended = (await self._manifest(identifier)).recording.ended
        except DamagedError:  # whoever removes it knows
            ended = None
        if self.journal is None:
            raise StoreError("the store is open to be read only")
        removal = _Removal(identifier)
        self.journal.mark(removal)
        self._removing[identifier] = await removal.done
        # Where this fails the record stays, and the next start goes on with it.
        await self._delete(identifier)
        del self._removing[identifier]
        if ended is None or time.time() - ended < JOURNALED:
            # Its words may stand in the journal yet, among those of others.
            self.builder.let_go(self.journal.segment)
            self.journal.follow()
        for observer in self.observers:
            observer.removed(identifier)

    async def _delete(self, identifier: str) -> None:
        prefix = folder(identifier)
        names = [name async for name, _ in self.blobs.names(prefix)]
        # The manifest first: without it the rest is not a recording any more.
        await self.blobs.delete([f"{prefix}/{name}" for name in names if name == MANIFEST])
        await self.blobs.delete([f"{prefix}/{name}" for name in names if name != MANIFEST])

    # -- reading

    async def get(self, identifier: str) -> Recording:
        """See api.Reading."""
        live = self.lives.get(identifier)
        return live.recording if live is not None else (await self.manifest(identifier)).recording

    async def manifest(self, identifier: str) -> Manifest:
        """What is known of a recording that is over and wholly in the store. Raises KeyError, StoreError."""
        return await self._manifest(identifier)

    async def _manifest(self, identifier: str) -> Manifest:
        if not is_id(identifier):
            raise KeyError(identifier)
        try:
            data = await self.blobs.get(manifest_key(identifier))
        except KeyError:
            stored = await read_chunks(self.blobs, identifier)
            if stored is None:
                raise KeyError(identifier) from None
            # A running recorder's, if this one only reads or is one of several (a folder has but one); or what is left
            # of a store that lost its journal.
            recording = Recording(
                id=identifier,
                header=parse_header(stored.header_line),
                source=stored.source,
                started=stored.started,
                end=End.CUT if self._log is not None and self.blobs.kind == "folder" else End.RUNNING,
                size=stored.chunks[-1].offset + stored.chunks[-1].size,
                duration=stored.chunks[-1].last,
                events=sum(row.events for row in stored.chunks),
                damaged=any(row.damaged for row in stored.chunks),
            )
            return Manifest(recording, stored.header_line, stored.chunks, stored.head)
        return read_manifest(data, identifier)

    async def identifiers(self) -> AsyncGenerator[str, None]:
        """The ids of all recordings, by their names alone. Raises StoreError."""
        lives = set(self.lives)
        async for day, _ in self.blobs.names("recordings"):
            async for name, _ in self.blobs.names(f"recordings/{day.rstrip('/')}"):
                identifier = name.rstrip("/")
                if is_id(identifier):
                    lives.discard(identifier)
                    yield identifier
        for identifier in lives:
            yield identifier

    async def recordings(self) -> AsyncGenerator[Recording, None]:
        """See api.Reading. One whose manifest cannot be read is logged and left out."""
        days = {name.rstrip("/") async for name, _ in self.blobs.names("recordings")}
        lives = dict(self.lives)
        days |= {folder(identifier).split("/")[1] for identifier in lives}
        for day in sorted(days, reverse=True):
            found = {name.rstrip("/") async for name, _ in self.blobs.names(f"recordings/{day}")}
            found |= {identifier for identifier in lives if folder(identifier).split("/")[1] == day}
            identifiers = sorted(filter(is_id, found), reverse=True)
            for start in range(0, len(identifiers), _AHEAD):
                group = identifiers[start : start + _AHEAD]
                for recording in await asyncio.gather(*(self._get_listed(identifier) for identifier in group)):
                    if recording is not None:
                        yield recording

    async def _get_listed(self, identifier: str) -> Recording | None:
        try:
            return await self.get(identifier)
        except KeyError:
            return None
        except StoreError as error:
            _log.warning("recording_unreadable", recording=identifier, why=str(error))
            return None

    async def cast(
        self, identifier: str, *, start: float = 0.0, end: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See api.Reading."""
        reader, header_line, _ = await self._reader(identifier)
        async for lines in read_lines(reader, header_line, start=start, end=end):
            yield lines

    async def follow(self, identifier: str, *, start: float = 0.0) -> AsyncGenerator[bytes, None]:
        """See api.Reading."""
        reader, header_line, live = await self._reader(identifier)
        async for lines in read_lines(reader, header_line, start=start, live=live):
            yield lines

    async def text(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """Every byte that was kept, as it came; not cut at lines. Raises KeyError, StoreError."""
        reader, _, _ = await self._reader(identifier)
        position = 0
        while position < reader.end:
            piece, _ = await reader.read(position)
            position += len(piece)
            yield piece

    async def _reader(self, identifier: str) -> tuple[TextReader, bytes, Live | None]:
        live = self.lives.get(identifier)
        if live is not None:
            return TextReader(self.blobs, identifier, live.chunks, live), live.header_line, live
        manifest = await self._manifest(identifier)
        return TextReader(self.blobs, identifier, manifest.chunks), manifest.header_line, None

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """See api.Reading."""
        return self.eventlog.events()

    async def event_days(self) -> set[str]:
        """The days of which there are some. Raises StoreError."""
        return await self.eventlog.days()

    # -- what the parts tell

    def _mark(self, source: EventLog) -> None:
        if self.journal is not None:
            self.journal.mark(source)

    def _segment(self) -> int:
        return self.journal.segment if self.journal is not None else 0

    def _running(self) -> list[Item]:
        return [live.begin_item(Kind.RUNNING) for live in self.lives.values() if live.acked and not live.over]

    def _pins(self) -> list[int]:
        pins = [live.pin for live in self.lives.values()]
        if self._oldest and self.registrar is not None:
            if self.registrar.behind:
                pins.append(self._oldest)  # of what was found there
            else:
                self._oldest = 0
        return [pin for pin in (*pins, self.eventlog.pin, *self._removing.values()) if pin is not None]

    async def _trim(self) -> None:
        self._trim_wanted.clear()
        if self.journal is not None and self._opened:
            await self.journal.trim()

    def _sign_ended(self, ended: Ended) -> Coroutine[Any, Any, None] | None:
        return self.registrar.ended(ended) if self.registrar is not None else None

    async def _sign_events(self, kept: Kept) -> None:
        if self.registrar is not None:
            await self.registrar.stored(kept)

    def _register(self, live: Live) -> None:
        self.lives[live.id] = live

    async def _relief(self) -> None:
        pressure = self._room.pressure
        if pressure.held <= pressure.MAX_HELD // 2:
            return
        self.builder.relieve()
        # Tails too short for a frame stay, and many of them may be more than that: then there is no use in waiting.
        while pressure.held > pressure.MAX_HELD // 2 and self.builder.busy:
            if self.builder.fault is not None:
                raise StoreError(self.builder.fault)
            await asyncio.sleep(0.005)

    def _grown(self, live: Live) -> None:
        self.builder.look(live, len(self.lives))
        now = time.monotonic()
        if now - live.progress_at >= PROGRESS * max(1.0, len(self.lives) / PROGRESSING) and not live.over:
            first, live.progress_at = live.progress_at == 0.0, now
            if not first:
                self._tell("progressed", live.recording)

    def _ended(self, live: Live) -> None:
        self.builder.look(live, len(self.lives))
        self._tell("ended", live.recording)

    def _dropped(self, live: Live) -> None:
        self.lives.pop(live.id, None)

    def _released(self, live: Live) -> None:
        self.lives.pop(live.id, None)

    def _tell(self, what: str, recording: Recording) -> None:
        for observer in self.observers:
            try:
                getattr(observer, what)(recording)
            except Exception:
                _log.exception("observer_failed", what=what)

    def _event_added(self, event: ApiEvent) -> None:
        for observer in self.observers:
            try:
                observer.event_added(event)
            except Exception:
                _log.exception("observer_failed", what="event_added")


class _Removal:
    """A source of one REMOVE record."""

    def __init__(self, identifier: str) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._id = identifier

    def take(self) -> list[Item]:
        return [Item(Kind.REMOVE, self._id)]

    def settled(self, items: list[Item], segment: int, error: StoreError | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(segment)
        else:
            self.done.set_exception(StoreError(str(error)))


def _nearly_full(free: int, needed: int) -> str:
    return f"the recorder's disk is nearly full ({free >> 20} MiB free, {needed >> 20} MiB needed)"

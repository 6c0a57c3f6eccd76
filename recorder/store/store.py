"""The store: the journal, the builder, the log of events, and what is over, as one thing.

    begin -> Live (the Writer) -> journal -> acked -> builder -> chunks, recording.json
    add_events -> EventLog -> journal -> safe -> chunks of events

The ledger says what is on its way (`lives`: the recordings whose recording.json is not there yet), and everything else
is read from the blobs (`Contents`). A store that is opened to be read only touches nothing; what a running recorder
beside it has not put yet is not seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from k8sproxy.common.formats.asciicast import MAX_HEADER_LINE
from k8sproxy.common.states import State, table
from k8sproxy.common.tasks import Tasks
from recorder.model import ApiEvent, End, Observer, Source, new_id, parse_json
from recorder.store.api import Registrar
from recorder.store.blobs import Blobs
from recorder.store.builder import Builder
from recorder.store.contents import Contents
from recorder.store.errors import DamagedError, StoreError
from recorder.store.eventlog import EventLog
from recorder.store.journal import Journal
from recorder.store.ledger import Ledger
from recorder.store.live import Live
from recorder.store.logs import Log
from recorder.store.manifest import MANIFEST, folder, parse_header
from recorder.store.records import Item, Kind
from recorder.store.recovery import Recovery

_log = structlog.get_logger(__name__)

# Seconds between looks at the space that is left, and at a fault that nobody else looks at.
LOOK = 2.0
# Bytes that must be free for new recordings to be taken: what runs needs them to end well.
MIN_FREE = 256 << 20
# Segments of the journal that may be kept for what waits for its signature: a gigabyte.
HELD_BACK = 16
# Seconds that the end waits for chunks. What is not there then comes out of the journal at the next start.
CLOSE_TIMEOUT = 30.0
# Seconds after the end of a recording in which the journal may have something of it: segments last ten minutes, and
# no more than a few are held back.
JOURNALED = 2 * 3600.0


class Life(State):
    """Whether the store can keep anything.

    NEW       it is not open yet                                    -> OPEN, FAILED, CLOSED
    OPEN      it keeps what comes                                   -> FAILED, CLOSED
    FAILED    a task of it has ended for good; the log says why     -> CLOSED
    CLOSED    it is closing, or has closed                          -> (final)
    """

    NEW = "new"
    OPEN = "open"
    FAILED = "failed"
    CLOSED = "closed"


table(
    {
        Life.NEW: (Life.OPEN, Life.FAILED, Life.CLOSED),
        Life.OPEN: (Life.FAILED, Life.CLOSED),
        Life.FAILED: (Life.CLOSED,),
        Life.CLOSED: (),
    }
)

_UNHEALTHY = {
    Life.NEW: "the store is not open",
    Life.FAILED: "the store has failed; the log says why",
    Life.CLOSED: "the recorder is stopping",
}


class Store(Contents):
    """blobs: where chunks go; log: where the journal goes (None: to be read only). min_free: bytes. instance: tells
    this recorder from others that share the blobs.

    journal: None where the store is read only. commit_seconds: told the time of each commit. `free`: bytes left when
    last looked at.
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
        self.life = Life.NEW
        self.ledger = ledger = Ledger[Live]()
        self.free: int | None = None
        self.journal = Journal(log, ledger, seconds=commit_seconds) if log is not None else None
        self._builder = Builder(blobs, self.journal, ledger) if self.journal is not None else None
        eventlog = EventLog(blobs, self.journal, ledger, instance=instance)
        super().__init__(blobs, ledger.lives, eventlog, alone=log is not None and blobs.kind == "folder")
        self._log = log
        self._min_free = min_free
        self._space: str | None = None
        self._tasks = Tasks()
        self._journal_task: asyncio.Task[None] | None = None

    def _move(self, life: Life) -> None:
        self.life = self.life.to(life)

    @property
    def builder(self) -> Builder:
        """What makes chunks. Raises StoreError where the store is read only."""
        if self._builder is None:
            raise StoreError("the store is open for reading only")
        return self._builder

    @property
    def observers(self) -> list[Observer]:
        """Who is told what changes; see the ledger."""
        return self.ledger.observers

    @property
    def registrar(self) -> Registrar | None:
        """Who signs what has come in, None where nothing is signed."""
        return self.ledger.registrar

    @registrar.setter
    def registrar(self, registrar: Registrar | None) -> None:
        self.ledger.registrar = registrar

    # -- open and close

    async def open(self) -> None:
        """Take what is there, and close what a crash has left open (as CUT). Raises StoreError."""
        if self._log is None or self.journal is None:
            self._move(Life.OPEN)
            return
        await self._log.open()
        try:
            await self._open(self._log, self.journal)
        except BaseException:
            await self._tasks.aclose()
            await self._log.aclose()
            raise

    async def _open(self, log: Log, journal: Journal) -> None:
        ledger, registrar = self.ledger, self.registrar
        if registrar is not None:
            await registrar.look_before()
        self._start("builder", self.builder.run())
        await self.eventlog.open()
        segments = await log.segments()
        recovery = Recovery(self.blobs, journal, ledger, self.builder)
        for segment in segments:
            await recovery.read(log, segment, segment == segments[-1])
        recovery.close(time.time())
        if registrar is not None:
            registrar.found([one for one in recovery.whole if one not in recovery.removals])
        events = await self.eventlog.restore(recovery.events)
        if registrar is not None:
            registrar.found(self.eventlog.whole)
        ledger.replayed = segments[0] if segments else 0
        await journal.start(segments)
        self._start("events", self.eventlog.run())
        self._start("space", self._watch(journal))
        self._journal_task = self._start("journal", journal.run())
        for identifier in recovery.removals:
            await self._delete(identifier)
        ledger.opened = True
        for live in recovery.lives:
            ledger.ended(live)
        for event in events:
            ledger.event_added(event)
        if self.life is Life.NEW:
            self._move(Life.OPEN)
        if segments:
            _log.info("journal_replayed", segments=len(segments), recordings=len(recovery.lives), events=len(events))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.start(work, f"store {name}", failed=self._task_failed)

    def _task_failed(self, task: asyncio.Task[None], error: BaseException) -> None:
        _log.critical("store_failed", task=task.get_name(), exc_info=error)
        if self.life in (Life.NEW, Life.OPEN):
            self._move(Life.FAILED)

    async def aclose(self) -> None:
        """End what runs (as CUT), put what is held into chunks, and stop. What cannot be put is in the journal."""
        if self.life is not Life.CLOSED:
            self._move(Life.CLOSED)
        if self.ledger.opened and self.journal is not None:
            for live in list(self.lives.values()):
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
                        await self.journal.trim()
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
        if self.life is not Life.OPEN:
            return _UNHEALTHY[self.life]
        if self.journal is None:
            return None
        return self.journal.fault or self.builder.fault or self.eventlog.fault or self._space

    @property
    def removal_fault(self) -> str | None:
        """None while what is not needed any more can be removed. Sessions are taken all the same, while there is room:
        what is not removed grows."""
        fault = self._builder.trim_fault if self._builder is not None else None
        return f"segments of the journal cannot be removed: {fault}" if fault is not None else None

    @property
    def errors(self) -> dict[str, int]:
        """How often writing has failed, by part."""
        journal, builder = self.journal, self._builder
        return {
            "journal": journal.errors if journal is not None else 0,
            "chunks": builder.errors if builder is not None else 0,
            "events": self.eventlog.errors,
            "removal": builder.trim_errors if builder is not None else 0,
        }

    async def _watch(self, journal: Journal) -> None:
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
            await journal.probe()
            if self.registrar is not None and self.registrar.behind and len(journal.segments) > HELD_BACK:
                self.registrar.let_go()
                self.ledger.replayed = 0
            self.builder.poke()
            self.eventlog.poke()
            await asyncio.sleep(LOOK)

    # -- writing

    async def begin(self, header_line: bytes, source: Source) -> Live:
        """Start a recording. Raises StoreError where it can't be kept now, ValueError for no cast header."""
        return self.start(header_line, source)

    def start(self, header_line: bytes, source: Source) -> Live:
        """`begin`, for those who cannot wait; neither waits for anything."""
        if (fault := self.healthy) is not None:
            raise StoreError(fault)
        if self.journal is None:
            raise StoreError("the store is open for reading only")
        if len(header_line) > MAX_HEADER_LINE:
            raise ValueError(f"the first line has more than {MAX_HEADER_LINE} bytes")
        if not header_line.endswith(b"\n"):
            raise ValueError("the first line has no end")
        header = parse_header(header_line, sent=True)
        now = time.time()
        live = Live(new_id(now), header_line, header, source, now, self.journal, self.ledger)
        self.ledger.entered(live)
        live.write(header_line)
        return live

    @property
    def held(self) -> int:
        """Bytes of recordings that are in memory, because no chunk has them yet."""
        return self.ledger.pressure.held

    @property
    def arriving(self) -> float:
        """Bytes a second that come in now: work that can wait does."""
        return self.journal.rate if self.journal is not None else 0.0

    @property
    def crowded(self) -> bool:
        """Whether all recordings together wait for more than should be in memory."""
        return self.ledger.pressure.high

    async def relieved(self) -> None:
        """Wait until less is waiting to be written; for those whose Writer is blocked. Look again after it."""
        await self.ledger.pressure.wait()

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
        return await self.eventlog.add(documents, source)

    async def remove(self, identifier: str) -> None:
        """Remove a recording that is over. Raises KeyError, StoreError."""
        if identifier in self.lives:
            raise StoreError("the recording has not ended yet")
        try:
            ended = (await self.manifest(identifier)).recording.ended
        except DamagedError:  # whoever removes it knows
            ended = None
        if self.journal is None:
            raise StoreError("the store is open for reading only")
        removal = _Removal(identifier)
        self.journal.mark(removal)
        self.ledger.removing[identifier] = await removal.done
        # Where this fails the record stays, and the next start goes on with it.
        await self._delete(identifier)
        del self.ledger.removing[identifier]
        if ended is None or time.time() - ended < JOURNALED:
            # Its words may stand in the journal yet, among those of others.
            self.builder.let_go(self.journal.segment)
            self.journal.follow()
        self.ledger.removed(identifier)

    async def _delete(self, identifier: str) -> None:
        prefix = folder(identifier)
        names = [name async for name, _ in self.blobs.names(prefix)]
        # The manifest first: without it the rest is not a recording any more.
        await self.blobs.delete([f"{prefix}/{name}" for name in names if name == MANIFEST])
        await self.blobs.delete([f"{prefix}/{name}" for name in names if name != MANIFEST])


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

"""What is known of the store's contents. It stands below everything that changes them, and tells what has changed.

    lives       recordings that are not wholly in the store yet, or not signed: they run, or they are on their way
    removing    removals that are written down and not done, each with the journal's segment that says so
    events      the oldest segment of the journal with an API event that is in no chunk
    replayed    the oldest segment of before this process, as long as something that was found there is not signed
    observers   who is told (model.Observer): the index
    registrar   who signs what comes in (api.Registrar); None where nothing is signed
    ripe        recordings of which the builder should make frames; `work` wakes it

Parts of the store call what is below them and nothing else, in this order:

    store -> recovery -> builder, eventlog -> live -> journal -> ledger

Whatever happens is written down here by whoever did it, and read here by whoever needs it. The journal asks which of
its segments are still needed, and for what a new segment has to begin with. The builder finds what is ripe.

Observers are told nothing before the store is open: what a crash has left is told then, as it is by then.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Generic, Protocol, TypeVar

import structlog

from recorder.model import ApiEvent, Observer, Recording
from recorder.store.api import Registrar
from recorder.store.chunk import FRAME
from recorder.store.pressure import Pressure
from recorder.store.records import Item, Kind
from recorder.store.text import Text

_log = structlog.get_logger(__name__)

# Bytes of all tails. With 500 recordings each may have 40 KiB: text is better held packed, where it takes a fourth or
# less, though frames of that size compress some per cent worse than whole ones.
TAILS = 20 << 20
# Less is not worth a frame. 5,000 recordings have that much.
MIN_FRAME = 4 << 10
# Seconds between two `progressed` of one recording, as long as no more than
PROGRESS = 1.0
# recordings run; with n times as many it is n times as long. Each is a row to be written, and a look at a tail.
PROGRESSING = 50


class Entry(Protocol):
    """A live recording, as it stands in the ledger. progress_at: when observers were told of it, by the monotonic
    clock; 0 before the first time."""

    id: str
    text: Text
    acked: int
    progress_at: float

    @property
    def over(self) -> bool:
        """Whether its end is safe: nothing more will come."""

    @property
    def recording(self) -> Recording:
        """What it is now."""

    def begin_item(self, kind: Kind) -> Item:
        """A BEGIN or RUNNING record."""


E = TypeVar("E", bound=Entry)


class Ledger(Generic[E]):
    """See the top of this file. opened: all that was there before is in it, and observers are told."""

    def __init__(self) -> None:
        self.lives: dict[str, E] = {}
        self.removing: dict[str, int] = {}
        self.events: int | None = None
        self.replayed = 0
        self.observers: list[Observer] = []
        self.registrar: Registrar | None = None
        self.pressure = Pressure()
        self.ripe: dict[E, None] = {}
        self.work = asyncio.Event()
        self.opened = False

    # -- what the journal and the builder read

    def running(self) -> list[Item]:
        """What a new segment of the journal begins with, so that a replay which begins there knows what runs."""
        return [live.begin_item(Kind.RUNNING) for live in self.lives.values() if live.acked and not live.over]

    def pins(self) -> list[int]:
        """Segments of the journal that have something which is nowhere else."""
        pins = [live.text.pin for live in self.lives.values()]
        if self.replayed and self.registrar is not None:
            if self.registrar.behind:
                pins.append(self.replayed)
            else:
                self.replayed = 0
        return [pin for pin in (*pins, self.events, *self.removing.values()) if pin is not None]

    @property
    def ripe_size(self) -> int:
        """Bytes of a tail that are worth a frame."""
        return min(FRAME, max(MIN_FRAME, TAILS // max(len(self.lives), 1)))

    # -- what the parts tell

    def entered(self, live: E) -> None:
        """It is new here: begun, or found in the journal after a crash."""
        self.lives[live.id] = live

    def began(self, live: E) -> None:
        """Its header is safe."""
        self._tell("began", live)

    def grown(self, live: E) -> None:
        """More of it is safe."""
        if live.text.tail_size >= self.ripe_size:
            self._ripen(live)
        elif self.pressure.crowded:
            self.work.set()
        if self.opened:
            now = time.monotonic()
            if now - live.progress_at >= PROGRESS * max(1.0, len(self.lives) / PROGRESSING):
                first, live.progress_at = live.progress_at == 0.0, now
                if not first:
                    self._tell("progressed", live)

    def ended(self, live: E) -> None:
        """Its end is safe."""
        self._ripen(live)
        self._tell("ended", live)

    def corrected(self, live: E) -> None:
        """It is found to be damaged, which may be after its end."""
        self._tell("corrected", live)

    def left(self, live: E) -> None:
        """Nothing of it is needed here any more: all of it is in the store, or nothing of it could be kept."""
        self.lives.pop(live.id, None)
        self.ripe.pop(live, None)

    def removed(self, identifier: str) -> None:
        """It is gone from the store."""
        self._each("removed", identifier)

    def event_added(self, event: ApiEvent) -> None:
        """An API event is safe."""
        if self.opened:
            self._each("event_added", event)

    def _ripen(self, live: E) -> None:
        self.ripe[live] = None
        self.work.set()

    def _tell(self, what: str, live: E) -> None:
        if self.opened:
            self._each(what, live.recording)

    def _each(self, what: str, *told: Any) -> None:
        for observer in self.observers:
            try:
                getattr(observer, what)(*told)
            except Exception:
                _log.exception("observer_failed", what=what)

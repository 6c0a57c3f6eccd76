"""What is removed when: by age, by size, by rule; never what is held, and never what cannot be judged.

    a hold            it stays
    rules             the first that matches says how long it is kept, and for that long it is kept
    max_age           what no rule matches goes when it has been over for that long
    max_bytes         then, oldest first, what no rule matches, until all recordings together take no more
    events_max_age    API events go by whole days

A rule is a promise in both directions: what it matches goes when its time is up, and not before, however full the store
is; so a limit of bytes may not be reached, and then the log says so. What runs, or is still on its way into the store,
or has a recording.json that cannot be read, is left alone.

Each removal is written down and signed first, where there is a key to sign with (recorder/proof/removal.py); a pass
begins with those that a crash has left half done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from recorder.crypt import stored
from recorder.holds import Hold, Holds, Match
from recorder.model import Recording, id_day, is_id
from recorder.proof.documents import Removal, day_end, day_of, is_day
from recorder.proof.keys import PublicKeys, Signer
from recorder.proof.removal import finish, remove_events, remove_recording, take_back, unfinished
from recorder.store.errors import StoreError
from recorder.store.manifest import folder
from recorder.store.store import Store

_log = structlog.get_logger(__name__)

# Seconds between passes: retention is a matter of days.
EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Rule:
    """keep: seconds after its end; None for ever."""

    match: Match
    keep: float | None


@dataclass(frozen=True, slots=True)
class Rules:
    """See the top of this file. max_age, events_max_age: seconds; max_bytes: as stored. None: without limit."""

    max_age: float | None = None
    max_bytes: int | None = None
    rules: Sequence[Rule] = ()
    events_max_age: float | None = None

    @property
    def nothing(self) -> bool:
        """Whether they never remove anything."""
        return (
            self.max_age is None
            and self.max_bytes is None
            and self.events_max_age is None
            and all(rule.keep is None for rule in self.rules)
        )

    def rule_of(self, recording: Recording) -> Rule | None:
        """The first that matches."""
        return next((rule for rule in self.rules if rule.match.holds_for(recording)), None)

    def too_old(self, recording: Recording, now: float) -> str:
        """Why it is to go by its age at `now`, "" where it isn't."""
        if recording.ended is None:
            return ""
        rule = self.rule_of(recording)
        keep = rule.keep if rule is not None else self.max_age
        if keep is None or now - recording.ended <= keep:
            return ""
        return f"{'a rule keeps it' if rule is not None else 'kept'} for {keep / 86400:g} days"

    @property
    def shortest(self) -> float | None:
        """The shortest time that anything is kept by age; None where nothing goes by age."""
        times = [self.max_age, *(rule.keep for rule in self.rules)]
        return min((seconds for seconds in times if seconds is not None), default=None)


@dataclass(frozen=True, slots=True)
class Doomed:
    """What is to go, and why. recording: None for a day of events. size: bytes as stored, None where nobody asked."""

    subject: str
    why: str
    recording: Recording | None = None
    size: int | None = None


@dataclass(slots=True)
class Plan:
    """What a pass would do. held: what would go, and by whom it is held. over: bytes above the limit even then."""

    doomed: list[Doomed] = field(default_factory=list)
    held: list[tuple[Doomed, Hold]] = field(default_factory=list)
    over: int = 0


class Pruner:
    """by: who removes, for the record. signer, keys: None where nothing is signed. removed: since the start.
    fault: None, or why it cannot."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        signer: Signer | None = None,
        keys: PublicKeys | None = None,
        by: str = "retention",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.removed = 0
        self.fault: str | None = None
        self.rules = rules
        self._store = store
        self._signer = signer
        self._keys = keys or PublicKeys([signer.public_key] if signer is not None else [])
        self._by = by
        self._clock = clock
        self._holds = Holds(store.blobs)

    async def run(self) -> None:
        """A pass every hour until cancelled."""
        while True:
            try:
                await self.repair()
                if not self.rules.nothing:
                    await self.prune(await self.plan())
                self.fault = None
            except StoreError as error:
                if self.fault is None:
                    _log.error("retention_fault", fault=str(error))
                self.fault = str(error)
            except Exception:
                _log.exception("retention_failed")
                self.fault = "retention fails; the log says why"
            await asyncio.sleep(EVERY)

    async def repair(self) -> int:
        """Go on with removals that are written down and not done; how many there were. Raises StoreError."""
        left = await unfinished(self._store.blobs, self._keys)
        for removal in left:
            if removal.subject in self._store.lives:
                continue  # its journal has brought it back, and it is on its way into the store: next time
            recording = None if removal.subject.startswith("events ") else await self._recording(removal.subject)
            if recording is not None and await self._holds.holding(recording) is not None:
                # Not begun, as recording.json goes first, and held since.
                await take_back(self._store.blobs, removal.subject)
                _log.warning("removal_taken_back", subject=removal.subject)
                continue
            await finish(self._store, removal.subject)
            _log.info("removal_finished", subject=removal.subject)
        return len(left)

    # -- what is to go

    async def plan(self) -> Plan:
        """What is to go now. Changes nothing. Raises StoreError."""
        plan, now = Plan(), self._clock()
        holds = await self._holds.all()
        total, rest = 0, []
        for identifier in await self._candidates(now):
            size = await self._size(identifier) if self.rules.max_bytes is not None else 0
            total += size
            recording = await self._recording(identifier)
            if recording is None:
                continue
            if why := self.rules.too_old(recording, now):
                doomed = Doomed(identifier, why, recording, size)
                if self._doom(plan, doomed, holds):
                    total -= size
            elif self.rules.max_bytes is not None and self.rules.rule_of(recording) is None:
                rest.append((recording.ended or now, identifier, recording, size))
        if self.rules.max_bytes is not None:
            rest.sort(key=lambda item: item[:2])
            for _, identifier, recording, size in rest:
                if total <= self.rules.max_bytes:
                    break
                if self._doom(plan, Doomed(identifier, "the store is over its size", recording, size), holds):
                    total -= size
            plan.over = max(0, total - self.rules.max_bytes)
        await self._plan_events(plan, now)
        return plan

    def _doom(self, plan: Plan, doomed: Doomed, holds: Sequence[Hold]) -> bool:
        recording = doomed.recording
        hold = next((hold for hold in holds if recording is not None and hold.holds(recording)), None)
        if hold is not None:
            plan.held.append((doomed, hold))
            return False
        plan.doomed.append(doomed)
        return True

    async def _candidates(self, now: float) -> list[str]:
        """Ids that may have to go, oldest first: by age alone, none that began too late to be old enough."""
        found: list[str] = []
        shortest = self.rules.shortest
        blobs = stored(self._store.blobs)
        for day in [name.rstrip("/") async for name, _ in blobs.names("recordings")]:
            if not is_day(day):
                continue
            if self.rules.max_bytes is None and (shortest is None or day > day_of(now - shortest)):
                continue
            names = [name.rstrip("/") async for name, _ in blobs.names(f"recordings/{day}")]
            found += [name for name in names if is_id(name) and id_day(name) == day]
        return found

    async def _recording(self, identifier: str) -> Recording | None:
        """One that is over and wholly in the store."""
        if identifier in self._store.lives:
            return None
        try:
            recording = await self._store.get(identifier)
        except KeyError:
            return None
        except StoreError as error:
            _log.warning("recording_not_judged", recording=identifier, why=str(error))
            return None
        return recording if recording.ended is not None else None

    async def _size(self, identifier: str) -> int:
        return sum([size async for _, size in stored(self._store.blobs).names(folder(identifier))])

    async def _plan_events(self, plan: Plan, now: float) -> None:
        if self.rules.events_max_age is None:
            return
        async for name, _ in stored(self._store.blobs).names("events"):
            day = name.rstrip("/")
            if is_day(day) and now - day_end(day) > self.rules.events_max_age:
                why = f"events are kept for {self.rules.events_max_age / 86400:g} days"
                plan.doomed.append(Doomed(f"events {day}", why))

    # -- and goes

    async def prune(self, plan: Plan, progress: Callable[[int], None] = lambda done: None) -> list[Doomed]:
        """Do it; what went. Asks for holds again before each. Raises StoreError."""
        gone: list[Doomed] = []
        for number, doomed in enumerate(plan.doomed):
            if await self.remove(doomed):
                gone.append(doomed)
            progress(number + 1)
        if plan.over:
            _log.warning("retention_over_size", bytes=plan.over, why="the rest is held, or a rule keeps it")
        return gone

    async def remove(self, doomed: Doomed) -> bool:
        """Remove one; False where it is held after all, or gone. Raises StoreError."""
        removal = Removal(doomed.subject, self._clock(), self._by, doomed.why)
        if doomed.recording is None:
            await remove_events(self._store, self._signer, removal)
        else:
            recording = doomed.recording

            async def held() -> bool:
                return await self._holds.holding(recording) is not None

            try:
                if not await remove_recording(self._store, self._signer, removal, held):
                    return False
            except KeyError:
                return False
        self.removed += 1
        _log.info("removed", subject=doomed.subject, why=doomed.why, by=self._by)
        return True

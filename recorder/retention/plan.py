"""What is to go now, and why: the rules of `pruner.py`, put to everything that is kept. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from recorder.crypt import stored
from recorder.model import Recording, id_day, is_id
from recorder.proof.actlog import ActLog
from recorder.proof.days import day_end, day_of, is_day
from recorder.proof.evidence import Evidence, MismatchError, NotSealedYetError
from recorder.retention.heldevents import EventHolders
from recorder.retention.holds import Hold, Holds
from recorder.retention.mismatches import Mismatches
from recorder.retention.rules import Rules
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError
from recorder.store.manifest import folder
from recorder.store.store import Store

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Doomed:
    """What is to go, and why. recording: None for a day of events, and for a recording that cannot be read. size: bytes
    as stored, None where nobody asked. fault: of one that can't be read or is not as it was sealed, and is to go all
    the same, in what."""

    subject: str
    why: str
    recording: Recording | None = None
    size: int | None = None
    fault: str = ""


@dataclass(slots=True)
class Plan:
    """What a pass would do. held: what would go, and by whom it is held. over: bytes above the limit even then.
    mismatches: what is not as it was sealed and therefore stays, with what is wrong with it. evidence: what it was
    judged by; None where nothing is sealed, or where it is to be read anew."""

    doomed: list[Doomed] = field(default_factory=list)
    held: list[tuple[Doomed, Hold]] = field(default_factory=list)
    over: int = 0
    mismatches: dict[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None


async def read_evidence(blobs: Blobs, log: ActLog, *, despite: bool) -> Evidence:
    """What is sealed. despite: also where the proof has faults. Raises StoreError, KeyFault."""
    evidence = await Evidence.read(blobs, log)
    if not despite:
        evidence.need_whole()
    return evidence


class Planner:
    """log: of the acts, None where nothing is sealed. despite: what is not as it was sealed may go, too."""

    def __init__(
        self,
        store: Store,
        holds: Holds,
        log: ActLog | None,
        events: EventHolders,
        mismatches: Mismatches,
        *,
        despite: bool,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._holds = holds
        self._log = log
        self._events = events
        self._mismatches = mismatches
        self._despite = despite
        self._clock = clock
        self._warned: set[str] = set()  # holds that nobody has signed

    async def plan(self, rules: Rules) -> Plan:
        """What is to go now. Changes nothing. Raises StoreError, KeyFault."""
        plan, now = Plan(), self._clock()
        self._events.forget()  # of a pass that has failed
        holds = await self._holds.all()
        self._warn_of_unsigned(holds)
        candidates = await self._candidates(rules, now)
        days = await self._event_days(rules, now)
        if candidates or days:
            plan.evidence = (
                await read_evidence(self._store.blobs, self._log, despite=self._despite) if self._log else None
            )
        total, rest = 0, []
        for identifier in candidates:
            size = await self._size(identifier, plan.evidence) if rules.max_bytes is not None else 0
            total += size
            recording = await self._judged(plan, identifier)
            if recording is None:
                continue
            if why := rules.too_old(recording, now):
                doomed = Doomed(identifier, why, recording, size)
                if self._doom(plan, doomed, holds):
                    total -= size
            elif rules.max_bytes is not None and rules.rule_of(recording) is None:
                rest.append((recording.ended or now, identifier, recording, size))
        if rules.max_bytes is not None:
            rest.sort(key=lambda item: item[:2])
            for _, identifier, recording, size in rest:
                if total <= rules.max_bytes:
                    break
                if self._doom(plan, Doomed(identifier, "the store is over its size", recording, size), holds):
                    total -= size
            plan.over = max(0, total - rules.max_bytes)
        await self._plan_events(plan, rules, days, holds)
        return plan

    def _warn_of_unsigned(self, holds: Sequence[Hold]) -> None:
        """Once of each: it holds, and somebody without the key may have placed it, or take it away."""
        for hold in holds:
            if self._log is not None and not hold.signed and hold.id not in self._warned:
                self._warned.add(hold.id)
                _log.warning("hold_not_signed", hold=hold.id, by=hold.by)

    def _doom(self, plan: Plan, doomed: Doomed, holds: Sequence[Hold]) -> bool:
        recording = doomed.recording
        hold = next((hold for hold in holds if recording is not None and hold.holds(recording)), None)
        if hold is not None:
            plan.held.append((doomed, hold))
            return False
        plan.doomed.append(doomed)
        return True

    async def _candidates(self, rules: Rules, now: float) -> list[str]:
        """Ids that may have to go, oldest first: by age alone, none that began too late to be old enough."""
        found: list[str] = []
        shortest = rules.shortest
        blobs = stored(self._store.blobs)
        for day in [name.rstrip("/") async for name, _ in blobs.names("recordings")]:
            if not is_day(day):
                continue
            if rules.max_bytes is None and (shortest is None or day > day_of(now - shortest)):
                continue
            names = [name.rstrip("/") async for name, _ in blobs.names(f"recordings/{day}")]
            found += [name for name in names if is_id(name) and id_day(name) == day]
        return found

    async def _judged(self, plan: Plan, identifier: str) -> Recording | None:
        """One that is over, wholly in the store, and says what was sealed."""
        if identifier in self._store.lives:
            return None
        try:
            if plan.evidence is not None:
                plan.evidence.need_signed(identifier)
                recording = await plan.evidence.recording(identifier)
            else:
                recording = await self._store.get(identifier)
        except (KeyError, NotSealedYetError):
            return None
        except MismatchError as error:
            plan.mismatches[identifier] = str(error)
            self._mismatches.add(identifier, str(error))
            return None
        except StoreError as error:
            _log.warning("recording_not_judged", recording=identifier, why=str(error))
            return None
        return recording if recording.ended is not None else None

    async def _size(self, identifier: str, evidence: Evidence | None) -> int:
        """Bytes, as sealed: or whoever can write to the store could make others' recordings go by a large file."""
        if evidence is not None and (evidence.chain.last_day or evidence.signs):
            return evidence.size(identifier) or 0
        return sum([size async for _, size in stored(self._store.blobs).names(folder(identifier))])

    async def _event_days(self, rules: Rules, now: float) -> list[str]:
        most = rules.events_max_age
        if most is None:
            return []
        days = [name.rstrip("/") async for name, _ in stored(self._store.blobs).names("events")]
        return [day for day in days if is_day(day) and now - day_end(day) > most]

    async def _plan_events(self, plan: Plan, rules: Rules, days: Sequence[str], holds: Sequence[Hold]) -> None:
        for day in days:
            why = f"events are kept for {(rules.events_max_age or 0) / 86400:g} days"
            doomed = Doomed(f"events {day}", why)
            try:
                hold = await self._events.holder(day, holds, plan.evidence)
            except MismatchError as error:
                if self._despite and not holds:
                    plan.doomed.append(replace(doomed, fault=str(error)))
                    continue
                plan.mismatches[doomed.subject] = str(error)
                self._mismatches.add(doomed.subject, str(error))
            except NotSealedYetError:
                continue
            else:
                if hold is not None:
                    plan.held.append((doomed, hold))
                else:
                    plan.doomed.append(doomed)

"""What is removed when: by age, by size, by rule; never what is held, and never what cannot be judged.

    a hold            it stays, and so do the API events of whom it holds (recorder/retention/heldevents.py)
    rules             the first that matches says how long it is kept, and for that long it is kept
    max_age           what no rule matches goes when it has been over for that long
    max_bytes         then, oldest first, what no rule matches, until all recordings together take no more
    events_max_age    API events go by whole days

A rule is a promise in both directions: what it matches goes when its time is up, and not before, however full the store
is; so a limit of bytes may not be reached, and then the log says so. What runs, or is still on its way into the store,
or has a recording.json that cannot be read, is left alone.

Where there are keys, a rule judges by nothing but the very bytes that are sealed, and what is not sealed yet waits for
it and does not count for max_bytes. All of a recording is compared with its manifest before it goes
(recorder/proof/evidence.py). What does not fit stays, is named in the log, the metrics and the details of readiness,
and `verify` tells it. While the manifests or the acts themselves have a fault nothing goes.

Each removal is signed first, where there is a key to sign with (recorder/proof/removal.py); a pass begins with those
that a crash has left half done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from recorder.crypt import stored
from recorder.model import End, Recording, id_day, is_id
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Act, Kind, Subject
from recorder.proof.days import day_end, day_of, is_day
from recorder.proof.evidence import Evidence, MismatchError, MissingError, NotSealedYetError
from recorder.proof.keys import KeyFault, PublicKeys, Signer
from recorder.proof.register import Register
from recorder.proof.removal import Removed, bare, finish, has_bytes, removals, removals_of, take_over, unfinished
from recorder.retention.heldevents import HeldEvents
from recorder.retention.holds import Hold, Holds
from recorder.retention.rules import Rules
from recorder.store.errors import DamagedError, StoreError
from recorder.store.manifest import folder
from recorder.store.store import Store

_log = structlog.get_logger(__name__)

# Seconds between passes: retention is a matter of days.
EVERY = 3600.0
# Seconds between looks whether a command has signed a removal, which this recorder is to carry out.
LOOK = 30.0
# Subjects of one act of removal: enough that a year of passes is some thousand files, and few enough that a hold which
# is placed meanwhile comes in time for most of them.
BATCH = 100


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


class Pruner:
    """by: who removes, for the record. signer, keys: None where nothing is signed. log: of the acts, by default one of
    its own. despite: remove also while the proof has faults, and what is not as it was sealed: as somebody wants who
    has looked. removed: since the start. fault: None, or why it cannot, or that something is not as it was sealed.
    mismatches: what the last pass has found of that, by subject."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        signer: Signer | None = None,
        keys: PublicKeys | None = None,
        log: ActLog | None = None,
        by: str = "retention",
        despite: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.removed = 0
        self.fault: str | None = None
        self.mismatches: dict[str, str] = {}
        self.rules = rules
        self._store = store
        self._by = by
        self._clock = clock
        keys = keys or PublicKeys([signer.public_key] if signer is not None else [])
        if log is None and len(keys):
            keys = keys.with_own(signer.id) if signer is not None else keys
            own = store.registrar
            witnesses = own.witnesses if isinstance(own, Register) else None
            log = ActLog(store.blobs, keys, signer, witnesses=witnesses, clock=clock)
        self._log = log
        self.holds = Holds(store.blobs, log)
        self._despite = despite
        self._repaired = False
        self._gone: set[str] = set()  # removals that are known to be done
        self._free: dict[str, tuple[str, ...]] = {}  # days of events that these holds do not hold
        self._found: dict[str, str] = {}  # mismatches of this pass
        self._told: dict[str, str] = {}  # mismatches that are in the log

    async def run(self) -> None:
        """A pass every hour until cancelled, and looks at what a command beside the recorder has signed."""
        while True:
            await self.step()
            for _ in range(int(EVERY / LOOK)):
                await asyncio.sleep(LOOK)
                if self._store.blobs.kind == "folder":  # of an object store a command removes by itself
                    await self._obey()

    async def _obey(self) -> None:
        try:
            await self.repair()
        except (StoreError, KeyFault) as error:
            _log.warning("removal_not_finished", why=str(error))  # the next pass says it in the fault
        except Exception:
            _log.exception("retention_failed")

    async def step(self) -> None:
        """One pass, whose failure is told and raises nothing."""
        self._found = {}
        try:
            await self.repair()
            if not self.rules.nothing:
                await self.prune(await self.plan())
            self.mismatches = self._found
            self.fault = _told(self.mismatches)
        except (StoreError, KeyFault) as error:
            if self.fault is None:
                _log.error("retention_fault", fault=str(error))
            self.fault = str(error)
        except Exception:
            _log.exception("retention_failed")
            self.fault = "retention fails; the log says why"

    async def repair(self) -> int:
        """Go on with removals that are written down and not done; how many there were. Raises StoreError, KeyFault."""
        if self._log is None:
            return 0
        evidence: Evidence | None = None
        if not self._repaired:  # once: what is from before there were acts is in the manifests
            evidence = await self._read_evidence(self._log)
            if self._log.signer is not None:
                await take_over(self._store, self._log, evidence.chain, evidence.acts)
            known = removals(evidence.chain, evidence.acts)
        else:
            acts = await self._log.read()
            known = removals_of(acts)
        left = await unfinished(self._store.blobs, known, self._gone)
        if left and evidence is None:
            evidence = await self._read_evidence(self._log)
        for removed in left:
            if evidence is not None:
                await self._go_on(removed, evidence)
        self._repaired = True
        return len(left)

    async def _go_on(self, removed: Removed, evidence: Evidence) -> None:
        subject = removed.removal.subject
        if subject in self._store.lives:
            return  # its journal has brought it back, and it is on its way into the store: next time
        stays = await self._undone(removed, evidence)
        if stays is None:
            await finish(self._store, subject)
            _log.info("removal_finished", subject=subject)
        elif stays and removed.number and self._log is not None and self._log.signer is not None:
            await self._log.add(Kind.REVERSAL, [Subject(subject)], by=self._by, why=stays, of=removed.number)
            _log.warning("removal_taken_back", subject=subject)

    async def _undone(self, removed: Removed, evidence: Evidence) -> str | None:
        """Why a removal is to be taken back, which is not begun: recording.json goes first. "" where it can't be told
        yet, None where it is to be finished. Raises StoreError."""
        subject = removed.removal.subject
        try:
            if subject.startswith("events "):
                if removed.fault:
                    return _maybe_held(subject, await self.holds.all()) or None
                hold = await HeldEvents(self._store, await self.holds.all(), evidence).holder(subject[7:])
                return None if hold is None else _held(hold)
            if removed.fault:
                try:
                    recording = await self._store.get(subject)
                except DamagedError:
                    return _maybe_held(subject, await self.holds.all()) or None
            else:
                recording = await evidence.recording(subject, removed.content)
            if recording.ended is None:
                return None
            if not removed.fault:
                await evidence.check_recording(subject)
            hold = await self.holds.holding(recording)
            return None if hold is None else _held(hold)
        except (KeyError, MissingError):
            return None
        except NotSealedYetError:
            return ""
        except MismatchError as error:
            self._mismatch(subject, str(error))
            return ""

    # -- what is to go

    async def plan(self) -> Plan:
        """What is to go now. Changes nothing. Raises StoreError, KeyFault."""
        plan, now = Plan(), self._clock()
        self._free.clear()  # of a pass that has failed
        holds = await self.holds.all()
        self._warn_of_unsigned(holds)
        candidates = await self._candidates(now)
        days = await self._event_days(now)
        if candidates or days:
            plan.evidence = await self._evidence()
        total, rest = 0, []
        for identifier in candidates:
            size = await self._size(identifier, plan.evidence) if self.rules.max_bytes is not None else 0
            total += size
            recording = await self._judged(plan, identifier)
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
        await self._plan_events(plan, days, holds)
        return plan

    def _warn_of_unsigned(self, holds: Sequence[Hold]) -> None:
        """Once of each: it holds, and somebody without the key may have placed it, or take it away."""
        for hold in holds:
            if self._log is not None and not hold.signed and hold.id not in self._told:
                self._told[hold.id] = "unsigned"
                _log.warning("hold_not_signed", hold=hold.id, by=hold.by)

    async def _evidence(self) -> Evidence | None:
        return await self._read_evidence(self._log) if self._log is not None else None

    async def _read_evidence(self, log: ActLog) -> Evidence:
        evidence = await Evidence.read(self._store.blobs, log)
        if not self._despite:
            evidence.need_whole()
        return evidence

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
            self._mismatch(identifier, str(error))
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

    async def _event_days(self, now: float) -> list[str]:
        most = self.rules.events_max_age
        if most is None:
            return []
        days = [name.rstrip("/") async for name, _ in stored(self._store.blobs).names("events")]
        return [day for day in days if is_day(day) and now - day_end(day) > most]

    async def _plan_events(self, plan: Plan, days: Sequence[str], holds: Sequence[Hold]) -> None:
        for day in days:
            why = f"events are kept for {(self.rules.events_max_age or 0) / 86400:g} days"
            doomed = Doomed(f"events {day}", why)
            try:
                hold = await self._event_holder(day, holds, plan.evidence)
            except MismatchError as error:
                if self._despite and not holds:
                    plan.doomed.append(replace(doomed, fault=str(error)))
                    continue
                plan.mismatches[doomed.subject] = str(error)
                self._mismatch(doomed.subject, str(error))
            except NotSealedYetError:
                continue
            else:
                if hold is not None:
                    plan.held.append((doomed, hold))
                else:
                    plan.doomed.append(doomed)

    async def _event_holder(self, day: str, holds: Sequence[Hold], evidence: Evidence | None) -> Hold | None:
        """By whom a day of events is held. All of them are read for that, so that one which was found free is only read
        again where there is another hold. Raises MismatchError, NotSealedYetError, StoreError."""
        known = tuple(hold.id for hold in holds)
        if self._free.get(day) == known:
            return None
        hold = await HeldEvents(self._store, holds, evidence).holder(day)
        if hold is None:
            self._free[day] = known
        return hold

    def _mismatch(self, subject: str, what: str) -> None:
        self._found[subject] = self.mismatches[subject] = what
        if self._told.get(subject) != what:
            self._told[subject] = what
            _log.error("proof_mismatch", subject=subject, what=what, meaning="it is not removed; run recorder verify")

    # -- and goes

    async def prune(self, plan: Plan, progress: Callable[[int], None] = lambda done: None) -> list[Doomed]:
        """Do it; what went. Compares each with what was sealed, and asks for holds again. Raises StoreError,
        KeyFault."""
        gone: list[Doomed] = []
        if plan.doomed and plan.evidence is None:
            plan.evidence = await self._evidence()
        for start in range(0, len(plan.doomed), BATCH):
            batch = plan.doomed[start : start + BATCH]
            gone += await self._remove(batch, plan.evidence)
            progress(start + len(batch))
        self._free.clear()
        if plan.over:
            _log.warning("retention_over_size", bytes=plan.over, why="the rest is held, or a rule keeps it")
        return gone

    async def remove(self, doomed: Doomed) -> bool:
        """Remove one; False where it is held after all, gone, or not what was sealed. Raises StoreError, KeyFault."""
        return bool(await self.prune(Plan([doomed])))

    async def order(self, plan: Plan) -> list[Doomed]:
        """Sign the removals and leave the rest to the recorder that runs on this store. Which. Raises StoreError,
        KeyFault."""
        if plan.doomed and plan.evidence is None:
            plan.evidence = await self._evidence()
        ready = await self._ready(plan.doomed, plan.evidence)
        if ready:
            await self._sign(ready, plan.evidence)
        return [doomed for doomed, _ in ready]

    async def _remove(self, batch: Sequence[Doomed], evidence: Evidence | None) -> list[Doomed]:
        ready = await self._ready(batch, evidence)
        act = await self._sign(ready, evidence) if ready else None
        gone: list[Doomed] = []
        for doomed, subject in ready:
            # Asked again: what was placed while the act was being signed has been told that it holds.
            stays = await self._stays(doomed, evidence)
            if not stays:
                await finish(self._store, doomed.subject)
                self.removed += 1
                _log.info("removed", subject=doomed.subject, why=doomed.why, by=self._by)
                gone.append(doomed)
            elif act is not None and self._log is not None:
                await self._log.add(Kind.REVERSAL, bare([subject]), by=self._by, why=stays, of=act.number)
                _log.warning("removal_taken_back", subject=doomed.subject)
        return gone

    async def _ready(self, batch: Sequence[Doomed], evidence: Evidence | None) -> list[tuple[Doomed, Subject]]:
        ready: list[tuple[Doomed, Subject]] = []
        for doomed in batch:
            subject = await self._prepare(doomed, evidence)
            if subject is not None and not await self._stays(doomed, evidence):
                ready.append((doomed, subject))
        return ready

    async def _sign(self, ready: Sequence[tuple[Doomed, Subject]], evidence: Evidence | None) -> Act | None:
        if self._log is None or self._log.signer is None:
            return None
        why = f"although {evidence.faults[0]}" if evidence is not None and evidence.faults else ""
        return await self._log.add(Kind.REMOVAL, [subject for _, subject in ready], by=self._by, why=why)

    async def _prepare(self, doomed: Doomed, evidence: Evidence | None) -> Subject | None:
        """What the act says of it; None where it is gone, or not what was sealed. Raises StoreError."""
        if doomed.subject.startswith("events "):
            return Subject(doomed.subject, doomed.why, fault=doomed.fault)
        if doomed.subject in self._store.lives:
            raise StoreError("the recording is not over yet")
        if not await has_bytes(stored(self._store.blobs), doomed.subject):
            return None
        try:
            if (await self._store.get(doomed.subject)).end is End.RUNNING:  # at another recorder that shares the store
                raise StoreError("the recording is not over yet")
            content = await evidence.check_recording(doomed.subject) if evidence is not None else ""
        except KeyError:
            return None
        except (MismatchError, DamagedError) as error:
            if self._despite and all(hold.match is None for hold in await self.holds.now()):
                return Subject(doomed.subject, doomed.why, fault=str(error))
            # Whose it was can't be told any more, and it may be just what a hold is of.
            more = "; and it may be what a hold is of" if self._despite else ""
            self._mismatch(doomed.subject, f"{error}{more}")
            return None
        return Subject(doomed.subject, doomed.why, content)

    async def _stays(self, doomed: Doomed, evidence: Evidence | None) -> str:
        """Why it is not to go now, "" where it is. Raises StoreError, KeyFault."""
        if doomed.recording is not None:
            hold = await self.holds.holding(doomed.recording)
            return "" if hold is None else _held(hold)
        holds = await self.holds.now()
        if doomed.fault:
            return _maybe_held(doomed.subject, holds)
        try:
            hold = await self._event_holder(doomed.subject.removeprefix("events "), holds, evidence)
        except MismatchError as error:
            self._mismatch(doomed.subject, str(error))
            return f"not as it was sealed: {error}"
        except NotSealedYetError:
            return "not sealed yet"
        return "" if hold is None else _held(hold)


def _held(hold: Hold) -> str:
    return f"held by {hold.by} ({hold.id})"


def _maybe_held(subject: str, holds: Sequence[Hold]) -> str:
    """Why what can't be read, or is not as it was sealed, stays; "" where no hold can be of it."""
    return next((_held(hold) for hold in holds if hold.may_hold(subject)), "")


def _told(mismatches: dict[str, str]) -> str | None:
    if not mismatches:
        return None
    subject, what = next(iter(mismatches.items()))
    more = f", and {len(mismatches) - 1} more" if len(mismatches) > 1 else ""
    return f"{subject} is not as it was sealed and is not removed: {what}{more}"

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
that a crash has left half done (`repair.py`). What is to go says `plan.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from recorder.crypt import stored
from recorder.model import End
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Act, Kind, Subject
from recorder.proof.evidence import Evidence, MismatchError, NotSealedYetError
from recorder.proof.keys import KeyFault, PublicKeys, Signer
from recorder.proof.register import Register
from recorder.proof.removal import bare, finish, has_bytes
from recorder.retention.heldevents import EventHolders
from recorder.retention.holds import Holds, held_by, maybe_held
from recorder.retention.mismatches import Mismatches
from recorder.retention.plan import Doomed, Plan, Planner, read_evidence
from recorder.retention.repair import Repair
from recorder.retention.rules import Rules
from recorder.store.errors import DamagedError, StoreError
from recorder.store.store import Store

_log = structlog.get_logger(__name__)

# Seconds between passes: retention is a matter of days.
EVERY = 3600.0
# Seconds between looks whether a command has signed a removal, which this recorder is to carry out.
LOOK = 30.0
# Subjects of one act of removal: enough that a year of passes is some thousand files, and few enough that a hold which
# is placed meanwhile comes in time for most of them.
BATCH = 100


class Pruner:
    """by: who removes, for the record. signer, keys: None where nothing is signed. log: of the acts, by default one of
    its own. despite: remove also while the proof has faults, and what is not as it was sealed: as somebody wants who
    has looked. removed: since the start. fault: None, or why it cannot, or that something is not as it was sealed."""

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
        self.rules = rules
        self._store = store
        self._by = by
        self._despite = despite
        keys = keys or PublicKeys([signer.public_key] if signer is not None else [])
        if log is None and len(keys):
            keys = keys.with_own(signer.id) if signer is not None else keys
            own = store.registrar
            witnesses = own.witnesses if isinstance(own, Register) else None
            log = ActLog(store.blobs, keys, signer, witnesses=witnesses, clock=clock)
        self._log = log
        self.holds = Holds(store.blobs, log)
        self._found = Mismatches()
        self._events = EventHolders(store)
        self._planner = Planner(store, self.holds, log, self._events, self._found, despite=despite, clock=clock)
        self._repair = Repair(store, self.holds, log, self._found, by=by, despite=despite)

    @property
    def mismatches(self) -> dict[str, str]:
        """What the last pass has found to be not as it was sealed, by subject."""
        return self._found.all

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
        self._found.begin()
        try:
            await self.repair()
            if not self.rules.nothing:
                await self.prune(await self.plan())
            self._found.end()
            self.fault = self._found.told
        except (StoreError, KeyFault) as error:
            if self.fault is None:
                _log.error("retention_fault", fault=str(error))
            self.fault = str(error)
        except Exception:
            _log.exception("retention_failed")
            self.fault = "retention fails; the log says why"

    async def repair(self) -> int:
        """Go on with removals that are written down and not done; how many there were. Raises StoreError, KeyFault."""
        return await self._repair.repair()

    async def plan(self) -> Plan:
        """What is to go now. Changes nothing. Raises StoreError, KeyFault."""
        return await self._planner.plan(self.rules)

    async def _evidence(self) -> Evidence | None:
        if self._log is None:
            return None
        return await read_evidence(self._store.blobs, self._log, despite=self._despite)

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
        self._events.forget()
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
            raise StoreError("the recording has not ended yet")
        if not await has_bytes(stored(self._store.blobs), doomed.subject):
            return None
        try:
            if (await self._store.get(doomed.subject)).end is End.RUNNING:  # at another recorder that shares the store
                raise StoreError("the recording has not ended yet")
            content = await evidence.check_recording(doomed.subject) if evidence is not None else ""
        except KeyError:
            return None
        except (MismatchError, DamagedError) as error:
            if self._despite and all(hold.match is None for hold in await self.holds.now()):
                return Subject(doomed.subject, doomed.why, fault=str(error))
            # Whose it was can't be told any more, and it may be just what a hold is of.
            more = "; and a hold may be for it" if self._despite else ""
            self._found.add(doomed.subject, f"{error}{more}")
            return None
        return Subject(doomed.subject, doomed.why, content)

    async def _stays(self, doomed: Doomed, evidence: Evidence | None) -> str:
        """Why it is not to go now, "" where it is. Raises StoreError, KeyFault."""
        if doomed.recording is not None:
            hold = await self.holds.holding(doomed.recording)
            return "" if hold is None else held_by(hold)
        holds = await self.holds.now()
        if doomed.fault:
            return maybe_held(doomed.subject, holds)
        try:
            hold = await self._events.holder(doomed.subject.removeprefix("events "), holds, evidence)
        except MismatchError as error:
            self._found.add(doomed.subject, str(error))
            return f"differs from what was sealed: {error}"
        except NotSealedYetError:
            return "not sealed yet"
        return "" if hold is None else held_by(hold)

"""Removals that were signed and are not done: after a crash, or because a command left them to the recorder."""

from __future__ import annotations

import structlog

from recorder.proof.actlog import ActLog
from recorder.proof.acts import Kind, Subject
from recorder.proof.evidence import Evidence, MismatchError, MissingError, NotSealedYetError
from recorder.proof.removal import Removed, finish, removals, removals_of, take_over, unfinished
from recorder.retention.heldevents import HeldEvents
from recorder.retention.holds import Holds, held_by, maybe_held
from recorder.retention.mismatches import Mismatches
from recorder.retention.plan import read_evidence
from recorder.store.errors import DamagedError
from recorder.store.store import Store

_log = structlog.get_logger(__name__)


class Repair:
    """by: who removes, for the record. despite: what is not as it was sealed may go, too."""

    def __init__(
        self, store: Store, holds: Holds, log: ActLog | None, mismatches: Mismatches, *, by: str, despite: bool
    ) -> None:
        self._store = store
        self._holds = holds
        self._log = log
        self._mismatches = mismatches
        self._by = by
        self._despite = despite
        self._repaired = False  # what is from before there were acts was looked for, once
        self._gone: set[str] = set()  # removals that are known to be done

    async def repair(self) -> int:
        """Go on with removals that are written down and not done; how many there were. Raises StoreError, KeyFault."""
        if self._log is None:
            return 0
        evidence: Evidence | None = None
        if not self._repaired:  # once: what is from before there were acts is in the manifests
            evidence = await read_evidence(self._store.blobs, self._log, despite=self._despite)
            if self._log.signer is not None:
                await take_over(self._store, self._log, evidence.chain, evidence.acts)
            known = removals(evidence.chain, evidence.acts)
        else:
            acts = await self._log.read()
            known = removals_of(acts)
        left = await unfinished(self._store.blobs, known, self._gone)
        if left and evidence is None:
            evidence = await read_evidence(self._store.blobs, self._log, despite=self._despite)
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
                    return maybe_held(subject, await self._holds.all()) or None
                hold = await HeldEvents(self._store, await self._holds.all(), evidence).holder(subject[7:])
                return None if hold is None else held_by(hold)
            if removed.fault:
                try:
                    recording = await self._store.get(subject)
                except DamagedError:
                    return maybe_held(subject, await self._holds.all()) or None
            else:
                recording = await evidence.recording(subject, removed.content)
            if recording.ended is None:
                return None
            if not removed.fault:
                await evidence.check_recording(subject)
            hold = await self._holds.holding(recording)
            return None if hold is None else held_by(hold)
        except (KeyError, MissingError):
            return None
        except NotSealedYetError:
            return ""
        except MismatchError as error:
            self._mismatches.add(subject, str(error))
            return ""

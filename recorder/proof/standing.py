"""Whether a recording is signed, and since when: for whoever looks at it. Its bytes are not compared; `verify` does.

    open             it is not over
    ok               it was signed when it ended, and the manifest of a day lists it
    not sealed yet   no manifest lists it yet, and none should
    signed late      it was signed at another time than its end
    unknown          nobody signed it when it ended

The rules are those of `verify` (they stand here for both). What it takes is one manifest nearly always, that of the day
on which the recording ended, and the entries of registers that no manifest has taken over. Both stay in memory as far
as they are needed again: ids with their origins.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from recorder.model import Recording, id_day
from recorder.proof.days import day_end, day_of, is_day
from recorder.proof.documents import (
    DAYS,
    FOUND,
    JOURNAL,
    REGISTER,
    UNSIGNED,
    Manifest,
    Sealed,
    read_entry,
    read_manifest,
)
from recorder.proof.handover import MANIFESTS, KeyHistory, read_handovers, register_chain
from recorder.proof.keys import PublicKeys
from recorder.proof.report import Finding, Status
from recorder.proof.signed import ForgedError, signed_by
from recorder.store.blobs import Blobs

# Seconds that the signature of what has ended may take: the recorder signs at once, or as soon as its store is well.
SIGNING = 300.0
# Manifests that are kept in memory: people look at sessions of a few days.
_MANIFESTS = 16
# Manifests that are looked through for one recording, from the day on which it ended: one that came later is rare.
_FAR = 32

ORIGINS = {
    UNSIGNED: "it was not signed when it ended: the recorder did not put it there, or could not sign it",
    JOURNAL: "its end was signed at a start of the recorder, out of the journal",
    FOUND: "it was there when the recorder began to keep a register, and was signed then",
}


def ended_day(identifier: str, ended: float) -> str:
    """The day on which it counts as ended: not before the day of its id, whatever its recording.json says."""
    return day_of(max(ended, day_end(id_day(identifier)) - 86400))


def lateness(sealed: Sealed, manifest: Manifest) -> str:
    """What tells that it was not signed when it ended, "" where it was."""
    day = ended_day(sealed.id, sealed.ended)
    if manifest.registers is None and day < manifest.day:
        return f"it ended on {day}, and the manifest of {manifest.day} is the first to list it"
    return ORIGINS.get(sealed.origin, "")


def listed(origin: str, day: str, detail: str) -> Status:
    """Of one that is signed, and that is as it was. day: of the manifest that lists it, "" where none does."""
    if origin == UNSIGNED:
        return Status.UNKNOWN
    if not day:
        return Status.UNSEALED
    return Status.LATE if detail else Status.OK


def unlisted(identifier: str, ended: float, *, last_day: str, signs: bool, now: float) -> tuple[Status, str]:
    """Of one that is over and that neither a manifest nor a register lists. last_day: of the last manifest. signs:
    whether there are registers."""
    day = ended_day(identifier, ended)
    if last_day and day <= last_day:
        return Status.UNKNOWN, f"it ended on {day}, and that day is sealed without it"
    if not signs:
        return Status.UNSEALED, ""
    if now - max(ended, day_end(id_day(identifier)) - 86400) < SIGNING:
        return Status.UNSEALED, "it ended just now, and is not signed yet"
    return Status.UNKNOWN, ORIGINS[UNSIGNED]


@dataclass(frozen=True, slots=True)
class _Day:
    """What is kept of a manifest: of each recording its origin, and what tells that it was late."""

    recordings: dict[str, tuple[str, str]]
    signs: bool


class Standings:
    """raw: the blobs as stored. keys: what to believe."""

    def __init__(self, raw: Blobs, keys: PublicKeys, *, clock: Callable[[], float] = time.time) -> None:
        self._raw = raw
        self._keys = keys
        self._clock = clock
        self._days: OrderedDict[str, _Day] = OrderedDict()
        self._entries: dict[str, dict[str, str]] = {}  # file -> id -> origin
        self._lock = asyncio.Lock()

    async def of(self, recording: Recording) -> Finding | None:
        """None where it cannot be told from what is at hand. Raises StoreError."""
        if recording.ended is None:
            return Finding(recording.id, Status.OPEN)
        async with self._lock:
            return await self._of(recording.id, recording.ended)

    async def _of(self, identifier: str, ended: float) -> Finding | None:
        # The registers first: what a seal takes out of them meanwhile is in the manifest that is read then.
        history, _, _ = await read_handovers(self._raw, self._keys)
        entries = await self._read_entries(history)
        days = [name.removesuffix(".json") async for name, _ in self._raw.names(DAYS)]
        days = [day for day in days if is_day(day)]
        after = [day for day in days if day >= ended_day(identifier, ended)]
        for day in after[:_FAR]:
            found = await self._day(history, day)
            if found is None:
                return None  # `verify` tells what is wrong with it
            if identifier in found.recordings:
                origin, detail = found.recordings[identifier]
                return Finding(identifier, listed(origin, day, detail), detail, day)
        for recordings in entries.values():
            if (signed := recordings.get(identifier)) is not None:
                return Finding(identifier, listed(signed, "", ""), ORIGINS.get(signed, ""))
        if len(after) > _FAR:
            return None
        last = await self._day(history, days[-1]) if days else None
        signs = bool(entries) or (last is not None and last.signs)
        last_day = days[-1] if days else ""
        return Finding(identifier, *unlisted(identifier, ended, last_day=last_day, signs=signs, now=self._clock()))

    async def _day(self, history: KeyHistory, day: str) -> _Day | None:
        """None for a manifest that is gone, or is not to be believed."""
        if (found := self._days.get(day)) is not None:
            self._days.move_to_end(day)
            return found
        try:
            data = await self._raw.get(f"{DAYS}/{day}.json")
            manifest = await asyncio.to_thread(read_manifest, data, self._keys)
        except (KeyError, ForgedError):
            return None
        if manifest.day != day or not history.may_sign(signed_by(data), MANIFESTS, manifest.number):
            return None
        recordings = {one.id: (one.origin, lateness(one, manifest)) for one in manifest.recordings}
        found = self._days[day] = _Day(recordings, manifest.registers is not None)
        if len(self._days) > _MANIFESTS:
            self._days.popitem(last=False)
        return found

    async def _read_entries(self, history: KeyHistory) -> dict[str, dict[str, str]]:
        there: dict[str, dict[str, str]] = {}
        for name in [name.rstrip("/") async for name, _ in self._raw.names(REGISTER)]:
            for file in [file async for file, _ in self._raw.names(f"{REGISTER}/{name}")]:
                key = f"{REGISTER}/{name}/{file}"
                if (known := self._entries.get(key)) is None:
                    known = await self._entry(history, name, key)
                if known is not None:
                    there[key] = known
        self._entries = there
        return there

    async def _entry(self, history: KeyHistory, name: str, key: str) -> dict[str, str] | None:
        try:
            data = await self._raw.get(key)
            entry = await asyncio.to_thread(read_entry, data, self._keys)
        except (KeyError, ForgedError):
            return None
        if entry.name != name or not history.may_sign(signed_by(data), register_chain(name), entry.number):
            return None
        return {one.id: one.origin for one in entry.recordings}

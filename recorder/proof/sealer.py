"""The task that seals days: once a day (UTC) is over, and some time has passed, its manifest is signed and put.

A day's manifest lists what ended on that day, as the register has signed it (recorder/proof/register.py), and not as it
is in the store by then; what is not the same any more is told, and `verify` finds it for ever. What ended earlier and
was not in the store in time (its store was away, its recorder was down) is listed in the next manifest. What nobody has
signed is listed as it is found, and as that: it was put into the store by somebody else, or while there was no key.

Sealing may begin anew at any moment. A manifest is put whole or not at all, a pass finds out by itself which days are
due, and after days of downtime each of them gets its manifest. It names the last act (acts.py) that was signed by then.
Only then entries of registers that it lists are forgotten.

One recorder seals one store: of several that share an object store, all but one have `proof.sealDays: false`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from recorder.crypt import stored
from recorder.model import Recording, id_day, is_id, new_id
from recorder.proof.actlog import ActLog
from recorder.proof.chain import Chain
from recorder.proof.days import day_end, day_of, is_day, next_day
from recorder.proof.documents import (
    CHUNKS,
    DAYS,
    LATE,
    NOTHING,
    REGISTER,
    UNSIGNED,
    Accepted,
    Manifest,
    Part,
    Sealed,
    chunks,
    entry_file,
    manifest_file,
    write_manifest,
)
from recorder.proof.found import seal
from recorder.proof.handover import ACTS, MANIFESTS
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.parts import differs, hash_of, look
from recorder.proof.register import Register
from recorder.proof.registers import Registers, read_both
from recorder.proof.removal import take_over
from recorder.proof.signed import digest
from recorder.proof.witness import missing
from recorder.store.errors import StoreError
from recorder.store.manifest import MANIFEST, folder, manifest_key, read_manifest
from recorder.store.store import Store

_log = structlog.get_logger(__name__)

# Seconds after midnight: an object store that was away, and events that wait for a chunk, have that long.
DELAY = 3600.0
# Seconds between looks whether a day is due.
LOOK = 300.0
# Days that one pass makes up for at most; more than ten years are a clock that was wrong.
_MOST_DAYS = 3700


@dataclass(slots=True)
class _Found:
    """What no manifest has yet, and the end of which (unix seconds) is past. signed, parts: what the registers say of
    it; nothing of what nobody has signed."""

    recordings: dict[str, float] = field(default_factory=dict)
    chunks: dict[str, str] = field(default_factory=dict)  # key -> day
    signed: dict[str, Sealed] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)


class Sealer:
    """keys: public keys of before, besides the signer's own. acts: their log, by default one of its own; whoever signs
    acts beside the sealer in this process should use the same one. register: by default the store's. delay: seconds.
    sealed: days in this process. last_day: the last one that is sealed, "" before that is known. fault: None, or why it
    can't seal."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        *,
        keys: PublicKeys | None = None,
        acts: ActLog | None = None,
        register: Register | None = None,
        delay: float = DELAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.fault: str | None = None
        self.last_day = ""
        self.sealed = 0
        self._store = store
        self._raw = stored(store.blobs)
        self._signer = signer
        self._keys = (keys if keys is not None else PublicKeys([signer.public_key])).with_own(signer.id)
        if register is None:
            own = store.registrar
            register = own if isinstance(own, Register) else Register(store.blobs, signer, keys=self._keys, clock=clock)
        self._register = register
        self._acts = (
            acts
            if acts is not None
            else ActLog(store.blobs, self._keys, signer, witnesses=register.witnesses, clock=clock)
        )
        self._delay = delay
        self._clock = clock
        self._tried_day = ""

    async def run(self) -> None:
        """Seal until cancelled."""
        while True:
            try:
                await self.seal_due()
                self.fault = None
            except (StoreError, KeyFault) as error:
                self._failed(str(error))
            except Exception:
                _log.exception("sealing_failed")
                self.fault = "sealing fails; the log says why"
            await asyncio.sleep(LOOK)

    def _failed(self, fault: str) -> None:
        if self.fault is None:
            _log.error("sealing_fault", fault=fault)
        self.fault = fault

    async def seal_due(self) -> list[str]:
        """Seal all days that are due; which were. Raises StoreError, KeyFault."""
        due = day_of(self._clock() - self._delay - 86400)  # the last day that is
        if self._tried_day == due:
            return []
        await self._register.open()
        await self._register.settled()
        if not await self._is_settled(day_end(due)):
            raise StoreError(
                f"not all recordings that ended by {due} are completely in the store, so that day is not sealed yet"
            )
        chain, registers = await read_both(self._raw, self._keys)
        await self._check(chain, registers)
        await take_over(self._store, self._acts, chain, await self._acts.read())
        self.last_day = chain.last_day
        if chain.last_day >= day_of(self._clock()):
            # What ends until then is on days that are sealed without it, and somebody should know.
            raise StoreError(
                f"{chain.last_day} is sealed, but by this clock that day is not over: the clock is wrong now, or was "
                "wrong then"
            )
        days: list[str] = []
        if chain.last_day < due:
            found = await self._find(chain, registers, due)
            day = next_day(chain.last_day) if chain.last_day else _first_day(found)
            while day and day <= due and len(days) < _MOST_DAYS:
                await self._seal(chain, registers, found, day)
                days.append(day)
                day = next_day(day)
        await self._forget_entries(chain)
        self._tried_day = due
        return days

    async def _is_settled(self, until: float) -> bool:
        """Whether everything that ended or came before that moment is in the store."""
        if any(live.over and (live.ended or 0.0) < until for live in self._store.lives.values()):
            return False
        if self._register.waits_for(until):
            return False
        await self._store.eventlog.drain(before=new_id(until)[:10])
        return self._store.eventlog.fault is None

    async def _check(self, chain: Chain, registers: Registers) -> None:
        for fault in [*chain.faults, *registers.faults]:
            _log.error("proof_fault", fault=fault)
        if chain.strange:
            # What those list would be taken for unlisted, and be sealed a second time.
            raise KeyFault("manifests are signed with a key that is not among the public keys")
        if not chain.keys.may_sign(self._signer.id, MANIFESTS, (chain.last.number if chain.last else 0) + 1):
            raise KeyFault(f"the key {self._signer.id} is not the current key: {chain.keys.current} is")
        if self._register.anchor_fault is not None:
            # Sealing on would give the store a fresh and sound chain in the place of the one that is gone.
            raise KeyFault(self._register.anchor_fault)
        head = await self._register.witnesses.known(MANIFESTS)
        if head is not None and not chain.holds(head):
            raise KeyFault(missing(MANIFESTS, head))

    # -- what there is

    async def _find(self, chain: Chain, registers: Registers, due: str) -> _Found:
        """What no manifest has, and ended by the end of the day `due`: what was signed when it ended, and what is in
        the store all the same."""
        listed = {sealed.id for manifest in chain.manifests for sealed in manifest.recordings}
        found, until = _Found(), day_end(due)
        found.signed = {one.id: one for one in registers.recordings.values() if one.id not in listed}
        for sealed in found.signed.values():
            if (ended := _ended(sealed.id, sealed.ended)) < until:
                found.recordings[sealed.id] = ended
        oldest = day_end(chain.last_day) - LATE * 86400 if chain.last_day else 0.0
        for day in [name.rstrip("/") async for name, _ in self._raw.names("recordings")]:
            if not is_day(day) or day > due:
                continue
            for name in [name.rstrip("/") async for name, _ in self._raw.names(f"recordings/{day}")]:
                if not is_id(name) or id_day(name) != day or name in listed or name in found.signed:
                    continue
                recording = await self._recording(name)
                if recording is None or recording.ended is None:
                    continue
                if (ended := _ended(name, recording.ended)) < oldest:
                    _log.error("recording_too_late_to_seal", recording=name)
                elif ended < until:
                    found.recordings[name] = ended
        known = {name for manifest in chain.manifests for name, _ in chunks(manifest)}
        for key, part in registers.chunks.items():
            if key not in known and (day := key.split("/")[1]) <= due:
                found.chunks[key], found.parts[key] = day, part
        for top in CHUNKS:
            for day in [name.rstrip("/") async for name, _ in self._raw.names(top)]:
                if is_day(day) and day <= due and day_end(day) >= oldest:
                    for name in [name async for name, _ in self._raw.names(f"{top}/{day}")]:
                        if is_id(name.removesuffix(".chunk")) and f"{top}/{day}/{name}" not in known:
                            found.chunks.setdefault(f"{top}/{day}/{name}", day)
        return found

    async def _recording(self, identifier: str) -> Recording | None:
        try:
            return read_manifest(await self._store.blobs.get(manifest_key(identifier)), identifier).recording
        except KeyError:
            return None  # not over
        except StoreError as error:
            if await self._is_there(identifier):
                _log.error("recording_not_sealed", recording=identifier, why=str(error))
                return None
            raise

    async def _is_there(self, identifier: str) -> bool:
        """Whether it can be read at all, so that it is to blame and not the store. Raises StoreError."""
        return MANIFEST in [name async for name, _ in self._raw.names(folder(identifier))]

    # -- one day

    async def _seal(self, chain: Chain, registers: Registers, found: _Found, day: str) -> None:
        until = day_end(day)
        recordings: list[Sealed] = []
        for identifier in sorted(name for name, ended in found.recordings.items() if ended < until):
            del found.recordings[identifier]
            if (sealed := await self._seal_recording(identifier, found.signed.get(identifier))) is not None:
                recordings.append(sealed)
        parts: dict[str, list[Part]] = {top: [] for top in CHUNKS}
        unsigned: list[str] = []
        for key in sorted(key for key, its_day in found.chunks.items() if its_day <= day):
            del found.chunks[key]
            part = found.parts.get(key)
            if part is None:
                unsigned.append(key)
                try:
                    data = await self._raw.get(key)
                except KeyError:
                    continue
                part = Part(key.partition("/")[2], len(data), await hash_of(data))
            parts[key.partition("/")[0]].append(part)
        manifest = Manifest(
            number=chain.last.number + 1 if chain.last else 1,
            day=day,
            previous=chain.last.sha256 if chain.last else NOTHING,
            sealed=self._clock(),
            recordings=tuple(recordings),
            events=tuple(parts["events"]),
            looks=tuple(parts["looks"]),
            acts=await self._last_act(),
            unsigned=tuple(unsigned),
            accepted=_accepted(chain, registers),
        )
        manifest = replace(manifest, registers=_taken_over([*chain.manifests, manifest], registers))
        data = await asyncio.to_thread(write_manifest, manifest, self._signer)
        if f"{day}.json" in {name async for name, _ in self._raw.names(DAYS)}:
            raise StoreError("another recorder also seals this store")
        await self._raw.put(manifest_file(day), data)
        chain.last = Anchor(manifest.number, digest(data))
        chain.manifests.append(manifest)
        chain.last_day = self.last_day = day
        chain.hashes[manifest.number] = chain.last.sha256
        await self._register.remember(MANIFESTS, chain.last)
        self.sealed += 1
        # The log goes elsewhere than the store, so this line too is a memory of how the chain was.
        _log.info(
            "day_sealed",
            day=day,
            number=manifest.number,
            sha256=chain.last.sha256,
            recordings=len(recordings),
            events=len(manifest.events),
            looks=len(manifest.looks),
            acts=manifest.acts.number if manifest.acts is not None else 0,
        )

    async def _last_act(self) -> Anchor:
        acts = await self._acts.read()
        for fault in acts.faults:
            _log.error("proof_fault", fault=fault)
        remembered = await self._register.witnesses.known(ACTS)
        if remembered is not None and not acts.has(remembered):
            # A manifest that names an earlier one would make the end of the chain look as if it had never been.
            raise KeyFault(missing(ACTS, remembered))
        return acts.last

    async def _seal_recording(self, identifier: str, signed: Sealed | None) -> Sealed | None:
        """What was signed when it ended, and what is wrong with it by now; or what is there."""
        if signed is None:
            sealed = await seal(self._store.blobs, identifier, UNSIGNED)
            if sealed is not None:
                _log.error("recording_not_signed", recording=identifier)
            return sealed
        if signed.fault:
            return signed
        looked = await look(self._store.blobs, identifier)
        if fault := differs(signed.parts, looked.parts) if looked.parts else "":
            _log.error("recording_faulty_when_sealed", recording=identifier, fault=fault)
        return signed

    async def _forget_entries(self, chain: Chain) -> None:
        """The entries of registers that manifests have taken over."""
        bases: dict[str, Anchor] = {}
        for manifest in chain.manifests:
            bases |= manifest.registers or {}
        for name, base in bases.items():
            for file in [file async for file, _ in self._raw.names(f"{REGISTER}/{name}")]:
                digits = file.removesuffix(".json")
                if digits.isascii() and digits.isdigit() and int(digits) <= base.number:
                    await self._raw.delete([entry_file(name, int(digits))])


def _ended(identifier: str, ended: float) -> float:
    """A clock that ran ahead when it began and was put right by its end has not ended it before its day."""
    return max(ended, day_end(id_day(identifier)) - 86400)


def _accepted(chain: Chain, registers: Registers) -> tuple[Accepted, ...]:
    known = [accepted for manifest in chain.manifests for accepted in manifest.accepted]
    return tuple(accepted for accepted in registers.accepted if accepted not in known)


def _taken_over(manifests: Sequence[Manifest], registers: Registers) -> dict[str, Anchor]:
    """Of each register the last entry up to which everything is in a manifest."""
    names = {sealed.id for manifest in manifests for sealed in manifest.recordings}
    names |= {name for manifest in manifests for name, _ in chunks(manifest)}
    return {name: state.taken_over(names.__contains__) for name, state in registers.states.items()}


def _first_day(found: _Found) -> str:
    days = [day_of(ended) for ended in found.recordings.values()] + list(found.chunks.values())
    return min(days, default="")

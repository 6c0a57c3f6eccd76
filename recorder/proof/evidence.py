"""What is sealed of a store, read once, to hold against it what is to be removed.

Whoever can write to the store can change what a rule is judged by: a name in recording.json, an event in a chunk. So
nothing is judged by what stands there before its bytes are those of the manifest, and nothing that is sealed is removed
before all of it was compared. What does not fit stays, and somebody has to look at it.

`faults` are of the chains themselves: of manifests, of acts, and of both together. With one of them nobody can tell
what was sealed, so nothing is removed at all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from recorder.crypt import EncryptedBlobs, stored
from recorder.model import Recording, id_day
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Acts, compare
from recorder.proof.chain import Chain
from recorder.proof.days import day_end, day_of
from recorder.proof.documents import LATE, UNSIGNED, Part, Sealed
from recorder.proof.handover import MANIFESTS
from recorder.proof.parts import hash_of
from recorder.proof.registers import read_both
from recorder.proof.removal import old_removals
from recorder.proof.witness import missing
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError
from recorder.store.manifest import MANIFEST, folder, manifest_key, read_manifest


class MismatchError(Exception):
    """Something is not what was sealed. The message says what of it."""


class MissingError(MismatchError):
    """Some of it is gone."""


class NotSealedYetError(Exception):
    """It is not sealed, and will be: nothing is wrong."""


@dataclass(slots=True)
class Evidence:
    """blobs: with their decryption. sealed, events: what manifests and registers list, by id and by DAY/NAME. unsigned:
    what manifests list although nobody had signed it, by id and by "events/DAY/NAME". signs: whether all is signed when
    it ends. faults: see above."""

    blobs: Blobs
    chain: Chain
    acts: Acts
    faults: list[str]
    sealed: Mapping[str, Sealed] = field(default_factory=dict)
    events: Mapping[str, Part] = field(default_factory=dict)
    unsigned: frozenset[str] = frozenset()
    signs: bool = False

    @classmethod
    async def read(cls, blobs: Blobs, log: ActLog) -> Evidence:
        """All of it. Raises StoreError, KeyFault."""
        # What is remembered is asked for before what is there is read: a day may be sealed meanwhile.
        anchor = await log.witnesses.known(MANIFESTS)
        chain, registers = await read_both(stored(blobs), log.keys)
        acts = await log.read()
        faults = [*chain.faults, *registers.faults, *acts.faults, *compare(acts, chain.manifests, chain.hashes)]
        faults += old_removals(chain, acts)[1]
        if anchor is not None and not chain.holds(anchor):
            faults.append(missing(MANIFESTS, anchor))
        return cls(
            blobs,
            chain,
            acts,
            faults,
            registers.recordings | {one.id: one for manifest in chain.manifests for one in manifest.recordings},
            {
                name.removeprefix("events/"): part
                for name, part in registers.chunks.items()
                if name.startswith("events/")
            }
            | {part.name: part for manifest in chain.manifests for part in manifest.events},
            frozenset(
                name
                for manifest in chain.manifests
                for name in (*manifest.unsigned, *(one.id for one in manifest.recordings if one.origin == UNSIGNED))
            ),
            registers.there,
        )

    def need_whole(self) -> None:
        """Raises StoreError where the chains have a fault."""
        if self.faults:
            more = f", and {len(self.faults) - 1} more" if len(self.faults) > 1 else ""
            raise StoreError(f"nothing is removed, because the proof has a fault: {self.faults[0]}{more}")

    def need_signed(self, name: str) -> None:
        """A manifest lists also what it has found and nobody has signed: that it was there then, and no more. Raises
        MismatchError for that, by an id or by "events/DAY/NAME"."""
        if name in self.unsigned:
            raise MismatchError(f"{name!a} was not signed when it arrived: it was put there, or could not be signed")

    async def recording(self, identifier: str, content: str = "") -> Recording:
        """What recording.json says, out of the very bytes that are sealed. content: the hash of those bytes, where
        something else that is signed says it. Raises KeyError where there is none, MismatchError, NotSealedYetError,
        StoreError where it cannot be read."""
        key = manifest_key(identifier)
        data = await stored(self.blobs).get(key)
        sealed = self.sealed.get(identifier)
        if sealed is not None:
            content = next((part.sha256 for part in sealed.parts if part.name == MANIFEST), "none")
        if content and content != await hash_of(data):
            raise MismatchError(f"{MANIFEST} is not what was sealed")
        plain = await self.blobs.unseal(key, data) if isinstance(self.blobs, EncryptedBlobs) else data
        recording = read_manifest(plain, identifier).recording
        if not content:
            ended = max(recording.ended or 0.0, day_end(id_day(identifier)) - 86400)
            self._wait(day_of(ended), "it ended on")
        return recording

    def _wait(self, day: str, what: str) -> None:
        """What is not sealed waits until it is, or has missed that. Where no day has been sealed ever, there is nothing
        to wait for. Raises NotSealedYetError, MismatchError."""
        last = self.chain.last_day
        if not last:
            if self.signs:
                raise NotSealedYetError  # nobody has signed it, and the seal of its day will say so
            return
        if day > last or day_end(day) >= day_end(last) - LATE * 86400:
            raise NotSealedYetError
        raise MismatchError(f"{what} {day}, and that day is sealed without it")

    def size(self, identifier: str) -> int | None:
        """Bytes of a recording as sealed; None for one that is not."""
        sealed = self.sealed.get(identifier)
        return None if sealed is None else sum(part.size for part in sealed.parts)

    async def check_recording(self, identifier: str) -> str:
        """Compare all that is there of a recording; the hash of its recording.json as stored, "" where there is none.
        Raises MismatchError, StoreError."""
        raw, prefix = stored(self.blobs), folder(identifier)
        sealed = self.sealed.get(identifier)
        there = {name: size async for name, size in raw.names(prefix)}
        if sealed is None:
            return await hash_of(await raw.get(f"{prefix}/{MANIFEST}")) if MANIFEST in there else ""
        content = ""
        for part in sealed.parts:
            if part.name not in there:
                raise MissingError(f"{part.name} is missing")
            await self._check_part(f"{prefix}/{part.name}", part)
            content = part.sha256 if part.name == MANIFEST else content
        if extra := sorted(set(there) - {part.name for part in sealed.parts}):
            raise MismatchError(f"{extra[0]!a} was not there when it was sealed")
        return content

    async def _check_part(self, key: str, part: Part) -> bytes:
        try:
            data = await stored(self.blobs).get(key)
        except KeyError:
            raise MissingError(f"{part.name} is missing") from None
        if len(data) != part.size or await hash_of(data) != part.sha256:
            raise MismatchError(f"{part.name} is not what was sealed")
        return data

    async def event_chunks(self, day: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """The chunks of API events of a day, by name, decrypted: each that is sealed, and no other on a sealed day.
        Raises MismatchError, NotSealedYetError, StoreError."""
        raw, prefix = stored(self.blobs), f"events/{day}"
        there = [name async for name, _ in raw.names(prefix)]
        wanted = {name.partition("/")[2]: part for name, part in self.events.items() if name.startswith(f"{day}/")}
        for name in there:
            if name not in wanted:
                self._wait(day, f"{name!a} is of")
        for name in sorted({*there, *wanted}):
            key = f"{prefix}/{name}"
            self.need_signed(key)
            try:
                data = await self._check_part(key, wanted[name]) if name in wanted else await raw.get(key)
            except KeyError:
                continue  # gone meanwhile
            yield name, await self.blobs.unseal(key, data) if isinstance(self.blobs, EncryptedBlobs) else data


__all__ = ["Evidence", "MismatchError", "MissingError", "NotSealedYetError"]

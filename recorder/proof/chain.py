"""All manifests of a store, in the order of their days, and what is wrong with them.

Each must be signed, stand under its own day, follow the day before without a gap, have the number behind the one before
and its hash as `previous`. A manifest that fails its signature is not believed, and its file's hash is still what the
next one is held against: so one that was replaced is told at both places.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from recorder.proof.days import is_day, next_day
from recorder.proof.documents import (
    DAYS,
    KEYS,
    NOTHING,
    REMOVALS,
    Manifest,
    Removal,
    manifest_file,
    read_manifest,
    read_removal,
)
from recorder.proof.handover import MANIFESTS, KeyHistory, read_handovers
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, parse_public_key
from recorder.proof.signed import ForgedError, UnknownKeyError, digest, signed_by
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError


@dataclass(slots=True)
class Chain:
    """manifests: those that are believed. faults: a sentence each. last: the last file's number and hash, None without
    any. first_day, last_day: of the files that are there, "" without any. hashes: of all files, by number.
    removals: those that wait for the next manifest, by subject. strange: a manifest is by a key that was not given.
    keys: which key may sign what."""

    manifests: list[Manifest] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last: Anchor | None = None
    first_day: str = ""
    last_day: str = ""
    hashes: dict[int, str] = field(default_factory=dict)
    removals: dict[str, Removal] = field(default_factory=dict)
    strange: bool = False
    keys: KeyHistory = field(default_factory=KeyHistory)

    def holds(self, anchor: Anchor) -> bool:
        """Whether the manifest that was sealed then is here now."""
        return self.hashes.get(anchor.number) == anchor.sha256


async def read_chain(raw: Blobs, keys: PublicKeys) -> Chain:
    """All of it. raw: the blobs as stored. Raises StoreError."""
    chain = Chain()
    chain.keys, faults, chain.strange = await read_handovers(raw, keys)
    chain.faults += faults
    names = [name async for name, _ in raw.names(DAYS)]
    for name in names:
        day = name.removesuffix(".json")
        if not name.endswith(".json") or not is_day(day):
            chain.faults.append(f"{DAYS}/{name!a} is not one of the recorder's files")
            continue
        await _read_day(raw, keys, chain, day)
    chain.keys.close()
    if chain.keys.fault:
        chain.faults.append(chain.keys.fault)
    if keys.own and chain.keys.current not in ("", keys.own):
        chain.faults.append(
            f"the current key is {chain.keys.current}, not {keys.own}, which was given as the current one"
        )
    chain.removals, faults = await _read_removals(raw, keys, chain.keys)
    chain.faults += faults
    return chain


async def _read_day(raw: Blobs, keys: PublicKeys, chain: Chain, day: str) -> None:
    try:
        data = await raw.get(manifest_file(day))
    except KeyError:
        raise StoreError("a manifest disappeared while it was read") from None
    faults = chain.faults
    expected = (chain.last.number if chain.last else 0) + 1
    previous = chain.last.sha256 if chain.last else NOTHING
    if chain.last_day and (missing := next_day(chain.last_day)) != day:
        until = "" if next_day(missing) == day else f" to the day before {day}"
        faults.append(f"the manifest of {missing}{until} is missing")
    number = expected
    try:
        # A busy day's has megabytes, and this may run beside what comes in.
        manifest = await asyncio.to_thread(read_manifest, data, keys)
        _check_key(chain.keys, manifest, signed_by(data))
    except ForgedError as error:
        faults.append(f"the manifest of {day} is not trusted: {error}")
        chain.strange = chain.strange or isinstance(error, UnknownKeyError)
    else:
        number = manifest.number
        if manifest.day != day:
            faults.append(f"the file of {day} holds the manifest of {manifest.day}")
        if manifest.number != expected:
            faults.append(f"the manifest of {day} has the number {manifest.number}, expected {expected}")
        if manifest.previous != previous:
            before = "the manifest before it is not the one" if chain.last else "a manifest before it is missing"
            faults.append(f"the chain is broken at {day}: {before} that it was sealed after")
        chain.manifests.append(manifest)
    chain.last = Anchor(number, digest(data))
    chain.hashes[number] = chain.last.sha256
    chain.first_day = chain.first_day or day
    chain.last_day = day


def _check_key(history: KeyHistory, manifest: Manifest, key: str) -> None:
    if manifest.registers is None:
        allowed = history.old_manifest(key, manifest.number)
    else:
        history.close()
        allowed = history.signed(key, MANIFESTS, manifest.number)
    if not allowed:
        raise ForgedError(f"it is signed with the key {key}, which was not the current key then")


async def last_manifest(raw: Blobs, keys: PublicKeys) -> Anchor:
    """The newest one that is signed, by what is there: whether the chain holds is not asked. Number 0 without any.
    Raises StoreError."""
    names = [name async for name, _ in raw.names(DAYS)]
    for name in reversed(names):
        if is_day(name.removesuffix(".json")):
            try:
                data = await raw.get(f"{DAYS}/{name}")
                return Anchor((await asyncio.to_thread(read_manifest, data, keys)).number, digest(data))
            except (KeyError, ForgedError):
                continue
    return Anchor(0, NOTHING)


async def _read_removals(raw: Blobs, keys: PublicKeys, history: KeyHistory) -> tuple[dict[str, Removal], list[str]]:
    """Removals that stand as files, by subject, and what is wrong with others. They have no number, so only the key in
    force may have signed them. Raises StoreError."""
    removals: dict[str, Removal] = {}
    faults: list[str] = []
    for name in [name async for name, _ in raw.names(REMOVALS)]:
        try:
            data = await raw.get(f"{REMOVALS}/{name}")
            removal, key = read_removal(data, keys), signed_by(data)
            if history.current not in ("", key):
                raise ForgedError(f"it is signed with the key {key}, which is not the current key")
        except KeyError:
            continue  # taken over meanwhile
        except ValueError:
            faults.append(f"{REMOVALS}/{name!a} is not one of the recorder's files")
            continue
        except ForgedError as error:
            faults.append(f"the removal {name!a} is not trusted: {error}")
            continue
        removals[removal.subject] = removal
    return removals, faults


async def stored_keys(raw: Blobs) -> PublicKeys:
    """The public keys that the recorder has left in the store. Whoever can change the store can change them."""
    keys = []
    for name in [name async for name, _ in raw.names(KEYS)]:
        try:
            keys.append(parse_public_key(await raw.get(f"{KEYS}/{name}"), f"{KEYS}/{name}"))
        except (KeyError, ValueError, KeyFault):
            continue
    return PublicKeys(keys)

"""Legal holds: what must not be removed, whatever the rules say. Kept in the store, beside the recordings.

A hold is a blob holds/ID.json: of one recording, or of everything that matches, present and to come. The bytes are put
for good before `add` returns, and they are asked for right before each removal; so a hold that was placed while a
removal was being considered counts.

What is held is held in all its parts: the recording, its row in the index, and each day of API events that has one of
the held session or of whom the hold names (recorder/retention/heldevents.py).

Where there is a key to sign with, placing a hold and releasing it are acts (recorder/proof/acts.py), and the act of a
hold is bound to the bytes of its file:

    file                        act                        it is
    there, as signed            held                       a signed hold
    there                       none                       an unsigned hold: it holds as well, and whoever can write to
                                                           the store can take it away
    there, as it was            released                   left over: it holds nothing
    changed, or gone            held                       a fault: nothing at all is removed

A hold that cannot be read holds everything: whatever it was for, it was put there so that something stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from k8sproxy.common.states import State, table
from recorder.crypt import EncryptedBlobs, stored
from recorder.model import Recording, is_id
from recorder.proof.actlog import ActLog
from recorder.proof.acts import HOLDS, Acts, Kind, Subject
from recorder.proof.keys import KeyFault
from recorder.proof.signed import digest
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

# Characters of a reason: a case number and a sentence.
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Match:
    """Which recordings: every field that is not empty holds for it, by one of its globs (* and ?, in their own
    case). The empty match is all."""

    clusters: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    session_types: tuple[str, ...] = ()

    def holds_for(self, recording: Recording) -> bool:
        """Whether it is one of them."""
        return (
            fits(self.clusters, recording.cluster)
            and fits(self.namespaces, recording.namespace)
            and fits(self.users, recording.user)
            and fits(self.session_types, recording.session_type)
        )

    def values(self) -> dict[str, Any]:
        """As JSON values; empty fields are left out."""
        values = {
            "clusters": list(self.clusters),
            "namespaces": list(self.namespaces),
            "users": list(self.users),
            "sessionTypes": list(self.session_types),
        }
        return {name: globs for name, globs in values.items() if globs}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Match:
        """From JSON values. Raises ValueError, KeyError, TypeError."""
        if not isinstance(value, dict) or not set(value) <= {"clusters", "namespaces", "users", "sessionTypes"}:
            raise ValueError("not a match")
        return cls(*(_globs(value.get(name, [])) for name in ("clusters", "namespaces", "users", "sessionTypes")))


def fits(globs: tuple[str, ...], text: str) -> bool:
    """Whether one of the globs is the text's, or there are none."""
    return not globs or any(fnmatchcase(text, glob.replace("[", "[[]")) for glob in globs)


def _globs(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError("not a list of globs")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. at: unix seconds, when it was placed. match: None where it is of one recording. recording: its id; ""
    in a hold from before holds had ids of their own, which has the recording's. signed: an act says so."""

    id: str
    at: float
    by: str
    reason: str
    match: Match | None = None
    recording: str = ""
    signed: bool = False

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        match = None if self.match is None else self.match.values()
        recording = {"recording": self.recording} if self.recording else {}
        return {"id": self.id, "at": self.at, "by": self.by, "reason": self.reason, "match": match} | recording

    @property
    def held(self) -> str:
        """The id of the recording that it holds, "" where it holds what matches."""
        return (self.recording or self.id) if self.match is None else ""

    def holds(self, recording: Recording) -> bool:
        """Whether it holds this one."""
        return recording.id == self.held if self.match is None else self.match.holds_for(recording)

    def may_hold(self, subject: str) -> bool:
        """Whether it may hold a recording of which no more than the id can be told, or a day of events like that."""
        return self.match is not None or subject == self.held or subject.startswith("events ")


class Standing(State):
    """What a hold is by its file and by the acts, which are the two places where it is moved.

    UNSIGNED    its file is there, and no act speaks of it: it holds as well     -> SIGNED, RELEASED
    SIGNED      its file is there as an act has it                               -> RELEASED
    RELEASED    an act has released it: a file that is left over holds nothing   -> (final)
    """

    UNSIGNED = "unsigned"
    SIGNED = "signed"
    RELEASED = "released"


table(
    {
        Standing.UNSIGNED: (Standing.SIGNED, Standing.RELEASED),
        Standing.SIGNED: (Standing.RELEASED,),
        Standing.RELEASED: (),
    }
)


class Holds:
    """The holds of a store. log: of the acts; None where nothing is signed."""

    def __init__(self, blobs: Blobs, log: ActLog | None = None) -> None:
        self._blobs = blobs
        self._raw = stored(blobs)
        self._log = log

    async def all(self) -> list[Hold]:
        """All there are now, oldest first. Raises StoreError, also for one that cannot be read or is not what was
        signed; KeyFault."""
        return await self._read(await self._log.read() if self._log is not None else Acts())

    async def _read(self, acts: Acts) -> list[Hold]:
        found: list[Hold] = []
        names = [name.removesuffix(".json") async for name, _ in self._raw.names(HOLDS)]
        for name in names:
            try:
                data = await self._raw.get(_key(name))
            except KeyError:
                raise StoreError(f"the hold {name[:40]!a} cannot be read") from None
            standing = _standing(acts, name, digest(data))
            if standing is not Standing.RELEASED:
                found.append(replace(await self._parse(name, data), signed=standing is Standing.SIGNED))
        if missing := sorted(set(acts.held) - set(names)):
            raise StoreError(f"the hold {missing[0]} was signed, and its file is missing")
        return sorted(found, key=lambda hold: (hold.at, hold.id))

    async def _parse(self, name: str, data: bytes) -> Hold:
        try:
            if isinstance(self._blobs, EncryptedBlobs):
                data = await self._blobs.unseal(_key(name), data)
            return _read(name, data)
        except ValueError:
            raise StoreError(f"the hold {name[:40]!a} cannot be read") from None

    async def holding(self, recording: Recording) -> Hold | None:
        """Who holds it, None for nobody. Asks the store anew. Raises StoreError: then it must not be removed."""
        return next((hold for hold in await self.now() if hold.holds(recording)), None)

    async def now(self) -> list[Hold]:
        """All there are now, for whoever asks again and again: acts are only read where the files say that there are
        new ones. Raises StoreError, KeyFault."""
        if self._log is not None and self._log.known.believed:
            try:
                return await self._read(self._log.known)
            except StoreError:  # released, perhaps
                pass
        return await self.all()

    async def add(self, hold: Hold) -> Hold:
        """Place it, and sign that where there is a key; safe on return. Raises StoreError, KeyFault: then it may be
        there, unsigned."""
        key, data = _key(hold.id), json.dumps({"version": 1} | hold.values()).encode()
        if isinstance(self._blobs, EncryptedBlobs):
            data = await self._blobs.seal(key, data)
        try:
            await self._raw.create(key, data)
        except FileExistsError:
            raise StoreError(f"a hold {hold.id} exists already") from None
        if self._log is None or self._log.signer is None:
            return hold
        await self._log.add(Kind.HOLD, [Subject(hold.id)], by=hold.by, body=digest(data))
        return replace(hold, signed=True)

    async def release(self, identifier: str, *, by: str = "", why: str = "") -> Hold:
        """End one, also one that cannot be read; what it was. Raises KeyError, StoreError, KeyFault where it is signed
        and there is no key."""
        if not is_id(identifier):
            raise KeyError(identifier)
        acts = await self._log.read() if self._log is not None else Acts()
        act = acts.held.get(identifier)
        try:
            data = await self._raw.get(_key(identifier))
        except KeyError:
            if act is None:
                raise
            data = b""
        if act is None and _standing(acts, identifier, digest(data)) is Standing.RELEASED:
            await self._raw.delete([_key(identifier)])
            raise KeyError(identifier)
        try:
            hold = replace(await self._parse(identifier, data), signed=act is not None)
        except StoreError:
            hold = Hold(identifier, act.at if act else 0.0, act.by if act else "", "", signed=act is not None)
        if self._log is not None and self._log.signer is not None:
            body = "" if act is not None else digest(data)
            of = act.number if act is not None else 0
            await self._log.add(Kind.RELEASE, [Subject(identifier)], by=by, why=why, of=of, body=body)
        elif act is not None:
            raise KeyFault("the hold is signed, but there is no key to sign its release")
        await self._raw.delete([_key(identifier)])
        return hold


def held_by(hold: Hold) -> str:
    """Why something stays that it holds."""
    return f"held by {hold.by} ({hold.id})"


def maybe_held(subject: str, holds: Sequence[Hold]) -> str:
    """Why what can't be read, or is not as it was sealed, stays; "" where no hold can be of it."""
    return next((held_by(hold) for hold in holds if hold.may_hold(subject)), "")


def _standing(acts: Acts, identifier: str, sha256: str) -> Standing:
    """Of a hold whose file has this hash. Raises StoreError for one that was changed."""
    if (act := acts.held.get(identifier)) is not None:
        if act.body != sha256:
            raise StoreError(f"the hold {identifier} is not what was signed")
        return Standing.SIGNED
    if identifier in acts.released:
        placed, release = acts.released[identifier]
        if sha256 == (placed.body if placed is not None else release.body):
            return Standing.RELEASED
    return Standing.UNSIGNED


def _key(identifier: str) -> str:
    return f"{HOLDS}/{identifier}.json"


def _read(identifier: str, data: bytes) -> Hold:
    try:
        value = json.loads(data)
        recording = value.get("recording", "")
        if value["version"] != 1 or value["id"] != identifier or not is_id(identifier):
            raise ValueError("another one")
        if recording and not is_id(recording):
            raise ValueError("not an id")
        match = None if value["match"] is None else Match.of(value["match"])
        return Hold(identifier, float(value["at"]), str(value["by"]), str(value["reason"]), match, recording)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a hold") from error

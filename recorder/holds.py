"""Legal holds: what must not be removed, whatever the rules say. Kept in the store, beside the recordings.

A hold is a blob holds/ID.json: of one recording, whose id it has, or of everything that matches, present and to come,
with an id of its own. The bytes are put for good before `add` returns, and they are asked for right before each
removal; so a hold that was placed while a removal was being considered counts.

A hold that cannot be read holds everything: whatever it was for, it was put there so that something stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from recorder.model import Recording, is_id
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_FOLDER = "holds"
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
            _any(self.clusters, recording.cluster)
            and _any(self.namespaces, recording.namespace)
            and _any(self.users, recording.user)
            and _any(self.session_types, recording.session_type)
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


def _any(globs: tuple[str, ...], text: str) -> bool:
    return not globs or any(fnmatchcase(text, glob.replace("[", "[[]")) for glob in globs)


def _globs(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError("not a list of globs")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. match: None where it is of the recording whose id it has. at: unix seconds, when it was placed."""

    id: str
    at: float
    by: str
    reason: str
    match: Match | None = None

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        match = None if self.match is None else self.match.values()
        return {"id": self.id, "at": self.at, "by": self.by, "reason": self.reason, "match": match}

    def holds(self, recording: Recording) -> bool:
        """Whether it holds this one."""
        return recording.id == self.id if self.match is None else self.match.holds_for(recording)


class Holds:
    """The holds of a store."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._known: dict[str, Hold] = {}

    async def all(self) -> list[Hold]:
        """All there are now, oldest first. Raises StoreError, also for one that cannot be read."""
        names = [name.removesuffix(".json") async for name, _ in self._blobs.names(_FOLDER)]
        self._known = {name: hold for name, hold in self._known.items() if name in names}
        for name in names:
            # A hold is written once; one that was released and placed anew within a pass holds what the first held.
            if name not in self._known:
                try:
                    self._known[name] = _read(name, await self._blobs.get(_key(name)))
                except (KeyError, ValueError):
                    raise StoreError(f"the hold {name[:40]!a} cannot be read") from None
        return sorted(self._known.values(), key=lambda hold: hold.at)

    async def holding(self, recording: Recording) -> Hold | None:
        """Who holds it, None for nobody. Asks the store anew. Raises StoreError: then it must not be removed."""
        self._known.clear()
        return next((hold for hold in await self.all() if hold.holds(recording)), None)

    async def add(self, hold: Hold) -> None:
        """Place it; safe on return. Raises StoreError."""
        await self._blobs.put(_key(hold.id), json.dumps({"version": 1} | hold.values()).encode())

    async def release(self, identifier: str) -> Hold:
        """Take it away; what it was. Raises KeyError, StoreError."""
        if not is_id(identifier):
            raise KeyError(identifier)
        data = await self._blobs.get(_key(identifier))
        try:
            hold = _read(identifier, data)
        except ValueError:
            hold = Hold(identifier, 0.0, "", "")
        await self._blobs.delete([_key(identifier)])
        return hold


def _key(identifier: str) -> str:
    return f"{_FOLDER}/{identifier}.json"


def _read(identifier: str, data: bytes) -> Hold:
    try:
        value = json.loads(data)
        if value["version"] != 1 or value["id"] != identifier or not is_id(identifier):
            raise ValueError("another one")
        match = None if value["match"] is None else Match.of(value["match"])
        return Hold(identifier, float(value["at"]), str(value["by"]), str(value["reason"]), match)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a hold") from error

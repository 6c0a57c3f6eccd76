"""What is signed, as documents of two lines (`signed.py`): manifests of days, entries of registers, and removals. Pure.

The hash of a manifest, which the next one has as `previous`, is that of the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recorder.model import is_id
from recorder.proof.days import is_day
from recorder.proof.keys import Anchor, PublicKeys, Signer
from recorder.proof.signed import (
    ForgedError,
    head_values,
    open_document,
    read_head,
    read_number,
    read_seconds,
    read_sha256,
    read_text,
    read_whole,
    sign_document,
)

MANIFEST_TYPE = "recorder manifest"
REMOVAL_TYPE = "recorder removal"
ENTRY_TYPE = "recorder register entry"
# Origins of what was signed at another time than its end: it came out of the journal after a crash; it was in the store
# when the recorder began to keep a register; nobody has signed it before its day was sealed.
JOURNAL, FOUND, UNSIGNED = "journal", "found", "unsigned"
# `previous` of the first manifest.
NOTHING = "0" * 64
# Where they are, in the store.
DAYS = "proof/days"
REMOVALS = "proof/removals"
KEYS = "proof/keys"
REGISTER = "proof/register"
# What is kept in chunks of days, TOP/DAY/FIRST-ID.chunk: API events, and the book of looks.
CHUNKS = ("events", "looks")
# Days after a day's seal that something which ended on it, and which nobody signed, may still be listed. More than that
# is not late but new: it was not there for all that time.
LATE = 7


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is stored. name: behind the folder it is in; size: bytes; sha256: hex, of the bytes as stored."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A recording that was over. ended: unix seconds; end: its state; size: bytes of cast text. header, head: SHA-256
    of the header line, and of the last chunk, "" where the recording is encrypted. parts: everything in its folder.
    fault: what was wrong with it already when it was sealed, "" if nothing. origin: how the recorder came to sign it:
    "" for when it ended, else one of JOURNAL, FOUND and UNSIGNED."""

    id: str
    ended: float
    end: str
    size: int
    header: str
    head: str
    parts: tuple[Part, ...]
    fault: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """What was taken away on purpose. subject: a recording's id, or "events DAY". at: unix seconds. by: who did it;
    why: the rule or reason."""

    subject: str
    at: float
    by: str
    why: str

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return {"subject": self.subject, "at": self.at, "by": self.by, "why": self.why}


@dataclass(frozen=True, slots=True)
class Accepted:
    """That an operator took the store as it was, though the anchor remembered more. lost: what it remembered of each
    chain that was not there any more. at: unix seconds."""

    at: float
    by: str
    reason: str
    lost: Mapping[str, Anchor]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One day, sealed. number: 1, 2, ..; previous: SHA-256 of the file before; sealed: unix seconds, when.
    acts: the last act (recorder/proof/acts.py) that had been signed by then, number 0 where there was none; None in a
    manifest from before there were acts. removals: those of that time. registers: of each recorder's register
    (recorder/proof/register.py) the last entry of which all is listed here or before; None in a manifest from before
    there were registers. looks: chunks of the book of looks. unsigned: which of the events and looks the recorder had
    not signed when it put them, as far as its registers tell. accepted: what operators have accepted since the
    manifest before."""

    number: int
    day: str
    previous: str
    sealed: float
    recordings: tuple[Sealed, ...] = ()
    events: tuple[Part, ...] = ()
    removals: tuple[Removal, ...] = ()
    acts: Anchor | None = None
    registers: Mapping[str, Anchor] | None = None
    looks: tuple[Part, ...] = ()
    unsigned: tuple[str, ...] = ()
    accepted: tuple[Accepted, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a register: what has come into the store since the one before, signed at once. name: of the
    register. number: 1, 2, ..; previous: SHA-256 of the file before; at: unix seconds. recordings: that have ended.
    events, looks: chunks. opening: it is one of those that a register begins with, of what was in the store before.
    accepted: see there."""

    name: str
    number: int
    previous: str
    at: float
    recordings: tuple[Sealed, ...] = ()
    events: tuple[Part, ...] = ()
    looks: tuple[Part, ...] = ()
    opening: bool = False
    accepted: Accepted | None = None


def chunks(document: Manifest | Entry) -> Iterator[tuple[str, Part]]:
    """The chunks of events and looks that it lists, by their keys in the store."""
    for top, parts in zip(CHUNKS, (document.events, document.looks), strict=True):
        for part in parts:
            yield f"{top}/{part.name}", part


def manifest_file(day: str) -> str:
    """The key of a day's manifest."""
    return f"{DAYS}/{day}.json"


def entry_file(name: str, number: int) -> str:
    """The key of an entry of a register."""
    return f"{REGISTER}/{name}/{number:010}.json"


def removal_file(subject: str) -> str:
    """The key of a removal."""
    return f"{REMOVALS}/{subject.replace(' ', '-')}.json"


def write_manifest(manifest: Manifest, signer: Signer) -> bytes:
    """The signed file."""
    more: dict[str, Any] = {} if manifest.acts is None else {"acts": head_values(manifest.acts)}
    if manifest.registers is not None:
        more["registers"] = {name: head_values(head) for name, head in sorted(manifest.registers.items())}
        more |= {"looks": _part_values(manifest.looks), "unsigned": list(manifest.unsigned)}
        more["accepted"] = list(map(_accepted_values, manifest.accepted))
    return sign_document(
        {
            "type": MANIFEST_TYPE,
            "version": 1,
            "number": manifest.number,
            "day": manifest.day,
            "previous": manifest.previous,
            "sealed": manifest.sealed,
            "recordings": [_sealed_values(sealed) for sealed in manifest.recordings],
            "events": _part_values(manifest.events),
            "removals": [removal.values() for removal in manifest.removals],
        }
        | more,
        signer,
    )


def read_manifest(data: bytes, keys: PublicKeys) -> Manifest:
    """A signed file. Raises ForgedError."""
    value = open_document(data, keys, MANIFEST_TYPE)
    try:
        manifest = Manifest(
            number=read_whole(value["number"]),
            day=read_text(value["day"]),
            previous=read_sha256(value["previous"]),
            sealed=read_seconds(value["sealed"]),
            recordings=tuple(map(_read_sealed, value["recordings"])),
            events=_read_parts(value["events"]),
            removals=tuple(map(_read_removal, value["removals"])),
            acts=read_head(value["acts"]) if "acts" in value else None,
            registers=_read_heads(value["registers"]) if "registers" in value else None,
            looks=_read_parts(value.get("looks", {})),
            unsigned=tuple(map(read_text, value.get("unsigned", []))),
            accepted=tuple(map(_read_accepted, value.get("accepted", []))),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ForgedError("it is signed, but it cannot be understood") from None
    if not is_day(manifest.day):
        raise ForgedError("it is signed, but it cannot be understood")
    return manifest


def write_entry(entry: Entry, signer: Signer) -> bytes:
    """The signed file."""
    accepted = entry.accepted
    values: dict[str, Any] = {
        "type": ENTRY_TYPE,
        "version": 1,
        "register": entry.name,
        "number": entry.number,
        "previous": entry.previous,
        "at": entry.at,
        "recordings": [_sealed_values(sealed) for sealed in entry.recordings],
        "events": _part_values(entry.events),
        "looks": _part_values(entry.looks),
        "opening": entry.opening,
    }
    if accepted is not None:
        values["accepted"] = _accepted_values(accepted)
    return sign_document(values, signer)


def read_entry(data: bytes, keys: PublicKeys) -> Entry:
    """A signed file. Raises ForgedError."""
    value = open_document(data, keys, ENTRY_TYPE)
    try:
        accepted = value.get("accepted")
        return Entry(
            name=read_text(value["register"]),
            number=read_whole(value["number"]),
            previous=read_sha256(value["previous"]),
            at=read_seconds(value["at"]),
            recordings=tuple(map(_read_sealed, value["recordings"])),
            events=_read_parts(value["events"]),
            looks=_read_parts(value["looks"]),
            opening=value["opening"] is True,
            accepted=None if accepted is None else _read_accepted(accepted),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ForgedError("it is signed, but it cannot be understood") from None


def write_removal(removal: Removal, signer: Signer) -> bytes:
    """The signed file."""
    return sign_document({"type": REMOVAL_TYPE, "version": 1} | removal.values(), signer)


def read_removal(data: bytes, keys: PublicKeys) -> Removal:
    """A signed file. Raises ForgedError."""
    value = open_document(data, keys, REMOVAL_TYPE)
    try:
        return _read_removal(value)
    except (KeyError, TypeError, ValueError):
        raise ForgedError("it is signed, but it cannot be understood") from None


def _sealed_values(sealed: Sealed) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": sealed.id,
        "ended": sealed.ended,
        "end": sealed.end,
        "size": sealed.size,
        "header": sealed.header,
        "head": sealed.head,
        "chunks": sum(part.name.endswith(".chunk") for part in sealed.parts),
        "parts": _part_values(sealed.parts),
    }
    more = {"fault": sealed.fault, "origin": sealed.origin}
    return values | {name: value for name, value in more.items() if value}


def _part_values(parts: tuple[Part, ...]) -> dict[str, list[Any]]:
    return {part.name: [part.size, part.sha256] for part in parts}


def _read_sealed(value: Mapping[str, Any]) -> Sealed:
    identifier = read_text(value["id"])
    if not is_id(identifier):
        raise ValueError("not an id")
    return Sealed(
        id=identifier,
        ended=read_number(value["ended"]),
        end=read_text(value["end"]),
        size=read_whole(value["size"]),
        header=read_text(value["header"]),
        head=read_text(value["head"]),
        parts=_read_parts(value["parts"]),
        fault=read_text(value.get("fault", "")),
        origin=read_text(value.get("origin", "")),
    )


def _read_parts(value: Mapping[str, Any]) -> tuple[Part, ...]:
    return tuple(Part(read_text(name), read_whole(size), read_sha256(sha256)) for name, (size, sha256) in value.items())


def _read_removal(value: Mapping[str, Any]) -> Removal:
    subject = read_text(value["subject"])
    if not is_id(subject) and not is_day(subject.removeprefix("events ")):
        raise ValueError("not a subject")
    return Removal(subject, read_seconds(value["at"]), read_text(value["by"]), read_text(value["why"]))


def _accepted_values(accepted: Accepted) -> dict[str, Any]:
    lost = {name: head_values(head) for name, head in sorted(accepted.lost.items())}
    return {"at": accepted.at, "by": accepted.by, "reason": accepted.reason, "lost": lost}


def _read_accepted(value: Mapping[str, Any]) -> Accepted:
    by, reason = read_text(value["by"]), read_text(value["reason"])
    return Accepted(read_seconds(value["at"]), by, reason, _read_heads(value["lost"]))


def _read_heads(value: Mapping[str, Any]) -> dict[str, Anchor]:
    return {read_text(name): read_head(head) for name, head in value.items()}

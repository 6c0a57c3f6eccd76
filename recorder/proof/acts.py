"""What people and rules do to what is kept, signed: holds, releases, removals and their reversals, in one chain.

    hold        nothing that it covers is removed; its reason and what it covers stand in holds/ID.json
    release     a hold ends
    removal     recordings, or days of API events, are about to be removed
    reversal    some of what a removal names is not removed after all

An act is a file proof/acts/NUMBER.json of two lines, signed as manifests are (documents.py). Its `number` is 1, 2, ..
without a gap, and `previous` is the SHA-256 of the whole file before it, so no act can be left out, moved or put in
again. `manifest` is the last manifest of a day at that time, and each manifest in turn names the last act (`acts`): so
the end of this chain can't be cut off under a manifest that stands, and an act can't be told to be older or newer than
it is. Acts stay for good: a removal that was taken back is followed by its reversal, for ever.

An act counts for what the acts before it have made:

    state of a hold                     hold -> held, release -> released (ids of holds are used once)
    state of a recording, day of events removal -> removed, reversal -> there, removal -> removed, ..

The reason of a hold may name people and is encrypted where recordings are, and a check must need no key for that. So
`body` binds the act to the file holds/ID.json: it is the SHA-256 of its bytes as they are stored. A file in holds/ that
no act names is an unsigned hold, from before there were acts or from somebody without the key. It holds as well.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recorder.model import is_id
from recorder.proof.days import is_day
from recorder.proof.documents import NOTHING, Manifest
from recorder.proof.handover import ACTS as CHAIN
from recorder.proof.handover import KeyHistory, read_handovers
from recorder.proof.keys import Anchor, PublicKeys, Signer
from recorder.proof.signed import (
    ForgedError,
    UnknownKeyError,
    digest,
    head_values,
    open_document,
    read_head,
    read_seconds,
    read_sha256,
    read_text,
    read_whole,
    sign_document,
    signed_by,
)
from recorder.store.blobs import Blobs

ACT_TYPE = "recorder act"
ACTS = "proof/acts"
# Where the files of holds are, in the store.
HOLDS = "holds"
# Before the first act, and before the first manifest.
NONE = Anchor(0, NOTHING)
# Digits of a number in a file's name, so that names sort as numbers do: a removal each second for three years.
_DIGITS = 8


class Kind(enum.Enum):
    """What was done."""

    HOLD = "hold"
    RELEASE = "release"
    REMOVAL = "removal"
    REVERSAL = "reversal"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an act is about. name: the id of a hold or of a recording, or "events DAY". why: of this one alone, as the
    rule that removes it. content: of a removed recording, SHA-256 of its recording.json as stored, else "". fault: of a
    removed one that was not as it was sealed, and was removed by hand all the same: in what, else ""."""

    name: str
    why: str = ""
    content: str = ""
    fault: str = ""

    def values(self) -> dict[str, Any]:
        """As JSON values; what is empty is left out."""
        values = {"name": self.name, "why": self.why, "content": self.content, "fault": self.fault}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class Act:
    """One act. at: unix seconds. manifest: the last one then. of: of a release or a reversal, the number of the act
    that it ends (0 for the release of an unsigned hold). body: of a hold, and of the release of an unsigned one, the
    SHA-256 of holds/ID.json as stored. key: the id of the key that signed it."""

    number: int
    previous: str
    manifest: Anchor
    kind: Kind
    at: float
    by: str
    why: str
    subjects: tuple[Subject, ...]
    of: int = 0
    body: str = ""
    key: str = field(default="", compare=False)

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = {
            "number": self.number,
            "previous": self.previous,
            "manifest": head_values(self.manifest),
            "act": self.kind.value,
            "at": self.at,
            "by": self.by,
            "why": self.why,
            "subjects": [subject.values() for subject in self.subjects],
        }
        if self.kind in (Kind.RELEASE, Kind.REVERSAL):
            values["of"] = self.of
        return values | ({"body": self.body} if self.body else {})


def act_file(number: int) -> str:
    """The key of an act."""
    return f"{ACTS}/{number:0{_DIGITS}}.json"


def write_act(act: Act, signer: Signer) -> bytes:
    """The signed file."""
    return sign_document({"type": ACT_TYPE, "version": 1} | act.values(), signer)


def read_act(data: bytes, keys: PublicKeys) -> Act:
    """A signed file. Raises ForgedError."""
    value = open_document(data, keys, ACT_TYPE)
    try:
        kind = Kind(value["act"])
        act = Act(
            number=read_whole(value["number"]),
            previous=read_sha256(value["previous"]),
            manifest=read_head(value["manifest"]),
            kind=kind,
            at=read_seconds(value["at"]),
            by=read_text(value["by"]),
            why=read_text(value["why"]),
            subjects=tuple(map(_read_subject, value["subjects"])),
            of=read_whole(value["of"]) if kind in (Kind.RELEASE, Kind.REVERSAL) else 0,
            body=read_sha256(value["body"]) if "body" in value else "",
            key=signed_by(data),
        )
        _check(act)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ForgedError("it is signed, but it cannot be understood") from None
    return act


def _read_subject(value: Mapping[str, Any]) -> Subject:
    return Subject(*(read_text(value.get(name, "")) for name in ("name", "why", "content", "fault")))


def _check(act: Act) -> None:
    of_holds = act.kind in (Kind.HOLD, Kind.RELEASE)
    for subject in act.subjects:
        if not is_id(subject.name) and (of_holds or not is_day(subject.name.removeprefix("events "))):
            raise ValueError("not a subject")
    if of_holds and len(act.subjects) != 1:
        raise ValueError("a hold is one")
    if bool(act.body) is not (act.kind is Kind.HOLD or (act.kind is Kind.RELEASE and not act.of)):
        raise ValueError("a body where there is none, or none where there is one")


@dataclass(slots=True)
class Acts:
    """All acts of a store, in order, and what they amount to. believed: those that are signed and in their place.
    faults: a sentence each. last: the last file's number and hash. hashes: of all files, by number. strange: one is by
    a key that was not given. handovers: the last hand-over by which they were judged. held: holds that were not
    released, released: the others, by the hold's id, with what ends them. removed: the removal that counts, by
    subject."""

    believed: list[Act] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last: Anchor = NONE
    hashes: dict[int, str] = field(default_factory=dict)
    held: dict[str, Act] = field(default_factory=dict)
    released: dict[str, tuple[Act | None, Act]] = field(default_factory=dict)
    removed: dict[str, tuple[Act, Subject]] = field(default_factory=dict)
    strange: bool = False
    handovers: Anchor = NONE
    _numbered: dict[int, Act] = field(default_factory=dict)

    def has(self, anchor: Anchor) -> bool:
        """Whether the act that was the last then is here now."""
        return anchor.number == 0 or self.hashes.get(anchor.number) == anchor.sha256

    def take(self, number: int, data: bytes, keys: PublicKeys, history: KeyHistory) -> None:
        """The next file. history: says which key was in force."""
        if number != self.last.number + 1:
            missing = self.last.number + 1
            until = f" to {number - 1}" if number - 1 > missing else ""
            self.faults.append(f"act {missing}{until} is missing")
        try:
            act = read_act(data, keys)
            if not history.may_sign(act.key, CHAIN, number):
                raise ForgedError(f"it is signed with the key {act.key}, which was not the current key then")
        except ForgedError as error:
            self.faults.append(f"act {number} is not trusted: {error}")
            self.strange = self.strange or isinstance(error, UnknownKeyError)
        else:
            if act.number != number:
                self.faults.append(f"the file of act {number} holds act {act.number}")
            elif number == self.last.number + 1 and act.previous != self.last.sha256:
                self.faults.append(f"the chain of acts is broken at act {number}: it was made after another act")
            elif self.believed and act.manifest.number < self.believed[-1].manifest.number:
                self.faults.append(f"act {number} was made before the act that it follows")
            else:
                self._count(act)
        self.last = Anchor(number, digest(data))
        self.hashes[number] = self.last.sha256

    def _count(self, act: Act) -> None:
        self.believed.append(act)
        self._numbered[act.number] = act
        for subject in act.subjects:
            name = subject.name
            if act.kind is Kind.HOLD:
                self.held[name] = act
                self.released.pop(name, None)
            elif act.kind is Kind.REMOVAL:
                self.removed[name] = (act, subject)
            elif act.kind is Kind.RELEASE:
                self._release(act, name)
            elif not self._is(act.of, Kind.REMOVAL, name):
                self.faults.append(f"act {act.number} reverses a removal that does not exist")
            elif name in self.removed and self.removed[name][0].number == act.of:
                del self.removed[name]

    def _release(self, act: Act, name: str) -> None:
        hold = self.held.get(name)
        if act.of and not self._is(act.of, Kind.HOLD, name):
            self.faults.append(f"act {act.number} releases a hold that does not exist")
        elif (hold.number if hold is not None else 0) == act.of:
            self.held.pop(name, None)
            self.released[name] = (hold, act)

    def _is(self, number: int, kind: Kind, name: str) -> bool:
        """Whether that act did this. It may have been ended already: two who find out the same end it at once."""
        act = self._numbered.get(number)
        return act is not None and act.kind is kind and any(subject.name == name for subject in act.subjects)


async def read_acts(
    raw: Blobs, keys: PublicKeys, known: Acts | None = None, *, history: KeyHistory | None = None
) -> Acts:
    """All of them. raw: the blobs as stored. known: what was read before, which is gone on with. history: which key was
    in force, by all that is signed; without it, by the hand-overs alone. Raises StoreError."""
    acts = known if known is not None else Acts()
    if history is None:
        history, _, _ = await read_handovers(raw, keys)
    before = dict(acts.hashes)
    if acts.handovers != history.last:  # which may say otherwise of what was read before
        acts = Acts(handovers=history.last)
    names = [name async for name, _ in raw.names(ACTS)]
    numbers: list[int] = []
    for name in names:
        digits = name.removesuffix(".json")
        if digits.isascii() and digits.isdigit() and act_file(int(digits)) == f"{ACTS}/{name}" and int(digits) > 0:
            numbers.append(int(digits))
        else:
            _complain(acts, f"{ACTS}/{name!a} is not one of the recorder's files")
    there = set(numbers)
    for number in before:
        if number not in there:
            _complain(acts, f"act {number} existed before and is missing now")
    for number in sorted(there):
        if number > acts.last.number:
            try:
                data = await raw.get(act_file(number))
            except KeyError:
                _complain(acts, f"act {number} disappeared while it was read")
                continue
            acts.take(number, data, keys, history)
        elif number not in acts.hashes:
            _complain(acts, f"act {number} was added after the acts that follow it")
    return acts


def _complain(acts: Acts, fault: str) -> None:
    if fault not in acts.faults:
        acts.faults.append(fault)


def compare(acts: Acts, manifests: Iterable[Manifest], hashes: Mapping[int, str]) -> list[str]:
    """What does not fit between the acts and the manifests of days: a sentence each. manifests: those that are
    believed, in order. hashes: of all manifests' files, by number."""
    faults: list[str] = []
    for act in acts.believed:
        if act.manifest.number and hashes.get(act.manifest.number) != act.manifest.sha256:
            faults.append(
                f"act {act.number} was made after manifest {act.manifest.number}, which is missing or was replaced"
            )
    made_at = {act.number: act.manifest.number for act in acts.believed}
    for manifest in manifests:
        head = manifest.acts
        if head is None:
            continue
        if not acts.has(head):
            faults.append(f"act {head.number}, the last one when {manifest.day} was sealed, is missing or was replaced")
        if made_at.get(head.number, 0) >= manifest.number:
            faults.append(f"act {head.number} is older than the manifest of {manifest.day}, and says that it is newer")
        # One that is signed while a day is being sealed may name the manifest before.
        if head.number + 1 in made_at and made_at[head.number + 1] < manifest.number - 1:
            faults.append(
                f"act {head.number + 1} is newer than the manifest of {manifest.day}, and says that it is older"
            )
    return faults


__all__ = [
    "ACTS",
    "NONE",
    "Act",
    "Acts",
    "Kind",
    "Subject",
    "act_file",
    "compare",
    "read_act",
    "read_acts",
    "write_act",
]

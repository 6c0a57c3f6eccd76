"""Which key may sign what: a hand-over from one key to the next, signed by both, and the history of a store's keys.

What is signed is numbered, in chains: the manifests of days ("manifests"), the acts ("acts"), and the register of each
recorder ("register NAME"). A hand-over names the last number and hash of each chain at that moment. The old key has
signed up to there and may sign nothing after it, for ever; the new one may sign nothing before.

    proof/keys/handover-0001.json     number, previous (hash of the hand-over before), old, new, at, heads, reason
                                      then two seals, a line each: by the old key, by the new key

Where the old private key is lost there is one seal, by the new key, and a reason: `recorder anchor accept` makes it on
an operator's word, and it is told at every check. A key that has been in force before can never come back in this way.

Stores from before there were hand-overs have manifests by one key after another with nothing in between. That is
believed of manifests from that time alone (they name no register), and there too a key that was replaced has ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recorder.proof.documents import KEYS, NOTHING
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.signed import (
    ForgedError,
    UnknownKeyError,
    digest,
    open_seal,
    read_seconds,
    read_sha256,
    read_text,
    read_whole,
    seal_line,
)
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

HANDOVER_TYPE = "recorder key hand-over"
MANIFESTS = "manifests"
ACTS = "acts"
HANDOVERS = "hand-overs"
_NAME = re.compile(r"handover-(\d{4})\.json\Z", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{16}\Z")
_CHAIN = re.compile(r"[a-z0-9 -]{1,80}\Z")


def register_chain(instance: str) -> str:
    """What the register of a recorder is called among the chains."""
    return f"register {instance}"


@dataclass(frozen=True, slots=True)
class HandOver:
    """One hand-over. previous: SHA-256 of the file of the one before. old, new: what the keys are called. at: unix
    seconds. heads: the last of each chain that the old key has signed. reason: "" where both have signed; else why the
    old one has not."""

    number: int
    previous: str
    old: str
    new: str
    at: float
    heads: Mapping[str, Anchor] = field(default_factory=dict)
    reason: str = ""


def handover_file(number: int) -> str:
    """The key of a hand-over in the store."""
    return f"{KEYS}/handover-{number:04}.json"


def write_handover(handover: HandOver, old: Signer | None, new: Signer) -> bytes:
    """The signed file. old: None where its private half is lost."""
    value = {
        "type": HANDOVER_TYPE,
        "version": 1,
        "number": handover.number,
        "previous": handover.previous,
        "old": handover.old,
        "new": handover.new,
        "at": handover.at,
        "heads": {name: [head.number, head.sha256] for name, head in sorted(handover.heads.items())},
        "reason": handover.reason,
    }
    line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return line + b"".join(seal_line(line, signer) for signer in (old, new) if signer is not None)


def read_handover(data: bytes, keys: PublicKeys) -> HandOver:
    """A signed file. Raises ForgedError."""
    line, *seals = data.splitlines(keepends=True) or [b""]
    signers = [open_seal(line, seal, keys) for seal in seals]
    try:
        value = json.loads(line)
        if value["type"] != HANDOVER_TYPE or value["version"] != 1:
            raise ValueError("another document")
        handover = HandOver(
            number=read_whole(value["number"]),
            previous=read_sha256(value["previous"]),
            old=_match(_KEY, value["old"]),
            new=_match(_KEY, value["new"]),
            at=read_seconds(value["at"]),
            heads={_match(_CHAIN, name): _read_head(*head) for name, head in value["heads"].items()},
            reason=read_text(value["reason"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise ForgedError("it is signed, but it cannot be understood") from None
    wanted = [handover.new] if handover.reason else [handover.old, handover.new]
    if signers != wanted or handover.old == handover.new:
        raise ForgedError("it is not signed by the two keys that it names")
    return handover


def is_from(data: bytes, old: str, keys: PublicKeys) -> bool:
    """Whether the key called `old` has signed this hand-over to another one, which need not be among `keys`."""
    line, *seals = data.splitlines(keepends=True) or [b""]
    try:
        value = json.loads(line)
        return (
            bool(seals)
            and open_seal(line, seals[0], keys) == old
            and (value["type"], value["old"]) == (HANDOVER_TYPE, old)
        )
    except (ForgedError, KeyError, TypeError, ValueError, RecursionError):
        return False


def _read_head(number: object, sha256: object) -> Anchor:
    return Anchor(read_whole(number), read_sha256(sha256))


def _match(pattern: re.Pattern[str], value: object) -> str:
    if not pattern.match(text := read_text(value)):
        raise ValueError("of another form")
    return text


@dataclass(slots=True)
class _Span:
    """A time in which one key is in force. until: the last number of each chain; None while it is in force."""

    key: str
    until: Mapping[str, int] | None = None


class KeyHistory:
    """The keys of a store, in their order. own: the key that the checker knows to be in force, "" where it knows none.
    last: number and hash of the last hand-over; hashes: of all, by number. fault: what is wrong with the whole, "" if
    nothing.

    `may_sign` is the one answer to whether a key may sign something. Whoever reads a signed document asks it after the
    signature was found good, and whoever signs asks it before."""

    def __init__(self, handovers: Sequence[HandOver] = (), own: str = "") -> None:
        self.handovers = tuple(handovers)
        self.own = own
        self.last = Anchor(0, NOTHING)
        self.hashes: dict[int, str] = {}
        self.fault = ""
        self._before: list[_Span] = []  # from manifests without a register
        self._spans = [_Span(one.old, {name: head.number for name, head in one.heads.items()}) for one in handovers]
        if handovers:
            self._spans.append(_Span(handovers[-1].new))
        self._open = True  # whether another key may still follow without a hand-over

    def may_sign(self, key: str, chain: str, number: int) -> bool:
        """Whether the key called `key` may sign number `number` (1, 2, ..) of a chain ("manifests", "acts",
        "register NAME")."""
        spans = [*self._before, *self._spans]
        if not spans:
            return not self.own or key == self.own
        floor = 0
        for span in spans:
            until = None if span.until is None else span.until.get(chain, 0)
            if span.key == key and number > floor and (until is None or number <= until):
                return True
            floor = until or 0
        return False

    @property
    def current(self) -> str:
        """The key in force: which one is to sign what comes next. "" where nothing has been signed."""
        spans = self._spans or self._before
        return spans[-1].key if spans else ""

    @property
    def names(self) -> frozenset[str]:
        """All keys that are or were in force."""
        return frozenset(span.key for span in (*self._before, *self._spans))

    def signed(self, key: str, chain: str, number: int) -> bool:
        """`may_sign` of what is there; the first thing that is signed at all says which key was the first."""
        if not self._spans and not self._before:
            self._before.append(_Span(key))
        return self.may_sign(key, chain, number)

    def old_manifest(self, key: str, number: int) -> bool:
        """The same for a manifest that names no register, read in their order: another key may follow the one before,
        and that one has ended then."""
        first = self._spans[0] if self._spans else None
        if first is not None and number > (first.until or {}).get(MANIFESTS, 0):
            self.close()
        if not self._open:
            return self.may_sign(key, MANIFESTS, number)
        if self._before and self._before[-1].key == key:
            return True
        later = {span.key for span in self._spans[1:]}
        if key in {span.key for span in self._before} or key in later:
            return False
        if self._before:
            self._before[-1].until = {MANIFESTS: number - 1}
        self._before.append(_Span(key))
        return True

    def close(self) -> None:
        """No more manifests without a register follow."""
        if self._open and self._spans and self._before:
            last, first = self._before[-1], self._spans[0]
            if last.key == first.key:
                del self._before[-1]
            else:
                self.fault = f"the key {first.key} handed over, but the key {last.key} was the current key"
        self._open = False


async def read_handovers(raw: Blobs, keys: PublicKeys) -> tuple[KeyHistory, list[str], bool]:
    """The history of a store's keys, what is wrong with it, and whether one was signed by a key that was not given.
    Raises StoreError."""
    faults: list[str] = []
    found: list[HandOver] = []
    last, strange = Anchor(0, NOTHING), False
    hashes: dict[int, str] = {}
    matches = [_NAME.match(name) for name in [name async for name, _ in raw.names(KEYS)]]
    for number in sorted(int(match[1]) for match in matches if match):
        try:
            data = await raw.get(handover_file(number))
            handover = read_handover(data, keys)
        except KeyError:
            continue
        except ForgedError as error:
            faults.append(f"the hand-over {number} between keys is not trusted: {error}")
            strange = strange or isinstance(error, UnknownKeyError)
            continue
        before = {one.old for one in found} | {one.new for one in found}
        if handover.number != number or number != last.number + 1 or handover.previous != last.sha256:
            faults.append(f"the hand-over {number} between keys does not follow the one before it")
        elif found and handover.old != found[-1].new:
            faults.append(f"the hand-over {number} is from the key {handover.old}, which was not the current key")
        elif handover.new in before:
            faults.append(f"the hand-over {number} is to the key {handover.new}, which was retired before")
        else:
            found.append(handover)
            last = Anchor(number, digest(data))
            hashes[number] = last.sha256
    history = KeyHistory(found, keys.own)
    history.last, history.hashes = last, hashes
    return history, faults, strange


async def hand_over(
    raw: Blobs,
    history: KeyHistory,
    old: Signer | None,
    new: Signer,
    heads: Mapping[str, Anchor],
    *,
    at: float,
    reason: str = "",
) -> HandOver:
    """Let `new` follow the key in force. heads: the last of each chain. old: the key in force, None where it is lost,
    and then with a reason. Raises StoreError, KeyFault where that is not a hand-over which would be believed."""
    if new.id in history.names:
        raise KeyFault(f"the key {new.id} was retired, and a retired key cannot be used again: make a new one")
    if old is not None and old.id != history.current:
        raise KeyFault(f"the current key is {history.current}, but the key that is to hand over is {old.id}")
    handover = HandOver(history.last.number + 1, history.last.sha256, history.current, new.id, at, dict(heads), reason)
    try:
        await raw.create(handover_file(handover.number), write_handover(handover, old, new))
    except FileExistsError:
        raise StoreError("another recorder is handing over the key of this store now") from None
    return handover

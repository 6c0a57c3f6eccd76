"""What the registers of a store say: each entry checked, and held against the manifests that took over before it.

A store has a register for each recorder (register.py writes them). `read_both` is how they are read: together with the
chain of manifests, as the one goes on where the other ends. With both, `holder` answers whether the store has what an
anchor remembers, and `all_heads` says what an anchor should remember.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from recorder.proof.acts import read_acts
from recorder.proof.chain import Chain, read_chain
from recorder.proof.documents import (
    DAYS,
    NOTHING,
    REGISTER,
    Accepted,
    Entry,
    Part,
    Sealed,
    chunks,
    entry_file,
    read_entry,
)
from recorder.proof.handover import ACTS, HANDOVERS, MANIFESTS, KeyHistory, register_chain
from recorder.proof.keys import Anchor, PublicKeys
from recorder.proof.signed import ForgedError, UnknownKeyError, digest, signed_by
from recorder.proof.witness import Heads
from recorder.store.blobs import Blobs


@dataclass(slots=True)
class State:
    """A register as it is in the store. base: the last entry that a manifest has taken over. last: the last one that is
    there. entries: those that are believed, behind the base. hashes: of their files, by number. faults: a sentence
    each. strange: one is by a key that was not given."""

    name: str
    base: Anchor = field(default_factory=lambda: Anchor(0, NOTHING))
    last: Anchor = field(default_factory=lambda: Anchor(0, NOTHING))
    entries: list[Entry] = field(default_factory=list)
    strange: bool = False
    hashes: dict[int, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def holds(self, head: Anchor) -> bool:
        """Whether that entry is there; of one before the base the manifest is the witness."""
        return head.number < self.base.number or self.hashes.get(head.number) == head.sha256

    def taken_over(self, listed: Callable[[str], bool]) -> Anchor:
        """The last entry up to which everything is listed. listed: asked about ids and keys of chunks."""
        head = self.base
        for entry in self.entries:
            names = [*(one.id for one in entry.recordings), *(name for name, _ in chunks(entry))]
            if entry.number != head.number + 1 or not all(map(listed, names)):
                break
            head = Anchor(entry.number, self.hashes[entry.number])
        return head


@dataclass(slots=True)
class Registers:
    """All registers of a store. recordings, chunks: what they say, by id and by key; of a recording the first word
    counts, of a chunk the last, since a crash may have it made anew. accepted: what operators have accepted."""

    states: dict[str, State] = field(default_factory=dict)
    recordings: dict[str, Sealed] = field(default_factory=dict)
    chunks: dict[str, Part] = field(default_factory=dict)
    accepted: list[Accepted] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Of all, a sentence each."""
        return [fault for state in self.states.values() for fault in state.faults]

    @property
    def strange(self) -> bool:
        """Whether an entry is by a key that was not given."""
        return any(state.strange for state in self.states.values())

    @property
    def there(self) -> bool:
        """Whether there is a register at all."""
        return any(state.last.number or state.faults for state in self.states.values())

    def holds(self, chain: str, head: Anchor) -> bool:
        """Whether a register has that entry. chain: what it is called among the chains."""
        state = self.states.get(chain.removeprefix("register "))
        return state is not None and state.holds(head)


async def read_registers(raw: Blobs, keys: PublicKeys, chain: Chain) -> Registers:
    """All of them. chain: the manifests, which say what was taken over. Raises StoreError."""
    bases: dict[str, Anchor] = {}
    listed: dict[str, Sealed] = {}
    for manifest in chain.manifests:
        bases |= manifest.registers or {}
        listed |= {sealed.id: sealed for sealed in manifest.recordings}
    registers = Registers()
    names = {name.rstrip("/") async for name, _ in raw.names(REGISTER)}
    for name in sorted(names | set(bases)):
        base = bases.get(name, Anchor(0, NOTHING))
        state = registers.states[name] = State(name, base, base, hashes={base.number: base.sha256})
        await _read_state(raw, keys, chain.keys, state)
        for entry in state.entries:
            for sealed in entry.recordings:
                # The first word counts: a journal that somebody has written could say otherwise of what was signed.
                first = listed.get(sealed.id) or registers.recordings.setdefault(sealed.id, sealed)
                if first.parts != sealed.parts:
                    state.faults.append(
                        f"{sealed.id} is signed twice, the second time by entry {entry.number} of {name}"
                    )
            registers.chunks |= dict(chunks(entry))
            if entry.accepted is not None:
                registers.accepted.append(entry.accepted)
    return registers


async def read_both(raw: Blobs, keys: PublicKeys) -> tuple[Chain, Registers]:
    """The manifests and the registers behind them, also while a recorder seals a day between the two. Raises
    StoreError."""
    while True:
        chain = await read_chain(raw, keys)
        registers = await read_registers(raw, keys, chain)
        if not registers.faults:
            return chain, registers
        last = [name async for name, _ in raw.names(DAYS)][-1:]
        if last <= [f"{chain.last_day}.json"]:
            return chain, registers


async def _read_state(raw: Blobs, keys: PublicKeys, history: KeyHistory, state: State) -> None:
    for file in [file async for file, _ in raw.names(f"{REGISTER}/{state.name}")]:
        digits = file.removesuffix(".json")
        if not digits.isascii() or not digits.isdigit() or f"{int(digits):010}.json" != file:
            state.faults.append(f"{REGISTER}/{state.name}/{file!a} is not one of the recorder's files")
            continue
        number = int(digits)
        if number <= state.base.number:
            continue  # a crash has kept it from being forgotten
        try:
            data = await raw.get(entry_file(state.name, number))
        except KeyError:
            continue  # taken over meanwhile
        await _take(state, number, data, keys, history)


async def _take(state: State, number: int, data: bytes, keys: PublicKeys, history: KeyHistory) -> None:
    what = f"entry {number} of the register {state.name}"
    if number != state.last.number + 1:
        first, last = state.last.number + 1, number - 1
        which = (
            f"entry {first} of the register {state.name} is"
            if first == last
            else (f"entries {first} to {last} of the register {state.name} are")
        )
        state.faults.append(f"{which} missing")
    try:
        entry = await asyncio.to_thread(read_entry, data, keys)
        if entry.name != state.name or entry.number != number:
            raise ForgedError("it belongs to another place")
        if number == state.last.number + 1 and entry.previous != state.last.sha256:
            raise ForgedError("it does not follow the entry before it")
        key = signed_by(data)
        if not history.signed(key, register_chain(state.name), number):
            raise ForgedError(f"it is signed with the key {key}, which was not the current key then")
    except ForgedError as error:
        state.faults.append(f"{what} is not trusted: {error}")
        state.strange = state.strange or isinstance(error, UnknownKeyError)
    else:
        state.entries.append(entry)
    state.last = Anchor(number, digest(data))
    state.hashes[number] = state.last.sha256


def holder(chain: Chain, registers: Registers, has_act: Callable[[Anchor], bool]) -> Callable[[str, Anchor], bool]:
    """Whether a store has a number of a chain with that hash, for Witnesses.compare."""

    def holds(name: str, head: Anchor) -> bool:
        if head.number == 0:
            return True
        if name == MANIFESTS:
            return chain.holds(head)
        if name == ACTS:
            return has_act(head)
        if name == HANDOVERS:
            return chain.keys.hashes.get(head.number) == head.sha256
        return registers.holds(name, head)

    return holds


async def all_heads(raw: Blobs, keys: PublicKeys, chain: Chain, registers: Registers) -> Heads:
    """The last of each chain in a store. Raises StoreError."""
    heads: Heads = {register_chain(name): state.last for name, state in registers.states.items()}
    if chain.last is not None:
        heads[MANIFESTS] = chain.last
    acts = await read_acts(raw, keys)
    if acts.last.number:
        heads[ACTS] = acts.last
    if chain.keys.last.number:
        heads[HANDOVERS] = chain.keys.last
    return {name: head for name, head in heads.items() if head.number}

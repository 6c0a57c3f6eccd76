"""The entries of one register, as its recorder writes them: each behind the one before, as long as its key may sign."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from recorder.proof.chain import Chain
from recorder.proof.documents import NOTHING, Accepted, Entry, Part, Sealed, entry_file, write_entry
from recorder.proof.handover import handover_file, is_from, read_handovers, register_chain
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.registers import Registers, State, read_both
from recorder.proof.signed import digest
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_log = structlog.get_logger(__name__)


class Entries:
    """raw: the blobs as stored. name: of the register. head: the last entry. signed: entries in this process."""

    def __init__(self, raw: Blobs, signer: Signer, keys: PublicKeys, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.signer = signer
        self.head = Anchor(0, NOTHING)
        self.signed = 0
        self._raw = raw
        self._keys = keys
        self._clock = clock
        self._handovers = 0

    def state(self, registers: Registers) -> State:
        """The register as it is in the store."""
        return registers.states.get(self.name) or State(self.name)

    def go_on(self, chain: Chain, registers: Registers) -> None:
        """The next entry follows what is there, by the key that is in force."""
        self.head = self.state(registers).last
        self._handovers = chain.keys.last.number

    def new(
        self,
        *,
        recordings: tuple[Sealed, ...] = (),
        events: tuple[Part, ...] = (),
        looks: tuple[Part, ...] = (),
        opening: bool = False,
        accepted: Accepted | None = None,
    ) -> Entry:
        """The next entry."""
        number, previous = self.head.number + 1, self.head.sha256
        return Entry(self.name, number, previous, self._clock(), recordings, events, looks, opening, accepted)

    async def put(self, entry: Entry) -> None:
        """Sign it, and put it into the store. Raises StoreError, KeyFault."""
        await self._see_in_force(entry.number)
        data = write_entry(entry, self.signer)
        key = entry_file(self.name, entry.number)
        try:
            await self._raw.create(key, data)
        except FileExistsError:
            if await self._raw.get(key) != data:
                await self._evade()
                raise StoreError(f"number {entry.number} of the register {self.name!a} was taken") from None
        self.head = Anchor(entry.number, digest(data))
        self.signed += 1

    async def _see_in_force(self, number: int) -> None:
        """Another recorder of this store may have started with the next key meanwhile, and an entry by this one would
        be a fault for ever. Raises StoreError, KeyFault."""
        try:
            data = await self._raw.get(handover_file(self._handovers + 1))
        except KeyError:
            return
        history, _, _ = await read_handovers(self._raw, self._keys)
        in_force = history.may_sign(self.signer.id, register_chain(self.name), number)
        if not in_force or is_from(data, self.signer.id, self._keys):
            raise KeyFault(f"the key {self.signer.id} has handed over: restart with the current key")

    async def _evade(self) -> None:
        """A number was taken by somebody else. Raises StoreError where that is a recorder with this key. What anybody
        else has put there is no reason to sign no more: the next entry follows it, and every check tells it."""
        chain, registers = await read_both(self._raw, self._keys)
        state = self.state(registers)
        if state.entries and state.entries[-1].number > self.head.number:
            raise StoreError(f"another recorder keeps the register {self.name!a}: give each its own name")
        for fault in [*chain.faults, *state.faults]:
            _log.error("proof_fault", fault=fault)
        self.head = state.last

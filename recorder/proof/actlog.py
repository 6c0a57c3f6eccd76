"""The chain of acts of one store, kept at hand: read, held against what is remembered elsewhere, and gone on with.

Several may add to it at once: the recorder, which removes, and a command beside it that places a hold. A number is
taken by whoever creates its file first; the other one reads what has come and takes the next.

An act counts from the moment its file is there. Only then its number and hash are remembered outside of the store
(recorder/proof/witness.py), so a crash in between leaves a memory that is older and still true.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from recorder.crypt import stored
from recorder.proof.acts import Act, Acts, Kind, Subject, act_file, read_acts, write_act
from recorder.proof.chain import last_manifest
from recorder.proof.handover import ACTS as CHAIN
from recorder.proof.handover import read_handovers
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.registers import read_both
from recorder.proof.signed import digest
from recorder.proof.witness import Witnesses
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_log = structlog.get_logger(__name__)

# Times that somebody else may be quicker before it is a fault.
_TRIES = 20


class ActLog:
    """signer: None where acts can only be read. keys: those that acts may be signed with."""

    def __init__(
        self,
        blobs: Blobs,
        keys: PublicKeys,
        signer: Signer | None = None,
        *,
        witnesses: Witnesses | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.signer = signer
        self.witnesses = witnesses if witnesses is not None else Witnesses()
        self.keys = keys
        self._raw = stored(blobs)
        self._clock = clock
        self._acts = Acts()
        self._in_force = False  # whether the signer was found to be
        self._lock = asyncio.Lock()

    @property
    def known(self) -> Acts:
        """What was read last."""
        return self._acts

    async def read(self) -> Acts:
        """All acts there are now. Raises StoreError, KeyFault."""
        async with self._lock:
            return await self._read()

    async def _read(self) -> Acts:
        # Asked before: an act that is added meanwhile must not be missed.
        remembered = await self.witnesses.known(CHAIN)
        acts = self._acts = await read_acts(self._raw, self.keys, self._acts)
        if remembered is not None and not acts.has(remembered):
            fault = f"act {remembered.number}, which the anchor remembers, is missing or was replaced"
            if fault not in acts.faults:
                acts.faults.append(fault)
        return acts

    async def add(
        self, kind: Kind, subjects: Sequence[Subject], *, by: str, why: str = "", of: int = 0, body: str = ""
    ) -> Act:
        """Sign an act; safe on return. Raises StoreError, KeyFault."""
        if self.signer is None:
            raise KeyFault("there is no key to sign with")
        async with self._lock:
            remembered = await self.witnesses.known(CHAIN)
            for _ in range(_TRIES):
                acts = await self._read()
                await self._may_sign(acts, self.signer.id)
                act = Act(
                    number=acts.last.number + 1,
                    previous=acts.last.sha256,
                    manifest=await last_manifest(self._raw, self.keys),
                    kind=kind,
                    at=self._clock(),
                    by=by,
                    why=why,
                    subjects=tuple(subjects),
                    of=of,
                    body=body,
                    key=self.signer.id,
                )
                data = write_act(act, self.signer)
                try:
                    await self._raw.create(act_file(act.number), data)
                except FileExistsError:
                    continue
                acts = await self._read()  # it counts as it is read, also for whoever has signed it
                # Where the chain is not what is remembered, the memory is the evidence of it.
                if remembered is None or acts.has(remembered):
                    await self._remember(Anchor(act.number, digest(data)))
                return act
        raise StoreError("other programs sign acts all the time, so this act cannot be signed now")

    async def _may_sign(self, acts: Acts, key: str) -> None:
        """An act by a key that is not in force would be a fault in the chain for ever. Raises KeyFault, StoreError."""
        history, _, strange = await read_handovers(self._raw, self.keys)
        if strange or acts.strange:
            raise KeyFault(
                "acts or hand-overs are signed with a key that is not among those given, so nothing is signed"
            )
        if not history.may_sign(key, CHAIN, acts.last.number + 1):
            raise KeyFault(f"the key {key} is not the current key: give the current one")
        if not self._in_force and not history.handovers:
            await self._see_in_force(key)
        self._in_force = True

    async def _see_in_force(self, key: str) -> None:
        """Before the first hand-over all that is signed says which key is in force. Once: from then on another one
        needs a hand-over. Raises KeyFault, StoreError."""
        chain, registers = await read_both(self._raw, self.keys)
        current = chain.keys.current
        if not current:
            believed = (await read_acts(self._raw, self.keys.with_own(""))).believed
            current = believed[-1].key if believed else ""
        if current not in ("", key):
            raise KeyFault(f"the key {key} is not the current key: {current} is, and it has not handed over")
        if not current and (chain.strange or registers.strange):
            raise KeyFault(
                "the acts of the store are signed with a key that is not among those given, so nothing is signed"
            )

    async def _remember(self, head: Anchor) -> None:
        """The act counts, whether or not a witness can be told of it."""
        try:
            await self.witnesses.remember(CHAIN, head)
        except KeyFault as error:
            _log.error("anchor_fault", fault=str(error))


__all__ = ["ActLog"]

"""The anchor of a running recorder: whether the store has what the witnesses remember, and what they are to be told.

Witnesses are told nothing before the store was compared with what they know, or a store that was taken back would be
remembered as it is. A witness that is away is told later, beside the signing, which does not wait for it. As long as
the store was not compared, it is compared again and again: the anchor may have been away, or somebody may have put it
right.
"""

from __future__ import annotations

import asyncio

import structlog

from recorder.proof.acts import read_acts
from recorder.proof.chain import Chain
from recorder.proof.keys import Anchor, KeyFault, PublicKeys
from recorder.proof.registers import Registers, holder, read_both
from recorder.proof.witness import Heads, Witnesses
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_log = structlog.get_logger(__name__)

# Seconds between attempts to tell a witness, or to compare.
RETRY = 10.0


class Anchoring:
    """raw: the blobs as stored. fault: None, or why the store does not fit the anchor."""

    def __init__(self, raw: Blobs, keys: PublicKeys, witnesses: Witnesses) -> None:
        self.fault: str | None = None
        self.witnesses = witnesses
        self._raw = raw
        self._keys = keys
        self._judged = False  # `judge` was called: the register is open
        self._untold: Heads = {}
        self._told = asyncio.Event()

    async def read(self) -> tuple[Chain, Registers, str | None]:
        """The chains, and what is wrong with them by the anchor. What comes in is signed all the same, behind what is
        there; but then no witness is told of it, and no day is sealed. Raises StoreError."""
        heads, fault = None, None
        try:
            heads = await self.witnesses.recall()
        except KeyFault as error:
            self.witnesses.compared = False
            fault = str(error)
        chain, registers = await read_both(self._raw, self._keys)
        return chain, registers, fault if heads is None else await self._compare(heads, chain, registers)

    async def _compare(self, heads: Heads, chain: Chain, registers: Registers) -> str | None:
        acts = await read_acts(self._raw, self._keys)
        try:
            self.witnesses.compare(heads, holder(chain, registers, acts.has))
        except KeyFault as error:
            return str(error)
        empty = not chain.hashes and not registers.there and not chain.keys.handovers
        if self.witnesses.all and self.witnesses.empty and not empty:
            self.witnesses.compared = False
            return (
                "the anchor is empty, but the store has signed chains: restore the anchor, or accept "
                "the store as it is with `recorder anchor accept`"
            )
        return None

    def judge(self, fault: str | None) -> None:
        """What `read` has found is how it is."""
        if fault is None and self.fault is not None:
            _log.info("anchor_compared")
        if fault is not None and fault != self.fault:
            _log.error("anchor_fault", fault=fault)
        self.fault = fault
        self._judged = True
        if fault is None:
            self._untold = self.witnesses.behind | self._untold
        self._told.set()

    def note(self, chain: str, head: Anchor) -> None:
        """This is the last of a chain; the witnesses are told when they can be."""
        self._untold[chain] = head
        self._told.set()

    async def remember(self, chain: str, head: Anchor) -> None:
        """The same, and try it now. Raises nothing: what was signed stays signed, and the witnesses' faults tell."""
        self._untold[chain] = head
        await self.tell()

    async def tell(self) -> None:
        """Tell the witnesses what they do not know yet."""
        if not self.witnesses.compared:
            return
        for chain, head in list(self._untold.items()):
            try:
                await self.witnesses.remember(chain, head)
            except KeyFault:
                continue
            if self._untold.get(chain) == head:
                del self._untold[chain]

    async def run(self) -> None:
        """Tell them until cancelled."""
        while True:
            try:
                async with asyncio.timeout(RETRY if self._untold or not self.witnesses.compared else None):
                    await self._told.wait()
            except TimeoutError:
                if self._judged and not self.witnesses.compared:
                    await self.compare_again()
            self._told.clear()
            await self.tell()
            await asyncio.sleep(self.witnesses.pause)

    async def compare_again(self) -> None:
        """The anchor could not be read, or somebody may have put it right."""
        try:
            _, _, fault = await self.read()
        except StoreError as error:
            fault = str(error)
        self.judge(fault)

"""The register: what has come into the store is signed at once, so that nothing can be put in later.

A recorder signs each recording when it has ended, and each chunk of API events and of the book of looks when it was
put, by what it has in memory and not by what is in the store by then. What comes at the same time shares an entry:

    proof/register/NAME/0000000042.json     number, previous, at, recordings, events, looks (documents.Entry)

NAME is that of the recorder (store.instance), so several that share an object store keep one each. The manifest of a
day takes over what the entries say, and names for each register the last entry of which everything is listed by then;
entries up to there are forgotten. A recording without an entry was not put there by the recorder, or the recorder could
not sign at that time: it is told as `unknown` for ever.

The journal has a session until its entry is there. So what a crash leaves between the two is signed at the next start,
and says that it came out of the journal. A register that is new signs what it finds, once, and says so too.

    open        reads the chains, holds the store against the anchor (`anchoring.py`), hands over from the key of before
    run         signs what waits (`waiting.py`), as one entry at a time (`entries.py`)
    accept      takes the store as it is, on an operator's word
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from k8sproxy.common.states import State, table
from k8sproxy.common.tasks import Tasks
from recorder.crypt import stored
from recorder.model import is_id
from recorder.proof.acts import read_acts
from recorder.proof.anchoring import Anchoring
from recorder.proof.chain import Chain, read_chain
from recorder.proof.documents import (
    FOUND,
    JOURNAL,
    KEYS,
    NOTHING,
    REGISTER,
    Accepted,
    Entry,
    Part,
    Sealed,
    chunks,
)
from recorder.proof.entries import Entries
from recorder.proof.found import events_of, part_of, recordings_of, seal
from recorder.proof.handover import ACTS, HANDOVERS, hand_over, register_chain
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.registers import Registers, all_heads, holder, read_both
from recorder.proof.signed import digest
from recorder.proof.waiting import Item, Waiting
from recorder.proof.witness import Witnesses
from recorder.store.api import Ended, Kept
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_log = structlog.get_logger(__name__)

# Seconds between two entries: what ends meanwhile shares the next one, so a busy recorder puts ten files a second.
GAP = 0.1
# Recordings and chunks of one entry, so that it has less than a megabyte or so.
MOST = 500
# Seconds between attempts after a failure.
RETRY = 10.0
# Seconds that the end of the process waits for the last entries.
CLOSE_TIMEOUT = 10.0


class Life(State):
    """Whether a register can sign.

    NEW         the chains are not read yet, or could not be                   -> OPEN, LEAVING
    OPEN        it may sign                                                    -> CLOSING
    LEAVING     the recorder stops, and the chains are not read: what waits
                is in the journal, unless they can be read after all           -> CLOSING
    CLOSING     the recorder stops, and what waits is signed                   -> (final)
    """

    NEW = "new"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSING = "closing"


table(
    {
        Life.NEW: (Life.OPEN, Life.LEAVING),
        Life.OPEN: (Life.CLOSING,),
        Life.LEAVING: (Life.CLOSING,),
        Life.CLOSING: (),
    }
)


class Register:
    """A recorder's own register; store.Registrar. name: what it is called. keys: public keys of before, besides the
    signer's own. previous: the key that is to hand over to the signer's, where that was not done yet. fault: None, or
    why it cannot sign."""

    def __init__(
        self,
        blobs: Blobs,
        signer: Signer,
        *,
        name: str = "main",
        keys: PublicKeys | None = None,
        witnesses: Witnesses | None = None,
        previous: Signer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.fault: str | None = None
        self.life = Life.NEW
        self.signer = signer
        self.keys = (keys if keys is not None else PublicKeys([signer.public_key])).with_own(signer.id)
        self._blobs = blobs
        self._raw = stored(blobs)
        self._previous = previous
        self._clock = clock
        self._entries = Entries(self._raw, signer, self.keys, name, clock)
        self._waiting = Waiting()
        self.anchoring = Anchoring(self._raw, self.keys, witnesses if witnesses is not None else Witnesses())
        self._before: frozenset[str] | None = None  # recordings of before the first register; None: not known
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    def _move(self, life: Life) -> None:
        self.life = self.life.to(life)

    @property
    def name(self) -> str:
        """What it is called."""
        return self._entries.name

    @property
    def signed(self) -> int:
        """Entries in this process."""
        return self._entries.signed

    @property
    def witnesses(self) -> Witnesses:
        """Who remembers how far the chains had come."""
        return self.anchoring.witnesses

    @property
    def anchor_fault(self) -> str | None:
        """None, or why the store does not fit the anchor."""
        return self.anchoring.fault

    @property
    def healthy(self) -> str | None:
        """None while all is signed and remembered; else what is wrong."""
        return self.fault or self.anchor_fault or next(iter(self.witnesses.faults.values()), None)

    async def remember(self, chain: str, head: Anchor) -> None:
        """Tell the witnesses, once the store was compared with what they know. Raises nothing: what was signed stays
        signed, and `healthy` tells."""
        await self.anchoring.remember(chain, head)

    # -- what the store tells

    async def look_before(self) -> None:
        """See Registrar."""
        with contextlib.suppress(StoreError):
            if not [name async for name, _ in self._raw.names(REGISTER)]:
                self._before = frozenset([identifier async for identifier in recordings_of(self._raw)])

    async def ended(self, ended: Ended) -> None:
        """See Registrar."""
        await self._waiting.wait_for(Item(ended=ended))

    async def stored(self, kept: Kept) -> None:
        """See Registrar."""
        await self._waiting.wait_for(Item(kept=kept))

    def put_in(self, kept: Kept) -> None:
        """See Registrar."""
        self._waiting.add(Item(kept=kept))

    def found(self, names: list[str]) -> None:
        """See Registrar."""
        self._waiting.add_found(names)

    @property
    def behind(self) -> bool:
        """See Registrar."""
        return self._waiting.behind

    def let_go(self) -> None:
        """See Registrar."""
        if count := self._waiting.let_go():
            _log.error("not_signed", items=count, why=self.fault)

    def waits_for(self, until: float) -> bool:
        """Whether something that ended before that moment is not signed yet."""
        return self._waiting.waits_for(until)

    async def settled(self) -> None:
        """Wait until nothing waits for its signature, or it cannot be signed now."""
        while self.behind and self.fault is None and self._task is not None:
            self._waiting.moved.clear()
            await self._waiting.moved.wait()

    # -- the task

    def start(self) -> None:
        """Begin to sign."""
        self._task = self._tasks.start(self._run(), "register")
        self._tasks.start(self.anchoring.run(), "register anchor")

    async def aclose(self) -> None:
        """See Registrar."""
        if self._task is None:
            return
        task, self._task = self._task, None
        unread = self.life is Life.NEW
        self._move(Life.LEAVING if unread else Life.CLOSING)
        self._waiting.wake.set()
        # What cannot be signed now is in the journal.
        await asyncio.wait((task,), timeout=0.0 if self.fault is not None and unread else CLOSE_TIMEOUT)
        self._waiting.moved.set()
        await self._tasks.aclose()
        await self.anchoring.tell()
        if self._waiting.items:
            _log.error("not_signed", items=len(self._waiting.items), why=self.fault or "there was no time")
        await self.witnesses.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self.open()
                while await self._step():
                    pass
            except (StoreError, KeyFault) as error:
                self._failed(str(error))
            except Exception:
                _log.exception("register_failed")
                self.fault = "signing fails; the log says why"
                self._waiting.moved.set()
            else:
                return
            await asyncio.sleep(RETRY)
            self._waiting.wake.set()

    async def _step(self) -> bool:
        """What waits; whether there may be more. Raises StoreError, KeyFault."""
        waiting = self._waiting
        await waiting.wake.wait()
        waiting.wake.clear()
        if waiting.found:
            names = list(waiting.found)
            await self._sign_found(names)
            waiting.signed_found(len(names))
        while waiting.items:
            batch = waiting.items[:MOST]
            await self._put(await self._entry(batch))
            waiting.signed(len(batch))
            if self.life is Life.OPEN:
                await asyncio.sleep(GAP)
        return self.life is Life.OPEN

    def _failed(self, fault: str) -> None:
        if self.fault != fault:
            _log.error("register_fault", fault=fault)
        self.fault = fault
        self._waiting.moved.set()

    # -- open

    async def open(self) -> None:
        """Read the chains, and see that this key may go on with them. Once. Raises StoreError, KeyFault."""
        async with self._lock:
            if self.life not in (Life.NEW, Life.LEAVING):
                return
            await self._export_key()
            chain, registers, fault = await self.anchoring.read()
            strange = chain.strange or registers.strange
            if strange and chain.keys.current != self.signer.id:
                # One of those may be the key in force. Where this one is, somebody has put them there.
                raise KeyFault("manifests or registers are signed with a key that is not among the public keys")
            if not chain.keys.current:
                await self._ask_acts(chain)
            if chain.keys.current not in ("", self.signer.id):
                chain = await self._take_over(chain, registers, fault)
            self._entries.go_on(chain, registers)
            state = self._entries.state(registers)
            if not registers.there or (state.entries and state.entries[-1].opening):
                # Only at the very beginning of the first register of a store: later it would sign what somebody has put
                # there, and made away with the register first, or waited for another recorder to join.
                if fault is not None and not self.witnesses.recalled:
                    raise KeyFault(fault)
                if fault is None and not strange:
                    await self._begin(chain, registers)
            self._move(Life.OPEN if self.life is Life.NEW else Life.CLOSING)
            self.fault = None
            self.anchoring.judge(fault)

    async def _ask_acts(self, chain: Chain) -> None:
        """Where nothing but acts is signed, as by a command that placed a hold, they say which key is in force."""
        acts = await read_acts(self._raw, self.keys.with_own(""))
        if acts.believed:
            chain.keys.signed(acts.believed[-1].key, ACTS, acts.believed[-1].number)

    async def _take_over(self, chain: Chain, registers: Registers, fault: str | None) -> Chain:
        if self._previous is None:
            raise KeyFault(
                f"the current key is {chain.keys.current}, and it has not handed over to {self.signer.id}: name the "
                "private key of the current one as proof.previousKey until the recorder has started once"
            )
        if fault is not None:
            # A hand-over names the ends of the chains as they are, and these are not the ends.
            raise KeyFault(f"the key cannot be handed over while the anchor does not match the store: {fault}")
        heads = await all_heads(self._raw, self.keys, chain, registers)
        handover = await hand_over(self._raw, chain.keys, self._previous, self.signer, heads, at=self._clock())
        _log.info("key_handed_over", old=handover.old, new=handover.new, number=handover.number)
        chain = await read_chain(self._raw, self.keys)
        if chain.keys.current != self.signer.id:
            raise KeyFault("the hand-over between the keys does not hold: " + "; ".join(chain.faults))
        await self.remember(HANDOVERS, chain.keys.last)
        return chain

    async def _export_key(self) -> None:
        names = {name async for name, _ in self._raw.names(KEYS)}
        if f"{self.signer.id}.pem" not in names:
            await self._raw.put(f"{KEYS}/{self.signer.id}.pem", self.signer.public_pem)

    async def _begin(self, chain: Chain, registers: Registers) -> None:
        """Sign what was there before there was a register. The last such entry is none of an opening's own."""
        known = {sealed.id for manifest in chain.manifests for sealed in manifest.recordings}
        known |= set(registers.recordings)
        parts = {name for manifest in chain.manifests for name, _ in chunks(manifest)} | set(registers.chunks)
        waiting = self._waiting.recordings
        recordings: list[Sealed] = []
        async for identifier in recordings_of(self._raw):
            if identifier in known or identifier in waiting:
                continue
            if self._before is not None and identifier not in self._before:
                continue  # of this process: it is signed as what has ended just now
            if (sealed := await seal(self._blobs, identifier, FOUND)) is not None:
                recordings.append(sealed)
                if len(recordings) >= MOST:
                    await self._put(self._entries.new(recordings=tuple(recordings), opening=True))
                    recordings = []
        events = [part async for part in events_of(self._raw) if f"events/{part.name}" not in parts]
        if recordings or events or self._entries.head.number:
            await self._put(self._entries.new(recordings=tuple(recordings), events=tuple(events)))

    async def _sign_found(self, names: Iterable[str]) -> None:
        chain, registers = await read_both(self._raw, self.keys)
        known = {sealed.id for manifest in chain.manifests for sealed in manifest.recordings}
        known |= set(registers.recordings)
        known |= {name for manifest in chain.manifests for name, _ in chunks(manifest)} | set(registers.chunks)
        recordings: list[Sealed] = []
        events: list[Part] = []
        for name in dict.fromkeys(names):
            if name in known:
                continue
            if is_id(name):
                if (sealed := await seal(self._blobs, name, JOURNAL)) is not None:
                    recordings.append(sealed)
            elif (part := await part_of(self._raw, name)) is not None:
                events.append(part)
        if recordings or events:
            await self._put(self._entries.new(recordings=tuple(recordings), events=tuple(events)))

    # -- entries

    async def _put(self, entry: Entry) -> None:
        await self._entries.put(entry)
        self.fault = None
        self.anchoring.note(register_chain(self.name), self._entries.head)

    async def _entry(self, batch: Sequence[Item]) -> Entry:
        recordings: list[Sealed] = []
        parts: dict[str, list[Part]] = {"events": [], "looks": []}
        for item in batch:
            if item.ended is not None:
                if (sealed := await self._sealed(item.ended)) is not None:
                    recordings.append(sealed)
            elif item.kept is not None:
                top, _, name = item.kept.name.partition("/")
                parts[top].append(Part(name, item.kept.size, item.kept.sha256))
        events, looks = tuple(parts["events"]), tuple(parts["looks"])
        return self._entries.new(recordings=tuple(recordings), events=events, looks=looks)

    async def _sealed(self, ended: Ended) -> Sealed | None:
        recording = ended.recording
        if ended.parts is None:
            return await seal(self._blobs, recording.id, JOURNAL)
        encrypted = self._raw is not self._blobs
        return Sealed(
            id=recording.id,
            ended=recording.ended or self._clock(),
            end=recording.end.value,
            size=recording.size,
            header="" if encrypted else digest(ended.header_line),
            head="" if encrypted else ended.head,
            parts=tuple(
                sorted(
                    (Part(kept.name.rpartition("/")[2], kept.size, kept.sha256) for kept in ended.parts),
                    key=lambda part: part.name,
                )
            ),
        )

    # -- an operator's word

    async def accept(self, by: str, reason: str) -> list[str]:
        """On an operator's word, take the store as it is: without what the anchor remembers and the store has not, and
        without the signature of a key that is lost. What that was, a sentence each; it is told at every check. No
        recorder may run. Raises StoreError, KeyFault where there is nothing to accept."""
        done: list[str] = []
        remembered = await self.witnesses.recall()
        await self._export_key()
        chain, registers = await read_both(self._raw, self.keys)
        acts = await read_acts(self._raw, self.keys)
        if chain.strange or registers.strange:
            raise KeyFault("manifests or registers are signed with a key that is not among the public keys")
        holds = holder(chain, registers, acts.has)
        lost = {name: head for name, head in remembered.items() if not holds(name, head)}
        if chain.keys.current not in ("", self.signer.id):
            heads = await all_heads(self._raw, self.keys, chain, registers)
            old = chain.keys.current
            await hand_over(self._raw, chain.keys, None, self.signer, heads, at=self._clock(), reason=reason)
            chain = await read_chain(self._raw, self.keys)
            done.append(f"the key {self.signer.id} has taken over from {old} without its signature")
        if lost or not remembered:
            self._entries.go_on(chain, registers)
            await self._put(self._entries.new(accepted=Accepted(self._clock(), by, reason, lost)))
            told = ", ".join(f"number {head.number} of the {name}" for name, head in sorted(lost.items()))
            done.append(f"the store goes on without {told}" if lost else "the store as it is begins a new anchor")
        if not done:
            raise KeyFault("the store matches the anchor, and the key is the current one: there is nothing to accept")
        chain, registers = await read_both(self._raw, self.keys)
        heads = await all_heads(self._raw, self.keys, chain, registers)
        await self.witnesses.begin({name: Anchor(0, NOTHING) for name in remembered} | heads)
        return done

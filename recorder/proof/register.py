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

    open        reads the chains, holds the store against the anchor, hands over from the key of before
    run         signs what waits, as one entry at a time
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from k8sproxy.common.tasks import Tasks
from recorder.crypt import stored
from recorder.model import is_id
from recorder.proof.acts import read_acts
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
    entry_file,
    write_entry,
)
from recorder.proof.found import events_of, part_of, recordings_of, seal
from recorder.proof.handover import (
    ACTS,
    HANDOVERS,
    hand_over,
    handover_file,
    is_from,
    read_handovers,
    register_chain,
)
from recorder.proof.keys import Anchor, KeyFault, PublicKeys, Signer
from recorder.proof.registers import Registers, State, all_heads, holder, read_both
from recorder.proof.signed import digest
from recorder.proof.witness import Heads, Witnesses
from recorder.store.api import Ended, Kept
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError

_log = structlog.get_logger(__name__)

# Seconds between two entries: what ends meanwhile shares the next one, so a busy recorder puts ten files a second.
GAP = 0.1
# Recordings and chunks of one entry, so that it has less than a megabyte or so.
MOST = 500
# Recordings that may wait for a signature with the journal still holding them; those behind them wait in memory alone.
HELD = 1000
# Seconds between attempts after a failure.
RETRY = 10.0
# Seconds that the end of the process waits for the last entries.
CLOSE_TIMEOUT = 10.0


class Register:
    """A recorder's own register; store.Registrar. name: what it is called. keys: public keys of before, besides the
    signer's own. previous: the key that is to hand over to the signer's, where that was not done yet. fault: None, or
    why it cannot sign. anchor_fault: None, or why the store does not fit the anchor. signed: entries in this
    process."""

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
        self.anchor_fault: str | None = None
        self.signed = 0
        self.signer = signer
        self.keys = (keys if keys is not None else PublicKeys([signer.public_key])).with_own(signer.id)
        self.witnesses = witnesses if witnesses is not None else Witnesses()
        self.name = name
        self._blobs = blobs
        self._raw = stored(blobs)
        self._previous = previous
        self._clock = clock
        self._head = Anchor(0, NOTHING)
        self._handovers = 0
        self._opened = False
        self._lock = asyncio.Lock()
        self._waiting: list[_Item] = []
        self._found: list[str] = []
        self._before: frozenset[str] | None = None  # recordings of before the first register; None: not known
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._told = asyncio.Event()
        self._untold: Heads = {}
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._closing = False

    # -- what the store tells

    async def look_before(self) -> None:
        """See Registrar."""
        with contextlib.suppress(StoreError):
            if not [name async for name, _ in self._raw.names(REGISTER)]:
                self._before = frozenset([identifier async for identifier in recordings_of(self._raw)])

    async def ended(self, ended: Ended) -> None:
        """See Registrar."""
        await self._wait(_Item(ended=ended))

    async def stored(self, kept: Kept) -> None:
        """See Registrar."""
        await self._wait(_Item(kept=kept))

    def put_in(self, kept: Kept) -> None:
        """See Registrar."""
        self._waiting.append(_Item(kept=kept))
        self._wake.set()

    def found(self, names: list[str]) -> None:
        """See Registrar."""
        self._found += names
        self._wake.set()

    @property
    def behind(self) -> bool:
        """See Registrar."""
        return bool(self._found or self._waiting)

    def let_go(self) -> None:
        """See Registrar."""
        for item in self._waiting:
            item.done.set()
        if self._found:
            _log.error("not_signed", items=len(self._found), why=self.fault)
            self._found.clear()

    async def _wait(self, item: _Item) -> None:
        self._waiting.append(item)
        self._wake.set()
        if len(self._waiting) <= HELD:
            await item.done.wait()

    def waits_for(self, until: float) -> bool:
        """Whether something that ended before that moment is not signed yet."""
        recordings = [item.ended.recording for item in self._waiting if item.ended is not None]
        return bool(self._found) or any((recording.ended or 0.0) < until for recording in recordings)

    async def settled(self) -> None:
        """Wait until nothing waits for its signature, or it cannot be signed now."""
        while self.behind and self.fault is None and self._task is not None:
            self._moved.clear()
            await self._moved.wait()

    # -- the task

    def start(self) -> None:
        """Begin to sign."""
        self._task = self._tasks.start(self._run(), "register")
        self._tasks.start(self._keep_telling(), "register anchor")

    async def aclose(self) -> None:
        """See Registrar."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._closing = True
        self._wake.set()
        # What cannot be signed now is in the journal.
        await asyncio.wait((task,), timeout=0.0 if self.fault is not None and not self._opened else CLOSE_TIMEOUT)
        self._moved.set()
        await self._tasks.aclose()
        await self._tell()
        if self._waiting:
            _log.error("not_signed", items=len(self._waiting), why=self.fault or "there was no time")
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
                self._moved.set()
            else:
                return
            await asyncio.sleep(RETRY)
            self._wake.set()

    async def _step(self) -> bool:
        """One entry; whether there may be more. Raises StoreError, KeyFault."""
        await self._wake.wait()
        self._wake.clear()
        if self._found:
            names = list(self._found)
            await self._sign_found(names)
            del self._found[: len(names)]
            self._moved.set()
        while self._waiting:
            batch = self._waiting[:MOST]
            await self._put(await self._entry(batch))
            del self._waiting[: len(batch)]
            for item in batch:
                item.done.set()
            self._moved.set()
            if not self._closing:
                await asyncio.sleep(GAP)
        return not self._closing

    def _failed(self, fault: str) -> None:
        if self.fault != fault:
            _log.error("register_fault", fault=fault)
        self.fault = fault
        self._moved.set()

    # -- open

    async def open(self) -> None:
        """Read the chains, and see that this key may go on with them. Once. Raises StoreError, KeyFault."""
        async with self._lock:
            if self._opened:
                return
            await self._export_key()
            chain, registers, fault = await self._read()
            strange = chain.strange or registers.strange
            if strange and chain.keys.current != self.signer.id:
                # One of those may be the key in force. Where this one is, somebody has put them there.
                raise KeyFault("there are manifests or registers by a key that is not among the public keys")
            if not chain.keys.current:
                await self._ask_acts(chain)
            if chain.keys.current not in ("", self.signer.id):
                chain = await self._take_over(chain, registers, fault)
            state = registers.states.get(self.name) or State(self.name)
            self._head = state.last
            self._handovers = chain.keys.last.number
            if not registers.there or (state.entries and state.entries[-1].opening):
                # Only at the very beginning of the first register of a store: later it would sign what somebody has put
                # there, and made away with the register first, or waited for another recorder to join.
                if fault is not None and not self.witnesses.recalled:
                    raise KeyFault(fault)
                if fault is None and not strange:
                    await self._begin(chain, registers)
            self._opened = True
            self.fault = None
            self._set_anchor_fault(fault)
            self._told.set()

    def _set_anchor_fault(self, fault: str | None) -> None:
        if fault is None and self.anchor_fault is not None:
            _log.info("anchor_compared")
        if fault is not None and fault != self.anchor_fault:
            _log.error("anchor_fault", fault=fault)
        self.anchor_fault = fault
        if fault is None:
            self._untold = self.witnesses.behind | self._untold

    async def _read(self) -> tuple[Chain, Registers, str | None]:
        """The chains, and what is wrong with them by the anchor. What comes in is signed all the same, behind what is
        there; but then no witness is told of it, and no day is sealed. Raises StoreError."""
        heads, fault = None, None
        try:
            heads = await self.witnesses.recall()
        except KeyFault as error:
            self.witnesses.compared = False
            fault = str(error)
        chain, registers = await read_both(self._raw, self.keys)
        return chain, registers, fault if heads is None else await self._compare(heads, chain, registers)

    async def _compare(self, heads: Heads, chain: Chain, registers: Registers) -> str | None:
        acts = await read_acts(self._raw, self.keys)
        try:
            self.witnesses.compare(heads, holder(chain, registers, acts.has))
        except KeyFault as error:
            return str(error)
        empty = not chain.hashes and not registers.there and not chain.keys.handovers
        if self.witnesses.all and self.witnesses.empty and not empty:
            self.witnesses.compared = False
            return (
                "the anchor is empty, and the store has signed chains: put the anchor back to where it was, or take "
                "what is in the store for the truth with `recorder anchor accept`"
            )
        return None

    async def _ask_acts(self, chain: Chain) -> None:
        """Where nothing but acts is signed, as by a command that placed a hold, they say which key is in force."""
        acts = await read_acts(self._raw, self.keys.with_own(""))
        if acts.believed:
            chain.keys.signed(acts.believed[-1].key, ACTS, acts.believed[-1].number)

    async def _take_over(self, chain: Chain, registers: Registers, fault: str | None) -> Chain:
        if self._previous is None:
            raise KeyFault(
                f"the key in force is {chain.keys.current}, and it has not handed over to {self.signer.id}: name the "
                "private key of the one in force as proof.previousKey until the recorder has started once"
            )
        if fault is not None:
            # A hand-over names the ends of the chains as they are, and these are not the ends.
            raise KeyFault(f"no hand-over of the key while the anchor does not fit: {fault}")
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
        waiting = {item.ended.recording.id for item in self._waiting if item.ended is not None}
        recordings: list[Sealed] = []
        async for identifier in recordings_of(self._raw):
            if identifier in known or identifier in waiting:
                continue
            if self._before is not None and identifier not in self._before:
                continue  # of this process: it is signed as what has ended just now
            if (sealed := await seal(self._blobs, identifier, FOUND)) is not None:
                recordings.append(sealed)
                if len(recordings) >= MOST:
                    await self._put(self._new(recordings=tuple(recordings), opening=True))
                    recordings = []
        events = [part async for part in events_of(self._raw) if f"events/{part.name}" not in parts]
        if recordings or events or self._head.number:
            await self._put(self._new(recordings=tuple(recordings), events=tuple(events)))

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
            await self._put(self._new(recordings=tuple(recordings), events=tuple(events)))

    # -- entries

    def _new(
        self,
        *,
        recordings: tuple[Sealed, ...] = (),
        events: tuple[Part, ...] = (),
        looks: tuple[Part, ...] = (),
        opening: bool = False,
        accepted: Accepted | None = None,
    ) -> Entry:
        number, previous = self._head.number + 1, self._head.sha256
        return Entry(self.name, number, previous, self._clock(), recordings, events, looks, opening, accepted)

    async def _entry(self, batch: Sequence[_Item]) -> Entry:
        recordings: list[Sealed] = []
        parts: dict[str, list[Part]] = {"events": [], "looks": []}
        for item in batch:
            if item.ended is not None:
                if (sealed := await self._sealed(item.ended)) is not None:
                    recordings.append(sealed)
            elif item.kept is not None:
                top, _, name = item.kept.name.partition("/")
                parts[top].append(Part(name, item.kept.size, item.kept.sha256))
        return self._new(recordings=tuple(recordings), events=tuple(parts["events"]), looks=tuple(parts["looks"]))

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

    async def _put(self, entry: Entry) -> None:
        await self._see_in_force(entry.number)
        data = write_entry(entry, self.signer)
        key = entry_file(self.name, entry.number)
        try:
            await self._raw.create(key, data)
        except FileExistsError:
            if await self._raw.get(key) != data:
                await self._evade()
                raise StoreError(f"number {entry.number} of the register {self.name!a} was taken") from None
        self._head = Anchor(entry.number, digest(data))
        self.signed += 1
        self.fault = None
        self._untold[register_chain(self.name)] = self._head
        self._told.set()

    async def _see_in_force(self, number: int) -> None:
        """Another recorder of this store may have started with the next key meanwhile, and an entry by this one would
        be a fault for ever. Raises StoreError, KeyFault."""
        try:
            data = await self._raw.get(handover_file(self._handovers + 1))
        except KeyError:
            return
        history, _, _ = await read_handovers(self._raw, self.keys)
        in_force = history.may_sign(self.signer.id, register_chain(self.name), number)
        if not in_force or is_from(data, self.signer.id, self.keys):
            raise KeyFault(f"the key {self.signer.id} has handed over: restart with the key in force")

    async def _evade(self) -> None:
        """A number was taken by somebody else. Raises StoreError where that is a recorder with this key. What anybody
        else has put there is no reason to sign no more: the next entry follows it, and every check tells it."""
        chain, registers = await read_both(self._raw, self.keys)
        state = registers.states.get(self.name) or State(self.name)
        if state.entries and state.entries[-1].number > self._head.number:
            raise StoreError(f"another recorder keeps the register {self.name!a}: give each its own name")
        for fault in [*chain.faults, *state.faults]:
            _log.error("proof_fault", fault=fault)
        self._head = state.last

    async def remember(self, chain: str, head: Anchor) -> None:
        """Tell the witnesses, once the store was compared with what they know. Raises nothing: what was signed stays
        signed, and `healthy` tells."""
        self._untold[chain] = head
        await self._tell()

    async def _tell(self) -> None:
        if not self.witnesses.compared:
            return
        for chain, head in list(self._untold.items()):
            try:
                await self.witnesses.remember(chain, head)
            except KeyFault:
                continue
            if self._untold.get(chain) == head:
                del self._untold[chain]

    async def _keep_telling(self) -> None:
        """Beside the signing, which does not wait for it."""
        while True:
            try:
                async with asyncio.timeout(RETRY if self._untold or not self.witnesses.compared else None):
                    await self._told.wait()
            except TimeoutError:
                if self._opened and not self.witnesses.compared:
                    await self._compare_again()
            self._told.clear()
            await self._tell()
            await asyncio.sleep(self.witnesses.pause)

    async def _compare_again(self) -> None:
        """The anchor could not be read, or somebody may have put it right."""
        try:
            _, _, fault = await self._read()
        except StoreError as error:
            fault = str(error)
        self._set_anchor_fault(fault)

    @property
    def healthy(self) -> str | None:
        """None while all is signed and remembered; else what is wrong."""
        return self.fault or self.anchor_fault or next(iter(self.witnesses.faults.values()), None)

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
            raise KeyFault("there are manifests or registers by a key that is not among the public keys")
        holds = holder(chain, registers, acts.has)
        lost = {name: head for name, head in remembered.items() if not holds(name, head)}
        if chain.keys.current not in ("", self.signer.id):
            heads = await all_heads(self._raw, self.keys, chain, registers)
            old = chain.keys.current
            await hand_over(self._raw, chain.keys, None, self.signer, heads, at=self._clock(), reason=reason)
            chain = await read_chain(self._raw, self.keys)
            done.append(f"the key {self.signer.id} has taken over from {old} without its signature")
        if lost or not remembered:
            state = registers.states.get(self.name) or State(self.name)
            self._head = state.last
            await self._put(self._new(accepted=Accepted(self._clock(), by, reason, lost)))
            told = ", ".join(f"number {head.number} of the {name}" for name, head in sorted(lost.items()))
            done.append(f"the store goes on without {told}" if lost else "the store as it is begins a new anchor")
        if not done:
            raise KeyFault("the store fits the anchor, and the key is in force: there is nothing to accept")
        chain, registers = await read_both(self._raw, self.keys)
        heads = await all_heads(self._raw, self.keys, chain, registers)
        await self.witnesses.begin({name: Anchor(0, NOTHING) for name in remembered} | heads)
        return done


@dataclass(slots=True)
class _Item:
    """What waits for its signature: a recording, or a chunk."""

    ended: Ended | None = None
    kept: Kept | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

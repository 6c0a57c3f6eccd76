"""A store in a folder with recordings, sealed days, and hands that tamper with it."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from recorder.crypt import EncryptedBlobs, EncryptedLog, Keyring
from recorder.model import End, Source
from recorder.proof import PublicKeys, Sealer, Signer
from recorder.proof.days import day_of
from recorder.proof.documents import NOTHING, Manifest, manifest_file, write_manifest
from recorder.proof.found import seal as seal_found
from recorder.proof.handover import MANIFESTS, hand_over
from recorder.proof.keys import Anchor
from recorder.proof.register import Register
from recorder.proof.registers import all_heads, read_both
from recorder.proof.report import Report
from recorder.proof.signed import digest
from recorder.proof.verify import Verifier
from recorder.proof.witness import MemoryWitness, Witness, Witnesses
from recorder.store import builder
from recorder.store.blobs import Blobs, FolderBlobs
from recorder.store.live import Live
from recorder.store.logs import FolderLog, Log
from recorder.store.manifest import folder
from recorder.store.store import Store

DAY = 86400.0
PROXY = Source("proxy.tail.ts.net", "100.64.0.9", tags=("tag:k8sproxy",))
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it, and see that no task is left."""

    async def guarded() -> T:
        value = await work
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, left
        return value

    return asyncio.run(guarded())


def header(**more: Any) -> bytes:
    """A header line."""
    kubernetes = {"PodName": "web-0", "Namespace": "default", "Container": "app", "SessionType": "exec"}
    values = {"version": 2, "width": 80, "height": 24, "timestamp": 1, "command": "bash", "srcNode": "ana.ts.net"}
    return json.dumps(values | {"srcNodeUser": "ana@example.com", "kubernetes": kubernetes} | more).encode() + b"\n"


class Stage:
    """root: of the store. signs: whether its recorder has a key. witness: its anchor. clock: what the sealer takes for
    now, two days from now at first."""

    def __init__(self, root: Path, *, keyring: Keyring | None = None) -> None:
        self.root = root
        self.keyring = keyring
        self.signer = Signer.make()
        self.clock = time.time() + 2 * DAY
        self.witness = MemoryWitness()
        self.signs = True

    def blobs(self) -> Blobs:
        """The store's blobs."""
        blobs: Blobs = FolderBlobs(self.root)
        return EncryptedBlobs(blobs, self.keyring) if self.keyring is not None else blobs

    @asynccontextmanager
    async def store(
        self, keys: PublicKeys | None = None, previous: Signer | None = None
    ) -> AsyncGenerator[Store, None]:
        """The store, open, with a recorder's register."""
        self.root.mkdir(exist_ok=True)
        log: Log = FolderLog(self.root)
        if self.keyring is not None:
            log = EncryptedLog(log, self.keyring)
        store = Store(self.blobs(), log, min_free=0)
        if self.signs:
            register = Register(
                store.blobs,
                self.signer,
                keys=keys,
                witnesses=Witnesses([self.witness]),
                previous=previous,
                clock=lambda: self.clock,
            )
            store.registrar = register
            register.start()
        await store.open()
        try:
            yield store
        finally:
            await store.aclose()

    async def record(self, store: Store, text: bytes = b'[1.0,"o","hello"]\n', head: bytes | None = None) -> str:
        """A recording that is over; its id."""
        line = header() if head is None else head
        writer = await store.begin(line, PROXY)
        writer.write(text)
        await writer.wait_acked(len(line) + len(text) - 1)
        return (await writer.finish(End.CLEAN)).id

    async def settled(self, store: Store) -> None:
        """Wait until what is over is in chunks, and signed where that can be."""
        own = store.registrar

        def waits(live: Live) -> bool:
            return live.over and not (live.whole and isinstance(own, Register) and own.fault is not None)

        while any(map(waits, store.lives.values())):
            store.builder.poke()
            await asyncio.sleep(0)
            await store.builder.drained()

    async def fill(self, count: int = 3, *, chunks: int = 1) -> list[str]:
        """Recordings of as many chunks each; their ids."""
        before = builder.CHUNK_TEXT
        builder.CHUNK_TEXT = 1 if chunks > 1 else before
        ids = []
        try:
            async with self.store() as store:
                for number in range(count):
                    line = header(command=f"bash {number}")
                    writer = await store.begin(line, PROXY)
                    given = len(line)
                    for chunk in range(chunks):
                        text = b"".join(
                            b'[%d.%06d,"o","line %d of %d"]\n' % (chunk + 1, i, i, number) for i in range(6000)
                        )
                        writer.write(text)
                        given += len(text)
                        await writer.wait_acked(given - 1)
                        while chunks > 1 and len(store.lives[writer.id].chunks.rows) <= chunk:
                            store.builder.poke()
                            await asyncio.sleep(0.001)
                    ids.append((await writer.finish(End.CLEAN)).id)
                await self.settled(store)
        finally:
            builder.CHUNK_TEXT = before
        return ids

    async def plant(self, count: int = 1) -> list[str]:
        """Recordings that somebody without the key has put there."""
        other = Stage(self.root.with_name(f"{self.root.name}-planted"), keyring=self.keyring)
        other.signs = False
        ids = await other.fill(count)
        for identifier in ids:
            shutil.copytree(other.place(identifier), self.place(identifier))
        shutil.rmtree(other.root)
        return ids

    async def age(self) -> Signer:
        """A store as recorders without a register have left it: one recording, and the manifest of its day. The key."""
        self.signs = False
        (identifier,) = await self.fill(1)
        self.signs = True
        blobs = self.blobs()
        sealed = await seal_found(blobs, identifier, "")
        assert sealed is not None
        day = day_of(sealed.ended)
        await blobs.put(
            manifest_file(day), write_manifest(Manifest(1, day, NOTHING, self.clock, (sealed,)), self.signer)
        )
        self.witness.heads[MANIFESTS] = Anchor(1, digest(await blobs.get(manifest_file(day))))
        await blobs.aclose()
        return self.signer

    async def seal(self, signer: Signer | None = None, keys: PublicKeys | None = None) -> list[str]:
        """Seal what is due; the days."""
        async with self.store(keys) as store:
            await self.settled(store)
            return await Sealer(store, signer or self.signer, keys=keys, clock=lambda: self.clock).seal_due()

    async def hand_over(self, old: Signer | None, reason: str = "") -> None:
        """From a key to the stage's own."""
        blobs = self.blobs()
        try:
            signers = [self.signer] if old is None else [old, self.signer]
            keys = PublicKeys([one.public_key for one in signers])
            chain, registers = await read_both(blobs, keys)
            heads = await all_heads(blobs, keys, chain, registers)
            await hand_over(blobs, chain.keys, old, self.signer, heads, at=self.clock, reason=reason)
        finally:
            await blobs.aclose()

    async def verify(
        self,
        keys: PublicKeys | None = None,
        *,
        key: bool = True,
        witnesses: Sequence[Witness] | None = None,
        **more: Any,
    ) -> Report:
        """The report. key: with the decryption key."""
        blobs = self.blobs() if key else FolderBlobs(self.root)
        try:
            keys = keys or PublicKeys([self.signer.public_key])
            verifier = Verifier(
                blobs, keys, witnesses=[self.witness] if witnesses is None else witnesses, now=self.clock
            )
            return await verifier.run(**more)
        finally:
            await blobs.aclose()

    def place(self, identifier: str) -> Path:
        """Where a recording is."""
        return self.root / folder(identifier)

    def manifests(self) -> list[Path]:
        """The files of the manifests."""
        return sorted((self.root / "proof/days").iterdir())

    def copy(self, where: Path) -> Stage:
        """The same at another place, to be tampered with."""
        shutil.copytree(self.root, where)
        other = Stage(where, keyring=self.keyring)
        other.signer, other.clock = self.signer, self.clock
        other.witness = MemoryWitness(self.witness.heads)
        return other


def statuses(report: Report) -> dict[str, str]:
    """Status by id."""
    return {finding.id: finding.status.value for finding in report.findings}


__all__ = ["DAY", "PROXY", "Stage", "aclosing", "header", "run", "statuses"]

"""What is stored of a recording: each part hashed as it is stored, and the chunks held against their chain.

The hashes need no key. The chain is inside of the chunks, so where they are encrypted it takes the key to follow it;
without it only the hashes count, and the chain is left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from recorder.crypt import EncryptedBlobs, is_encrypted, stored
from recorder.model import Recording
from recorder.proof.documents import Part
from recorder.proof.signed import digest
from recorder.store.blobs import Blobs
from recorder.store.chunk import FOOTER, ChunkRow, DamagedChunkError, chunk_name, origin, read_trailer, trailer_size
from recorder.store.errors import StoreError
from recorder.store.manifest import MANIFEST, Manifest, folder, read_manifest

# Bytes from which on hashing goes into a thread: a quarter of a millisecond.
_LARGE = 512 << 10


@dataclass(slots=True)
class Looked:
    """What was found. recording: None for one that is not over. header, head: SHA-256 of the header line and of the
    last chunk, "" where they are not known. fault: what does not hang together, "" if nothing; cut: it is that chunks
    are missing at the end. encrypted: some of it is. readable: it could be decrypted, where it is."""

    parts: list[Part] = field(default_factory=list)
    recording: Recording | None = None
    header: str = ""
    head: str = ""
    fault: str = ""
    cut: bool = False
    encrypted: bool = False
    readable: bool = True

    def complain(self, fault: str, *, cut: bool = False) -> None:
        """The first fault is the one that is told."""
        if not self.fault:
            self.fault, self.cut = fault, cut


async def hash_of(data: bytes) -> str:
    """SHA-256, as hex."""
    return digest(data) if len(data) < _LARGE else await asyncio.to_thread(digest, data)


async def look(blobs: Blobs, identifier: str) -> Looked:
    """Read all of a recording. blobs: with their decryption, if there is one. Raises StoreError."""
    looked, raw, prefix = Looked(), stored(blobs), folder(identifier)
    names = [name async for name, _ in raw.names(prefix) if not name.endswith("/")]
    manifest = await _read_record(looked, blobs, identifier) if MANIFEST in names else None
    walk = _Walk(looked, identifier, manifest)
    for name in names:
        if name == MANIFEST:
            continue
        try:
            data = await raw.get(f"{prefix}/{name}")
        except KeyError:
            continue  # the walk misses it
        except ValueError:  # an object store may hold names that are none of ours
            looked.complain(f"{name!a} does not belong there")
            continue
        looked.parts.append(Part(name, len(data), await hash_of(data)))
        plain = await _plain(looked, blobs, f"{prefix}/{name}", data)
        if name.endswith(".chunk") and looked.readable:
            if len(plain) < _LARGE:
                walk.take(name, plain)
            else:
                await asyncio.to_thread(walk.take, name, plain)
        elif not name.endswith(".chunk"):
            looked.complain(f"{name!a} does not belong there")
    if looked.readable:
        walk.finish()
    looked.parts.sort(key=lambda part: part.name)
    return looked


async def _read_record(looked: Looked, blobs: Blobs, identifier: str) -> Manifest | None:
    key = f"{folder(identifier)}/{MANIFEST}"
    try:
        data = await stored(blobs).get(key)
    except KeyError:
        return None
    looked.parts.append(Part(MANIFEST, len(data), await hash_of(data)))
    plain = await _plain(looked, blobs, key, data)
    if not looked.readable:
        return None
    try:
        manifest = read_manifest(plain, identifier)
    except StoreError:
        looked.complain(f"{MANIFEST} cannot be read")
        return None
    looked.recording = manifest.recording
    looked.header = hashlib.sha256(manifest.header_line).hexdigest()
    looked.head = manifest.head
    return manifest


async def _plain(looked: Looked, blobs: Blobs, key: str, data: bytes) -> bytes:
    if not is_encrypted(data):
        return data
    looked.encrypted = True
    if not isinstance(blobs, EncryptedBlobs):
        looked.readable = False
        return b""
    try:
        return await blobs.unseal(key, data)
    except StoreError as error:
        looked.complain(f"{key.rpartition('/')[2]}: {error}")
        return b""


class _Walk:
    """Along the chain: the chunks in order, against each other and against recording.json where that is there."""

    def __init__(self, looked: Looked, identifier: str, manifest: Manifest | None) -> None:
        self._looked = looked
        self._manifest = manifest
        self._next = 0
        self._previous = origin(identifier, manifest.header_line) if manifest else None

    def take(self, name: str, data: bytes) -> None:
        """The next chunk that is there."""
        looked, seq = self._looked, self._next
        while name > chunk_name(seq):
            looked.complain(f"chunk {seq} is missing")
            seq, self._previous = seq + 1, None
        self._next = seq + 1
        sha256 = digest(data)
        row = self._row(seq)
        if self._manifest is not None and row is None:
            looked.complain(f"chunk {seq} is not listed in {MANIFEST}")
        if row is not None and row.bytes > len(data):
            looked.complain(f"chunk {seq} is incomplete", cut=True)
        elif row is not None and row.sha256 != sha256:
            looked.complain(f"chunk {seq} differs from what {MANIFEST} says")
        try:
            trailer_size(data[-FOOTER:])
            trailer = read_trailer(data)
        except DamagedChunkError as error:
            looked.complain(f"chunk {seq}: {error}", cut=row is None)
        else:
            if trailer.get("seq") != seq or (self._previous is not None and trailer.get("previous") != self._previous):
                looked.complain(f"chunk {seq} does not follow the one before it")
        self._previous = sha256

    def _row(self, seq: int) -> ChunkRow | None:
        rows = self._manifest.chunks if self._manifest is not None else ()
        return rows[seq] if seq < len(rows) else None

    def finish(self) -> None:
        """There are no more."""
        if self._manifest is None:
            return
        if self._next < len(self._manifest.chunks):
            rest = "is" if self._next + 1 == len(self._manifest.chunks) else "and those behind it are"
            self._looked.complain(f"chunk {self._next} {rest} missing", cut=True)
        elif self._previous != self._manifest.head:
            self._looked.complain(f"{MANIFEST} names another head of the chain")


def differs(wanted: Sequence[Part], found: Sequence[Part]) -> str:
    """In what the parts that are there are not those that were signed, "" for nothing."""
    there = {part.name: part for part in found}
    for part in wanted:
        if part.name not in there:
            return f"{part.name} is missing"
        if there.pop(part.name) != part:
            return f"{part.name} is not what was signed"
    return f"{min(there)} was put in later" if there else ""

"""Encryption at rest: the store's blobs and its journal in envelopes of AES-256-GCM, under keys from files.

    blob      magic "RECENC1\\n", id of the key (8), nonce (12), data key wrapped by that key (48), then the segments
    segment   up to 64 KiB of the blob, encrypted, with its tag (16); nonce: its number (11, big-endian), 1 in the last
    journal   magic "RJE1", length of the ciphertext (u32), id of the key (8), nonce (12), wrapped data key (48),
              nonce (12), one append, encrypted

Every blob has a data key of its own, drawn when it is put, and so has every segment of the journal: a nonce under it is
a mere counter, and can never be used twice, whatever is put again. The data key is bound to the blob's name, so one
blob cannot stand in another's place; the last segment is marked, so none can end early unseen. A range is read by
fetching the segments it touches: 64 KiB, not the chunk.

Keys rotate by their ids: what is written is written under the first key, what is read is read under whichever of the
keys it names. Blobs that are in no envelope (from before there was a key) are read as they are; that nobody has put
one in the place of another is for the proof to tell (recorder/proof), which hashes what is stored and needs no key.

`EncryptedBlobs` and `EncryptedLog` stand around what they encrypt, so nothing else in the store knows of it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from recorder.store.api import Kept
from recorder.store.blobs import Blobs
from recorder.store.errors import DamagedError, StoreError
from recorder.store.logs import Log

KEY_SIZE = 32
_ID_SIZE = 8
_NONCE = 12
_TAG = 16
_WRAPPED = KEY_SIZE + _TAG
_MAGIC = b"RECENC1\n"
_ENVELOPE = struct.Struct(f">8s{_ID_SIZE}s{_NONCE}s{_WRAPPED}s")
HEAD = _ENVELOPE.size
# Bytes of plain text in a segment: half a frame of a chunk, so that a seek decrypts little more than it reads.
SEGMENT = 64 * 1024
_STORED = SEGMENT + _TAG
# Data keys of blobs that are remembered: a viewer reads one chunk many times.
_REMEMBERED = 1024
# Bytes from which on a thread is worth its while: 64 KiB take 50 us.
_LARGE = 256 * 1024

_RECORD = struct.Struct(f">4sI{_ID_SIZE}s{_NONCE}s{_WRAPPED}s{_NONCE}s")
_RECORD_MAGIC = b"RJE1"
# Bytes of one append: what the journal's own batches may have, and the tag.
_MAX_RECORD = (1 << 30) + _TAG


class KeyFileError(Exception):
    """A key file that cannot be used. The message names the file and never what stands in it."""


class Keyring:
    """Keys by their ids. The first encrypts; all decrypt. Raises ValueError for no keys or one of another size."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_SIZE for key in keys):
            raise ValueError(f"needs keys of {KEY_SIZE} bytes")
        self._ciphers = {key_id(key): AESGCM(key) for key in reversed(keys)}
        self.current = key_id(keys[0])

    def wrap(self, data_key: bytes, name: bytes) -> tuple[bytes, bytes, bytes]:
        """Id of the key, nonce, wrapped data key; bound to `name`."""
        nonce = os.urandom(_NONCE)
        return self.current, nonce, self._ciphers[self.current].encrypt(nonce, data_key, _bound(self.current, name))

    def unwrap(self, identifier: bytes, nonce: bytes, wrapped: bytes, name: bytes) -> bytes:
        """The data key. Raises StoreError: for a key that is not here, or an envelope that was tampered with."""
        cipher = self._ciphers.get(identifier)
        if cipher is None:
            raise StoreError(f"the recorder lacks the key {identifier.hex()} that this was encrypted with")
        try:
            return cipher.decrypt(nonce, wrapped, _bound(identifier, name))
        except InvalidTag:
            raise DamagedError("an encrypted file in the store was changed, or belongs in another place") from None


def _bound(identifier: bytes, name: bytes) -> bytes:
    return b"recorder data key 1\n" + identifier + name


def key_id(key: bytes) -> bytes:
    """What a key is called: a part of its hash, which tells nothing of it."""
    return hashlib.sha256(b"recorder key id 1\n" + key).digest()[:_ID_SIZE]


def read_keys(paths: Iterable[Path]) -> Keyring:
    """The keys in files, the one to encrypt with first. A file holds 32 bytes, in base64 or in hex (`openssl rand
    -base64 32`). Raises KeyFileError, also for a file that others than owner and group may read."""
    return Keyring([_read_key(path) for path in paths])


def _read_key(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise KeyFileError(f"{path}: other users may read or write this key: chmod 600")
            text = file.read(1024).strip()
    except OSError as error:
        raise KeyFileError(f"{path}: can't be read: {error.strerror}") from None
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(text.decode("ascii"))
        except (ValueError, binascii.Error):
            continue
        if len(key) == KEY_SIZE:
            return key
    raise KeyFileError(f"{path}: must hold {KEY_SIZE} bytes in base64 or hex")


def is_encrypted(data: bytes) -> bool:
    """Whether a blob, of which these are the first bytes or all of them, is in an envelope."""
    return data.startswith(_MAGIC)


def encrypt(keyring: Keyring, name: str, data: bytes) -> bytes:
    """A blob in its envelope."""
    data_key = os.urandom(KEY_SIZE)
    identifier, nonce, wrapped = keyring.wrap(data_key, name.encode())
    cipher, view = AESGCM(data_key), memoryview(data)
    pieces = [_ENVELOPE.pack(_MAGIC, identifier, nonce, wrapped)]
    last = max(0, (len(data) - 1) // SEGMENT)
    for number in range(last + 1):
        part = view[number * SEGMENT : (number + 1) * SEGMENT]
        pieces.append(cipher.encrypt(_segment_nonce(number, number == last), part, None))
    return b"".join(pieces)


def decrypt(keyring: Keyring, name: str, data: bytes) -> bytes:
    """A blob out of its envelope, or as it is where it is in none. Raises StoreError."""
    if not is_encrypted(data):
        return data
    cipher = _open(keyring, name, data[:HEAD])
    return _decrypt_segments(cipher, memoryview(data)[HEAD:], 0, whole=True)


def _open(keyring: Keyring, name: str, head: bytes) -> AESGCM:
    if len(head) < HEAD:
        raise DamagedError("an encrypted file in the store is cut")
    _, identifier, nonce, wrapped = _ENVELOPE.unpack_from(head)
    return AESGCM(keyring.unwrap(identifier, nonce, wrapped, name.encode()))


def _segment_nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _decrypt_segments(cipher: AESGCM, data: memoryview, first: int, *, whole: bool) -> bytes:
    """Segments from number `first` on. whole: they must reach to the blob's end."""
    pieces: list[bytes] = []
    count = max(1, -(-len(data) // _STORED))
    for number in range(count):
        part = data[number * _STORED : (number + 1) * _STORED]
        # Only a segment that nothing follows here can be the last one; whether it is, its tag knows.
        choices = (True,) if whole and number == count - 1 else (False, True) if number == count - 1 else (False,)
        for last in choices:
            try:
                pieces.append(cipher.decrypt(_segment_nonce(first + number, last), part, None))
                break
            except (InvalidTag, ValueError):
                continue
        else:
            raise DamagedError("a file in the store was changed, or is cut")
    return b"".join(pieces)


class EncryptedBlobs:
    """See recorder.store.blobs.Blobs. inner: where the envelopes go. What `names` tells are stored sizes."""

    def __init__(self, inner: Blobs, keyring: Keyring) -> None:
        self.inner = inner
        self.keyring = keyring
        self.kind = inner.kind
        self._ciphers: OrderedDict[str, AESGCM | None] = OrderedDict()

    async def put(self, key: str, data: bytes) -> None:
        """See Blobs."""
        self._ciphers.pop(key, None)
        await self.inner.put(key, await self.seal(key, data))

    async def keep(self, key: str, data: bytes, sha256: str = "") -> Kept:
        """See Blobs."""
        self._ciphers.pop(key, None)
        return await self.inner.keep(key, await self.seal(key, data))

    async def create(self, key: str, data: bytes) -> None:
        """See Blobs."""
        self._ciphers.pop(key, None)
        await self.inner.create(key, await self.seal(key, data))

    async def seal(self, key: str, data: bytes) -> bytes:
        """A blob in its envelope, as `put` puts it."""
        if len(data) < _LARGE:
            return encrypt(self.keyring, key, data)
        return await asyncio.to_thread(encrypt, self.keyring, key, data)

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        return await self.unseal(key, await self.inner.get(key))

    async def unseal(self, key: str, data: bytes) -> bytes:
        """What is in an envelope, given all of it. Raises StoreError."""
        if len(data) < _LARGE:
            return decrypt(self.keyring, key, data)
        return await asyncio.to_thread(decrypt, self.keyring, key, data)

    async def get_range(self, key: str, start: int, size: int) -> bytes:
        """See Blobs."""
        if size <= 0:
            return b""
        known = key in self._ciphers
        try:
            return await self._get_range(key, start, size)
        except StoreError:
            if not known:
                raise
            # It may have been put anew by somebody else since its key was read.
            self._ciphers.pop(key, None)
            return await self._get_range(key, start, size)

    async def _get_range(self, key: str, start: int, size: int) -> bytes:
        cipher = await self._cipher(key)
        if cipher is None:
            return await self.inner.get_range(key, start, size)
        first, last = start // SEGMENT, (start + size - 1) // SEGMENT
        data = await self.inner.get_range(key, HEAD + first * _STORED, (last - first + 1) * _STORED)
        if not data:
            return b""
        plain = _decrypt_segments(cipher, memoryview(data), first, whole=False)
        return plain[start - first * SEGMENT :][:size]

    async def _cipher(self, key: str) -> AESGCM | None:
        if key in self._ciphers:
            self._ciphers.move_to_end(key)
            return self._ciphers[key]
        head = await self.inner.get_range(key, 0, HEAD)
        cipher = _open(self.keyring, key, head) if is_encrypted(head) else None
        self._ciphers[key] = cipher
        if len(self._ciphers) > _REMEMBERED:
            self._ciphers.popitem(last=False)
        return cipher

    async def size(self, key: str) -> int:
        """See Blobs."""
        stored = await self.inner.size(key)
        if not is_encrypted(await self.inner.get_range(key, 0, len(_MAGIC))):
            return stored
        body = stored - HEAD
        return body - _TAG * max(1, -(-body // _STORED))

    def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """See Blobs; the sizes are those of the envelopes."""
        return self.inner.names(prefix)

    async def delete(self, keys: Iterable[str]) -> None:
        """See Blobs."""
        wanted = list(keys)
        for key in wanted:
            self._ciphers.pop(key, None)
        await self.inner.delete(wanted)

    async def free(self) -> int | None:
        """See Blobs."""
        return await self.inner.free()

    async def aclose(self) -> None:
        """See Blobs."""
        await self.inner.aclose()


def stored(blobs: Blobs) -> Blobs:
    """The blobs as they are stored: without their decryption, where there is one."""
    return blobs.inner if isinstance(blobs, EncryptedBlobs) else blobs


class EncryptedLog:
    """See recorder.store.logs.Log. An append that is cut or changed ends its segment, as a torn batch does. keyring:
    None where nothing is encrypted; then a journal from before that is, is refused, and not taken for torn."""

    def __init__(self, inner: Log, keyring: Keyring | None) -> None:
        self.inner = inner
        self._keyring = keyring
        self._cipher: AESGCM | None = None
        self._wrapped: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        self._segment = 0
        self._count = 0

    @property
    def broken(self) -> bool:
        """See Log."""
        return self.inner.broken

    @broken.setter
    def broken(self, value: bool) -> None:
        self.inner.broken = value

    async def open(self, *, lock: bool = True) -> None:
        """See Log."""
        await self.inner.open(lock=lock)

    async def segments(self) -> list[int]:
        """See Log."""
        return await self.inner.segments()

    async def begin(self, segment: int) -> None:
        """See Log."""
        await self.inner.begin(segment)
        if self._keyring is None:
            return
        data_key = os.urandom(KEY_SIZE)
        self._wrapped = self._keyring.wrap(data_key, _journal_name(segment))
        self._cipher, self._segment, self._count = AESGCM(data_key), segment, 0

    async def append(self, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        """See Log."""
        if self._keyring is None:
            await self.inner.append(make)
            return
        if self._cipher is None:
            raise StoreError("the journal has no segment")
        # Counted before anything can fail: a nonce that was used once is used up.
        self._count += 1
        nonce, cipher, wrapped = self._count.to_bytes(_NONCE, "big"), self._cipher, self._wrapped

        def envelope() -> bytes | bytearray:
            data = cipher.encrypt(nonce, make(), None)
            return _RECORD.pack(_RECORD_MAGIC, len(data), *wrapped, nonce) + data

        await self.inner.append(envelope)

    async def read(self, segment: int) -> AsyncGenerator[bytes, None]:
        """See Log. Raises StoreError also where a key is missing: what can't be read must not count as torn."""
        buffer, plain = bytearray(), None
        opened = None if self._keyring is None else _Opened(self._keyring, _journal_name(segment))
        async for piece in self.inner.read(segment):
            if plain is None:
                plain = not piece.startswith(_RECORD_MAGIC)
            if plain:
                yield piece
                continue
            if opened is None:
                raise StoreError("the journal is encrypted, but no key is configured")
            buffer += piece
            while len(buffer) >= _RECORD.size:
                magic, size, identifier, nonce, wrapped, counter = _RECORD.unpack_from(buffer)
                if magic != _RECORD_MAGIC or size > _MAX_RECORD:
                    break
                if len(buffer) < _RECORD.size + size:
                    break
                data = bytes(memoryview(buffer)[_RECORD.size : _RECORD.size + size])
                text = opened.decrypt((identifier, nonce, wrapped), counter, data)
                if text is None:
                    break
                del buffer[: _RECORD.size + size]
                yield text
        if buffer:  # its reader takes these bytes for what they are: no batch
            yield bytes(buffer)

    async def delete(self, segment: int) -> None:
        """See Log."""
        await self.inner.delete(segment)

    async def aclose(self) -> None:
        """See Log."""
        self._cipher = None
        await self.inner.aclose()


class _Opened:
    """The data key of a segment that is being read."""

    def __init__(self, keyring: Keyring, name: bytes) -> None:
        self._keyring = keyring
        self._name = name
        self._wrapped: tuple[bytes, bytes, bytes] | None = None
        self._cipher: AESGCM | None = None

    def decrypt(self, wrapped: tuple[bytes, bytes, bytes], nonce: bytes, data: bytes) -> bytes | None:
        """An append, None for a torn one. Raises StoreError where the key is missing."""
        if self._cipher is None:
            self._wrapped, self._cipher = wrapped, AESGCM(self._keyring.unwrap(*wrapped, self._name))
        if wrapped != self._wrapped:  # a segment has one data key, so this is half of a write
            return None
        try:
            return self._cipher.decrypt(nonce, data, None)
        except InvalidTag:
            return None


def _journal_name(segment: int) -> bytes:
    return b"journal " + segment.to_bytes(8, "big")

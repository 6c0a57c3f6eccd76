"""Envelopes: what comes back, what doesn't, and what cannot be seen."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.crypt import (
    HEAD,
    SEGMENT,
    EncryptedBlobs,
    EncryptedLog,
    KeyFileError,
    Keyring,
    decrypt,
    encrypt,
    is_encrypted,
    key_id,
    read_keys,
)
from recorder.store.api import Kept
from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.store.logs import FolderLog
from tests.recorder.proof.sealed import Stage, run

OLD, NEW = Keyring([b"o" * 32]), Keyring([b"n" * 32, b"o" * 32])
SIZES = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 7, 5 * SEGMENT)


class Memory:
    """Blobs in memory. read: bytes that were asked for."""

    kind = "memory"

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.read = 0

    async def put(self, key: str, data: bytes) -> None:
        self.data[key] = data

    async def keep(self, key: str, data: bytes, sha256: str = "") -> Kept:
        await self.put(key, data)
        return Kept(key, len(data), sha256)

    async def create(self, key: str, data: bytes) -> None:
        if key in self.data:
            raise FileExistsError(key)
        self.data[key] = data

    async def get(self, key: str) -> bytes:
        self.read += len(self.data[key])
        return self.data[key]

    async def get_range(self, key: str, start: int, size: int) -> bytes:
        self.read += size
        return self.data[key][start : start + size]

    async def size(self, key: str) -> int:
        return len(self.data[key])

    async def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        for key, data in sorted(self.data.items()):
            yield key, len(data)

    async def delete(self, keys: object) -> None:
        self.data.clear()

    async def free(self) -> int | None:
        return 7

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_in_comes_out(size: int) -> None:
    data = os.urandom(size)
    sealed = encrypt(OLD, "a/b", data)
    assert is_encrypted(sealed) and (size < 64 or data not in sealed)
    assert decrypt(OLD, "a/b", sealed) == data
    assert decrypt(NEW, "a/b", sealed) == data
    assert encrypt(OLD, "a/b", data) != sealed


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(StoreError, match=key_id(b"n" * 32).hex()):
        decrypt(OLD, "a", encrypt(NEW, "a", b"x"))


def test_plain_blobs_are_read_as_they_are() -> None:
    assert decrypt(OLD, "a", b"plain") == b"plain"


@pytest.mark.parametrize("size", [0, 10, SEGMENT, 2 * SEGMENT + 5])
def test_nothing_can_be_changed(size: int) -> None:
    sealed = encrypt(OLD, "a", bytes(size))
    places = {*range(8, HEAD), *range(HEAD, len(sealed), max(1, len(sealed) // 50)), len(sealed) - 1}
    for place in places:
        broken = bytearray(sealed)
        broken[place] ^= 0x40
        with pytest.raises(StoreError):
            decrypt(OLD, "a", bytes(broken))


def test_nothing_can_be_cut_moved_or_named_otherwise() -> None:
    sealed = encrypt(OLD, "a", bytes(3 * SEGMENT))
    stored = SEGMENT + 16
    parts = [sealed[HEAD + i * stored : HEAD + (i + 1) * stored] for i in range(3)]
    head = sealed[:HEAD]
    for body in (parts[:2], parts[:1], [], [parts[1], parts[0], parts[2]], [*parts, parts[2]], parts[1:]):
        with pytest.raises(StoreError):
            decrypt(OLD, "a", head + b"".join(body))
    with pytest.raises(StoreError):
        decrypt(OLD, "b", sealed)
    with pytest.raises(StoreError):
        decrypt(OLD, "a", sealed[: HEAD - 1])
    with pytest.raises(StoreError):
        decrypt(OLD, "a", encrypt(OLD, "a", b"")[:HEAD] + b"".join(parts))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.data())
def test_any_range(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size + 10))
    length = data.draw(st.one_of(st.integers(0, 100), st.integers(0, size + SEGMENT)))
    plain = os.urandom(size)

    async def check() -> None:
        memory = Memory()
        blobs = EncryptedBlobs(memory, OLD)
        await blobs.put("k", plain)
        assert await blobs.get_range("k", start, length) == plain[start : start + length]
        assert await blobs.size("k") == size
        memory.read = 0
        assert await blobs.get_range("k", start, length) == plain[start : start + length]
        assert memory.read <= length + 2 * (SEGMENT + 16) + 16 * (length // SEGMENT + 1) + HEAD

    asyncio.run(check())


def test_blobs_in_a_folder(tmp_path: Path) -> None:
    async def check() -> None:
        inner = FolderBlobs(tmp_path)
        blobs = EncryptedBlobs(inner, OLD)
        assert blobs.kind == "folder"
        await blobs.put("a/x", b"one")
        await inner.put("a/plain", b"two")
        assert await blobs.get("a/x") == b"one" and b"one" not in await inner.get("a/x")
        assert await blobs.get("a/plain") == b"two" and await blobs.size("a/plain") == 3
        assert await blobs.get_range("a/plain", 1, 2) == b"wo"
        assert [name async for name, _ in blobs.names("a")] == ["plain", "x"]
        assert await blobs.get_range("a/x", 0, 3) == b"one"
        # Put anew by another process, so that the data key that is remembered is the wrong one.
        await EncryptedBlobs(inner, NEW).put("a/x", b"three")
        with pytest.raises(StoreError, match="lacks the key"):
            await blobs.get_range("a/x", 0, 5)
        await EncryptedBlobs(inner, OLD).put("a/x", b"three")
        assert await blobs.get_range("a/x", 0, 5) == b"three"
        await blobs.delete(["a/x"])
        for missing in (blobs.get("a/x"), blobs.get_range("a/x", 0, 1), blobs.size("a/x")):
            with pytest.raises(KeyError):
                await missing
        assert (await blobs.free() or 0) > 0
        await blobs.aclose()

    run(check())


# -- the journal


def appended(data: bytes) -> Callable[[], bytes]:
    return lambda: data


async def read(path: Path, keyring: Keyring) -> list[bytes]:
    log = EncryptedLog(FolderLog(path), keyring)
    await log.open()
    try:
        return [piece for segment in await log.segments() async for piece in log.read(segment)]
    finally:
        await log.aclose()


async def write(path: Path, keyring: Keyring | None, segment: int, *texts: bytes) -> None:
    inner = FolderLog(path)
    log = inner if keyring is None else EncryptedLog(inner, keyring)
    await log.open()
    await log.begin(segment)
    assert not log.broken
    for text in texts:
        await log.append(appended(text))
    await log.aclose()


def test_a_journal_with_old_and_new_keys_and_none(tmp_path: Path) -> None:
    async def check() -> None:
        await write(tmp_path, None, 1, b"RJ01plain")
        await write(tmp_path, OLD, 2, b"old", b"", b"x" * 300_000)
        await write(tmp_path, NEW, 3, b"new")
        assert b"".join(await read(tmp_path, NEW)) == b"RJ01plainold" + b"x" * 300_000 + b"new"
        assert b"xxx" not in (tmp_path / "journal/0000000002.log").read_bytes()
        with pytest.raises(StoreError, match="lacks the key"):
            await read(tmp_path, OLD)

    run(check())


@pytest.mark.parametrize("cut", [1, 10, 40, 100, 140])
def test_a_torn_tail_ends_the_segment(tmp_path: Path, cut: int) -> None:
    async def check() -> None:
        await write(tmp_path, OLD, 1, b"first" * 10, b"second" * 10)
        path = tmp_path / "journal/0000000001.log"
        data = path.read_bytes()
        path.write_bytes(data[:-cut])
        pieces = await read(tmp_path, OLD)
        assert pieces[0] == b"first" * 10
        # What is left is handed on as it is: no batch begins like it, so the segment counts as torn.
        assert len(pieces) == 2 and pieces[1].startswith(b"RJE1") and b"second" not in pieces[1]

    run(check())


def test_a_changed_append_ends_the_segment(tmp_path: Path) -> None:
    async def check() -> None:
        await write(tmp_path, OLD, 1, b"one", b"two", b"three")
        path = tmp_path / "journal/0000000001.log"
        data = bytearray(path.read_bytes())
        size = len(data) // 3
        for place in (size + 1, size + 9, size + 30, size + 85, size + 95):
            broken = bytearray(data)
            broken[place] ^= 1
            path.write_bytes(broken)
            pieces = await read(tmp_path, OLD)
            assert pieces[0] == b"one" and b"three" not in pieces

    run(check())


def test_a_segment_cannot_stand_for_another(tmp_path: Path) -> None:
    async def check() -> None:
        await write(tmp_path, OLD, 1, b"one")
        (tmp_path / "journal/0000000001.log").rename(tmp_path / "journal/0000000002.log")
        with pytest.raises(StoreError):
            await read(tmp_path, OLD)

    run(check())


def test_a_journal_without_a_key(tmp_path: Path) -> None:
    async def check() -> None:
        await write(tmp_path, None, 1, b"RJ01plain")
        log = EncryptedLog(FolderLog(tmp_path), None)
        await log.open()
        await log.begin(2)
        await log.append(appended(b"RJ01more"))
        assert [piece for segment in (1, 2) async for piece in log.read(segment)] == [b"RJ01plain", b"RJ01more"]
        await log.aclose()
        await write(tmp_path, OLD, 3, b"x")
        log = EncryptedLog(FolderLog(tmp_path), None)
        await log.open()
        # Taken for torn, it would be deleted with all that was acked and is in no chunk.
        with pytest.raises(StoreError, match="no key is configured"):
            await anext(log.read(3))
        await log.aclose()

    run(check())


def test_appends_need_a_segment(tmp_path: Path) -> None:
    async def check() -> None:
        log = EncryptedLog(FolderLog(tmp_path), OLD)
        await log.open()
        with pytest.raises(StoreError):
            await log.append(appended(b"x"))
        await log.aclose()

    run(check())


# -- the whole store


def test_a_store_in_envelopes(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store", keyring=OLD)

    async def check() -> None:
        (one,) = await stage.fill(1, chunks=2)
        async with stage.store() as store:
            two = await stage.record(store, b'[0.5,"o","secret words"]\n')
            cast = b"".join([piece async for piece in store.cast(one, start=1.5)])
            assert b"line 5000 of 0" in cast
        for path in stage.root.rglob("*"):
            if path.is_file():
                assert b"secret" not in path.read_bytes() and b"web-0" not in path.read_bytes(), path
        stage.keyring = NEW
        async with stage.store() as store:
            assert b"secret" in b"".join([piece async for piece in store.cast(two)])
            assert {recording.id async for recording in store.recordings()} == {one, two}

    run(check())


def test_a_crash_is_made_up_for_out_of_an_encrypted_journal(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store", keyring=OLD)
    copy = Stage(tmp_path / "copy", keyring=NEW)

    async def check() -> None:
        async with stage.store() as store:
            identifier = await stage.record(store, b'[0.5,"o","secret words"]\n')
            # As if the machine had stopped now.
            import shutil

            shutil.copytree(stage.root, copy.root, ignore=shutil.ignore_patterns("recordings"))
        async with copy.store() as store:
            assert b"secret" in b"".join([piece async for piece in store.cast(identifier)])

    run(check())


# -- key files


def test_key_files(tmp_path: Path) -> None:
    key = os.urandom(32)
    path = tmp_path / "key"
    for text in (base64.b64encode(key) + b"\n", key.hex().encode()):
        path.write_bytes(text)
        path.chmod(0o600)
        assert read_keys([path]).current == key_id(key)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_keys([path])
    path.chmod(0o600)
    for text in (b"", b"x", b"\xff" * 40, base64.b64encode(key[:16]), base64.b64encode(key * 2)):
        path.write_bytes(text)
        with pytest.raises(KeyFileError, match="must hold 32 bytes"):
            read_keys([path])
    with pytest.raises(KeyFileError, match="can't be read"):
        read_keys([tmp_path / "none"])
    with pytest.raises(ValueError, match="32 bytes"):
        Keyring([])

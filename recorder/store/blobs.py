"""Named pieces of bytes, whole or not there at all: what chunks and manifests are kept in.

Two homes: a folder (here) and an object store (`objects.py`). Keys are relative paths of a few plain characters. A put
has happened when it returns, for good: in a folder the bytes go to a temporary file that is synced, renamed to its
name, and the folder is synced too, so that a crash leaves the old state or the new one. A reader never sees a half.
Inside of the folder no symbolic link is followed (`tree.py`).

Errors become one StoreError (`refused`), whose words are fit for a sender; KeyError is for a key that is not there.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from recorder.store.api import Kept
from recorder.store.errors import StoreError
from recorder.store.tree import Tree, read_all

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*\Z")
# Syncs at once. They wait for the disk, and those that wait together share its commits.
_THREADS = 16
# Bytes from which on hashing goes into a thread: a quarter of a millisecond.
_LARGE = 512 << 10

T = TypeVar("T")

_REASONS = {
    errno.ENOSPC: "the recorder's disk is full",
    errno.EDQUOT: "the recorder's disk quota is used up",
    errno.EROFS: "the recorder's disk is read-only",
    errno.EACCES: "the recorder may not write to its store",
    errno.EPERM: "the recorder may not write to its store",
    errno.EIO: "the recorder's disk failed",
    errno.EMFILE: "the recorder has too many open files",
}


def refused(error: OSError) -> StoreError:
    """The words for an error of the operating system. They name no path."""
    return StoreError(_REASONS.get(error.errno or 0, f"the recorder's store failed ({type(error).__name__})"))


def check_key(key: str) -> str:
    """The key itself. Raises ValueError for one that could leave its folder."""
    if not _KEY.match(key):
        raise ValueError("not a key")
    return key


class Blobs(Protocol):
    """kind: "folder" or the scheme of an object store, for logs."""

    kind: str

    async def put(self, key: str, data: bytes) -> None:
        """Keep it, over what was there. Raises StoreError."""

    async def keep(self, key: str, data: bytes, sha256: str = "") -> Kept:
        """`put`, and tell what is stored. sha256: of the data, where it is known. Raises StoreError."""

    async def create(self, key: str, data: bytes) -> None:
        """Keep it where nothing is yet. Raises FileExistsError, StoreError."""

    async def get(self, key: str) -> bytes:
        """All of it. Raises KeyError, StoreError."""

    async def get_range(self, key: str, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer at the end. Raises KeyError, StoreError."""

    async def size(self, key: str) -> int:
        """Bytes. Raises KeyError, StoreError."""

    def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """Keys right below the folder `prefix` ("a/b", no final slash; "" is the top) with their sizes, sorted; a
        folder below it is told as "name/" with size 0. Names are without the prefix. Raises StoreError."""

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove them; one that is not there is no fault. Raises StoreError."""

    async def free(self) -> int | None:
        """Bytes left, None where there is no such limit. Raises StoreError."""

    async def aclose(self) -> None:
        """Let go of threads and connections."""


class FolderBlobs:
    """Blobs in a folder, which is made if it is not there (0700: recordings are secrets)."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = Tree(root)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise KeyError("no such blob") from error
        except OSError as error:
            raise refused(error) from error

    async def put(self, key: str, data: bytes) -> None:
        """See Blobs."""
        place = _place(key)
        try:
            await self._run(lambda: self._tree.write(place, data))
        except KeyError:
            raise StoreError("the recorder's folder is missing") from None

    async def keep(self, key: str, data: bytes, sha256: str = "") -> Kept:
        """See Blobs."""
        await self.put(key, data)
        return await kept(key, data, sha256)

    async def create(self, key: str, data: bytes) -> None:
        """See Blobs."""
        place = _place(key)

        def write() -> bool:
            try:
                self._tree.write(place, data, fresh=True)
            except FileExistsError:
                return False
            return True

        try:
            made = await self._run(write)
        except KeyError:
            raise StoreError("the recorder's folder is missing") from None
        if not made:
            raise FileExistsError(key)

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        place = _place(key)

        def read() -> bytes:
            with self._tree.file(place) as descriptor, open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readall()

        return await self._run(read)

    async def get_range(self, key: str, start: int, size: int) -> bytes:
        """See Blobs."""
        place = _place(key)

        def read() -> bytes:
            with self._tree.file(place) as descriptor:
                return read_all(descriptor, start, size)

        return await self._run(read)

    async def size(self, key: str) -> int:
        """See Blobs."""
        place = _place(key)
        return await self._run(lambda: self._tree.size(place))

    async def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """See Blobs."""
        place = _place(prefix) if prefix else []

        def read() -> list[tuple[str, int]]:
            found = []
            with self._tree.folder(place) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    if not _KEY.match(entry.name):  # a temporary file, or somebody else's
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name + "/", 0))
                    elif entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
            return sorted(found)

        try:
            found = await self._run(read)
        except KeyError:
            return
        for item in found:
            yield item

    async def delete(self, keys: Iterable[str]) -> None:
        """See Blobs. Folders that are empty after it go too, and so does what a crash has left of a put."""
        names: dict[tuple[str, ...], set[str]] = {}
        for key in keys:
            *parent, name = _place(key)
            names.setdefault(tuple(parent), set()).add(name)

        def remove() -> None:
            for parent, wanted in names.items():
                self._tree.remove(parent, wanted)

        await self._run(remove)

    async def free(self) -> int | None:
        """See Blobs: what is left to a process that is not root."""

        def ask() -> int:
            values = os.statvfs(self.root)
            return values.f_bavail * values.f_frsize

        try:
            return await self._run(ask)
        except KeyError:
            raise StoreError("the recorder's folder is missing") from None

    async def aclose(self) -> None:
        """See Blobs."""
        await asyncio.to_thread(self._pool.shutdown)


def _place(key: str) -> list[str]:
    """Where it is in the tree. Raises ValueError for what is no key."""
    return check_key(key).split("/")


async def kept(key: str, data: bytes, sha256: str = "") -> Kept:
    """What `Blobs.keep` answers. sha256: as there."""
    if not sha256:
        small = len(data) < _LARGE
        sha256 = _digest(data) if small else await asyncio.to_thread(_digest, data)
    return Kept(key, len(data), sha256)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_folder(path: Path) -> None:
    """Make it and what is above it, for good; links are followed, as the configuration names it. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    if os.geteuid() == 0:  # what root makes, by a command beside the recorder, must be for the recorder to read
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

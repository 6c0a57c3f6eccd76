"""Where the journal's bytes go: files that are appended to, or an object a commit.

A segment has a number and is a run of appends. In a folder it is the file journal/NUMBER.log, and an append is one
writev and one fdatasync in a thread of its own. In an object store it is the folder journal/NUMBER/, and an append is
one object, safe when the store says so. Either way an append that raises has not happened: a file is cut back to where
it was, and where even that fails the segment is `broken` and the journal goes on in another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from recorder.store.blobs import Blobs, make_folder, refused
from recorder.store.errors import StoreError
from recorder.store.tree import Tree, open_file, write_all

# Seconds after which a journal in an object store is asked again whose it is.
LOOK = 5.0
# Bytes read at a time in a replay.
_PIECE = 1 << 20
# Where a folder has its segments.
_JOURNAL = ("journal",)

T = TypeVar("T")


class Log(Protocol):
    """broken: the current segment takes nothing more, begin another one."""

    broken: bool

    async def open(self, *, lock: bool = True) -> None:
        """Be the only one who writes here. Raises StoreError."""

    async def segments(self) -> list[int]:
        """Numbers of the segments that are there, ascending. Raises StoreError."""

    def read(self, segment: int) -> AsyncGenerator[bytes, None]:
        """A segment's bytes in order. Raises StoreError."""

    async def begin(self, segment: int) -> None:
        """Appends go to this new segment from now on. Raises StoreError."""

    async def append(self, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        """Append what `make` gives, called in a thread; safe on return. Raises StoreError, and then nothing has been
        appended."""

    async def delete(self, segment: int) -> None:
        """Remove a segment that is not the current one. Raises StoreError."""

    async def aclose(self) -> None:
        """Close what is open."""


class FolderLog:
    """The journal in a folder."""

    def __init__(self, root: Path) -> None:
        self.broken = True
        self._root = root
        self._tree = Tree(root)
        # One thread: appends come one after the other anyway, and none must wait behind a chunk's sync.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._descriptor = -1
        self._lock = -1
        self._size = 0

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except OSError as error:
            raise refused(error) from error

    async def open(self, *, lock: bool = True) -> None:
        """See Log. A lock file that another process holds is a StoreError."""

        def make() -> None:
            make_folder(self._root)
            with self._tree.folder(_JOURNAL, make=True):
                pass
            if not lock:
                return
            with self._tree.folder(()) as folder:
                descriptor = open_file(folder, "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            self._lock = descriptor

        try:
            await self._run(make)
        except StoreError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise StoreError("another recorder is using this folder") from None
            raise

    async def segments(self) -> list[int]:
        """See Log."""

        def read() -> list[int]:
            with self._tree.folder(_JOURNAL) as folder:
                names = [name.removesuffix(".log") for name in os.listdir(folder) if name.endswith(".log")]
            return sorted(int(name) for name in names if name.isdecimal())

        return await self._run(read)

    async def read(self, segment: int) -> AsyncGenerator[bytes, None]:
        """See Log."""
        position = 0
        while True:
            piece = await self._run(lambda at=position: self._piece(segment, at))  # type: ignore[misc]  # a default binds
            if not piece:
                return
            yield piece
            position += len(piece)

    def _piece(self, segment: int, position: int) -> bytes:
        with self._tree.file((*_JOURNAL, _name(segment))) as descriptor:
            return os.pread(descriptor, _PIECE, position)

    async def begin(self, segment: int) -> None:
        """See Log."""

        def start() -> None:
            name = _name(segment)
            with self._tree.folder(_JOURNAL) as folder:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o600, dir_fd=folder)
                try:
                    os.fsync(folder)
                except BaseException:
                    os.close(descriptor)
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=folder)
                    raise
            # Here and not by whoever waits for it, and may be cancelled: no descriptor is lost, or closed twice.
            before, self._descriptor = self._descriptor, descriptor
            self._size = 0
            self.broken = False
            if before >= 0:
                os.close(before)

        await self._run(start)

    async def append(self, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        """See Log."""
        await self._run(lambda: self._append(make()))

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        descriptor = self._descriptor
        try:
            write_all(descriptor, data)
            os.fdatasync(descriptor)
        except BaseException:
            # After a failed sync the kernel may forget the failure, so only a cut that is itself synced mends it.
            self.broken = True
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
                os.lseek(descriptor, self._size, os.SEEK_SET)
                os.fdatasync(descriptor)
                self.broken = False
            raise
        self._size += len(data)

    async def delete(self, segment: int) -> None:
        """See Log."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError), self._tree.folder(_JOURNAL) as folder:
                os.unlink(_name(segment), dir_fd=folder)

        await self._run(remove)

    async def aclose(self) -> None:
        """See Log."""
        await asyncio.to_thread(self._pool.shutdown)  # what was begun is done, whoever waited for it
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1
        self.broken = True


def _name(segment: int) -> str:
    return f"{segment:010d}.log"


class ObjectLog:
    """The journal in an object store. instance: keeps apart the journals of recorders that share one place.

    There is no lock, but a token: whoever opens the journal puts his own, and whoever finds another one in its place
    writes no more. It is looked at before each segment, so that no two write to one, and every LOOK seconds besides."""

    def __init__(self, blobs: Blobs, instance: str = "main") -> None:
        self.broken = True
        self._blobs = blobs
        self._prefix = f"journal/{instance}"
        self._token = os.urandom(16).hex().encode()
        self._looked = 0.0
        self._segment = 0
        self._count = 0

    async def open(self, *, lock: bool = True) -> None:
        """See Log. Whoever had it before is to notice; what he has written by then is read."""
        if lock:
            await self._blobs.put(f"{self._prefix}/owner", self._token)
            self._looked = time.monotonic()

    async def _check_owner(self) -> None:
        try:
            token = await self._blobs.get(f"{self._prefix}/owner")
        except KeyError:  # nobody else has put his
            token = self._token
        if token != self._token:
            raise StoreError("another recorder with the same store.instance has taken over")
        self._looked = time.monotonic()

    async def segments(self) -> list[int]:
        """See Log."""
        names = [name.rstrip("/") async for name, _ in self._blobs.names(self._prefix)]
        return sorted(int(name) for name in names if name.isdecimal())

    async def read(self, segment: int) -> AsyncGenerator[bytes, None]:
        """See Log."""
        for key in [name async for name, _ in self._blobs.names(f"{self._prefix}/{segment:010d}")]:
            try:
                yield await self._blobs.get(f"{self._prefix}/{segment:010d}/{key}")
            except KeyError:
                raise StoreError("a part of the journal disappeared while it was read") from None

    async def begin(self, segment: int) -> None:
        """See Log."""
        await self._check_owner()
        self._segment, self._count = segment, 0
        self.broken = False

    async def append(self, make: Callable[[], bytes | bytearray | memoryview]) -> None:
        """See Log."""
        if time.monotonic() - self._looked > LOOK:
            await self._check_owner()
        self._count += 1
        data = await asyncio.to_thread(lambda: bytes(make()))
        try:
            await self._blobs.put(f"{self._prefix}/{self._segment:010d}/{self._count:010d}", data)
        except BaseException:
            # It may be there all the same: what follows must not share its segment, or a replay could stop before it.
            self.broken = True
            raise

    async def delete(self, segment: int) -> None:
        """See Log."""
        folder = f"{self._prefix}/{segment:010d}"
        await self._blobs.delete([f"{folder}/{name}" async for name, _ in self._blobs.names(folder)])

    async def aclose(self) -> None:
        """See Log."""
        self.broken = True

"""Files below a folder, reached one step at a time and never through a symbolic link.

Whoever can write into the store's folder could lay a link there and so lead what the recorder reads, writes and removes
to another place. So every step from the store's folder to a file opens the next folder by its name in the one before
it (openat with O_NOFOLLOW), and the file itself likewise. A link on the way, or in the place of the file, is refused;
so is whatever is no regular file, such as a pipe that would keep a thread waiting. The store's folder itself may be
reached through links: the configuration names it.

Everything here blocks, and is called in threads. Errors are the OSErrors of the calls, and StoreError for a link and
for what is no regular file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recorder.store.errors import StoreError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _link() -> StoreError:
    return StoreError("the recorder's store has a symbolic link inside its folder, and links are not followed")


class Tree:
    """The folder `root` and what is below it. A place is a sequence of names, from the root on."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def folder(self, names: Sequence[str], *, make: bool = False) -> Generator[int]:
        """The descriptor of a folder. make: make what is not there (0700: recordings are secrets), for good; but never
        the root, which may be a mount that went away. Raises OSError, StoreError."""
        descriptor = os.open(self.root, _FOLDER)
        try:
            for name in names:
                try:
                    inner = _step(descriptor, name)
                except FileNotFoundError:
                    if not make:
                        raise
                    _make(descriptor, name)
                    inner = _step(descriptor, name)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def file(self, place: Sequence[str]) -> Generator[int]:
        """The descriptor of a file, to be read. Raises OSError, StoreError."""
        with self.folder(place[:-1]) as folder:
            descriptor = open_file(folder, place[-1])
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def size(self, place: Sequence[str]) -> int:
        """Bytes of a file. Raises OSError, StoreError."""
        with self.file(place) as descriptor:
            return os.fstat(descriptor).st_size

    def write(self, place: Sequence[str], data: bytes, *, fresh: bool = False) -> None:
        """Write a whole file so that it is there for good or not at all. fresh: FileExistsError where there is one
        already. Raises OSError, StoreError."""
        name = place[-1]
        # A leading dot tells it from blobs; the process's number keeps two of them apart, or a number that is drawn
        # where several may make the same file. See left_over.
        temporary = f".{name}.{int.from_bytes(os.urandom(8), 'big') if fresh else os.getpid()}"
        with self.folder(place[:-1], make=True) as folder:
            descriptor = _new_file(folder, temporary)
            try:
                try:
                    write_all(descriptor, data)
                    if os.geteuid() == 0:
                        os.fchown(descriptor, *_owner(os.stat(self.root)))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                if fresh:
                    os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                    os.unlink(temporary, dir_fd=folder)
                else:
                    os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)

    def remove(self, parent: Sequence[str], names: set[str]) -> None:
        """Remove files of one folder, and what a crash has left of their making; folders that are empty after it go
        too. What is not there is no fault. Raises OSError, StoreError."""
        with contextlib.suppress(FileNotFoundError), self.folder(parent) as folder:
            for name in [*names, *_left_over(folder, names)]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        kept = len(parent)
        while kept:
            try:
                with self.folder(parent[: kept - 1]) as folder:
                    os.rmdir(parent[kept - 1], dir_fd=folder)
            except OSError:
                break
            kept -= 1
        with contextlib.suppress(FileNotFoundError), self.folder(parent[:kept]) as folder:
            os.fsync(folder)


def open_file(folder: int, name: str, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a file in a folder. Raises OSError, StoreError."""
    try:
        # Without O_NONBLOCK a pipe would wait here for somebody at its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link() from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError("the recorder's store has something in the place of a file that is not one")
    return descriptor


def _step(folder: int, name: str) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _link() from None
        raise


def _make(folder: int, name: str) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return
    if os.geteuid() == 0:
        os.chown(name, *_owner(os.fstat(folder)), dir_fd=folder, follow_symlinks=False)
    os.fsync(folder)


def _new_file(folder: int, name: str) -> int:
    """A file of our own: what stands there is what a crash of a process with the same number has left, or a link that
    somebody has laid, to which nothing may be written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o600, dir_fd=folder)
    except FileExistsError:
        os.unlink(name, dir_fd=folder)
        return os.open(name, flags, 0o600, dir_fd=folder)


def _owner(status: os.stat_result) -> tuple[int, int]:
    """What root puts there, by a command beside the recorder, must be for the recorder to read."""
    return status.st_uid, status.st_gid


def _left_over(folder: int, names: set[str]) -> Iterator[str]:
    """Temporary files of these, of whatever process: nobody puts what is being removed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name, _, number = entry.name[1:].rpartition(".")
            if entry.name[0] == "." and name in names and number.isdecimal():
                yield entry.name


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it, however much the kernel takes at a time. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_all(descriptor: int, start: int, size: int) -> bytes:
    """`size` bytes from `start`, fewer at the end. Raises OSError."""
    pieces = []
    while size > 0:
        piece = os.pread(descriptor, size, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
        size -= len(piece)
    return b"".join(pieces)

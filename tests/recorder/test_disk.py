"""`recorder serve` on a disk that is full or turns read-only: a tmpfs, or a file with ext4 in it, in a mount namespace
of the process's own, so that nothing is left mounted however a test ends."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from recorder.model import End
from recorder.store import Store
from recorder.store.blobs import FolderBlobs
from recorder.store.logs import FolderLog
from tests.recorder.ingest.senders import H2Sender, exchange
from tests.recorder.serving import Process, recorder
from tests.recorder.store.storing import HEADER, lines, text_of

SIZE = 24 << 20  # bytes of the disk
EVENT = b"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
# What is left of the journal's last page of a full disk takes a few lines and a small event, which is kept then. Not so
# this one, of sixteen kilobytes.
LARGE = b"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: 16384\r\n\r\n" + b'{"path": "/%s"}' % (b"x" * 16371)
PROBE = b"HEAD /v2/event HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def disk(tmp_path: Path) -> tuple[str, ...]:
    """Words before a command for which tmp_path/data is a small disk; it goes with the last process there."""
    data = tmp_path / "data"
    data.mkdir()
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    script = f'mount -t tmpfs -o size={SIZE} none "$0" && exec "$@"'
    words = (*unshare, "sh", "-c", script, str(data))
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False) if _has_unshare() else None
    if tried is None or tried.returncode:
        pytest.skip(f"no mounts of one's own here: {tried.stderr.strip() if tried else 'unshare is not installed'}")
    return words


def _has_unshare() -> bool:
    return shutil.which("unshare") is not None


@pytest.fixture
def ext4(tmp_path: Path) -> tuple[str, ...]:
    """The same with ext4 on a loop device, which can be made to find a fault in itself and turn read-only under open
    files. A tmpfs cannot: it refuses to be remounted while the journal is open."""
    (tmp_path / "data").mkdir()
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    if os.geteuid() != 0 or not _has_unshare() or shutil.which("mkfs.ext4", path=PATH) is None:
        pytest.skip("ext4 on a loop device takes root, unshare and mkfs.ext4")
    subprocess.run([shutil.which("mkfs.ext4", path=PATH) or "", "-q", "-F", str(image)], check=True)
    script = 'mount -o loop,errors=remount-ro "$0" "$1" && shift && exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", script, str(image), str(tmp_path / "data"))
    tried = subprocess.run([*words, "test", "-w", "/sys/fs/ext4"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no ext4 on a loop device here: {tried.stderr.strip() or 'sysfs is read-only'}")
    return words


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def enter(running: Process, *words: str) -> str:
    """Run a command among the mounts of the process; what it prints."""
    command = ["nsenter", f"--mount=/proc/{running.process.pid}/ns/mnt", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": PATH}).stdout.strip()


def check(image: Path, copy: Path) -> None:
    """A copy of a file system in a file, put in order."""
    shutil.copy(image, copy)
    done = subprocess.run(["e2fsck", "-fy", str(copy)], capture_output=True, check=False, env={"PATH": PATH})
    assert done.returncode in (0, 1), done.stdout  # 1: there was something to put in order


def inside(running: Process, path: Path) -> Path:
    """A path as the process sees it."""
    return Path(f"/proc/{running.process.pid}/root{path}")


async def put(data: Path, count: int) -> None:
    """Wait until as many recordings are wholly in the store: an ack comes from the journal, before that."""
    async with asyncio.timeout(30):
        while len(list(data.glob("recordings/*/*/recording.json"))) < count:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.02)


def fill(path: Path) -> None:
    """Write to a file until nothing goes any more."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_a_full_disk(tmp_path: Path, disk: tuple[str, ...]) -> None:
    """Who sends is told at once, readiness is off, what had been acked stays, and it goes on when there is room."""

    async def main() -> None:
        first = HEADER + lines(100)
        async with recorder(tmp_path, prefix=disk, store={"folder": "data", "minFree": "0B"}) as running:
            sender = await H2Sender.connect(running.port)
            hit, quiet = sender.request(), sender.request()
            for number in (hit, quiet):
                await sender.send(number, first)
                await sender.until_acked(number, len(first))
            ballast = inside(running, tmp_path / "data" / "ballast")
            fill(ballast)
            await sender.send(hit, lines(20_000, start=100))
            await sender.until_ended(hit)
            assert "full" in sender.error(hit)
            acked = sender.acked(hit)
            assert "full" in await running.readiness(503)
            assert 'recorder_store_errors_total{part="journal"} 0.0' not in (await running.get("/metrics"))[1]
            assert (await running.get("/healthz"))[0] == 200
            refused = sender.request()
            await sender.send(refused, HEADER + lines(20_000))
            await sender.until_ended(refused)
            status = sender.heads.get(refused, {}).get(":status")
            assert status == "503" or "full" in sender.error(refused)
            assert (await exchange(running.port, LARGE))[0] == 503

            ballast.unlink()
            await running.readiness(200)
            # The one that had nothing to say meanwhile goes on, and new ones are taken.
            await sender.send(quiet, lines(50, start=100), end=True)
            await sender.until_ended(quiet)
            assert sender.acked(quiet) == len(HEADER + lines(150)) and not sender.error(quiet)
            after = sender.request()
            await sender.send(after, HEADER + lines(7), end=True)
            await sender.until_ended(after)
            assert not sender.error(after)
            assert (await exchange(running.port, EVENT))[0] == 200
            await sender.close()
            shutil.copytree(inside(running, tmp_path / "data"), tmp_path / "copy")  # as after a crash now
        copy = tmp_path / "copy"
        store = Store(FolderBlobs(copy), FolderLog(copy), min_free=0)
        await store.open()
        texts = {}
        async for found in store.recordings():
            text = await text_of(store, found.id)
            assert len(text) == found.size
            texts[found.end, text.count(b"\n")] = text
        assert texts.pop((End.CLEAN, 151)) == HEADER + lines(150)
        assert texts.pop((End.CLEAN, 8)) == HEADER + lines(7)
        assert all(end is End.CUT and (HEADER + lines(20_100)).startswith(text) for (end, _), text in texts.items())
        assert max(map(len, texts.values())) >= acked >= len(first)
        assert len([event async for event in store.events()]) == 1
        await store.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("idle", [False, True])
def test_a_disk_that_turns_read_only(tmp_path: Path, ext4: tuple[str, ...], idle: bool) -> None:
    """As a full one; and where nobody sends anything, readiness is off all the same. It goes on by itself when the disk
    is mounted anew, and nothing half-written is there then.

    idle: the fault comes while nobody writes."""

    async def main() -> None:
        data = tmp_path / "data"
        first = HEADER + lines(100)
        async with recorder(tmp_path, prefix=ext4, store={"folder": "data", "minFree": "0B"}) as running:
            sender = await H2Sender.connect(running.port)
            hit, quiet = sender.request(), sender.request()
            for number in (hit, quiet):
                await sender.send(number, first)
                await sender.until_acked(number, len(first))
            device = Path(enter(running, "findmnt", "--noheadings", "--output", "SOURCE", str(data))).name
            (Path("/sys/fs/ext4") / device / "trigger_fs_error").write_text("a test")
            if idle:
                assert "read-only" in await running.readiness(503)
            await sender.send(hit, lines(2_000, start=100))
            await sender.until_ended(hit)
            assert "read-only" in sender.error(hit)
            acked = sender.acked(hit)
            assert "read-only" in await running.readiness(503)
            assert (await running.get("/healthz"))[0] == 200
            refused = sender.request()
            await sender.until_head(refused)
            assert sender.heads[refused][":status"] == "503"
            assert (await exchange(running.port, EVENT))[0] == 503
            assert (await exchange(running.port, PROBE))[0] == 503

            # ext4 stays read-only until it is mounted anew, after a check: what is on the disk now, and not in memory.
            check(tmp_path / "image", tmp_path / "checked")
            enter(running, "umount", "--lazy", str(data))
            enter(running, "mount", "-o", "loop", str(tmp_path / "checked"), str(data))
            await running.readiness(200)
            await sender.send(quiet, lines(50, start=100), end=True)
            await sender.until_ended(quiet)
            assert sender.acked(quiet) == len(HEADER + lines(150)) and not sender.error(quiet)
            assert (await exchange(running.port, EVENT))[0] == 200
            await sender.close()
            await put(inside(running, data), 2)
            shutil.copytree(inside(running, data), tmp_path / "copy", ignore=shutil.ignore_patterns("lost+found"))
        copy = tmp_path / "copy"
        assert not list(copy.rglob(".*"))
        store = Store(FolderBlobs(copy), FolderLog(copy), min_free=0)
        await store.open()
        texts = {found.end: await text_of(store, found.id) async for found in store.recordings()}
        assert texts.pop(End.CLEAN) == HEADER + lines(150)
        text = texts.pop(End.CUT)
        assert len(text) >= acked >= len(first) and (HEADER + lines(2_100)).startswith(text)
        assert not texts and len([event async for event in store.events()]) == 1
        await store.aclose()

    asyncio.run(main())


def test_a_disk_that_is_nearly_full_takes_no_new_sessions(tmp_path: Path, disk: tuple[str, ...]) -> None:
    """What runs needs the rest to end well."""

    async def main() -> None:
        async with recorder(tmp_path, prefix=disk, store={"folder": "data", "minFree": "8MiB"}) as running:
            sender = await H2Sender.connect(running.port)
            number = sender.request()
            await sender.send(number, HEADER)
            await sender.until_acked(number, len(HEADER))
            ballast = inside(running, tmp_path / "data" / "ballast")
            ballast.write_bytes(bytes(SIZE - (6 << 20)))
            assert "nearly full" in await running.readiness(503)
            refused = sender.request()
            await sender.until_head(refused)
            assert sender.heads[refused][":status"] == "503"
            await sender.send(number, lines(100), end=True)
            await sender.until_ended(number)
            assert sender.acked(number) == len(HEADER + lines(100)) and not sender.error(number)
            ballast.unlink()
            await running.readiness(200)
            await sender.close()

    asyncio.run(main())

"""`recorder serve` on a disk that is full: a small tmpfs, in a mount namespace of the process's own."""

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
from tests.recorder.store.running import HEADER, lines, text_of

SIZE = 24 << 20  # bytes of the disk
EVENT = b"POST /v2/event HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


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


def inside(running: Process, path: Path) -> Path:
    """A path as the process sees it."""
    return Path(f"/proc/{running.process.pid}/root{path}")


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
            assert (await running.get("/healthz"))[0] == 200
            refused = sender.request()
            await sender.until_head(refused)
            assert sender.heads[refused][":status"] == "503"
            assert (await exchange(running.port, EVENT))[0] == 503

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
        ((end, _), text) = texts.popitem()
        assert end is End.CUT and not texts
        assert len(text) >= acked >= len(first) and (HEADER + lines(20_100)).startswith(text)
        assert len([event async for event in store.events()]) == 1
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

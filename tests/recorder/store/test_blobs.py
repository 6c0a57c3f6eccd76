"""Blobs in a folder: what exists once, and whose it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
from recorder.store.logs import FolderLog
from tests.recorder.store.storing import run


def test_of_several_who_create_a_blob_one_does(tmp_path: Path) -> None:
    async def main() -> None:
        several = [FolderBlobs(tmp_path) for _ in range(4)]
        made = await asyncio.gather(
            *(blobs.create("a/b", b"%d" % number) for number, blobs in enumerate(several)), return_exceptions=True
        )
        assert [type(one) for one in made if one is not None] == [FileExistsError] * 3
        assert await several[0].get("a/b") == b"%d" % made.index(None)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
        gone = FolderBlobs(tmp_path / "none")
        with pytest.raises(StoreError, match="the recorder's folder is missing"):
            await gone.create("a", b"")
        for blobs in (*several, gone):
            await blobs.aclose()

    run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_puts_belongs_to_whom_the_folder_does(tmp_path: Path) -> None:
    """A hold that a command placed could not be read by the recorder, and would stop it from removing anything."""
    os.chown(tmp_path, 4711, 4712)

    async def main() -> None:
        blobs = FolderBlobs(tmp_path)
        await blobs.put("a/b/c", b"x")
        await blobs.create("a/b/d", b"x")
        await blobs.aclose()

    run(main())
    for name in ("a", "a/b", "a/b/c", "a/b/d"):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (4711, 4712)


def _outside(folder: Path) -> tuple[Path, Path]:
    """A store's folder with a blob in it, and a folder beside it with the same: what a link leads to."""
    for place in ("store", "elsewhere"):
        (folder / place / "a/b").mkdir(parents=True)
        (folder / place / "a/b/c").write_bytes(place.encode())
    return folder / "store", folder / "elsewhere"


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
def test_no_link_in_the_store_leads_out_of_it(tmp_path: Path, place: str) -> None:
    """Whoever can write into the folder led reads, writes and removals to wherever they liked."""
    root, elsewhere = _outside(tmp_path)
    (root / place).rename(tmp_path / "before")
    (root / place).symlink_to(elsewhere / place)

    async def main() -> None:
        blobs = FolderBlobs(root)
        for read in (blobs.get("a/b/c"), blobs.get_range("a/b/c", 0, 1), blobs.size("a/b/c")):
            with pytest.raises(StoreError, match="symbolic link"):
                await read
        if place != "a/b/c":
            for work in (blobs.put("a/b/c", b"x"), blobs.create("a/b/d", b"x"), blobs.delete(["a/b/c"])):
                with pytest.raises(StoreError, match="symbolic link"):
                    await work
            with pytest.raises(StoreError, match="symbolic link"):
                [name async for name in blobs.names("a/b")]
        else:
            assert [name async for name in blobs.names("a/b")] == []
            await blobs.delete(["a/b/c"])
        await blobs.aclose()

    run(main())
    assert (elsewhere / "a/b/c").read_bytes() == b"elsewhere"
    assert [path.name for path in (elsewhere / "a/b").iterdir()] == ["c"]


def test_what_is_put_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    """The name of the temporary file can be told beforehand: its process has few numbers in a container."""
    root, elsewhere = _outside(tmp_path)
    (root / "a/b/c").unlink()
    for name in ("c", f".c.{os.getpid()}"):
        (root / "a/b" / name).symlink_to(elsewhere / "a/b/c")

    async def main() -> None:
        blobs = FolderBlobs(root)
        await blobs.put("a/b/c", b"new")
        assert await blobs.get("a/b/c") == b"new"
        await blobs.aclose()

    run(main())
    assert (elsewhere / "a/b/c").read_bytes() == b"elsewhere"


def test_a_pipe_in_the_place_of_a_blob_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        blobs = FolderBlobs(tmp_path)
        with pytest.raises(StoreError, match="not one"):
            await blobs.get("pipe")
        await blobs.aclose()

    run(main())


def test_the_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    root, _ = _outside(tmp_path)
    (tmp_path / "link").symlink_to(root)

    async def main() -> None:
        blobs = FolderBlobs(tmp_path / "link")
        await blobs.put("d/e", b"x")
        assert await blobs.get("a/b/c") == b"store"
        await blobs.aclose()

    run(main())
    assert (root / "d/e").read_bytes() == b"x"


def test_what_a_crash_has_left_goes_with_its_blob_and_empty_folders_with_it(tmp_path: Path) -> None:
    root, _ = _outside(tmp_path)
    (root / "a/b/.c.4711").write_bytes(b"half")
    (root / "a/kept").write_bytes(b"")

    async def main() -> None:
        blobs = FolderBlobs(root)
        await blobs.delete(["a/b/c", "none/x"])
        await blobs.aclose()

    run(main())
    assert [str(path.relative_to(root)) for path in sorted(root.rglob("*"))] == ["a", "a/kept"]


@pytest.mark.parametrize("place", ["journal", "journal/0000000001.log", "lock"])
def test_no_link_leads_the_journal_out_of_the_store(tmp_path: Path, place: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "elsewhere/journal").mkdir(parents=True)
    (tmp_path / "elsewhere/journal/0000000001.log").write_bytes(b"")
    (tmp_path / "elsewhere/lock").write_bytes(b"")
    if place.startswith("journal/"):
        (tmp_path / "store/journal").mkdir()
    (tmp_path / "store" / place).symlink_to(tmp_path / "elsewhere" / place)

    async def main() -> None:
        log = FolderLog(tmp_path / "store")
        with pytest.raises(StoreError, match="symbolic link"):
            await log.open()
            assert await log.segments() == [1]
            [piece async for piece in log.read(1)]
        await log.aclose()

    run(main())
    assert (tmp_path / "elsewhere/journal/0000000001.log").exists()

"""Blobs in a folder: what exists once, and whose it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from recorder.store.blobs import FolderBlobs
from recorder.store.errors import StoreError
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
        with pytest.raises(StoreError, match="the recorder's folder is gone"):
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

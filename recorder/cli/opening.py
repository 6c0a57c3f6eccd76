"""A store and its index, opened to be read: a recorder may be running on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from k8sproxy.common.cli import Failed
from recorder.cli.common import printable
from recorder.config import Config
from recorder.crypt import EncryptedBlobs, is_encrypted
from recorder.index import Index, IndexFailure
from recorder.model import is_id
from recorder.proof.days import is_day
from recorder.store.manifest import chunk_key
from recorder.store.store import Store


@asynccontextmanager
async def open_read_only(config: Config) -> AsyncIterator[Store]:
    """The store, to be read; a recorder may be running on it. Raises Failed, StoreError."""
    from k8sproxy.common.errors import StartError
    from recorder.opening import open_store

    try:
        store = open_store(config, read_only=True)
    except StartError as error:
        raise Failed(printable(str(error))) from None
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def need_key(store: Store) -> None:
    """See that the newest recording can be read, so that a missing key does not look like an empty store. Raises
    Failed."""
    if isinstance(store.blobs, EncryptedBlobs):
        return
    days = [name.rstrip("/") async for name, _ in store.blobs.names("recordings")]
    for day in sorted(filter(is_day, days), reverse=True):
        for name in [name async for name, _ in store.blobs.names(f"recordings/{day}")]:
            if is_id(name.rstrip("/")):
                with suppress(KeyError):
                    if is_encrypted(await store.blobs.get_range(chunk_key(name.rstrip("/"), 0), 0, 16)):
                        raise Failed("the recordings are encrypted: give --encryption-key FILE, or --config FILE")
                    return


async def open_index(config: Config) -> Index | None:
    """The index, where there is one already: a command that looks makes none."""
    from recorder.assembly import index_url

    url = index_url(config)
    if url is None or (url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:")).is_file()):
        return None
    index = Index(url)
    try:
        await index.open()
    except IndexFailure:
        await index.aclose()
        return None
    return index

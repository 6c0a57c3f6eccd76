"""Blobs in an object store (S3 and what speaks like it, GCS, Azure), by obstore.

A put is safe when the store says so; that is its word, and there is no other. Every request has a time limit, and few
retries: a sender that waits for an ack is better told soon that there will be none.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotSupportedError, PreconditionError
from obstore.store import MemoryStore, ObjectStore, from_url

from recorder.store.api import Kept
from recorder.store.blobs import check_key, kept
from recorder.store.errors import StoreError

# Time for one try, and for all of them: senders give up after 30 s without an ack.
REQUEST_TIMEOUT = datetime.timedelta(seconds=8)
RETRIES = 2
RETRY_TIMEOUT = datetime.timedelta(seconds=10)
# Seconds for anything, in case that the library's own limits do not bite.
TIMEOUT = 25.0

_FAULTS = (BaseError, OSError, TimeoutError)


def open_objects(url: str, options: Mapping[str, str]) -> ObjectBlobs:
    """The store behind a URL. options: as obstore names them. Raises StoreError, whose message is for the operator."""
    if url.startswith("memory://"):
        return ObjectBlobs(MemoryStore(), "memory")
    config: dict[str, Any] = {name: value for name, value in options.items() if name not in _CLIENT}
    client: dict[str, Any] = {name: options[name] == "true" for name in _CLIENT if name in options}
    try:
        store: ObjectStore = cast(Any, from_url)(
            url,
            config=config,
            client_options={"timeout": REQUEST_TIMEOUT, "connect_timeout": datetime.timedelta(seconds=3), **client},
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT},
        )
    except (BaseError, ValueError, TypeError) as error:
        raise StoreError(f"the object store's settings are refused: {type(error).__name__}") from error
    return ObjectBlobs(store, url.partition(":")[0])


_CLIENT = ("allow_http", "allow_invalid_certificates")


class ObjectBlobs:
    """See Blobs."""

    def __init__(self, store: ObjectStore, kind: str) -> None:
        self.kind = kind
        self._store = store

    async def put(self, key: str, data: bytes) -> None:
        """See Blobs."""
        try:
            async with asyncio.timeout(TIMEOUT):
                # In one request: a multipart upload that breaks off leaves its parts behind.
                await obstore.put_async(self._store, check_key(key), data, use_multipart=False)
        except _FAULTS as error:
            raise _refused(error) from error

    async def keep(self, key: str, data: bytes, sha256: str = "") -> Kept:
        """See Blobs."""
        await self.put(key, data)
        return await kept(key, data, sha256)

    async def create(self, key: str, data: bytes) -> None:
        """See Blobs. A store without conditional puts is asked before and after: two that create the same at the very
        same time find out, and one of them may find that it was it."""
        if await self._is_there(key):  # also where a store takes the condition and does not heed it
            raise FileExistsError(key)
        try:
            async with asyncio.timeout(TIMEOUT):
                await obstore.put_async(self._store, check_key(key), data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            raise FileExistsError(key) from None
        except (NotSupportedError, NotImplementedError):
            await self.put(key, data)
        except _FAULTS as error:
            raise _refused(error) from error
        try:
            if await self.get(key) != data:
                raise FileExistsError(key)
        except KeyError:
            raise StoreError("the recorder's store has lost what was put just now") from None

    async def _is_there(self, key: str) -> bool:
        try:
            await self.size(key)
        except KeyError:
            return False
        return True

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await obstore.get_async(self._store, check_key(key))
                return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise KeyError("no such blob") from error
        except _FAULTS as error:
            raise _refused(error) from error

    async def get_range(self, key: str, start: int, size: int) -> bytes:
        """See Blobs."""
        if size <= 0:
            return b""
        try:
            async with asyncio.timeout(TIMEOUT):
                return bytes(await obstore.get_range_async(self._store, check_key(key), start=start, length=size))
        except (NotFoundError, FileNotFoundError) as error:
            raise KeyError("no such blob") from error
        except _FAULTS as error:
            raise _refused(error) from error

    async def size(self, key: str) -> int:
        """See Blobs."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return int((await obstore.head_async(self._store, check_key(key)))["size"])
        except (NotFoundError, FileNotFoundError) as error:
            raise KeyError("no such blob") from error
        except _FAULTS as error:
            raise _refused(error) from error

    async def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """See Blobs."""
        where = check_key(prefix) + "/" if prefix else ""
        try:
            async with asyncio.timeout(4 * TIMEOUT):  # a page a thousand keys
                answer = await obstore.list_with_delimiter_async(self._store, where or None)
        except (NotFoundError, FileNotFoundError):
            return
        except _FAULTS as error:
            raise _refused(error) from error
        found = [(str(name).rstrip("/").removeprefix(where) + "/", 0) for name in answer["common_prefixes"]]
        found += [(str(item["path"]).removeprefix(where), int(item["size"])) for item in answer["objects"]]
        for name in sorted(found):
            yield name

    async def delete(self, keys: Iterable[str]) -> None:
        """See Blobs."""
        paths = [check_key(key) for key in keys]
        for start in range(0, len(paths), 500):
            try:
                async with asyncio.timeout(TIMEOUT):
                    await obstore.delete_async(self._store, paths[start : start + 500])
            except (NotFoundError, FileNotFoundError):
                # The one that is not there may have stood before others.
                for path in paths[start : start + 500]:
                    await self._delete_one(path)
            except _FAULTS as error:
                raise _refused(error) from error

    async def _delete_one(self, path: str) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                await obstore.delete_async(self._store, path)
        except (NotFoundError, FileNotFoundError):
            pass
        except _FAULTS as error:
            raise _refused(error) from error

    async def free(self) -> int | None:
        """See Blobs."""
        return None

    async def aclose(self) -> None:
        """See Blobs: obstore's connections close by themselves."""


def _refused(error: BaseException) -> StoreError:
    name = type(error).__name__
    if name in ("PermissionDeniedError", "UnauthenticatedError"):
        return StoreError("the recorder may not write to its store")
    if isinstance(error, NotFoundError | FileNotFoundError):  # of a key that is not there nobody asks for this
        return StoreError("the recorder's store has no such bucket")
    return StoreError(f"the recorder's store cannot be reached ({name})")

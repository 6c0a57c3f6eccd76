"""Blobs in an object store (S3 and what speaks like it, GCS, Azure), by obstore.

A put is safe when the store says so; that is its word, and there is no other. Every request has a time limit, and few
retries: a sender that waits for an ack is better told soon that there will be none.

Not every store that speaks like S3 can delete several objects at once, which is the only way in which obstore deletes:
where that is refused, each is deleted by a request of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotSupportedError, PreconditionError
from obstore.store import MemoryStore, ObjectStore, from_url
from yarl import URL

from recorder.store.answers import read_answer
from recorder.store.api import Kept
from recorder.store.blobs import check_key, kept
from recorder.store.errors import StoreError

if TYPE_CHECKING:
    import aiohttp

_log = structlog.get_logger(__name__)

# Time for one try, and for all of them: senders give up after 30 s without an ack.
REQUEST_TIMEOUT = datetime.timedelta(seconds=8)
RETRIES = 2
RETRY_TIMEOUT = datetime.timedelta(seconds=10)
# Seconds for anything, in case that the library's own limits do not bite.
TIMEOUT = 25.0
# Keys of one bulk deletion: S3 takes a thousand.
_BULK = 500
# Deletions of one object each, at once.
_TOGETHER = 8
# Seconds in which no bulk deletion is tried after the store has said that it knows none.
_EACH = 3600.0
# Bytes of an answer that are read: an error of S3 has some hundred.
_MOST = 16 << 10

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
    verify = options.get("allow_invalid_certificates") != "true"
    return ObjectBlobs(store, url.partition(":")[0], verify=verify)


_CLIENT = ("allow_http", "allow_invalid_certificates")


class ObjectBlobs:
    """See Blobs."""

    def __init__(self, store: ObjectStore, kind: str, *, verify: bool = True) -> None:
        """verify: whether certificates are looked at."""
        self.kind = kind
        self._store = store
        self._verify = verify
        self._each_until = 0.0  # no bulk deletion is tried before
        self._client: aiohttp.ClientSession | None = None

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
            if read_answer(str(error)).unsupported:  # as stores answer that don't know the condition
                await self.put(key, data)
                return
            raise _refused(error) from error
        try:
            if await self.get(key) != data:
                raise FileExistsError(key)
        except KeyError:
            raise StoreError("the recorder's store has lost an object that was written just now") from None

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
            raise _missing(error) from error
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
            raise _missing(error) from error
        except _FAULTS as error:
            raise _refused(error) from error

    async def size(self, key: str) -> int:
        """See Blobs."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return int((await obstore.head_async(self._store, check_key(key)))["size"])
        except (NotFoundError, FileNotFoundError) as error:
            raise _missing(error) from error
        except _FAULTS as error:
            raise _refused(error) from error

    async def names(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """See Blobs."""
        where = check_key(prefix) + "/" if prefix else ""
        try:
            async with asyncio.timeout(4 * TIMEOUT):  # a page a thousand keys
                answer = await obstore.list_with_delimiter_async(self._store, where or None)
        except (NotFoundError, FileNotFoundError) as error:
            if read_answer(str(error)).no_bucket:
                raise _refused(error) from error
            return
        except _FAULTS as error:
            raise _refused(error) from error
        found = [(str(name).rstrip("/").removeprefix(where) + "/", 0) for name in answer["common_prefixes"]]
        found += [(str(item["path"]).removeprefix(where), int(item["size"])) for item in answer["objects"]]
        for name in sorted(found):
            yield name

    async def delete(self, keys: Iterable[str]) -> None:
        """See Blobs. Many at once where the store can do that, else one by one."""
        paths = [check_key(key) for key in keys]
        for start in range(0, len(paths), _BULK):
            batch = paths[start : start + _BULK]
            if not await self._delete_bulk(batch):
                await self._delete_each(batch)

    async def _delete_bulk(self, paths: list[str]) -> bool:
        """Whether they are gone. Raises StoreError where it is no use to try otherwise."""
        if time.monotonic() < self._each_until:
            return False
        try:
            async with asyncio.timeout(TIMEOUT):
                await obstore.delete_async(self._store, paths)
        except _FAULTS as error:
            answer = read_answer(str(error))
            if self.kind == "memory" and isinstance(error, NotFoundError | FileNotFoundError):
                return len(paths) == 1
            if not answer.came or answer.enough or answer.no_bucket:
                raise _refused(error) from error
            if answer.unsupported or answer.unreadable:
                self._each_until = time.monotonic() + _EACH
                _log.warning("bulk_delete_refused", why=answer.words(""), meaning="objects are removed one by one")
            return False
        return True

    async def _delete_each(self, paths: list[str]) -> None:
        """All of them, even where some fail. Raises StoreError for the first that did."""
        if self.kind == "memory":
            for path in paths:
                with contextlib.suppress(NotFoundError, FileNotFoundError):
                    await obstore.delete_async(self._store, path)
            return
        turns = asyncio.Semaphore(_TOGETHER)

        async def delete(path: str) -> None:
            async with turns:
                await self._delete_one(path)

        outcomes = await asyncio.gather(*map(delete, paths), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _delete_one(self, path: str) -> None:
        """By DELETE, with a signature of obstore's: its own deletion of one object is one of many objects, too."""
        import aiohttp

        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_TOGETHER, ssl=self._verify),
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT.total_seconds()),
                auto_decompress=False,
            )
        try:
            url = await obstore.sign_async(cast(Any, self._store), "DELETE", path, datetime.timedelta(minutes=5))
            async with (
                asyncio.timeout(TIMEOUT),
                self._client.delete(URL(url, encoded=True), allow_redirects=False) as response,
            ):
                body = await response.content.read(_MOST)
        except (aiohttp.ClientError, *_FAULTS) as error:
            raise _refused(error) from error
        answer = read_answer(f"status code: {response.status}: {body.decode(errors='replace')}")
        if not (response.status < 300 or (response.status == 404 and not answer.no_bucket)):
            raise StoreError(answer.words(""))

    async def free(self) -> int | None:
        """See Blobs."""
        return None

    async def aclose(self) -> None:
        """See Blobs: obstore's connections close by themselves."""
        if self._client is not None:
            await self._client.close()
            self._client = None


def _refused(error: BaseException) -> StoreError:
    if isinstance(error, TimeoutError):
        return StoreError("the recorder's store did not answer in time")
    answer = read_answer(str(error))
    if isinstance(error, NotFoundError | FileNotFoundError) and not answer.no_bucket:
        return StoreError("the recorder's store has no such bucket")  # of a key that is not there nobody asks for this
    return StoreError(answer.words(type(error).__name__))


def _missing(error: BaseException) -> Exception:
    """What a reader is told of a 404: that the key is not there, or the bucket."""
    if read_answer(str(error)).no_bucket:
        return _refused(error)
    return KeyError("no such blob")

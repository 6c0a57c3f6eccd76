"""The book of looks in the store: who looked at what, kept and signed as recordings are.

    looks/DAY/FIRST-ID.chunk      frames of JSON lines, as chunks of API events have (recorder/store/chunk.py)

A look is in the index, where it is found, and here, where nobody can change or take it away unseen: the register
lists each chunk when it is put, and so does the manifest of its day. Looks that come at the same time share a chunk. A
look is safe when `add` returns, and what was asked for is shown only then.

An index that has lost its looks gets them back from here (`recorder rebuild`, and a start with an index that is new).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from itertools import groupby

import structlog

from recorder.index.rows import Look
from recorder.model import id_day, is_id
from recorder.store.api import Kept
from recorder.store.errors import StoreError
from recorder.store.linechunks import DAMAGES, beginning, read_lines, write_lines
from recorder.store.store import Store

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Item:
    look: Look
    done: bool = False
    error: StoreError | None = None


class Book:
    """The looks of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Item] = []
        self._lock = asyncio.Lock()

    async def add(self, look: Look) -> None:
        """Keep it; safe on return. Raises StoreError: then nothing may be shown."""
        item = _Item(look)
        self._waiting.append(item)
        try:
            async with self._lock:
                if not item.done:
                    await self._put(list(self._waiting))
        finally:
            if item in self._waiting:  # its peer has gone
                self._waiting.remove(item)
        if item.error is not None:
            raise StoreError(str(item.error))

    async def _put(self, items: list[_Item]) -> None:
        """All that wait, a chunk a day."""
        items.sort(key=lambda item: item.look.id)
        for day, group in groupby(items, key=lambda item: id_day(item.look.id)):
            of_day = list(group)
            error: StoreError | None = None
            try:
                await self._put_day(day, [item.look for item in of_day])
            except StoreError as failed:
                error = failed
            for item in of_day:
                item.done, item.error = True, error
                if item in self._waiting:
                    self._waiting.remove(item)

    async def _put_day(self, day: str, looks: list[Look]) -> None:
        lines = [(look.id, json.dumps(asdict(look), separators=(",", ":")).encode() + b"\n") for look in looks]
        first, last = looks[0].id, looks[-1].id
        meta = {"day": day, "first_id": first, "last_id": last}
        data, sha256 = write_lines(lines, meta, beginning("looks", day))
        kept: Kept = await self._store.blobs.keep(f"looks/{day}/{first}.chunk", data, sha256)
        if self._store.registrar is not None:
            self._store.registrar.put_in(kept)

    async def looks(self) -> AsyncGenerator[Look, None]:
        """All there are, oldest first; a chunk that cannot be read is logged and left out. Raises StoreError."""
        blobs = self._store.blobs
        for day in [name.rstrip("/") async for name, _ in blobs.names("looks")]:
            for name in [name async for name, _ in blobs.names(f"looks/{day}")]:
                try:
                    data = await blobs.get(f"looks/{day}/{name}")
                except KeyError:
                    continue
                try:
                    looks = _read(data)
                except DAMAGES as error:
                    _log.error("looks_unreadable", chunk=f"{day}/{name}", why=str(error))
                    continue
                for look in looks:
                    yield look


def _read(data: bytes) -> list[Look]:
    """What is in a chunk. Raises one of DAMAGES."""
    looks = []
    for line in read_lines(data):
        value = json.loads(line)
        look = Look(**value | {"tags": tuple(value["tags"])}) if isinstance(value, dict) and "tags" in value else None
        if look is None or not is_id(look.id):
            raise ValueError("not a look")
        looks.append(look)
    return looks

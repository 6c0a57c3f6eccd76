"""What is in the store, for whoever reads: viewers, the index, retention and the proof.

A recording is read from the ledger as long as it is not wholly in the store, and else by its recording.json. A store
that is opened to be read only has nothing in its ledger, and does not see what a recorder beside it has not put yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import structlog

from recorder.model import ApiEvent, End, Recording, is_id
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError
from recorder.store.eventlog import EventLog
from recorder.store.live import Live
from recorder.store.manifest import Manifest, folder, manifest_key, parse_header, read_manifest
from recorder.store.reading import TextReader, read_lines
from recorder.store.recovery import read_chunks

_log = structlog.get_logger(__name__)

# Manifests read at once in a listing.
_AHEAD = 16


class Contents:
    """The reading half of `Store`; api.Reading. lives: the ledger's. alone: nobody else writes to these blobs."""

    def __init__(self, blobs: Blobs, lives: dict[str, Live], eventlog: EventLog, *, alone: bool) -> None:
        self.blobs = blobs
        self.lives = lives
        self.eventlog = eventlog
        self._alone = alone

    async def get(self, identifier: str) -> Recording:
        """See api.Reading."""
        live = self.lives.get(identifier)
        return live.recording if live is not None else (await self.manifest(identifier)).recording

    async def manifest(self, identifier: str) -> Manifest:
        """What is known of a recording that is over and wholly in the store. Raises KeyError, StoreError."""
        if not is_id(identifier):
            raise KeyError(identifier)
        try:
            data = await self.blobs.get(manifest_key(identifier))
        except KeyError:
            stored = await read_chunks(self.blobs, identifier)
            if stored is None:
                raise KeyError(identifier) from None
            # A running recorder's, if this one only reads or is one of several (a folder has but one); or what is left
            # of a store that lost its journal.
            recording = Recording(
                id=identifier,
                header=parse_header(stored.header_line),
                source=stored.source,
                started=stored.started,
                end=End.CUT if self._alone else End.RUNNING,
                size=stored.chunks[-1].offset + stored.chunks[-1].size,
                duration=stored.chunks[-1].last,
                events=sum(row.events for row in stored.chunks),
                damaged=any(row.damaged for row in stored.chunks),
            )
            return Manifest(recording, stored.header_line, stored.chunks, stored.head)
        return read_manifest(data, identifier)

    async def identifiers(self) -> AsyncGenerator[str, None]:
        """The ids of all recordings, by their names alone. Raises StoreError."""
        lives = set(self.lives)
        async for day, _ in self.blobs.names("recordings"):
            async for name, _ in self.blobs.names(f"recordings/{day.rstrip('/')}"):
                identifier = name.rstrip("/")
                if is_id(identifier):
                    lives.discard(identifier)
                    yield identifier
        for identifier in lives:
            yield identifier

    async def recordings(self) -> AsyncGenerator[Recording, None]:
        """See api.Reading. One whose manifest cannot be read is logged and left out."""
        days = {name.rstrip("/") async for name, _ in self.blobs.names("recordings")}
        lives = dict(self.lives)
        days |= {folder(identifier).split("/")[1] for identifier in lives}
        for day in sorted(days, reverse=True):
            found = {name.rstrip("/") async for name, _ in self.blobs.names(f"recordings/{day}")}
            found |= {identifier for identifier in lives if folder(identifier).split("/")[1] == day}
            identifiers = sorted(filter(is_id, found), reverse=True)
            for start in range(0, len(identifiers), _AHEAD):
                group = identifiers[start : start + _AHEAD]
                for recording in await asyncio.gather(*(self._get_listed(identifier) for identifier in group)):
                    if recording is not None:
                        yield recording

    async def _get_listed(self, identifier: str) -> Recording | None:
        try:
            return await self.get(identifier)
        except KeyError:
            return None
        except StoreError as error:
            _log.warning("recording_unreadable", recording=identifier, why=str(error))
            return None

    async def cast(
        self, identifier: str, *, start: float = 0.0, end: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See api.Reading."""
        reader, header_line, _ = await self._reader(identifier)
        async for lines in read_lines(reader, header_line, start=start, end=end):
            yield lines

    async def follow(self, identifier: str, *, start: float = 0.0) -> AsyncGenerator[bytes, None]:
        """See api.Reading."""
        reader, header_line, live = await self._reader(identifier)
        async for lines in read_lines(reader, header_line, start=start, live=live):
            yield lines

    async def text(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """Every byte that was kept, as it came; not cut at lines. Raises KeyError, StoreError."""
        reader, _, _ = await self._reader(identifier)
        position = 0
        while position < reader.end:
            piece, _ = await reader.read(position)
            position += len(piece)
            yield piece

    async def _reader(self, identifier: str) -> tuple[TextReader, bytes, Live | None]:
        live = self.lives.get(identifier)
        if live is not None:
            return TextReader(self.blobs, identifier, live.chunks.rows, live), live.header_line, live
        manifest = await self.manifest(identifier)
        return TextReader(self.blobs, identifier, manifest.chunks), manifest.header_line, None

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """See api.Reading."""
        return self.eventlog.events()

    async def event_days(self) -> set[str]:
        """The days of which there are some. Raises StoreError."""
        return await self.eventlog.days()

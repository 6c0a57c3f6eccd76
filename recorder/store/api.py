"""What the rest of the recorder may ask of the store; recorder/store/store.py has it. Import these for annotations.

Bytes of cast text go in as they come and are safe once `acked` has passed them. What comes out are whole lines.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from recorder.model import ApiEvent, End, Observer, Recording, Source


class Writer(Protocol):
    """One running recording."""

    @property
    def recording(self) -> Recording:
        """Its state now."""

    @property
    def acked(self) -> int:
        """Bytes that are safe, the header line's included."""

    @property
    def blocked(self) -> bool:
        """Whether the store has more of it than it should hold: wait for `ready` before the next write."""

    def write(self, data: bytes) -> None:
        """Take cast text, in pieces of any size. Raises StoreError once the store has failed it."""

    async def ready(self) -> None:
        """Wait until no longer blocked. Raises StoreError."""

    async def wait_acked(self, beyond: int) -> int:
        """Wait until more than `beyond` bytes are safe; how many are. Raises StoreError."""

    async def finish(self, end: End) -> Recording:
        """End it; returns once the end is safe. Raises StoreError."""


class Reading(Protocol):
    """What viewers, the index and the command line read."""

    async def get(self, identifier: str) -> Recording:
        """One recording, running or not. Raises KeyError, StoreError."""

    def recordings(self) -> AsyncGenerator[Recording, None]:
        """All, newest first. Raises StoreError."""

    def cast(self, identifier: str, *, start: float = 0.0, end: float | None = None) -> AsyncGenerator[bytes, None]:
        """Whole lines of cast text, many at a time: the header line, then the events from the first piece that
        reaches `start` (seconds of the cast) to the first one that is past `end`; pieces, not lines, are the grain.
        Raises KeyError, StoreError."""

    def follow(self, identifier: str) -> AsyncGenerator[bytes, None]:
        """Like `cast`, then whole lines as they get safe, until the recording ends. Raises KeyError, StoreError."""

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """All API events, oldest first. Raises StoreError."""


class Store(Reading, Protocol):
    """The whole. observers: told on the loop, after the bytes are safe."""

    observers: list[Observer]

    async def open(self) -> None:
        """Take what is there, close what a crash has left open (as CUT). Raises StoreError."""

    async def aclose(self) -> None:
        """Write out what is held and stop."""

    @property
    def healthy(self) -> str | None:
        """None while it can keep things, else what is wrong, in a sentence without paths or secrets."""

    async def begin(self, header_line: bytes, source: Source) -> Writer:
        """Start a recording. Raises StoreError where it can't be kept now, ValueError for no cast header."""

    async def add_event(self, document: bytes, source: Source) -> ApiEvent:
        """Keep an event; safe on return. Raises StoreError, ValueError for what is no JSON object."""

    async def remove(self, identifier: str) -> None:
        """Remove a recording that is over. Raises KeyError, StoreError."""

"""What viewers may ask of the store, and what a sender's end of it has; `Store` and `Live` are what they are.

Bytes of cast text go in as they come and are safe once `acked` has passed them. What comes out are whole lines.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from recorder.model import ApiEvent, End, Recording


@dataclass(frozen=True, slots=True)
class Kept:
    """A blob as it is stored. name: its key; size: bytes; sha256: hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A recording that is over and wholly in the store. header_line: with its line feed. head: SHA-256 of its last
    chunk. parts: all of it as stored, by what this process has put; None where some of it was there before that."""

    recording: Recording
    header_line: bytes
    head: str
    parts: tuple[Kept, ...] | None


class Registrar(Protocol):
    """Who signs what has come into the store (recorder/proof/register.py)."""

    async def look_before(self) -> None:
        """Note what is in the store before this process puts anything there. Called once, first. Raises nothing."""

    def ended(self, ended: Ended) -> Coroutine[Any, Any, None]:
        """A recording; returns when that is signed, or when there is no use in waiting. Raises nothing."""

    async def stored(self, kept: Kept) -> None:
        """A chunk of API events; the same."""

    def put_in(self, kept: Kept) -> None:
        """A chunk of the book of looks; nobody waits for its signature."""

    def found(self, names: list[str]) -> None:
        """Ids of recordings, and keys of chunks of events, that are whole in the store and of which the journal still
        speaks, after a crash."""

    @property
    def behind(self) -> bool:
        """Whether something waits for its signature."""

    def let_go(self) -> None:
        """The journal must not keep it any longer: it is signed later, if this process lives until then."""

    async def aclose(self) -> None:
        """Sign what is left, and stop."""


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

    def follow(self, identifier: str, *, start: float = 0.0) -> AsyncGenerator[bytes, None]:
        """Like `cast`, then whole lines as they get safe, until the recording ends. Raises KeyError, StoreError."""

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """All API events, oldest first. Raises StoreError."""

"""What the index needs of the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from recorder.model import ApiEvent, Recording


class Readable(Protocol):
    """What is needed of the store."""

    @property
    def arriving(self) -> float:
        """Bytes a second that come in now."""

    async def get(self, identifier: str) -> Recording:
        """One recording. Raises KeyError."""

    def recordings(self) -> AsyncGenerator[Recording, None]:
        """All that can be read."""

    def identifiers(self) -> AsyncGenerator[str, None]:
        """Of all, in no order."""

    def cast(self, identifier: str, *, start: float = 0.0, end: float | None = None) -> AsyncGenerator[bytes, None]:
        """A recording's cast. Raises KeyError."""

    def events(self) -> AsyncGenerator[ApiEvent, None]:
        """All."""

    async def event_days(self) -> set[str]:
        """The days ("yyyy-mm-dd") of which there are some."""

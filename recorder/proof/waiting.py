"""What has come into the store and waits for its signature."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from recorder.store.api import Ended, Kept

# Recordings that may wait for a signature with the journal still holding them; those behind them wait in memory alone.
HELD = 1000


@dataclass(slots=True)
class Item:
    """A recording, or a chunk. done: it is signed, or whoever waits is not to wait any longer."""

    ended: Ended | None = None
    kept: Kept | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Waiting:
    """items: what this process has put, in order. found: ids of recordings and keys of chunks that were whole in the
    store when it started, and of which the journal spoke. wake: something may be to do. moved: something was done, or
    cannot be done now."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.found: list[str] = []
        self.wake = asyncio.Event()
        self.moved = asyncio.Event()

    @property
    def behind(self) -> bool:
        """Whether something waits."""
        return bool(self.found or self.items)

    def add(self, item: Item) -> None:
        """It waits from now on."""
        self.items.append(item)
        self.wake.set()

    async def wait_for(self, item: Item) -> None:
        """Add it, and wait until it is signed; not if too many wait."""
        self.add(item)
        if len(self.items) <= HELD:
            await item.done.wait()

    def add_found(self, names: list[str]) -> None:
        """These were found."""
        self.found += names
        self.wake.set()

    def signed(self, count: int) -> None:
        """The first `count` are."""
        done, self.items = self.items[:count], self.items[count:]
        for item in done:
            item.done.set()
        self.moved.set()

    def signed_found(self, count: int) -> None:
        """The first `count` of what was found are, as far as they needed that."""
        del self.found[:count]
        self.moved.set()

    def let_go(self) -> int:
        """Nobody is to wait any longer, and what was found is forgotten: how much that was."""
        for item in self.items:
            item.done.set()
        count = len(self.found)
        self.found.clear()
        return count

    @property
    def recordings(self) -> set[str]:
        """The ids of those that wait."""
        return {item.ended.recording.id for item in self.items if item.ended is not None}

    def waits_for(self, until: float) -> bool:
        """Whether something waits that ended before that moment (unix seconds), or may have."""
        recordings = [item.ended.recording for item in self.items if item.ended is not None]
        return bool(self.found) or any((recording.ended or 0.0) < until for recording in recordings)

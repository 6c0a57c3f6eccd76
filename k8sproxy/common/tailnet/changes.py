"""A number that goes up when something changes, and a way to wait for that.

A number and not a callback: nobody is called in the middle of their own work, a change between two looks is seen at the
second, and ten changes are one.
"""

from __future__ import annotations

import asyncio


class Changes:
    """generation: goes up with every change."""

    def __init__(self) -> None:
        self.generation = 0
        self._changed = asyncio.Event()

    def bump(self) -> None:
        """Makes a new generation, and wakes whoever waits for one."""
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_changed(self, generation: int) -> int:
        """Returns the generation as soon as it is another than the one given, at once if it is already."""
        while self.generation == generation:
            await self._changed.wait()
        return self.generation

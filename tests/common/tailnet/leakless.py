"""Runs the coroutine of a test, and sees to it that it leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

# Seconds. No test here waits for time to pass; one that is still there has lost an event.
STUCK = 20.0


def run(scene: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(STUCK):
            await scene
        await asyncio.sleep(0)
        no_leaks()

    asyncio.run(main())


def no_leaks() -> None:
    """Fails if any task but the current one is there."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks, f"left behind: {tasks}"

"""Tasks that have an owner: the only place where either program starts one.

asyncio holds a task by a weak reference and keeps its fault to itself until somebody asks. A task that is started here
has a name, and an owner (a `Tasks`) that holds it until it is done. What happens to it:

    it returns           `ended` is called
    it is cancelled      `ended` is called
    it raises            `failed` is called, which logs the fault if nothing else was asked for; then `ended`
    its owner closes     it is cancelled, once, and the owner waits until it is done

Work that belongs to one block of code runs `beside` it. A task whose result somebody awaits is started with
`failed=left_to_waiter`.

Two rules of the linter hold the sources to this (TID251, and tests/common/test_tasks.py for what it cannot see).
`asyncio.TaskGroup` stays allowed: it holds, awaits and reports its tasks by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

Failed = Callable[[asyncio.Task[Any], BaseException], object]

_log = structlog.get_logger(__name__)


def log_fault(task: asyncio.Task[Any], error: BaseException) -> None:
    """Log a fault that nobody expected."""
    _log.error("task_failed", task=task.get_name(), exc_info=error)


def left_to_waiter(task: asyncio.Task[Any], error: BaseException) -> None:
    """Do nothing: the code that waits for the task gets the fault."""


class Tasks:
    """The tasks of one owner: those that are not done yet, the oldest first."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], None] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._running))

    def start(
        self,
        work: Coroutine[Any, Any, T],
        name: str,
        *,
        ended: Callable[[asyncio.Task[T]], object] | None = None,
        failed: Failed = log_fault,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task. ended: called once, when it is done in whatever way, also if it is cancelled
        before its first step. failed: called before that if it has raised. Both run before those that wait for it."""
        task = asyncio.create_task(work, name=name)  # noqa: TID251  (this is the one place)
        self._running[task] = None
        task.add_done_callback(partial(self._done, ended, failed))
        return task

    def _done(self, ended: Callable[[asyncio.Task[T]], object] | None, failed: Failed, task: asyncio.Task[T]) -> None:
        del self._running[task]
        try:
            if not task.cancelled() and (error := task.exception()) is not None:
                failed(task, error)
        finally:
            if ended is not None:
                ended(task)

    def cancel(self) -> None:
        """Cancel them all, without waiting."""
        for task in self:
            task.cancel()

    async def finished(self) -> None:
        """Wait until no task is left, also of those that are started meanwhile."""
        while waiting := self._others():
            await asyncio.wait(waiting)

    async def aclose(self) -> None:
        """Cancel all tasks, also those that are started meanwhile, and wait until they are done."""
        cancelled: set[asyncio.Task[Any]] = set()
        while waiting := self._others():
            for task in waiting:
                if task not in cancelled:  # a second time would cut short what it does at its end
                    cancelled.add(task)
                    task.cancel()
            await asyncio.wait(waiting)

    def _others(self) -> list[asyncio.Task[Any]]:
        # A task may close its owner. It does not wait for itself.
        own = asyncio.current_task()
        return [task for task in self._running if task is not own]


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T], name: str) -> AsyncIterator[asyncio.Task[T]]:
    """Run a coroutine beside the block, and no longer: at the end of the block it is cancelled and awaited.

    Its result and its fault are the block's to take.
    """
    tasks = Tasks()
    task = tasks.start(work, name, failed=left_to_waiter)
    try:
        yield task
    finally:
        await tasks.aclose()
